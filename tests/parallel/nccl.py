"""Several simulated devices: NCCL's transport, and the host's in its place, give the CPU's bits.

TESSERA_CUDA_OBJECT names the object of the simulated device (tests/simt/fake), whose NCCL sends MPI
messages. Each model is trained once on the CPU and then over layouts of devices; losses, gradient
norms and checkpoints must be equal to the last bit. Failures of a peer must end the run with exit
code 4 and one sentence that names rank, host and operation, at the deadline and no later.
"""
import os
import re
import sys
import time

import lab as laboratory
from lab import Different

MODELS = {"llama": {**laboratory.LLAMA, "tie_word_embeddings": True},
          "gpt2": {**laboratory.GPT2, "n_positions": 16}}

# tp, pp, dp; further fields. Between them: neighbours on both sides (pp 2) and on one, the tied
# embedding's exchange, both kinds of messages on one way (interleaved), slices that are uneven,
# micro-batches of so many rows (128) that sums over tp are begun in two parts. Lazy: devices that do
# nothing before somebody waits for them; then hosts may not wait for each other instead.
LAYOUTS = {
    "llama": [
        ((2, 1, 1), {"parallel.sequence": "true", "train.micro_batch": 8}),
        ((1, 2, 1), {"parallel.schedule": "interleaved", "parallel.chunks": 2,
                     "train.micro_batch": 2}),
        ((2, 2, 1), {"parallel.schedule": "1f1b", "train.recompute": "full"}),
        ((1, 3, 1), {"parallel.schedule": "gpipe", "train.micro_batch": 4}, "lazy"),
        ((1, 1, 4), {}),
    ],
    "gpt2": [
        ((2, 1, 2), {}),
        ((1, 2, 2), {"parallel.sequence": "true", "train.micro_batch": 4}, "lazy"),
        ((2, 2, 1), {"parallel.schedule": "interleaved", "parallel.chunks": 2,
                     "parallel.sequence": "true"}),
        ((4, 1, 1), {"train.micro_batch": 8}),
    ],
    "host": [
        ((2, 1, 2), {"parallel.sequence": "true"}),
        ((1, 2, 1), {"parallel.schedule": "interleaved", "parallel.chunks": 2}),
    ],
}
TIMEOUT_S = 3


def overrides_of(layout, more):
    tp, pp, dp = layout
    return {"parallel.tp": tp, "parallel.pp": pp, "parallel.dp": dp, **more}


def write_run(lab, model):
    train = {"steps": 3, "global_batch": 8, "lr": 1e-2, "clip": 0.5, "eval_every": 3,
             "dropout": laboratory.dropout()}
    return lab.write_text_run("run", MODELS[model], train, {"seq_len": 16})


def check_layouts(lab, group):
    run = write_run(lab, "gpt2" if group == "gpt2" else "llama")
    os.environ["TESSERA_TRANSPORT"] = "host" if group == "host" else "nccl"
    expected = lab.train(run, lab.dir / "cpu", {"device.backend": "cpu"}, 1)
    for layout, more, *mood in LAYOUTS[group]:
        name = "-".join([*map(str, layout), *mood]) + "".join(f" {k}={v}" for k, v in more.items())
        begin = time.monotonic()
        os.environ["TESSERA_FAKE_CUDA"] = ",".join(mood)
        try:
            overrides = {"device.backend": "cuda", **overrides_of(layout, more)}
            found = lab.train(run, lab.dir / re.sub(r"\W", "-", name), overrides,
                              layout[0] * layout[1] * layout[2])
            laboratory.compare_runs(expected, found)
        except (Different, RuntimeError) as problem:
            raise Different(f"{group}, {name}: {problem}") from None
        print(f"{group}, {name}: equal, {time.monotonic() - begin:.1f} s", flush=True)


# What goes wrong on rank 1, layout, what must be said; whether only at the deadline.
FAILURES = [
    ("hang=30", (2, 1, 1),
     r"rank \d \(host \S+\) waited \d\.\d s for \w+ from the other ranks in group tp", True),
    ("hang=3", (1, 1, 2), r"rank \d \(host \S+\) waited \d\.\d s for \w+ from ", True),
    ("hang=30", (1, 2, 1),
     r"rank \d \(host \S+\) waited \d\.\d s for (send|recv) from rank \d in group (pp|embed)", True),
    ("error=30", (2, 1, 1),
     r"rank \d \(host \S+\): \w+ in group tp failed: NCCL: remote process exited", False),
    ("error=12", (1, 2, 1), r"rank \d \(host \S+\): \w+( with rank 0)? in group pp failed", False),
    ("error=30,abort-hang", (2, 1, 1),
     r"rank \d \(host \S+\): \w+ in group tp failed: NCCL: remote process exited", False),
    ("init-hang", (2, 1, 1),
     r"rank \d \(host \S+\) waited \d\.\d s for all ranks to join NCCL in group tp", True),
    ("init-error", (1, 1, 2), r"rank 1 \(host \S+\): .* in group dp failed: NCCL: ", False),
]


def check_failure(lab, run, what, layout, said, at_deadline):
    overrides = {"device.backend": "cuda", "supervise.first_ms": 60000, **overrides_of(layout, {}),
                 "run.dir": lab.dir / f"fails-{what}-{'-'.join(map(str, layout))}"}
    env = {**laboratory.environment(), "TESSERA_FAKE_NCCL": f"rank=1,{what}",
           "TESSERA_TIMEOUT": str(TIMEOUT_S), "TESSERA_FAKE_CUDA": "devices=2"}
    arguments = [f"{k}={v}" for k, v in overrides.items()]
    command = lab.command(2, "train", run, *arguments)
    begin = time.monotonic()
    process = lab.start(command, env, text=True, stdout=laboratory.subprocess.PIPE,
                        stderr=laboratory.subprocess.STDOUT)
    text, _ = process.communicate(timeout=120)
    took = time.monotonic() - begin
    name = f"{what}, tp, pp, dp = {layout}"
    if process.returncode != 4:
        raise Different(f"{name}: exit code {process.returncode}, expected 4\n{text}")
    if not re.search(r"^tessera: error: " + said, text, re.M):
        raise Different(f"{name}: expected a line of {said!r}\n{text}")
    if at_deadline and took < TIMEOUT_S:
        raise Different(f"{name}: ended after {took:.1f} s, before the deadline\n{text}")
    print(f"{name}: exit 4 after {took:.1f} s", flush=True)


def check_failures(lab):
    lab.make_data()
    run = write_run(lab, "llama")
    for failure in FAILURES:
        check_failure(lab, run, *failure)
    return 0


def layouts_of(group):
    def check(lab):
        lab.make_data()
        check_layouts(lab, group)
        return 0
    return check


if __name__ == "__main__":
    if "TESSERA_CUDA_OBJECT" not in os.environ:
        sys.exit("TESSERA_CUDA_OBJECT is missing: the object of the simulated device")
    CASES = {group: layouts_of(group) for group in LAYOUTS}
    laboratory.main(__doc__, {**CASES, "failures": check_failures})

"""`tessera plan` of runs on devices: what it says of each rank is what the rank has there.

TESSERA_CUDA_OBJECT names the object of the simulated device (tests/simt/fake), a machine with one
device of 4 GiB unless TESSERA_FAKE_CUDA says otherwise.
"""
import json
import os
import sys

import lab as laboratory
from lab import Different

RUN = """
model:
  config:
    model_type: llama
    hidden_size: 128
    num_hidden_layers: 4
    num_attention_heads: 2
    num_key_value_heads: 1
    intermediate_size: 44
    vocab_size: 307
    tie_word_embeddings: true
data:
  seq_len: 16
train:
  steps: 3
  global_batch: 8
"""
LAYOUTS = [  # tp, pp, dp; further fields
    ((1, 1, 1), {"train.micro_batch": 2}),
    ((2, 1, 2), {"train.precision": "bf16", "parallel.sequence": "true"}),
    ((2, 2, 1), {"parallel.schedule": "interleaved", "parallel.chunks": 2}),
    ((1, 2, 2), {"train.precision": "bf16", "train.recompute": "full"}),
]
# Of the kernels only the open device knows; there is no snapshot in `bench train`.
NOT_COMPARED = {"ranks", "slabs", "kernels", "snapshot"}


def fields_of(layout, more):
    sizes = dict(zip(("parallel.tp", "parallel.pp", "parallel.dp"), layout, strict=True))
    return [f"{k}={v}" for k, v in {**sizes, **more}.items()]


def last_json(lab, n_ranks, *arguments):
    command = lab.command(n_ranks, *arguments, "--json")
    return json.loads(lab.output(command, laboratory.environment()).splitlines()[-1])


def expect(good, *what):
    if not good:
        raise Different(" ".join(map(str, what)))


def check_ranks(lab, run, layout, more):
    fields = fields_of(layout, more)
    plan = last_json(lab, 1, "plan", run, *fields)
    found = last_json(lab, layout[0] * layout[1] * layout[2], "bench", "train", run, *fields,
                      "--steps", 1)["rank_bytes"]
    classes = [plan["classes"][k] for k in plan["class_of_rank"]]
    for purpose in found.keys() - NOT_COMPARED:
        planned = [c[purpose] for c in classes]
        expect(planned == found[purpose], fields, purpose, planned, "planned, found", found[purpose])
    on_device = [c["device_bytes"] for c in classes]
    expect(on_device == found["slabs"], fields, on_device, "planned, on devices", found["slabs"])
    expect(plan["devices"] == 1 and plan["device_bytes"] == sum(on_device)
           and plan["host_bytes"] == sum(c["total"] for c in classes) - sum(on_device), fields, plan)
    expect(0 < plan["device_memory_bytes"] <= 4 << 30 and plan["fits"], fields, plan)
    spread = last_json(lab, 1, "plan", run, *fields, "--devices-per-host", 64)
    expect(spread["device_bytes"] == max(on_device), fields, spread)
    print(f"{' '.join(fields)}: {sum(on_device)} bytes", flush=True)


def check(lab):
    run = lab.write_run("run", RUN)
    for transport, layouts in (("nccl", LAYOUTS), ("host", LAYOUTS[1:2])):
        os.environ["TESSERA_TRANSPORT"] = transport
        for layout, more in layouts:
            check_ranks(lab, run, layout, more)
    return 0


def check_small(lab):
    """A device that is too small is told before the run starts, with what would help."""
    lab.make_data()
    text = RUN.replace("seq_len: 16", "seq_len: 256\n  train: train.txt")
    run = lab.write_run("run", text.replace("data:", "  tokenizer: tokenizer\ndata:") + f"""\
  micro_batch: 8
run: {{dir: {lab.dir / "run"}}}
device: {{backend: cuda}}
""")
    enough = last_json(lab, 1, "plan", run)["device_bytes"]
    os.environ["TESSERA_FAKE_CUDA"] = f"memory={enough - (1 << 20)}"
    plan = last_json(lab, 1, "plan", run)
    fitting = [a for a in plan["advice"] if a["fits"] and " on " not in a["change"]]
    expect(not plan["fits"] and fitting and fitting[0]["device_bytes"] < enough, plan)
    again = last_json(lab, 1, "plan", run, *fitting[0]["change"].split())
    expect(again["fits"] and again["device_bytes"] == fitting[0]["device_bytes"], again)
    process = lab.start(lab.command(1, "train", run), laboratory.environment(), text=True,
                        stderr=laboratory.subprocess.PIPE)
    said = process.communicate(timeout=laboratory.RUN_LIMIT_S)[1]
    expect(process.returncode == 3 and "can't fit: 1 rank on device 0 (Simulated device" in said
           and "it would fit" in said, process.returncode, said)
    return 0


if __name__ == "__main__":
    if "TESSERA_CUDA_OBJECT" not in os.environ:
        sys.exit("TESSERA_CUDA_OBJECT is missing: the object of the simulated device")
    laboratory.main(__doc__, {"ranks": check, "small": check_small})

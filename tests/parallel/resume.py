"""A run that is killed or interrupted, again and again, and continued in another layout each time,
writes the metrics and the weights of one that was left alone. No process stays behind.
"""
import os
import signal
import time

import lab as laboratory
from lab import Different, Random, SLOW_BUILD

STEPS = 100
LAYOUTS = [
    {"tp": 2, "pp": 2, "dp": 1},
    {"tp": 1, "pp": 1, "dp": 4, "micro": 2},
    {"tp": 4, "pp": 1, "dp": 1, "sequence": "true", "micro": 8},
    {"tp": 1, "pp": 2, "dp": 2, "schedule": "interleaved", "chunks": 2},
    {"tp": 2, "pp": 1, "dp": 2, "sequence": "true"},
]
EXIT_INTERRUPTED = 5


def arguments(layout, run_dir):
    a = [f"parallel.{k}={v}" for k, v in layout.items() if k != "micro"]
    return a + [f"train.micro_batch={layout.get('micro', 1)}", "device.threads=1",
                f"run.dir={run_dir}"]


def start(lab, run_file, layout, run_dir):
    n_ranks = layout["tp"] * layout["pp"] * layout["dp"]
    log = open(lab.dir / "output", "w", encoding="utf-8")
    return lab.start(lab.command(n_ranks, "train", run_file, *arguments(layout, run_dir)),
                     laboratory.environment(), stdout=log, stderr=log)


def n_lines(run_dir):
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_step(lab, process, run_dir, step):
    """Until metrics.jsonl has that step, while the run is going on."""
    deadline = time.monotonic() + laboratory.RUN_LIMIT_S
    while n_lines(run_dir) < step:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"ended or stuck before step {step}: "
                               f"{process.returncode}\n{(lab.dir / 'output').read_text()}")
        time.sleep(0.002)


def ranks_of(process, layout):
    if layout["tp"] * layout["pp"] * layout["dp"] == 1:
        return [process.pid]
    return laboratory.children(process.pid)


def finish(lab, run_file, layout, run_dir, expected):
    process = start(lab, run_file, layout, run_dir)
    if process.wait(laboratory.RUN_LIMIT_S) != 0:
        raise RuntimeError(f"exit code {process.returncode}\n{(lab.dir / 'output').read_text()}")
    laboratory.compare_runs(expected, run_dir)
    steps = [m["step"] for m in laboratory.metrics(run_dir)]
    assert steps == [str(i + 1) for i in range(STEPS)], f"steps: {steps}"


def undisturbed(lab):
    lab.make_data()
    train = {"steps": STEPS, "global_batch": 8, "lr": 1e-2, "schedule": "cosine", "warmup": 5,
             "eval_every": 7, "dropout": laboratory.dropout()}
    run_file = lab.write_text_run("run", laboratory.LLAMA, train, {"seq_len": 20},
                                  checkpoint={"every": 5, "keep": 3})
    one = {"tp": 1, "pp": 1, "dp": 1}
    process = start(lab, run_file, one, lab.dir / "undisturbed")
    if process.wait(laboratory.RUN_LIMIT_S) != 0:
        raise RuntimeError((lab.dir / "output").read_text())
    return run_file, lab.dir / "undisturbed"


def kill_rank(lab, run_file, layout, run_dir, step, rng):
    process = start(lab, run_file, layout, run_dir)
    wait_for_step(lab, process, run_dir, step)
    time.sleep(rng.below(20) * 1e-3)  # anywhere inside a step, or while a checkpoint is written
    ranks = ranks_of(process, layout)
    victim = rng.below(len(ranks))
    assert len(ranks) == layout["tp"] * layout["pp"] * layout["dp"], f"ranks: {ranks}"
    assert process.poll() is None, "the run ended before the kill"
    os.kill(ranks[victim], signal.SIGKILL)
    code = process.wait(laboratory.RUN_LIMIT_S)
    laboratory.check_all_gone(ranks + [process.pid])
    assert code != 0, "mpirun reports success although a rank was killed"
    print(f"{layout}: rank {victim} killed after step {n_lines(run_dir)}, exit code {code}",
          flush=True)


def killed(lab):
    """SIGKILL of one rank, three times over."""
    run_file, expected = undisturbed(lab)
    rng, failures, layout = Random(20), 0, 0

    def another_layout():
        nonlocal layout
        layout = (layout + 1 + rng.below(len(LAYOUTS) - 1)) % len(LAYOUTS)
        return LAYOUTS[layout]

    for trial in range(1 if SLOW_BUILD else 3):
        run_dir, step = lab.dir / f"killed-{trial}", 0
        for _ in range(3):
            step += 1 + rng.below(8)
            kill_rank(lab, run_file, another_layout(), run_dir, step, rng)
            step = n_lines(run_dir)
        try:
            finish(lab, run_file, another_layout(), run_dir, expected)
            print(f"trial {trial}: equal", flush=True)
        except (Different, RuntimeError) as e:
            failures += 1
            print(f"trial {trial}: FAILED: {e}", flush=True)
    return failures


def interrupted(lab):
    """Ctrl-C: SIGINT to a single process, SIGUSR1 to mpirun. A checkpoint, exit code 5."""
    run_file, expected = undisturbed(lab)
    run_dir, step = lab.dir / "interrupted", 0
    one = {"tp": 1, "pp": 1, "dp": 1}
    for layout, sig in [(one, signal.SIGINT), (LAYOUTS[0], signal.SIGUSR1), (one, signal.SIGTERM),
                        (LAYOUTS[3], signal.SIGUSR1)]:
        process = start(lab, run_file, layout, run_dir)
        wait_for_step(lab, process, run_dir, step + 2)
        ranks = ranks_of(process, layout)
        process.send_signal(sig)
        code = process.wait(laboratory.RUN_LIMIT_S)
        laboratory.check_all_gone(ranks + [process.pid])
        step = n_lines(run_dir)
        saved = laboratory.checkpoint(run_dir).name
        print(f"{layout}: {sig.name} after step {step}: exit code {code}, {saved}", flush=True)
        assert code == EXIT_INTERRUPTED, (lab.dir / "output").read_text()
        assert saved == f"step-{step:08d}", "the checkpoint isn't of the last step"
        assert step < STEPS, "the run ended before the signal"
    finish(lab, run_file, LAYOUTS[1], run_dir, expected)
    return 0


if __name__ == "__main__":
    laboratory.main(__doc__, {"killed": killed, "interrupted": interrupted})

"""Steps with bad data: skipped, rolled back or the end of the run, as the run file says, alike in
every layout, and alike when the run is killed or interrupted and continued.

The data has whole batches of its own for each kind of step. `calm` ones count up by threes; `wild`
ones hold tokens that no other batch has, a spike of loss and gradient norm; `broken` ones hold a
token whose row of the embedding is infinite, as in a damaged model folder: what is computed from it
is not finite.

Oracles: a run whose bad steps are skipped has the weights of a run on the same data without those
batches (the learning rate is constant); a run that rolls back has also its curve, on the data
without all that the rollback dropped.
"""
import json
import os
import signal
import struct
import time

import lab as laboratory
from lab import Different, Random, SLOW_BUILD

STEPS, KILLED_STEPS, T, BATCH, VOCAB, EVERY = 30, 100, 16, 8, 64, 5
BROKEN_TOKEN, EXIT_USER, EXIT_INTERRUPTED = 63, 2, 5
MODEL = {**laboratory.LLAMA, "vocab_size": VOCAB}
ONE = {"tp": 1, "pp": 1, "dp": 1}
LAYOUTS = [ONE, {"tp": 2, "pp": 2, "dp": 1}, {"tp": 1, "pp": 1, "dp": 4, "micro": 2},
           {"tp": 4, "pp": 1, "dp": 1, "sequence": "true", "micro": 8},
           {"tp": 1, "pp": 2, "dp": 2, "schedule": "interleaved", "chunks": 2}]
INFINITY = struct.pack("<f", float("inf"))


def sequence(kind, rng):
    """T tokens; the first is always 0, so that no sequence's last target is of another batch."""
    if kind == "calm":
        first = 1 + rng.below(28)
        return [0] + [1 + (first + 3 * i) % 28 for i in range(T - 1)]
    if kind == "wild":
        return [0] + [40 + rng.below(16) for _ in range(T - 1)]
    return [0] + [BROKEN_TOKEN if i == 3 else 1 + rng.below(28) for i in range(T - 1)]


def write_tokens(prefix, kinds, leave_out=()):
    """A .bin/.idx pair (Megatron-LM) of one batch for each kind."""
    ids = []
    for k, kind in enumerate(kinds):
        rng = Random(1000 + k)
        batch = [sequence(kind, rng) for _ in range(BATCH)]
        if k not in leave_out:
            ids += [t for s in batch for t in s]
    ids.append(0)
    laboratory.write_indexed(prefix, ids)
    return prefix


def kinds(bad, n=STEPS + 40):
    """Calm batches but for {number: kind}."""
    return [bad.get(k, "calm") for k in range(n)]


def damaged_model(lab):
    """A model folder, trained on calm data, in which the embedding of one token is infinite."""
    data = write_tokens(lab.dir / "any", kinds({}, 90))
    run_file = lab.write_run("init", json.dumps({
        "model": {"config": MODEL}, "data": {"train": str(data), "seq_len": T},
        "train": {"steps": 80, "global_batch": BATCH, "lr": 0.01, "schedule": "linear"}}))
    run_dir = lab.train(run_file, lab.dir / "init", {"device.threads": 1}, 1)
    model = lab.dir / "model"
    model.mkdir()
    for file in laboratory.checkpoint(run_dir).iterdir():
        if file.name == "config.json" or file.suffix == ".safetensors" or "index" in file.name:
            (model / file.name).write_bytes(file.read_bytes())
    weights = model / "model-00001-of-00001.safetensors"
    content = bytearray(weights.read_bytes())
    n = struct.unpack("<Q", content[:8])[0]
    begin = json.loads(content[8:8 + n])["model.embed_tokens.weight"]["data_offsets"][0]
    row = 8 + n + begin + 4 * MODEL["hidden_size"] * BROKEN_TOKEN
    content[row:row + 4 * MODEL["hidden_size"]] = INFINITY * MODEL["hidden_size"]
    weights.write_bytes(content)
    return model


class Job:
    """One run file, and the folders of its runs."""

    def __init__(self, lab, model, name, data, on_bad, steps=STEPS, max_skips=10):
        self.lab, self.name = lab, name
        self.run_file = lab.write_run(name, json.dumps({
            "model": {"from": str(model)},
            "data": {"train": str(data), "seq_len": T, "shuffle": False},
            "train": {"steps": steps, "global_batch": BATCH, "lr": 0.001,
                      "on_nonfinite": on_bad, "max_skips": max_skips},
            "checkpoint": {"every": EVERY}}))
        self.n = 0

    def arguments(self, layout, run_dir, *more):
        return [self.run_file, *[f"parallel.{k}={v}" for k, v in layout.items() if k != "micro"],
                f"train.micro_batch={layout.get('micro', 1)}", "device.threads=1",
                f"run.dir={run_dir}", *more]

    def new_dir(self):
        self.n += 1
        return self.lab.dir / f"{self.name}-{self.n}"

    def start(self, layout, run_dir, *more):
        log = open(self.lab.dir / "output", "w", encoding="utf-8")
        n_ranks = layout["tp"] * layout["pp"] * layout["dp"]
        return self.lab.start(
            self.lab.command(n_ranks, "train", *self.arguments(layout, run_dir, *more)),
            laboratory.environment(), stdout=log, stderr=log)

    def run(self, layout, run_dir, *more, code=0):
        """A whole run that must end with this exit code; returns what it said."""
        process = self.start(layout, run_dir, *more)
        found = process.wait(laboratory.RUN_LIMIT_S)
        said = (self.lab.dir / "output").read_text()
        if found != code:
            raise RuntimeError(f"exit code {found}, expected {code}\n{said}")
        return said


def spikes(action, grad_norm=10, loss=8):
    return (f"train.spike={{grad_norm: {grad_norm}, loss: {loss}, window: 4, "
            f"action: {action}}}")


def last(run_dir):
    return laboratory.metrics(run_dir)[-1]


def expect_counts(run_dir, **counts):
    for key, value in counts.items():
        found = int(last(run_dir)[key])
        assert found == value, f"{key}: {found}, expected {value}"


def expect_steps(run_dir, n=STEPS):
    steps = [m["step"] for m in laboratory.metrics(run_dir)]
    assert steps == [str(i + 1) for i in range(n)], f"steps: {steps}"


def compare_curves(expected, found, keys=("step", "loss", "grad_norm", "lr")):
    a, b = laboratory.metrics(expected), laboratory.metrics(found)
    assert len(a) == len(b), f"{len(b)} steps, expected {len(a)}"
    for e, f in zip(a, b):
        for key in keys:
            if e[key] != f[key]:
                raise Different(f"step {e['step']}: {key} {f[key]}, expected {e[key]}")


def compare_data_positions(expected, found):
    a, b = [json.loads((laboratory.checkpoint(d) / "state.json").read_text())
            for d in (expected, found)]
    for key in ("step", "updates", "sequences", "guard"):
        if a[key] != b[key]:
            raise Different(f"state.json: {key} {b[key]}, expected {a[key]}")


def in_all_layouts(job, *more):
    """The same run in every layout; the directory of the first."""
    first = None
    for layout in LAYOUTS[:2] if SLOW_BUILD else LAYOUTS:
        run_dir = job.new_dir()
        job.run(layout, run_dir, *more)
        first = first or run_dir
        laboratory.compare_runs(first, run_dir)
        compare_data_positions(first, run_dir)
    return first


def skipped(lab):
    """Bad steps change nothing but the counts, and the learning rate's step."""
    model = damaged_model(lab)
    bad = {2: "broken", 11: "wild", 12: "broken", 13: "wild", 20: "wild"}
    job = Job(lab, model, "skip", write_tokens(lab.dir / "bad", kinds(bad)), "skip")
    found = in_all_layouts(job, spikes("skip"))
    expect_steps(found)
    expect_counts(found, skipped=5, rollbacks=0, dropped_sequences=0)
    for m in laboratory.metrics(found):
        is_bad = int(m["step"]) - 1 in bad
        before = laboratory.metrics(found)[int(m["step"]) - 2]["skipped"] if m["step"] != "1" else 0
        assert int(m["skipped"]) - int(before) == is_bad, f"step {m['step']}"
    clean = Job(lab, model, "clean", write_tokens(lab.dir / "good", kinds(bad), bad), "stop",
                STEPS - len(bad))
    expected = clean.new_dir()
    clean.run(ONE, expected)
    expect_counts(expected, skipped=0)
    laboratory.compare_checkpoints(laboratory.checkpoint(expected), laboratory.checkpoint(found))
    return 0


# Batch 2 comes before the first periodical checkpoint: the run goes back to its beginning. Batches
# 13 and 16: twice to the checkpoint of step 5 or 10, depending on what was dropped before.
BAD = {2: "broken", 13: "wild", 16: "broken", 27: "wild"}


def dropped_batches(bad, every=EVERY):
    """What rollbacks leave out, worked out from the rule: (numbers of the batches, rollbacks)."""
    position, step, anchor, out, n = 0, 0, (0, 0), set(), 0
    while step < STEPS:
        if position in bad:
            out |= set(range(anchor[1], position + 1))
            step, position, n = anchor[0], position + 1, n + 1
            anchor = (step, position)
            continue
        step, position = step + 1, position + 1
        anchor = (step, position) if step % every == 0 else anchor
    return out, n


def rolled_back(lab):
    """Back to the last periodical checkpoint, and on with the data after the bad batch."""
    model = damaged_model(lab)
    job = Job(lab, model, "rollback", write_tokens(lab.dir / "bad", kinds(BAD)), "rollback")
    found = in_all_layouts(job, spikes("rollback"))
    out, n = dropped_batches(BAD)
    expect_steps(found)
    expect_counts(found, skipped=0, rollbacks=n, dropped_sequences=BATCH * len(out))
    clean = Job(lab, model, "clean", write_tokens(lab.dir / "good", kinds(BAD), out), "stop")
    expected = clean.new_dir()
    clean.run(ONE, expected)
    compare_curves(expected, found)
    laboratory.compare_checkpoints(laboratory.checkpoint(expected), laboratory.checkpoint(found))
    log = (found / "log.jsonl").read_text()
    assert log.count("rolled back to step") == n, log
    names = sorted(p.name for p in (found / "checkpoints").iterdir())
    assert names == [f"step-{s:08d}" for s in range(0, STEPS + 1, EVERY)], names
    return 0


def mixed(lab):
    """Both actions in one run, with a checkpoint kept for each rollback (checkpoint.keep)."""
    model = damaged_model(lab)
    bad = {**BAD, 7: "broken", 8: "broken"}
    job = Job(lab, model, "mixed", write_tokens(lab.dir / "bad", kinds(bad)), "skip")
    found = in_all_layouts(job, spikes("rollback", grad_norm=0), "checkpoint.keep=1", "train.eval_every=3",
                           f"data.valid={lab.dir / 'any'}")
    expect_steps(found)
    assert int(last(found)["skipped"]) > 0 and int(last(found)["rollbacks"]) > 0, last(found)
    names = sorted(p.name for p in (found / "checkpoints").iterdir())
    assert len(names) <= 3, names
    return 0


def n_rollbacks(run_dir):
    log = run_dir / "log.jsonl"
    return log.read_text().count("rolled back to step") if log.exists() else 0


def kill_or_interrupt(lab, job, layout, run_dir, more, rng):
    """Starts the run, ends it a while later by a signal; True when it had finished before."""
    metrics, before, n = run_dir / "metrics.jsonl", time.time_ns(), n_rollbacks(run_dir)
    process = job.start(layout, run_dir, *more)
    n_ranks = layout["tp"] * layout["pp"] * layout["dp"]
    while process.poll() is None and not (metrics.exists() and
                                          metrics.stat().st_mtime_ns > before):
        time.sleep(0.002)
    if rng.below(2) == 0:
        time.sleep(rng.below(100) * 1e-3)
    else:  # in the middle of a rollback
        while process.poll() is None and n_rollbacks(run_dir) == n:
            time.sleep(0.001)
        time.sleep(rng.below(10) * 1e-3)
    ranks = laboratory.children(process.pid) if n_ranks > 1 else []
    if rng.below(3) == 0:
        sig = signal.SIGUSR1 if n_ranks > 1 else signal.SIGINT
        process.send_signal(sig)
    elif len(ranks) == n_ranks:
        os.kill(ranks[rng.below(n_ranks)], signal.SIGKILL)
    else:
        process.kill()
    code = process.wait(laboratory.RUN_LIMIT_S)
    laboratory.check_all_gone(ranks + [process.pid])
    return code == 0


def killed(lab):
    """Killed and interrupted again and again, in another layout each time: the same run."""
    model, rng, failures = damaged_model(lab), Random(5), 0
    bad = {**BAD, 7: "broken", 8: "wild"}
    for k in range(40, 2 * KILLED_STEPS, 19):
        bad[k] = "broken" if k % 2 else "wild"
    data = write_tokens(lab.dir / "bad", kinds(bad, 3 * KILLED_STEPS))
    for on_bad, action in [("rollback", "rollback"), ("skip", "rollback"), ("rollback", "skip")]:
        job = Job(lab, model, f"killed-{on_bad}-{action}", data, on_bad, KILLED_STEPS)
        more = [spikes(action), "checkpoint.keep=2"]
        expected = job.new_dir()
        job.run(ONE, expected, *more)
        assert int(last(expected)["rollbacks"]) > 0, last(expected)
        run_dir, n = job.new_dir(), 0
        for _ in range(2 if SLOW_BUILD else 8):
            layout = LAYOUTS[1 + rng.below(len(LAYOUTS) - 1)]
            n += 1
            if kill_or_interrupt(lab, job, layout, run_dir, more, rng):
                break
        job.run(LAYOUTS[rng.below(len(LAYOUTS))], run_dir, *more)
        try:
            laboratory.compare_runs(expected, run_dir)
            compare_data_positions(expected, run_dir)
            compare_curves(expected, run_dir, ("rollbacks", "dropped_sequences"))
            expect_steps(run_dir, KILLED_STEPS)
            again = n_rollbacks(run_dir) - int(last(run_dir)["rollbacks"])
            print(f"{on_bad}, {action}: {n} ends, {again} rollbacks twice, equal", flush=True)
        except (Different, AssertionError) as e:
            failures += 1
            print(f"{on_bad}, {action}: FAILED: {e}", flush=True)
    return failures


def stopped(lab):
    """The end of a run by its own rules: exit code 2, the state before the bad step is saved."""
    model = damaged_model(lab)
    bad = {7: "broken", 11: "wild"}
    job = Job(lab, model, "stop", write_tokens(lab.dir / "bad", kinds(bad)), "stop")
    reference, run_dir = job.new_dir(), job.new_dir()
    job.run(ONE, reference, "train.on_nonfinite=skip", spikes("skip"))
    for layout in LAYOUTS[:3]:  # nothing changes by trying again
        said = job.run(layout, run_dir, spikes("stop"), code=EXIT_USER)
        assert "step 8: loss" in said and "not finite; train.on_nonfinite is stop" in said, said
        assert "checkpoint step-00000007" in said, said
        assert laboratory.checkpoint(run_dir).name == "step-00000007"
        expect_steps(run_dir, 7)
    said = job.run(LAYOUTS[1], run_dir, "train.on_nonfinite=skip", spikes("stop", grad_norm=0),
                   code=EXIT_USER)
    assert "step 12: loss" in said and "train.spike.action is stop" in said, said
    assert "the loss is more than 8 x 0." in said, said
    job.run(LAYOUTS[2], run_dir, "train.on_nonfinite=skip", spikes("skip"))
    laboratory.compare_runs(reference, run_dir)
    return 0


def worn_out(lab):
    """Skips in a row and rollbacks to one checkpoint have a limit."""
    model = damaged_model(lab)
    data = write_tokens(lab.dir / "bad", kinds({k: "broken" for k in range(12, 60)}))
    for on_bad, text, step, sequences in [
            ("skip", "3 skipped steps in a row", 15, 15),
            ("rollback", "3 rollbacks to one checkpoint", 10, 15)]:
        job = Job(lab, model, on_bad, data, on_bad, max_skips=3)
        for layout in LAYOUTS[:2]:
            run_dir = job.new_dir()
            for _ in range(2):  # the count survives a restart
                said = job.run(layout, run_dir, code=EXIT_USER)
                assert text in said and "train.max_skips" in said, said
            saved = laboratory.checkpoint(run_dir)
            state = json.loads((saved / "state.json").read_text())
            assert saved.name == f"step-{step:08d}", saved
            assert state["sequences"] == sequences * BATCH, state["sequences"]
    return 0


def other_anchors(lab):
    """An anchor that is damaged gives way to an older one; a run that begins elsewhere has its own."""
    model, bad = damaged_model(lab), {12: "broken"}
    job = Job(lab, model, "anchor", write_tokens(lab.dir / "bad", kinds(bad)), "stop")
    here, elsewhere = job.new_dir(), job.new_dir()
    job.run(LAYOUTS[1], here, code=EXIT_USER)
    plain = laboratory.checkpoint(here)
    assert plain.name == "step-00000012", plain

    job.run(LAYOUTS[2], elsewhere, "train.on_nonfinite=rollback", f"checkpoint.resume={plain}")
    expect_counts(elsewhere, rollbacks=1, dropped_sequences=BATCH)
    assert "rolled back to step 12" in (elsewhere / "log.jsonl").read_text()
    clean = Job(lab, model, "clean", write_tokens(lab.dir / "good", kinds(bad), bad), "stop")
    expected = clean.new_dir()
    clean.run(ONE, expected)
    laboratory.compare_checkpoints(laboratory.checkpoint(expected), laboratory.checkpoint(elsewhere))

    damaged = here / "checkpoints/step-00000010/model-00001-of-00001.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    job.run(LAYOUTS[3], here, "train.on_nonfinite=rollback", "checkpoint.keep=0")
    log = (here / "log.jsonl").read_text()
    assert "step-00000010 is not used" in log and "rolled back to step 5" in log, log
    expect_counts(here, rollbacks=1, dropped_sequences=8 * BATCH)
    expect_steps(here)
    write_tokens(lab.dir / "good", kinds(bad), range(5, 13))
    expected = clean.new_dir()
    clean.run(ONE, expected)
    compare_curves(expected, here)
    laboratory.compare_checkpoints(laboratory.checkpoint(expected), laboratory.checkpoint(here))
    names = sorted(p.name for p in (here / "checkpoints").iterdir())
    assert names == [f"step-{s:08d}" for s in range(5, STEPS + 1, EVERY)], names
    return 0


if __name__ == "__main__":
    laboratory.main(__doc__, {"skipped": skipped, "rolled_back": rolled_back, "mixed": mixed,
                              "killed": killed, "stopped": stopped, "worn_out": worn_out,
                              "other_anchors": other_anchors})

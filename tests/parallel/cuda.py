"""Training and generating on a CUDA device, simulated, give the CPU's numbers to the last bit in
fp32: loss and gradient norm of every step, weights and optimizer state, tokens and losses.
TESSERA_CUDA_OBJECT names the simulated object.
"""
import os
from pathlib import Path

import lab as laboratory
from lab import Different

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "exact"
STEPS = {"train.steps": 20, "data.seq_len": 12, "train.eval_every": 10}
# The simulated machine's moods (tests/simt/fake/cuda_runtime_api.h): work that waits until it is
# waited for, and device memory that a host must not touch.
MOODS = ("", "lazy,strict")


def with_mood(mood, call):
    os.environ["TESSERA_FAKE_CUDA"] = mood
    try:
        return call()
    finally:
        del os.environ["TESSERA_FAKE_CUDA"]


def train(lab, model, name, settings):
    return lab.train(GOLDEN / f"{model}.yaml", lab.dir / name, {**STEPS, **settings}, 1)


def tokens(lab, model_dir, device, *options):
    return lab.output([lab.tessera, "generate", model_dir, "--ids", "3,1,4,1,5", "-n", "12",
                       "--ignore-eos", "--device", device, *options], laboratory.environment())


def loss(lab, model_dir, device):
    return lab.output([lab.tessera, "eval", model_dir, "--data", GOLDEN / "valid.txt", "--seq-len",
                       "24", "--device", device], laboratory.environment())


def check_equal(what, expected, found):
    if expected != found:
        raise Different(f"{what}: found {found}, expected {expected}")


def check_model(lab, model):
    variants = {
        "as it is": {},
        "recompute": {"train.recompute": "full", "train.steps": 3},
        "inexact": {"parallel.exact": "false", "train.steps": 3},
        "micro-batches": {"train.micro_batch": 4, "train.steps": 3},
    }
    failures = 0
    for variant, settings in variants.items():
        verdict = "equal"
        try:
            cpu = train(lab, model, f"cpu-{variant}", {**settings, "device.backend": "cpu"})
            for mood in MOODS if variant == "as it is" else MOODS[:1]:
                cuda = with_mood(mood, lambda: train(lab, model, f"cuda-{variant}-{mood}",
                                                     {**settings, "device.backend": "cuda"}))
                laboratory.compare_runs(cpu, cuda)
        except (Different, RuntimeError) as e:
            failures += 1
            verdict = f"FAILED: {e}"
        print(f"{model:6} train {variant:14} {verdict}", flush=True)
    verdict = "equal"
    try:
        saved = laboratory.checkpoint(lab.dir / "cpu-as it is")
        for mood in MOODS:
            for options in (("-t", "0"), ("-t", "0.8", "--top-k", "20", "--seed", "5")):
                expected = tokens(lab, saved, "cpu", *options)
                check_equal("tokens", expected,
                            with_mood(mood, lambda: tokens(lab, saved, "cuda", *options)))
            check_equal("eval", loss(lab, saved, "cpu"),
                        with_mood(mood, lambda: loss(lab, saved, "cuda")))
    except (Different, RuntimeError) as e:
        failures += 1
        verdict = f"FAILED: {e}"
    print(f"{model:6} generate and eval    {verdict}", flush=True)
    return failures


if __name__ == "__main__":
    laboratory.main(__doc__, {m: lambda lab, m=m: check_model(lab, m) for m in ("llama", "gpt2")})

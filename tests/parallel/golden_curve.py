"""Loss and gradient norm of ten steps, committed in tests/golden/exact, are met to the last bit on
whatever processor the tests run, with every instruction set that it has.
"""
import os
from pathlib import Path

import lab as laboratory
from lab import Different

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "exact"
KEYS = ("step", "loss", "grad_norm", "valid_loss")
LAYOUT = {"parallel.tp": 2, "parallel.pp": 2, "parallel.sequence": "true"}


def lines_of(run_dir):
    return ["{" + ", ".join(f'"{k}": {m[k]}' for k in KEYS if k in m) + "}"
            for m in laboratory.metrics(run_dir)]


def compare(expected, found):
    for e, f in zip(expected, found, strict=True):
        if e != f:
            raise Different(f"found {f}, expected {e}")


def check(lab, model):
    golden = GOLDEN / f"{model}.jsonl"
    if os.environ.get("TESSERA_REGENERATE") == "1":
        run_dir = lab.train(GOLDEN / f"{model}.yaml", lab.dir / "golden", {}, 1)
        golden.write_text("\n".join(lines_of(run_dir)) + "\n", encoding="utf-8")
    expected = golden.read_text(encoding="utf-8").splitlines()
    cases = [(cpu, {}, 1) for cpu in laboratory.cpus()] + [(None, LAYOUT, 4)]
    failures = 0
    for i, (cpu, settings, n_ranks) in enumerate(cases):
        verdict = "equal"
        try:
            run_dir = lab.train(GOLDEN / f"{model}.yaml", lab.dir / str(i), settings, n_ranks, cpu)
            compare(expected, lines_of(run_dir))
        except (Different, RuntimeError, ValueError) as e:
            failures += 1
            verdict = f"FAILED: {e}"
        print(f"{model:6} {cpu or 'best':9} {n_ranks} ranks  {verdict}", flush=True)
    return failures


if __name__ == "__main__":
    laboratory.main(__doc__, {m: lambda lab, m=m: check(lab, m) for m in ("llama", "gpt2")})

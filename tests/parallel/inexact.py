"""`parallel.exact: false` may sum in another order, but computes the same: loss and norm of
20 steps agree with exact mode to 1e-5 relative.

The bound is the fp32 rounding of sums of a few hundred terms (6e-8 a term, signs at random), grown
by 20 AdamW steps; a wrong or a missing term moves the norm by far more.
"""
import lab as laboratory

BOUND = 1e-5
LAYOUTS = [
    ("2x2x2, sequence", 8, {"tp": 2, "pp": 2, "dp": 2, "sequence": "true"}),
    ("4x1x2", 8, {"tp": 4, "pp": 1, "dp": 2}),
    ("1x1x1", 1, {"tp": 1, "pp": 1, "dp": 1}),
]


def curve(lab, run_file, name, n_ranks, settings):
    settings = {f"parallel.{k}": v for k, v in settings.items()}
    run_dir = lab.train(run_file, lab.dir / name, settings, n_ranks)
    return laboratory.metrics(run_dir)


def compare(name, exact, free):
    worst, same = 0.0, True
    for e, f in zip(exact, free, strict=True):
        for key in ("loss", "grad_norm"):
            worst = max(worst, abs(float(f[key]) / float(e[key]) - 1.0))
            same = same and e[key] == f[key]
    bad = worst > BOUND or same
    print(f"{name:16} largest relative difference {worst:.2e}, bound {BOUND:.0e}"
          f"{'  FAILED' if bad else ''}{' (equal: was it exact mode?)' if same else ''}", flush=True)
    return bad


def check(lab):
    lab.make_data()
    run_file = lab.write_text_run(
        "run", laboratory.LLAMA, {"steps": 20, "global_batch": 16, "lr": 1e-3,
                                  "dropout": laboratory.dropout()},
        {"seq_len": 20}, device={"threads": 1})
    exact = curve(lab, run_file, "exact", 1, {})
    return sum(compare(name, exact, curve(lab, run_file, name, n_ranks,
                                          {**settings, "exact": "false"}))
               for name, n_ranks, settings in LAYOUTS)


if __name__ == "__main__":
    laboratory.main(__doc__, {"inexact": check})

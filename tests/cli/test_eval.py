"""The validation loss of training against `tessera eval` of the checkpoint that it left."""
import json
from pathlib import Path

import cli

T, N_DOCUMENTS = 16, 6


class Eval(cli.Case):
    """Documents of T tokens, each one sequence, and one token more for the last target. Many tokens
    are 0: a target like any other."""

    def setUp(self):
        self.parts = [[(i * i * (k + 3) % 23) * (i % 3 > 0) for i in range(T)]
                      for k in range(N_DOCUMENTS)]
        self.documents("all", self.parts + [[7]])

    def validation(self, packing):
        """(validation loss, the checkpoint's folder) of a run of two steps."""
        self.run_file(run_dir=packing, train={"steps": 2, "eval_every": 2, "lr": 0.01},
                      data={"train": "all", "valid": "all", "seq_len": T, "packing": packing})
        self.good("train", "run.yaml")
        lines = Path(self.path(packing, "metrics.jsonl")).read_text().splitlines()
        return json.loads(lines[-1])["valid_loss"], f"{packing}/checkpoints/step-00000002"

    def evaluate(self, model, data):
        """(sum of losses, number of targets)"""
        out = json.loads(self.good("eval", model, "--data", data, "--seq-len", T).out)
        return out["loss"] * out["tokens"], out["tokens"]

    def test_crossing(self):
        found, model = self.validation("crossing")
        loss, n = self.evaluate(model, "all")
        self.assertEqual(n, T * N_DOCUMENTS)
        self.assertAlmostEqual(found, loss / n, delta=1e-5 * found)

    def test_isolated(self):
        """The last target of each sequence belongs to the next document, and doesn't count."""
        found, model = self.validation("isolated")
        one_by_one = []
        for k, tokens in enumerate(self.parts):
            self.documents(f"part-{k}", [tokens])
            one_by_one.append(self.evaluate(model, f"part-{k}"))
        loss, n = map(sum, zip(*one_by_one))
        self.assertEqual(n, (T - 1) * N_DOCUMENTS)
        self.assertAlmostEqual(found, loss / n, delta=1e-5 * found)


if __name__ == "__main__":
    cli.main()

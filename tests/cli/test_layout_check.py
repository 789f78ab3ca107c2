"""`tessera layout-check`: two layouts of a run, compared gradient by gradient. What it says about
gradients that do differ in an exact run is tests/unit/test_gradients.c: no such layout exists."""
import json
import os
import tempfile

import cli

ODD = {**cli.MODEL, "hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3,
       "intermediate_size": 91, "vocab_size": 307, "num_hidden_layers": 4}


class LayoutCheck(cli.Case):
    def setUp(self):
        self.scratch = tempfile.mkdtemp(dir=self.dir)
        self.path_ = self.run_file(data={"train": None},
                                   parallel={"tp": 2, "pp": 2, "dp": 2})

    def tearDown(self):
        self.assertEqual(os.listdir(self.scratch), [])  # nothing is left there

    def check(self, path, against, *args, **options):
        result = self.good("layout-check", path, "--against", against, "--json", "--scratch",
                           self.scratch, *args, **options)
        return json.loads(result.out.splitlines()[-1])

    def test_equal(self):
        report = self.check(self.path_, "tp=1,pp=1,dp=1")
        self.assertTrue(report["equal"] and report["exact"])
        self.assertIsNone(report["first"])
        self.assertEqual(report["layouts"], ["tp=2 pp=2 dp=2", "tp=1 pp=1 dp=1"])
        self.assertEqual(len(report["steps"]), 2)
        self.assertEqual(report["tensors"], 21)  # two blocks of nine, embedding, norm, head
        for step in report["steps"]:
            self.assertEqual(step["loss"][0], step["loss"][1])
            self.assertGreater(step["grad_norm"][0], 0)
        self.assertNotEqual(report["steps"][0]["loss"], report["steps"][1]["loss"])

    def test_other_fields_and_shared_heads(self):
        path = self.run_file("odd.yaml", model={"config": ODD}, data={"train": None},
                             parallel={"tp": 4, "pp": 1, "dp": 1, "sequence": True})
        report = self.check(path, "tp=1,pp=2,dp=2,sequence=false,micro_batch=2,recompute=full,"
                            "device.threads=2", "--steps", 1)
        self.assertTrue(report["equal"], report)
        self.assertEqual(len(report["steps"]), 1)

    def test_inexact_says_how_far(self):
        report = self.check(self.path_, "tp=1,pp=1,dp=1", "parallel.exact=false")
        self.assertFalse(report["exact"] or report["equal"])
        self.assertLess(0, report["distance"])
        self.assertLess(report["distance"], 1e-3)
        self.assertEqual(report["first"]["step"], 1)
        self.assertNotEqual(report["first"]["a"], report["first"]["b"])
        self.assertIn("weight", report["first"]["tensor"])
        text = self.good("layout-check", self.path_, "--against", "tp=1,pp=1,dp=1", "--scratch",
                         self.scratch, "parallel.exact=false").out.decode()
        self.assertIn(report["first"]["tensor"], text)
        self.assertIn("parallel.exact is off", text)

    def test_real_data(self):
        self.tokens("tokens")
        path = self.run_file("data.yaml", run_dir="data-run", parallel={"tp": 2})
        self.assertTrue(self.check(path, "tp=1,dp=2")["equal"])
        random = self.check(path, "tp=1,dp=2", "data.train=[]", "data.valid=[]", "--steps", 1)
        real = self.check(path, "tp=1,dp=2", "--steps", 1)
        self.assertNotEqual(random["steps"][0]["loss"], real["steps"][0]["loss"])

    def test_mistakes(self):
        bad = lambda needles, *args, **o: self.bad(cli.USAGE, needles, "layout-check", *args,
                                                   "--scratch", self.scratch, **o)
        bad("--against is missing", self.path_)
        bad("tp=1,pp=1,dp=1", self.path_, "--against", "one")
        bad("tp=1,pp=1,dp=1", self.path_, "--against", "tp=1,,dp=1")
        bad("can't differ", self.path_, "--against", "exact=false")
        bad("can't differ", self.path_, "--against", "train.lr=1")
        bad("parallel.tpp", self.path_, "--against", "tpp=1")
        bad("parallel.tp", self.path_, "--against", "tp=3")
        bad("absent.yaml", "absent.yaml", "--against", "tp=1")
        bad("without", self.path_, "--against", "tp=1", ranks=1)
        self.bad(cli.RESOURCE, "no/such", "layout-check", self.path_, "--against", "tp=1",
                 "--scratch", "no/such")

    def test_failure_of_the_ranks(self):
        path = self.run_file("missing.yaml", data={"train": "not-there"}, run_dir="missing-run")
        self.bad(cli.USAGE, "not-there", "layout-check", path, "--against", "tp=2", "--scratch",
                 self.scratch)


if __name__ == "__main__":
    cli.main()

"""`tessera ckpt`: what it says of good, damaged and unfinished checkpoints, how it compares two, and
the plan of reading one into another layout."""
import glob
import json
import os
import shutil

import cli


def flip(path, at, bit=3):
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 1 << bit]))


def report(result):
    """The JSON object on the last line of standard output."""
    return json.loads(result.out.decode().splitlines()[-1])


class Ckpt(cli.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        made = cls("runTest")
        made.tokens("tokens")
        cls.run_path = made.run_file(train={"steps": 3}, checkpoint={"every": 1, "keep": 0})
        made.good("train", cls.run_path, "run.dir=base")

    def runTest(self):
        pass

    def setUp(self):
        shutil.rmtree(self.path("run"), ignore_errors=True)
        shutil.copytree(self.path("base"), self.path("run"))

    def step(self, n, run="run"):
        return self.path(f"{run}/checkpoints/step-{n:08d}")

    def test_ls(self):
        os.makedirs(self.path("run/checkpoints/.tmp-step-00000004-e00000001-a1/optimizer"))
        os.makedirs(self.path("run/checkpoints/notes"))
        self.write("run/checkpoints/.tmp-step-00000004-e00000001-a1/config.json", "12345")
        found = report(self.good("ckpt", "ls", "run", "--json"))
        self.assertEqual([c["step"] for c in found["checkpoints"]], [1, 2, 3])
        for c in found["checkpoints"]:
            files = cli.content(self.path("run/checkpoints", c["name"]))
            self.assertEqual((c["files"], c["bytes"]),
                             (len(files), sum(map(len, files.values()))))
            self.assertEqual(c["layout"], {"tp": 1, "pp": 1, "dp": 1})
            self.assertEqual((c["status"], c["problems"]), ("complete", []))
        self.assertEqual(found["unfinished"], [{"name": ".tmp-step-00000004-e00000001-a1",
                                                "step": 4, "bytes": 5, "files": 1}])
        self.assertEqual(found["newest_good"], 3)
        found = report(self.good("ckpt", "ls", "run", "--verify", "--json"))
        self.assertEqual({c["status"] for c in found["checkpoints"]}, {"verified"})
        lines = self.good("ckpt", "ls", "run").out.decode().splitlines()
        self.assertEqual(len(lines), 6)
        self.assertIn("unfinished", lines[4])

    def test_verify(self):
        self.good("ckpt", "verify", "run")
        result = self.good("ckpt", "verify", self.step(2))
        self.assertIn(b"good: step 2", result.out)
        target = glob.glob(self.step(3) + "/optimizer/m-*")[0]
        name = os.path.relpath(target, self.step(3))
        flip(target, 5000)
        os.remove(self.step(3) + "/config.json")
        result = self.bad(2, [self.step(3), "2 problems"], "ckpt", "verify", self.step(3))
        self.assertIn(f"{name}: bytes 0 to {os.path.getsize(target)}: damaged",
                      result.out.decode())
        self.assertIn("config.json: the file is missing", result.out.decode())
        os.rename(self.step(3) + "/manifest.json", self.step(3) + "/kept.json")
        out = self.bad(2, "1 problem", "ckpt", "verify", self.step(3)).out.decode()
        self.assertEqual(out.count(self.step(3)), 1, out)  # the path stands there once
        os.rename(self.step(3) + "/kept.json", self.step(3) + "/manifest.json")
        found = report(self.bad(2, "damaged", "ckpt", "verify", self.step(3), "--json"))
        self.assertEqual((found["good"], found["step"], len(found["problems"])), (False, 3, 2))
        self.assertEqual({p["file"] for p in found["problems"]}, {name, "config.json"})
        result = self.bad(2, ["1 of 3", "resume after step 2"], "ckpt", "verify", "run")
        found = report(self.bad(2, "1 of 3", "ckpt", "ls", "run", "--verify", "--json"))
        self.assertEqual([c["status"] for c in found["checkpoints"]],
                         ["verified", "verified", "damaged"])
        self.assertEqual(found["newest_good"], 2)

    def test_verify_damage(self):
        """Manifest cut, of another step, a checkpoint under another step's name."""
        manifest = self.step(3) + "/manifest.json"
        os.truncate(manifest, os.path.getsize(manifest) - 5)
        self.bad(2, "damaged", "ckpt", "verify", self.step(3))
        shutil.copy(self.step(2) + "/manifest.json", manifest)
        self.bad(2, "damaged", "ckpt", "verify", self.step(3))
        shutil.rmtree(self.step(3))
        os.rename(self.step(2), self.step(3))
        result = self.bad(2, "damaged", "ckpt", "verify", self.step(3))
        self.assertIn("expected the manifest of step 3, found that of step 2",
                      result.out.decode())
        result = self.good("train", self.run_path, "run.dir=run", "train.steps=2")
        self.assertIn("step-00000003 is not used", result.err)
        self.assertIn("resuming after step 1", result.err)

    def test_strange_files(self):
        """A name that is no UTF-8; a pipe, to which nobody writes, in the place of a file."""
        stranger = os.fsencode(self.step(3)) + b"/\xff\xc3("
        with open(stranger, "wb"):
            pass
        found = report(self.bad(2, "1 problem", "ckpt", "verify", self.step(3), "--json"))
        self.assertEqual(found["problems"][0]["file"], "??(")
        found = report(self.bad(2, "1 of 3", "ckpt", "ls", "run", "--verify", "--json"))
        self.assertEqual(found["newest_good"], 2)
        os.remove(stranger)
        for name in ("manifest.json", "state.json", "config.json"):
            target = os.path.join(self.step(3), name)
            os.rename(target, self.path("aside"))
            os.mkfifo(target)
            self.bad(2, "1 of 3", "ckpt", "verify", "run")
            self.bad(2, "regular file", "ckpt", "diff", self.step(3), self.step(2))
            self.good("ckpt", "ls", "run")
            result = self.good("train", self.run_path, "run.dir=run", "train.steps=2")
            self.assertIn("step-00000003 is not used", result.err)
            self.assertIn(name, result.err)
            os.remove(target)
            os.rename(self.path("aside"), target)
        self.good("ckpt", "verify", "run")

    def test_diff(self):
        found = report(self.good("ckpt", "diff", self.step(3), self.step(3, "base"), "--json"))
        self.assertEqual((found["equal"], found["different"]), (True, 0))
        self.assertEqual(found["by_digest"], found["compared"])
        found = report(self.good("ckpt", "diff", self.step(3), self.step(3, "base"), "--read",
                                 "--json"))
        self.assertEqual((found["equal"], found["by_digest"]), (True, 0))
        found = report(self.good("ckpt", "diff", self.step(2), self.step(3), "--json"))
        self.assertFalse(found["equal"])
        self.assertIn({"key": "step", "a": "2", "b": "3"}, found["state"])
        self.assertEqual(found["different"], found["compared"])
        first = found["tensors"][0]
        self.assertEqual((first["part"], first["verdict"]), ("weights", "differs"))
        self.assertLessEqual(abs(first["first"]["a"] - first["first"]["b"]), first["max_abs"])
        self.assertIn(b"tensors and 3 settings differ",
                      self.good("ckpt", "diff", self.step(2), self.step(3)).out)

    def test_diff_finds_an_element(self):
        """One bit of one element: the digests tell the range, reading tells the place."""
        target = glob.glob(self.step(3) + "/model-*")[0]
        size = os.path.getsize(target)
        flip(target, size - 4)  # the last element's lowest bit, in the last tensor of the file
        found = report(self.good("ckpt", "diff", self.step(3), self.step(3, "base"), "--read",
                                 "--json"))
        self.assertEqual(len(found["tensors"]), 1, found)
        changed = found["tensors"][0]
        rows, cols = changed["shape_a"]
        self.assertEqual((changed["part"], changed["different"]), ("weights", 1))
        self.assertEqual((changed["first"]["row"], changed["first"]["col"]), (rows - 1, cols - 1))

    def test_diff_of_models(self):
        """Tensors that only one of them has, and other shapes."""
        self.tokens("tokens")
        model = {**cli.MODEL, "num_hidden_layers": 3, "intermediate_size": 40}
        other = self.run_file("other.yaml", "other", model={"config": model}, train={"steps": 1})
        self.good("train", other)
        found = report(self.good("ckpt", "diff", self.step(1), self.step(1, "other"), "--json"))
        verdicts = {t["name"]: t["verdict"] for t in found["tensors"] if t["part"] == "m"}
        self.assertEqual(verdicts["model.layers.0.mlp.up_proj.weight"], "shapes")
        self.assertEqual(verdicts["model.layers.2.mlp.up_proj.weight"], "only_b")
        self.assertIn({"key": "intermediate_size", "a": "48", "b": "40"}, found["config"])

    def test_reshard(self):
        tensors = None
        for to, n in (("tp=1,pp=1,dp=1", 1), ("tp=2,pp=2", 4), ("dp=2,tp=4", 8), ("pp=2", 2)):
            plan = report(self.good("ckpt", "reshard", self.step(3), "--to", to, "--json"))
            self.assertEqual(len(plan["ranks"]), n)
            tensors = tensors or plan["tensor_bytes"]
            self.assertEqual(plan["tensor_bytes"], tensors)
            for key in ("needed", "read", "verified"):
                self.assertEqual(plan[key], sum(r[key] for r in plan["ranks"]))
            for rank in plan["ranks"]:
                for key in ("needed", "read"):
                    self.assertEqual(rank[key], sum(f[key] for f in rank["files"]))
                self.assertLess(rank["read"], tensors + (n == 1))
            self.assertGreaterEqual(plan["needed"], tensors)
        self.assertIn(b"amplification",
                      self.good("ckpt", "reshard", self.step(3), "--to", "tp=2").out)

    def test_mistakes(self):
        for args, needles in (
                (("lss",), ["lss", "ls"]), ((), ["ls, verify, diff or reshard"]),
                (("ls",), ["RUN_DIR"]), (("ls", "nowhere"), ["nowhere"]),
                (("ls", self.step(1)), ["run directory"]),
                (("verify", "nowhere"), ["nowhere"]), (("verify", self.run_path), ["file"]),
                (("verify", "."), ["expected a checkpoint's or a run's", "manifest.json"]),
                (("diff", self.step(1)), ["missing"]),
                (("diff", self.step(1), "nowhere"), ["nowhere"]),
                (("reshard", self.step(1)), ["--to"]),
                (("reshard", self.step(1), "--to", "tp=3"), ["virtual_shards"]),
                (("reshard", self.step(1), "--to", "pp=3"), ["3"]),
                (("reshard", self.step(1), "--to", "tp=0"), ["tp=0"]),
                (("reshard", self.step(1), "--to", "tp=2,tp=2"), ["tp=2,tp=2"]),
                (("reshard", self.step(1), "--to", "tp=2,"), ["tp=2,"]),
                (("reshard", self.step(1), "--to", "tp=99999999999999999999"), ["tp="]),
                (("reshard", "nowhere", "--to", "tp=1"), ["nowhere"])):
            with self.subTest(args):
                self.bad(2, needles, "ckpt", *args)
        for command in (("--help",), ("ls", "--help"), ("verify", "--help"), ("diff", "--help"),
                        ("reshard", "--help")):
            self.assertIn(b"usage: tessera ckpt", self.good("ckpt", *command).out)


if __name__ == "__main__":
    cli.main()

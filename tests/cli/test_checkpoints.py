"""Checkpoints that are damaged or belong to another run: nothing is used that isn't sound, nothing
is lost that is."""
import glob
import json
import os
import shutil
import signal
import struct
import time

import cli
from cli import content

ANOTHER = {**cli.MODEL, "num_hidden_layers": 3}


def flip(path, at, bit=3):
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 1 << bit]))


def lasting(files):
    """What of a run directory an attempt that was refused may not change."""
    return {k: v for k, v in files.items()
            if k != "log.jsonl" and not k.startswith("coordinator/")}


class Checkpoints(cli.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        made = cls("runTest")
        made.tokens("tokens")
        cls.run_path = made.run_file(train={"steps": 4}, checkpoint={"every": 1, "keep": 0})
        made.good("train", cls.run_path, "train.steps=3", "run.dir=base")
        made.good("train", cls.run_path, "run.dir=reference")
        cls.reference = content(made.path("reference/checkpoints/step-00000004"))

    def runTest(self):
        pass

    def setUp(self):
        shutil.rmtree(self.path("run"), ignore_errors=True)
        shutil.copytree(self.path("base"), self.path("run"))

    def step(self, n):
        return self.path(f"run/checkpoints/step-{n:08d}")

    def check_end(self):
        """The run ended where one that was never disturbed ends."""
        found = content(self.step(4))
        for name, data in self.reference.items():
            if name.endswith(".safetensors"):
                self.assertEqual(found[name], data, name)
        self.assertEqual(sorted(os.listdir(self.path("run/checkpoints"))),
                         [f"step-{n:08d}" for n in range(1, 5)])
        with open(self.path("run/metrics.jsonl")) as f:
            self.assertEqual([json.loads(line)["step"] for line in f], [1, 2, 3, 4])

    def damage(self, what):
        """One way to damage checkpoint 3; returns a word that the message must have."""
        files = sorted(glob.glob(self.step(3) + "/**/*", recursive=True))
        tensors = [f for f in files if f.endswith(".safetensors")]
        manifest = self.step(3) + "/manifest.json"
        if what == "manifest bit":
            flip(manifest, os.path.getsize(manifest) // 2)
            return "step-00000003"
        if what == "manifest cut":
            os.truncate(manifest, os.path.getsize(manifest) - 5)
            return "manifest.json"
        if what == "manifest empty":
            os.truncate(manifest, 0)
            return "manifest.json"
        if what == "manifest gone":
            os.remove(manifest)
            return "manifest.json"
        if what == "shard cut":
            os.truncate(tensors[0], os.path.getsize(tensors[0]) - 1)
            return os.path.basename(tensors[0])
        if what == "shard longer":
            with open(tensors[-1], "ab") as f:
                f.write(b"\0")
            return os.path.basename(tensors[-1])
        if what == "shard gone":
            os.remove(tensors[1])
            return os.path.basename(tensors[1])
        if what == "stranger":
            self.write("run/checkpoints/step-00000003/stranger", "x")
            return "stranger"
        kind, number, place = what.split()
        target = {"shard": tensors, "state": [self.step(3) + "/state.json"],
                  "config": [self.step(3) + "/config.json"]}[kind][int(number)]
        flip(target, int(os.path.getsize(target) * float(place)))
        return os.path.basename(target)

    def test_damage(self):
        """auto: says so and goes on from the one before; DIR: refuses."""
        for what in cli.some((
                "manifest bit", "manifest cut", "manifest empty", "manifest gone", "shard cut",
                "shard longer", "shard gone", "stranger", "shard 0 0", "shard 0 0.5",
                "shard 1 0.01", "shard 2 0.99", "state 0 0.5", "config 0 0.5")):
            ranks = 2 if what in ("manifest cut", "shard 0 0.5") else 0
            with self.subTest(what):
                self.setUp()
                word = self.damage(what)
                self.bad(2, ["step-00000003", word], "train", self.run_path,
                         "checkpoint.resume=" + self.step(3), ranks=ranks)
                result = self.good("train", self.run_path, ranks=ranks)
                warnings = [line for line in result.lines if " warn " in line]
                self.assertEqual(len(warnings), 1, result)
                self.assertIn("step-00000003 is not used", warnings[0])
                self.assertIn(word, warnings[0])
                self.assertIn("resuming after step 2", result.err)
                self.check_end()

    def test_all_damaged(self):
        for n in (1, 2, 3):
            flip(glob.glob(self.step(n) + "/model-*")[0], 3000)
        result = self.good("train", self.run_path)
        self.assertEqual(result.err.count("is not used"), 3, result)
        self.check_end()

    def test_leftovers(self):
        """What a killed run left in the folder stops nobody."""
        parent = self.path("run/checkpoints")
        shutil.copytree(self.step(3), parent + "/.tmp-step-00000004-0123456789abcdef")
        os.makedirs(parent + "/step-notes")
        self.write("run/checkpoints/README", "mine")
        self.good("train", self.run_path)
        self.assertEqual(sorted(os.listdir(parent)), ["README"] +
                         [f"step-{n:08d}" for n in range(1, 5)] + ["step-notes"])

    def test_status_without_a_run(self):
        """The directory tells how far it went; what is not finite is null; the last evaluation
        counts, however long ago."""
        def status():
            return json.loads(self.good("status", self.path("run"), "--json").out)
        shutil.rmtree(self.step(3))  # trained, but not saved
        found = status()
        self.assertEqual((found["running"], found["finished"]), (False, False))
        self.assertIn("reason", found)
        self.good("train", self.run_path)
        found = status()
        self.assertEqual((found["finished"], found["step"], found["steps"]), (True, 4, 4))
        self.assertNotIn("reason", found)
        self.write("run/metrics.jsonl",
                   '{"step": 3, "loss": 2.5, "valid_loss": 1.25}\n{"step": 4, "loss": null}\n')
        found = status()
        self.assertEqual((found["loss"], found["valid_loss"]), (None, 1.25))
        text = self.good("status", self.path("run")).out.decode()
        self.assertIn("loss    nan  validation 1.2500", text)

    def test_another_run(self):
        """Resuming with what must not change names the field, and leaves the run as it was."""
        before = content(self.path("run"))
        for needles, sections in (
                (["another model", "n_layers", "2", "3"], {"model": {"config": ANOTHER}}),
                (["run.seed"], {"run": {"seed": 2, "dir": "run"}}),
                (["train.global_batch"], {"train": {"global_batch": 16, "steps": 4}}),
                (["data.seq_len"], {"data": {"seq_len": 8}}),
                (["virtual_shards"], {"parallel": {"virtual_shards": 4}}),
                (["parallel.virtual_replicas"], {"parallel": {"virtual_replicas": 2}})):
            run = self.run_file("other.yaml", **{"train": {"steps": 4}, **sections})
            for ranks, options in ((0, ()), (2, ()), (0, ("checkpoint.resume=" + self.step(3),))):
                if ranks and "n_layers" not in needles:
                    continue
                self.bad(2, ["step-00000003", *needles], "train", run, *options, ranks=ranks)
            self.assertEqual(lasting(content(self.path("run"))), lasting(before))

    def test_resume_from(self):
        self.bad(2, "nowhere", "train", self.run_path, "checkpoint.resume=nowhere")
        self.bad(2, "run.yaml", "train", self.run_path, "checkpoint.resume=run.yaml")
        self.good("train", self.run_path, "checkpoint.resume=" + self.step(1))
        self.check_end()

    def test_more_steps_done(self):
        """Fewer steps than are done: nothing to do, and nothing is touched."""
        before = content(self.path("run/checkpoints"))
        self.good("train", self.run_path, "train.steps=2")
        self.assertEqual(content(self.path("run/checkpoints")), before)


class Interrupted(cli.Case):
    def test_signals(self):
        """Exit 5 with a checkpoint of the step that was just done; the same command goes on."""
        self.tokens("tokens")
        run = self.run_file(train={"steps": 1000000})
        for sent, ranks in ((signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGUSR1, 0),
                            (signal.SIGUSR1, 2)):
            def send(process, sent=sent):
                deadline = time.monotonic() + cli.TIMEOUT_S
                log, done = self.path("run/metrics.jsonl"), self.steps()
                while time.monotonic() < deadline:
                    if os.path.exists(log):
                        with open(log) as f:
                            if len(f.readlines()) > done:
                                break
                    time.sleep(0.05)
                process.send_signal(sent)

            before = self.steps()
            result = self.run_tessera("train", run, ranks=ranks, during=send)
            self.assertEqual((result.code, result.errors), (cli.INTERRUPTED, []), result)
            self.assertIn("the same command continues", result.err)
            self.assertGreater(self.steps(), before)

    def test_signal_at_start(self):
        """While ranks still prepare: one step, a checkpoint, exit 5; nobody dies of the signal."""
        self.tokens("tokens")
        run = self.run_file("early.yaml", "early", train={"steps": 1000000})
        address = self.path("early/coordinator/address")
        for sent in (signal.SIGUSR1, signal.SIGTERM):
            if os.path.exists(address):
                os.remove(address)

            def send(process, sent=sent):
                deadline = time.monotonic() + cli.TIMEOUT_S
                while not os.path.exists(address) and time.monotonic() < deadline:
                    time.sleep(0.001)
                for rank in cli.children(process.pid):
                    os.kill(rank, sent)

            result = self.run_tessera("train", run, ranks=2, during=send)
            self.assertEqual((result.code, result.errors), (cli.INTERRUPTED, []), result)
            self.assertIn("the same command continues", result.err)

    def steps(self):
        """Steps completed by the newest checkpoint."""
        names = sorted(os.path.basename(p) for p in glob.glob(self.path("run/checkpoints/step-*")))
        return int(names[-1][5:]) if names else 0


class State(cli.Case):
    """state.json that a valid manifest vouches for, but that says what cannot be."""

    def test_numbers(self):
        self.tokens("tokens")
        run = self.run_file(train={"steps": 1})
        self.good("train", run)
        folder = self.path("run/checkpoints/step-00000001")
        with open(folder + "/state.json") as f:
            good = json.load(f)
        os.remove(folder + "/manifest.json")
        for key, value in good.items():
            for wrong in (None, -1, "x", [], 1 << 70):
                if isinstance(value, str) and wrong == "x":
                    continue
                text = json.dumps({**good, key: wrong})
                self.write("run/checkpoints/step-00000001/state.json", text)
                result = self.run_tessera("generate", folder, "--ids", "1,2", "-n", 1)
                if result.code != 0:
                    self.assertEqual((result.code, len(result.errors)), (2, 1), result)
                    self.assertIn("state.json", result.errors[0])
        header = struct.pack("<Q", 1 << 62)
        self.write("run/checkpoints/step-00000001/optimizer/m-00001-of-00001.safetensors", header)
        self.bad(2, "manifest.json", "train", run, "checkpoint.resume=" + folder)


if __name__ == "__main__":
    cli.main()

"""Disks that fill up or fail. At whatever call a checkpoint fails, the run ends with one message,
the checkpoint before is as it was, and the next run goes on from it as if nothing had happened."""
import errno
import os
import resource
import shutil
import unittest

import cli
from cli import content

FULL, BROKEN = str(-errno.ENOSPC), str(errno.EIO)
TEXTS = {FULL: os.strerror(errno.ENOSPC), BROKEN: os.strerror(errno.EIO)}


@unittest.skipIf(cli.SLOW, "the failing disk and a sanitizer both replace write()")
class FailingDisk(cli.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        made = cls("runTest")
        made.tokens("tokens")
        cls.run_path = made.run_file(train={"steps": 2}, checkpoint={"every": 1})
        made.good("train", cls.run_path, "train.steps=1", "run.dir=base")
        cls.base = content(made.path("base/checkpoints"))
        made.good("train", cls.run_path, "run.dir=reference")
        cls.reference = {k: v for k, v in content(made.path("reference/checkpoints")).items()
                         if k.endswith(".safetensors")}

    def runTest(self):
        pass

    def faulted(self, at, kind, ranks, rank, below="run/checkpoints"):
        shutil.rmtree(self.path("run"), ignore_errors=True)
        shutil.copytree(self.path("base"), self.path("run"))
        env = {"TESSERA_FAULT_PATH": self.path(below), "TESSERA_FAULT_AT": str(at),
               "TESSERA_FAULT_KIND": kind, "TESSERA_FAULT_RANK": rank,
               "TESSERA_FAULT_COUNT": self.path("count")}
        return {"env": env, "preload": cli.FAULT, "ranks": ranks}

    def n_calls(self, ranks, rank, below="run/checkpoints"):
        self.good("train", self.run_path, **self.faulted(0, BROKEN, ranks, rank, below))
        with open(self.path("count")) as f:
            return int(f.read())

    def check_kept(self):
        """Checkpoint 1 is untouched; beside it may stand a whole checkpoint 2 and nothing else."""
        found = content(self.path("run/checkpoints"))
        for name, data in self.base.items():
            self.assertEqual(found.get(name), data, name)
        names = sorted(os.listdir(self.path("run/checkpoints")))
        self.assertIn(names, (["step-00000001"], ["step-00000001", "step-00000002"]))

    def check_continues(self, ranks):
        result = self.good("train", self.run_path, ranks=ranks)
        self.assertNotIn("is not used", result.err)
        found = content(self.path("run/checkpoints"))
        self.assertEqual({k: v for k, v in found.items() if k.endswith(".safetensors")},
                         self.reference)

    def sweep(self, ranks, rank, most, every):
        """At most `most` of the calls that one rank makes; every `every`th run is taken further."""
        n = self.n_calls(ranks, rank)
        step = max(1, -(-n // most))
        for kind in (FULL, BROKEN):
            for i, at in enumerate(range(1, n + 1, step)):
                with self.subTest(at=at, kind=kind, ranks=ranks, rank=rank):
                    result = self.bad(3, [self.path("run"), TEXTS[kind]], "train", self.run_path,
                                      **self.faulted(at, kind, ranks, rank))
                    # whoever hears of it first, the rank that failed is named and no other
                    self.assertNotRegex(result.errors[0], r"rank \d+ on \S+: rank")
                    self.check_kept()
                    if i % every == 0:
                        self.check_continues(ranks)
        return n

    def test_one_rank(self):
        self.assertGreater(self.sweep(1, "0", 12, 6), 20)

    def test_supervised(self):
        """A disk that fails from the start on, and one that fails the coordinator or the rank."""
        for at in (1, 2, 4, 8):
            self.bad(3, [self.path("run"), TEXTS[FULL]], "train", self.run_path,
                     **self.faulted(at, FULL, 0, ""))
            self.check_kept()
            self.check_continues(0)

    def test_two_ranks(self):
        for rank in ("0", "1"):
            self.assertGreater(self.sweep(2, rank, 4, 2), 3)

    def test_short_writes(self):
        """A write that moves less than asked for is no failure."""
        n = self.n_calls(1, "0")
        for at in range(1, n + 1, max(1, n // 8)):
            self.good("train", self.run_path, **self.faulted(at, "short", 1, "0"))
            found = content(self.path("run/checkpoints"))
            self.assertEqual({k: v for k, v in found.items() if k.endswith(".safetensors")},
                             self.reference)

    def test_unreadable(self):
        """A bad sector costs one checkpoint; where no other is left, the run doesn't begin anew."""
        for name, ranks, rank in (("manifest.json", 0, ""), ("model-", 0, ""), ("model-", 2, "1"),
                                  ("optimizer/v", 2, ""), ("state.json", 1, "")):
            with self.subTest(name=name, ranks=ranks, rank=rank):
                options = self.faulted(0, FULL, ranks, rank)
                self.good("train", self.run_path)
                options["env"]["TESSERA_FAULT_READ"] = "run/checkpoints/step-00000002/" + name
                result = self.good("train", self.run_path, **options)
                self.assertIn("step-00000002 is not used", result.err)
                self.assertIn(TEXTS[BROKEN], result.err)
                self.assertIn("resuming after step 1", result.err)
                before = content(self.path("run/checkpoints"))
                options["env"]["TESSERA_FAULT_READ"] = "run/checkpoints/step-"
                self.bad(3, ["step-00000002", TEXTS[BROKEN], "no other checkpoint is good"],
                         "train", self.run_path, **options)
                self.assertEqual(content(self.path("run/checkpoints")), before)

    def test_denied(self):
        """Checkpoints that somebody may not read are none that are damaged: nothing begins anew."""
        options = self.faulted(0, FULL, 2, "")
        self.good("train", self.run_path)
        before = content(self.path("run/checkpoints"))
        options["env"]["TESSERA_FAULT_DENIED"] = "run/checkpoints/step-"
        self.bad(3, ["step-00000002", "Permission denied", "no other checkpoint is good"], "train",
                 self.run_path, **options)
        self.assertEqual(content(self.path("run/checkpoints")), before)
        options["env"]["TESSERA_FAULT_DENIED"] += "00000002"
        result = self.good("train", self.run_path, **options)
        self.assertIn("step-00000002 is not used", result.err)
        self.assertIn("resuming after step 1", result.err)

    def test_run_directory(self):
        """The resolved run file can't be written."""
        for at in range(1, self.n_calls(0, "", "run/config.yaml") + 1):
            self.bad(3, "config.yaml", "train", self.run_path,
                     **self.faulted(at, BROKEN, 0, "", "run/config.yaml"))
            self.check_kept()
        self.check_continues(0)

    def test_converted_text(self):
        """Tokenized data that can't be written leave nothing that looks whole."""
        text = self.text()
        self.good("tokenizer", "train", "-o", "tok", "--vocab-size", cli.VOCAB, text)
        run = self.run_file("text.yaml", "run", model={"tokenizer": "tok"},
                            data={"train": "text.txt"}, checkpoint={"resume": "none"})
        options = self.faulted(0, FULL, 0, "", "run/data")
        self.good("train", run, **options)
        with open(self.path("count")) as f:
            n = int(f.read())
        for ranks in (0, 2):
            for at in range(1, n + 1, 1 if ranks == 0 else n):
                for kind in (FULL, BROKEN):
                    with self.subTest(at=at, n=n, kind=kind, ranks=ranks):
                        self.bad(3, [self.path("run/data"), TEXTS[kind]], "train", run,
                                 **self.faulted(at, kind, ranks, "", "run/data"))
            self.good("train", run, ranks=ranks)

    def test_files_of_commands(self):
        """tokenizer train and data build leave nothing behind that looks whole."""
        text = self.text()
        self.good("tokenizer", "train", "-o", "good-tok", "--vocab-size", cli.VOCAB, text)
        for command, out in (
                (("tokenizer", "train", "-o", "out", "--vocab-size", cli.VOCAB, text), "out"),
                (("data", "build", "-t", "good-tok", "-o", "out/x", text), "out")):
            env = {"TESSERA_FAULT_PATH": out, "TESSERA_FAULT_AT": "0",
                   "TESSERA_FAULT_KIND": FULL, "TESSERA_FAULT_COUNT": self.path("count")}
            for below in (out, self.path(out)):  # calls by name, and those on open files
                shutil.rmtree(self.path(out), ignore_errors=True)
                env.update(TESSERA_FAULT_PATH=below, TESSERA_FAULT_AT="0")
                self.good(*command, env=env, preload=cli.FAULT)
                with open(self.path("count")) as f:
                    n = int(f.read())
                for at in range(1, n + 1):
                    shutil.rmtree(self.path(out), ignore_errors=True)
                    env["TESSERA_FAULT_AT"] = str(at)
                    self.bad(3, [out, TEXTS[FULL]], *command, env=env, preload=cli.FAULT)
                    left = os.listdir(self.path(out)) if os.path.isdir(self.path(out)) else []
                    self.assertEqual([f for f in left if "tmp" in f], [])
                    self.assertIn(sorted(f for f in left if f.startswith("x.")),
                                  ([], ["x.bin", "x.idx"]))


class Limits(cli.Case):
    """RLIMIT_FSIZE: a file that grows too large is a failed write, not a death by signal."""

    def test_file_size(self):
        self.tokens("tokens")
        run = self.run_file(train={"steps": 1})
        self.bad(3, ["checkpoints", os.strerror(errno.EFBIG)], "train", run,
                 limits=[(resource.RLIMIT_FSIZE, 20000)])
        self.assertEqual(os.listdir(self.path("run/checkpoints")), [])
        self.bad(3, os.strerror(errno.EFBIG), "train", run, limits=[(resource.RLIMIT_FSIZE, 100)])
        self.good("train", run)


if __name__ == "__main__":
    cli.main()

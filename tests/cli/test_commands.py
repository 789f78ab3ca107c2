"""Command lines: help, unknown commands and options, values, output that can't be written."""
import json
import os
import signal
import subprocess

import cli
from test_reference import commands

COMMANDS = commands()
NEEDS_NO_ARGUMENT = (("doctor",), ("bench", "ops"), ("bench", "comm"))
PRODUCTS = {"gemm query", "gemm up", "gemm down, 8 pieces", "gemm weight gradient", "gemm head",
            "attention", "attention backward"}


class Help(cli.Case):
    def test_version(self):
        self.assertRegex(self.good("--version").out.decode(), r"\Atessera \d+\.\d+\.\d+\S*\n\Z")

    def test_one_rank_speaks(self):
        for command in ("train", "bench"):
            text = self.good(command, "--help", ranks=2).out.decode()
            self.assertEqual(text.count(f"usage: tessera {command} "), 1)


class Mistakes(cli.Case):
    def test_commands(self):
        self.bad(2, "a command is missing")
        self.bad(2, ["unknown command \"trian\"", "nearest is \"train\""], "trian")
        self.bad(2, "unknown command \"xyzzy\"", "xyzzy")
        self.bad(2, "expected train, encode or decode", "tokenizer")
        self.bad(2, ["found \"encod\"", "nearest is \"encode\""], "tokenizer", "encod")
        self.bad(2, "expected build or info", "data")
        self.bad(2, ["found \"buidl\"", "nearest is \"build\""], "data", "buidl")
        self.bad(2, "expected train, ops or comm", "bench")
        self.bad(2, ["found \"trian\"", "nearest is \"train\""], "bench", "trian")
        self.bad(2, "the nearest is \"--version\"", "--verison")
        self.bad(2, "tessera ckpt ls: error: ", "ckpt", "ls", "none")

    def test_options(self):
        self.bad(2, ["unknown option --promt", "nearest is --prompt"], "generate", "m", "--promt")
        self.bad(2, "unknown option -z", "generate", "m", "-z")
        self.bad(2, "unknown option --bogus", "train", "run.yaml", "--bogus")
        self.bad(2, "--prompt needs TEXT", "generate", "m", "-p")
        self.bad(2, "--ignore-eos takes no value", "generate", "m", "--ignore-eos=1")
        self.bad(2, "--help takes no value", "generate", "--help=yes")
        self.bad(2, "unexpected argument \"b\"", "eval", "a", "b")
        for command in COMMANDS:
            self.bad(2, "unknown option --no-such-thing", *command, "--no-such-thing")
            if command not in NEEDS_NO_ARGUMENT:
                self.bad(2, "missing", *command)

    def test_numbers(self):
        for option, value in (("max-tokens", "x"), ("max-tokens", "1.5"), ("max-tokens", ""),
                              ("max-tokens", "99999999999999999999"), ("temperature", "warm"),
                              ("top-p", "0.5x")):
            self.bad(2, [f"--{option} takes a", f"\"{value}\""], "generate", "m", "-p", "x",
                     f"--{option}={value}")
        for option, value in (("max-tokens", "0"), ("max-tokens", "-1"), ("temperature", "-0.1"),
                              ("temperature", "nan"), ("temperature", "inf"), ("top-p", "1.01"),
                              ("top-k", "-1"), ("min-p", "2"), ("tp", "0"), ("pp", "-3"),
                              ("threads", "-1"), ("seed", "-1")):
            self.bad(2, [f"--{option} must be between", value], "generate", "m", "-p", "x",
                     f"--{option}={value}")
        self.bad(2, "between 1 and 16777216, not 0", "generate", "m", "-p", "x", "-n", "0")
        self.bad(2, "--seq-len must be between", "eval", "m", "--data", "d", "--seq-len", "0")
        self.bad(2, "--steps must be between", "bench", "train", "r.yaml", "--steps", "0")
        self.bad(2, "--tokens must be between", "bench", "ops", "--tokens", "0")
        self.bad(2, "there is no preset \"x\"", "bench", "ops", "--preset", "x")
        self.bad(2, "no multiple of", "bench", "ops", "--preset", "tiny-llama", "--tokens", "33")
        self.bad(2, "--vocab-size must be between", "tokenizer", "train", "-o", "t",
                 "--vocab-size", "256", "f")

    def test_one_rank_speaks(self):
        self.bad(2, "unknown option --bogus", "train", "run.yaml", "--bogus", ranks=2)
        self.bad(2, "unknown command \"trian\"", "trian", ranks=2)
        self.bad(2, "expected train, ops or comm, found", "bench", "trian", ranks=2)
        self.bad(2, "either --prompt or --ids", "generate", "m", ranks=2)
        self.bad(2, ["TESSERA_TIMEOUT", "'soon'"], "generate", "m", "-p", "x", ranks=2,
                 env={"TESSERA_TIMEOUT": "soon"})


class Bench(cli.Case):
    def test_bench_ops(self):
        for preset in ("tiny-llama", "tiny-gpt"):
            out = self.good("bench", "ops", "--preset", preset, "--tokens", 64, "--seq-len", 32,
                            "--seconds", 0.001, "--json").out
            report = json.loads(out)
            for key in ("peak_gflops", "copy_gb_per_s"):
                self.assertGreater(report[key], 0)
            names = [line["name"] for line in report["ops"]]
            self.assertEqual(len(names), len(set(names)))
            self.assertLessEqual(PRODUCTS | {"copy", "norm", "attention, decode", "AdamW"},
                                 set(names))
            for line in report["ops"]:
                self.assertGreater(line["ms"], 0)
                self.assertEqual(line["gflops"] > 0, line["name"] in PRODUCTS, line)

    def test_bench_comm(self):
        self.bad(2, "expected 2 to 4096 ranks", "bench", "comm")
        report = json.loads(self.good("bench", "comm", "--largest", 65536, "--json", ranks=3).out)
        self.assertEqual((report["ranks"], report["transport"]), (3, "mpi"))
        self.assertEqual(len(report["calls"]), 5 * 3)
        for call in report["calls"]:
            self.assertGreater(call["gb_per_s"], 0)


class Output(cli.Case):
    """Standard output on a full disk is a failure; one that nobody reads any more ends the run."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        made = cls("runTest")
        text = made.text()
        made.good("tokenizer", "train", "-o", "tok", "--vocab-size", cli.VOCAB, text)
        made.tokens("tokens")
        made.run_file(model={"tokenizer": "tok"})
        made.good("train", "run.yaml", "train.steps=1")

    def runTest(self):
        pass

    def full(self, *args, **options):
        with open("/dev/full", "wb") as full:
            self.bad(3, "standard output", *args, stdout=full, **options)

    def test_full(self):
        model = "run/checkpoints/step-00000001"
        self.full("generate", model, "-p", "In the", "-n", 4)
        self.full("generate", model, "--ids", "1,2", "-n", 4)
        self.full("eval", model, "--data", "tokens", "--seq-len", 16)
        self.full("tokenizer", "encode", "tok", "text.txt")
        self.full("tokenizer", "decode", "tok", stdin=b"1 2 3\n")
        self.full("data", "info", "tokens")
        self.full("bench", "train", "run.yaml", "--steps", 1)
        self.full("bench", "train", "run.yaml", "--steps", 1, "--json")
        self.full("--help")
        self.full("--version")
        self.full("train", "--help")
        self.full("generate", "--help")

    def test_pipe_without_reader(self):
        for args in (("tokenizer", "encode", "tok", "text.txt"),
                     ("generate", "run/checkpoints/step-00000001", "-p", "In", "-n", "40",
                      "--ignore-eos")):
            read_end, write_end = os.pipe()
            os.close(read_end)
            with os.fdopen(write_end, "wb") as w:
                result = self.run_tessera(*args, stdout=w)
            # Ended by the signal, as is the custom of filters, or told as a failed write.
            self.assertIn(result.code, (-signal.SIGPIPE, cli.RESOURCE), result)

    def test_nobody_reads_the_log(self):
        """A training run outlives the terminal that showed its progress."""
        read_end, write_end = os.pipe()
        os.close(read_end)
        with os.fdopen(write_end, "wb") as w:
            code = subprocess.call([cli.TESSERA, "train", self.path("run.yaml"), "train.steps=2",
                                    "run.dir=" + self.path("quiet")], stderr=w, timeout=60)
        self.assertEqual(code, 0)
        self.assertTrue(os.path.exists(self.path("quiet/checkpoints/step-00000002")))


if __name__ == "__main__":
    cli.main()

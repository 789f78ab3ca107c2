"""docs/reference.md against the program: nothing is missing there, and nothing there is made up."""
import json
import re
import struct
from pathlib import Path

import cli

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"`([^`]+)`")
STEP_KEYS = ("loss", "grad_norm", "lr", "tokens", "tokens_per_s", "mfu", "step_ms", "skipped",
             "rollbacks", "dropped_sequences")


def rows(title):
    """The table of a section: a list of cells for each row."""
    text = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    section = re.split(r"(?m)^## ", text.split(f"\n## {title}\n", 1)[1])[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert lines[1].startswith("|---"), title
    return [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in lines[2:]]


def names(title):
    """All that stands in code marks in the first column."""
    return [name for row in rows(title) for name in CODE.findall(row[0])]


def sources(*folders):
    return "".join(f.read_text(encoding="utf-8") for folder in folders
                   for f in sorted((ROOT / folder).rglob("*.c")))


def commands():
    """{("ckpt", "ls"): its options}, of all commands."""
    documented = {}
    for command, options, _ in rows("Commands"):
        usage = CODE.findall(command)[0].split()
        words = (w for w in usage[:2] if re.fullmatch("[a-z-]+", w))
        documented[tuple(words)] = CODE.findall(options)
    return documented


class Words(cli.Case):
    def test_commands(self):
        documented = commands()
        found = re.findall(r"(?m)^  ([a-z-]+)  +[a-z]", self.good("--help").out.decode())
        self.assertEqual(sorted(found), sorted({c[0] for c in documented}))
        for group in {c[0] for c in documented if len(c) > 1}:
            text = self.good(group, "--help").out.decode()
            self.assertIn(f"usage: tessera {group} ", text)
            parts = re.findall(r"(?m)^  ([a-z]+)  +\S", text)
            self.assertEqual([c for c in documented if c[0] == group], [(group, p) for p in parts])
        for command, options in documented.items():
            for flag in ("--help", "-h"):
                text = self.good(*command, flag).out.decode()
                self.assertIn(f"usage: tessera {' '.join(command)} ", text)
                found = re.findall(r"(?m)^  (?:-\w, |    )(--[a-z-]+)\b.*  +\S", text)
                self.assertEqual(options + ["--help"], found, command)

    def test_exit_codes(self):
        found = re.findall(r"(?m)^  (\d+(?: \+ N)?)\b", self.good("--help").out.decode())
        self.assertEqual([row[0] for row in rows("Exit codes")], found)
        codes = re.findall(r"X\(\w+, (\d+), ", (ROOT / "core/error.h").read_text())
        self.assertEqual(sorted({int(c) for c in codes} | {0, 70}),
                         [int(c) for c in found if c.isdigit()])

    def test_fields(self):
        text = self.good("train", "--help").out.decode()
        found = re.findall(r"(?m)^  (\w+\.[\w.]+) +(\S.*?)  +(\S.*)\n +(\S.*)$", text)
        self.assertGreater(len(found), 50)
        expected = []
        for name, value, default, about in found:
            about, fixed = re.subn(r" \(fixed on resume\)$", "", about)
            expected.append([f"`{name}`", value, default, about + "; *fixed*" * fixed])
        self.assertEqual(rows("Fields of the run file"), expected)

    def test_environment(self):
        code = sources("core", "dist", "kernels", "launcher")
        found = set(re.findall(r'getenv\("(TESSERA_\w+|NO_COLOR|TMPDIR)"\)', code))
        self.assertEqual(set(names("Environment")), found)

    def test_prometheus(self):
        page = (ROOT / "launcher/coordinator/metrics_page.c").read_text(encoding="utf-8")
        found = re.findall(r'(?:gauge|counter)\(&?p,\s+"(\w+)"', page)
        self.assertEqual(names("Prometheus"), ["run_info", *found])


class Keys(cli.Case):
    """A run of two steps, and what each command says of it."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        made = cls("runTest")
        made.text(n=4000)
        made.good("tokenizer", "train", "-o", "tok", "--vocab-size", cli.VOCAB, "text.txt")
        made.run_file(model={"tokenizer": "tok"}, data={"train": "text.txt"},
                      train={"eval_every": 2}, checkpoint={"every": 1})
        made.good("train", "run.yaml")

    def runTest(self):
        pass

    def lines(self, name):
        return [json.loads(line) for line in Path(self.path(name)).read_text().splitlines()]

    def test_metrics(self):
        lines = self.lines("run/metrics.jsonl")
        documented = names("metrics.jsonl")
        self.assertEqual(list(lines[1]), documented)
        self.assertEqual(list(lines[0]), documented[:-1])
        self.assertEqual(documented, ["step", *STEP_KEYS, "valid_loss"])

    def test_log(self):
        for line in self.lines("run/log.jsonl"):
            self.assertEqual(list(line), names("log.jsonl"))

    def test_json(self):
        model = "run/checkpoints/step-00000002"
        lines = {
            "eval": ("eval", model, "--data", "text.txt"),
            "tokenizer encode": ("tokenizer", "encode", "tok", "text.txt"),
            "data build": ("data", "build", "-t", "tok", "-o", "built", "text.txt"),
            "ckpt ls": ("ckpt", "ls", "run"),
            "ckpt verify": ("ckpt", "verify", model),
            "ckpt diff": ("ckpt", "diff", "run/checkpoints/step-00000001", model),
            "ckpt reshard": ("ckpt", "reshard", model, "--to", "tp=2"),
            "plan": ("plan", "run.yaml"),
            "layout-check": ("layout-check", "run.yaml", "--against", "dp=2", "--steps", 1),
            "doctor": ("doctor",),
            "bench train": ("bench", "train", "run.yaml", "--steps", 1),
            "bench ops": ("bench", "ops", "--preset", "tiny-gpt", "--tokens", 32, "--seq-len", 16,
                          "--seconds", 0.001),
            "bench comm": ("bench", "comm", "--largest", 4096),
        }
        documented = {}
        for command, keys in rows("--json"):
            for name in CODE.findall(command):
                documented.setdefault(name, keys)
        self.assertEqual(documented.pop("data info"), documented["data build"])
        status = documented.pop("status")
        self.assertEqual(set(documented), set(lines) | {"ckpt verify"})
        for name, keys in rows("--json"):
            if name == "`ckpt verify` of a checkpoint":
                documented["ckpt verify"] = keys
        for name, line in lines.items():
            out = self.good(*line, "--json", ranks=2 if name == "bench comm" else 0).out
            self.assertEqual(CODE.findall(documented[name]),
                             list(json.loads(out.splitlines()[-1])), name)
        self.check_status(status)

    def check_status(self, documented):
        """What only a live run says is compared with the source."""
        always, steps, live = re.fullmatch(r"(.*); (after a first step .*); (while .*)",
                                           documented).groups()
        self.assertIn("metrics.jsonl", steps)
        live, ended = map(CODE.findall, live.split(", else "))
        found = json.loads(self.good("status", "run", "--json").out)
        self.assertTrue(found["finished"])
        self.assertEqual(set(found), {*CODE.findall(always), *STEP_KEYS, "valid_loss"})
        source = (ROOT / "launcher/status_json.c").read_text(encoding="utf-8")
        put_live = source[source.index("static void put_live"):]
        self.assertEqual(set(re.findall(r'new\(o, "(\w+)"', put_live)),
                         {*CODE.findall(always), *live, *ended})

    def test_checkpoint(self):
        """docs/checkpoint.md names every file of a checkpoint, and every key of its two records."""
        text = (ROOT / "docs/checkpoint.md").read_text(encoding="utf-8")
        folder = Path(self.path("run/checkpoints/step-00000002"))
        for name in ("config.json", "model.safetensors.index.json", "state.json", "manifest.json"):
            self.assertTrue((folder / name).exists(), name)
        for file in folder.rglob("*"):
            base = re.sub(r"-\d{5}-of-\d{5}\.safetensors$", "-", file.name)
            if file.is_file() and "token" not in base:  # "tokenizer files"
                self.assertIn(f"`{base}" if base.endswith("json") else base, text)
        state = json.loads((folder / "state.json").read_text())
        manifest = json.loads((folder / "manifest.json").read_text())
        for key in (*state, *state["guard"], *manifest, *manifest["files"][0]):
            self.assertIn(f"`{key}`", text, key)

    def test_loss_that_is_not_finite(self):
        """JSON has no NaN: null."""
        weights = Path(self.path("run/checkpoints/step-00000001/model-00001-of-00001.safetensors"))
        content = bytearray(weights.read_bytes())
        begin = 8 + struct.unpack("<Q", content[:8])[0]
        content[begin:] = struct.pack("<f", float("nan")) * ((len(content) - begin) // 4)
        weights.write_bytes(content)
        out = self.good("eval", weights.parent, "--data", "text.txt").out
        self.assertEqual(out.count(b"null"), 2, out)
        self.assertIsNone(json.loads(out)["loss"])


if __name__ == "__main__":
    cli.main()

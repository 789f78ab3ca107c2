"""Training data and tokenizers that are damaged, too short, or don't fit the model."""
import json
import os
import shutil
import struct

import cli


class Data(cli.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        made = cls("runTest")
        made.text()
        made.good("tokenizer", "train", "-o", "tok", "--vocab-size", cli.VOCAB, "text.txt")
        made.tokens("tokens")
        made.run_file()
        made.good("train", "run.yaml", "train.steps=1", "run.dir=trained")
        cls.model = os.path.join(cls.dir, "trained/checkpoints/step-00000001")
        shutil.copytree(cls.model, os.path.join(cls.dir, "model"))
        for file in os.listdir(os.path.join(cls.dir, "tok")):
            shutil.copy(os.path.join(cls.dir, "tok", file), os.path.join(cls.dir, "model"))

    def runTest(self):
        pass

    def refuse(self, needles, path, ranks=0, tokenizer="tok", **sections):
        """Both ways to read data fail alike, and eval leaves nothing in the temporary folder."""
        run = self.run_file(name="bad.yaml", run_dir="bad", model={"tokenizer": tokenizer},
                            **{**sections, "data": {"train": path, **sections.get("data", {})}})
        self.bad(2, needles, "train", run, ranks=ranks)
        self.assertFalse(os.path.exists(self.path("bad/checkpoints")))
        left = [f for _, _, files in os.walk(self.path("bad/data")) for f in files
                if ".tmp" in f or f.endswith(".partial")]
        self.assertEqual(left, [])

    def refuse_eval(self, needles, path, ranks=0, *options):
        tmp = self.path("tmp")
        os.makedirs(tmp, exist_ok=True)
        self.bad(2, needles, "eval", "model", "--data", path, *options, ranks=ranks,
                 env={"TMPDIR": tmp})
        self.assertEqual([f for f in os.listdir(tmp) if "eval" in f], [])

    def test_text(self):
        self.refuse(["short.txt", "at least 17 tokens"],
                    self.write("short.txt", "In the beginning"))
        self.refuse(["empty.txt"], self.write("empty.txt", ""))
        text = b"In the beginning, God created heaven.\n" * 40
        self.write("broken.txt", text + b"\xff\xfe" + text)
        for ranks in (0, 2):
            self.refuse(["broken.txt", "UTF-8", f"{len(text)}"], "broken.txt", ranks)
        self.refuse(["none.txt"], "none.txt")
        self.refuse(["data.train", "model.tokenizer"], "text.txt", tokenizer=None)
        os.makedirs(self.path("folder.txt"), exist_ok=True)
        self.refuse(["folder.txt"], "folder.txt")
        self.refuse(["bad.yaml:", "data.train: weight", "found -1"],
                    [{"path": "text.txt", "weight": -1}])
        self.refuse(["data.train"], [])

    def test_jsonl(self):
        line = json.dumps({"text": "In the beginning God created"}) + "\n"
        for name, bad in (("a", "{\"text\": "), ("b", "{\"txt\": \"x\"}"), ("c", "[1]"),
                          ("d", "{\"text\": 5}"), ("e", "{\"text\": \"\\ud800\"}")):
            path = self.write(name + ".jsonl", line * 4 + bad + "\n" + line * 50)
            self.refuse([name + ".jsonl", "line 5"], path)

    def test_eval(self):
        self.refuse_eval(["none.txt"], "none.txt")
        self.refuse_eval(["empty.txt", "at least 2 tokens"], self.write("empty.txt", ""))
        self.refuse_eval(["one", "at least 2 tokens"], self.tokens("one", 1))
        self.refuse_eval(["bad.txt", "UTF-8", "3"], self.write("bad.txt", b"abc\xc3("))
        self.refuse_eval(["ranks", "found 2"], "tokens", 2)
        self.bad(2, "--data is missing", "eval", "model")
        self.bad(2, "fp32", "eval", "model", "--data", "tokens", "--dtype", "bf16")
        tmp = self.path("tmp-good")
        os.makedirs(tmp)
        good = self.good("eval", "model", "--data", "text.txt", env={"TMPDIR": tmp})
        self.assertGreater(json.loads(good.out)["tokens"], 100)
        self.assertEqual([f for f in os.listdir(tmp) if "eval" in f], [])

    def test_vocabularies(self):
        with open(self.path("tok/tokenizer.json")) as f:
            n = len(json.load(f)["model"]["vocab"])
        small = {**cli.MODEL, "vocab_size": n - 1}
        run = self.run_file(name="small.yaml", run_dir="bad", data={"train": "text.txt"},
                            model={"config": small, "tokenizer": "tok"})
        for ranks in (0, 2):
            self.bad(2, ["tok", f"{n} tokens", f"vocabulary has {n - 1}", "vocab_size"], "train",
                     run, ranks=ranks)
        self.tokens("high", extra=[cli.VOCAB])
        for ranks in (0, 2):
            self.refuse(["high", "position 4000", "token id 300", "vocabulary is 300"], "high",
                        ranks)
        self.refuse_eval(["high", "position 4000", "token id 300"], "high")

    def test_index_cut_short(self):
        with open(self.path("tokens.idx"), "rb") as f:
            idx = f.read()
        shutil.copy(self.path("tokens.bin"), self.path("cut.bin"))
        for n in cli.some([*range(0, 40, 3), len(idx) // 2, len(idx) - 9, len(idx) - 8,
                           len(idx) - 1]):
            self.write("cut.idx", idx[:n])
            self.bad(2, "cut.idx", "data", "info", "cut")
        self.write("cut.idx", idx + b"\0" * 7)
        self.bad(2, "cut.idx", "data", "info", "cut")
        self.refuse(["cut.idx"], "cut", 2)

    def test_index_bits(self):
        """A flipped bit is either told, or changes nothing that is read."""
        with open(self.path("tokens.idx"), "rb") as f:
            idx = bytearray(f.read())
        shutil.copy(self.path("tokens.bin"), self.path("flip.bin"))
        n_sequences = struct.unpack_from("<Q", idx, 18)[0]
        before = self.good("data", "info", "tokens", "--json").out
        for at in cli.some([*range(0, 42), 34 + 4 * n_sequences, *range(43, len(idx), 61)]):
            for bit in (0, 7):
                flipped = bytearray(idx)
                flipped[at] ^= 1 << bit
                self.write("flip.idx", bytes(flipped))
                result = self.run_tessera("data", "info", "flip", "--json")
                if result.code == 0:
                    self.assertEqual(json.loads(result.out)["tokens"], json.loads(before)["tokens"],
                                     f"byte {at} bit {bit}")
                else:
                    self.assertEqual((result.code, len(result.errors)), (2, 1), result)
                    self.assertIn("flip.", result.errors[0])

    def test_bin_cut_short(self):
        shutil.copy(self.path("tokens.idx"), self.path("lack.idx"))
        with open(self.path("tokens.bin"), "rb") as f:
            tokens = f.read()
        for n in (0, 1, 100, len(tokens) - 1):
            self.write("lack.bin", tokens[:n])
            self.bad(2, "lack.bin", "data", "info", "lack")
        self.refuse(["lack.bin"], "lack", 2)
        os.remove(self.path("lack.bin"))
        self.bad(2, "lack.bin", "data", "info", "lack")
        self.bad(2, "nothing", "data", "info", "nothing")

    def test_data_build(self):
        bad = self.write("tail.txt", b"In the beginning " * 50 + b"\x80")
        self.bad(2, ["tail.txt", "UTF-8", "850"], "data", "build", "-t", "tok", "-o", "out/x", bad)
        self.assertEqual(os.listdir(self.path("out")), [])
        self.bad(2, "none.txt", "data", "build", "-t", "tok", "-o", "out/x", "none.txt")
        self.bad(2, ["no-tok", "tokenizer.json"], "data", "build", "-t", "no-tok", "-o", "out/x",
                 "text.txt")
        self.bad(2, "--output is missing", "data", "build", "-t", "tok", "text.txt")
        self.assertEqual(os.listdir(self.path("out")), [])

    def test_tokenizer(self):
        for content, needle in ((b"", "tokenizer.json"), (b"{", "tokenizer.json"),
                                (bytes(range(200)), "tokenizer.json"), (b"[]", "tokenizer.json"),
                                (b"{\"model\": {\"type\": \"WordPiece\"}}", "not supported")):
            self.write("bad-tok/tokenizer.json", content)
            self.bad(2, needle, "tokenizer", "encode", "bad-tok", "text.txt")
        with open(self.path("tok/tokenizer.json"), "rb") as f:
            good = f.read()
        for n in range(1, len(good), len(good) // 12):
            self.write("bad-tok/tokenizer.json", good[:n])
            self.bad(2, "tokenizer.json", "tokenizer", "encode", "bad-tok", "text.txt")
        self.bad(2, "no-tok", "tokenizer", "encode", "no-tok", "text.txt")
        self.bad(2, ["UTF-8", "offset 3"], "tokenizer", "encode", "tok", stdin=b"abc\xff")
        self.bad(2, "none.txt", "tokenizer", "encode", "tok", "none.txt")
        for ids, needle in ((b"1 x 2", "\"x\""), (b"1 300", "300"), (b"-1", "-1"),
                            (b"99999999999", "99999999999")):
            self.bad(2, needle, "tokenizer", "decode", "tok", stdin=ids)

    def test_tokenizer_train(self):
        bad = self.write("tail.txt", b"In the beginning " * 50 + b"\x80")
        self.bad(2, ["tail.txt", "850"], "tokenizer", "train", "-o", "new", "--vocab-size", 300,
                 bad)
        self.bad(2, "none.txt", "tokenizer", "train", "-o", "new", "--vocab-size", 300, "none.txt")
        self.bad(2, "gpt5", "tokenizer", "train", "-o", "new", "--vocab-size", 300, "--pattern",
                 "gpt5", "text.txt")
        self.assertFalse(os.path.exists(self.path("new/tokenizer.json")))
        self.bad(2, "text.txt", "tokenizer", "train", "-o", "text.txt", "--vocab-size", 300,
                 "text.txt")


if __name__ == "__main__":
    cli.main()

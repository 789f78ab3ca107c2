"""Model directories that are damaged or don't fit, and prompts that don't fit the model."""
import json
import os
import shutil
import struct

import cli


def read_tensors(path):
    """Header (a dict) and data bytes of a safetensors file."""
    with open(path, "rb") as f:
        raw = f.read()
    n = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8:8 + n]), raw[8 + n:]


def tensor_file(header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


class Models(cli.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        made = cls("runTest")
        made.text()
        made.good("tokenizer", "train", "-o", "tok", "--vocab-size", cli.VOCAB, "text.txt")
        made.tokens("tokens")
        made.run_file(model={"tokenizer": "tok"})
        made.good("train", "run.yaml", "train.steps=1")
        source = os.path.join(cls.dir, "run/checkpoints/step-00000001")
        os.makedirs(os.path.join(cls.dir, "good"))
        for name in os.listdir(source):  # a plain Hugging Face directory
            if name not in ("optimizer", "state.json", "manifest.json"):
                shutil.copy(os.path.join(source, name), os.path.join(cls.dir, "good", name))
        cls.weights = next(n for n in os.listdir(source) if n.endswith(".safetensors"))

    def runTest(self):
        pass

    def setUp(self):
        shutil.rmtree(self.path("m"), ignore_errors=True)
        shutil.copytree(self.path("good"), self.path("m"))

    def refuse(self, needles, *options, ranks=0, code=2):
        return self.bad(code, needles, "generate", "m", "--ids", "1,2,3", "-n", 2, *options,
                        ranks=ranks)

    def test_directory(self):
        self.good("generate", "m", "--ids", "1,2,3", "-n", 2)
        self.bad(2, ["none", "model directory", "nothing"], "generate", "none", "-p", "x")
        self.bad(2, ["text.txt", "model directory", "a file"], "generate", "text.txt", "-p", "x")
        self.bad(2, ["none", "model directory"], "eval", "none", "--data", "tokens", ranks=2)
        os.remove(self.path("m/tokenizer.json"))
        self.bad(2, "tokenizer.json", "generate", "m", "-p", "x")
        self.good("generate", "m", "--ids", "1,2,3", "-n", 2)
        os.remove(self.path("m", self.weights))
        self.refuse(self.weights)
        os.remove(self.path("m/model.safetensors.index.json"))
        self.refuse("safetensors")
        os.remove(self.path("m/config.json"))
        self.refuse("config.json", ranks=2)

    def test_config(self):
        with open(self.path("m/config.json")) as f:
            good = json.load(f)
        for text in (b"", b"{", b"[]", b"null", bytes(range(256)), b"{" * 100000):
            self.write("m/config.json", text)
            self.refuse("config.json")
        for key, needle in (("model_type", "config.json"), ("vocab_size", "expected shape"),
                            ("hidden_size", "expected shape"),
                            ("intermediate_size", "expected shape"),
                            ("num_hidden_layers", "is missing"), ("num_attention_heads", "m/")):
            self.write("m/config.json", json.dumps({k: v for k, v in good.items() if k != key}))
            self.refuse(needle)  # Llama's own defaults don't fit the weights
        for key, value in (("hidden_size", "32"), ("hidden_size", -1), ("hidden_size", 0),
                           ("hidden_size", 10**18), ("hidden_size", 32.5), ("vocab_size", 0),
                           ("num_hidden_layers", 10**9), ("num_attention_heads", 0),
                           ("num_key_value_heads", 3), ("rope_theta", "x"), ("hidden_act", "mish"),
                           ("rms_norm_eps", -1), ("model_type", 3)):
            self.write("m/config.json", json.dumps({**good, key: value}))
            with self.subTest(key=key, value=value):
                self.refuse(["config.json", key])
        yarn = {"rope_type": "yarn", "factor": 2}
        self.write("m/config.json", json.dumps({**good, "rope_scaling": yarn}))
        self.refuse(["config.json", "yarn", "llama3"])
        self.write("m/config.json", json.dumps({**good, "rope_scaling": {"rope_type": "llama3"}}))
        self.refuse(["config.json", "llama3", "factor"])
        # Sizes that fit each other but not the weights.
        self.write("m/config.json", json.dumps({**good, "intermediate_size": 64}))
        self.refuse(["mlp", "48", "64"])
        self.write("m/config.json", json.dumps({**good, "num_hidden_layers": 3}))
        self.refuse(["model.layers.2.", "missing"])
        self.write("m/config.json", json.dumps({**good, "num_hidden_layers": 1}))
        self.refuse("model.layers.1.", "--tp", 2, ranks=2)

    def test_tensors(self):
        path = "m/" + self.weights
        header, data = read_tensors(self.path(path))
        name = "model.layers.1.mlp.up_proj.weight"
        entry = header[name]
        begin, end = entry["data_offsets"]

        def changed(**fields):
            return tensor_file({**header, name: {**entry, **fields}}, data)

        huge = 1 << 62
        for content, needles in (
                (b"", [self.weights]), (b"\0" * 7, [self.weights]),
                (tensor_file(header, data, 1 << 63), [self.weights]),
                (tensor_file(header, data, (1 << 64) - 1), [self.weights]),
                (tensor_file(header, data, 0), [self.weights]),
                (tensor_file(header, data, 10), [self.weights]),
                (tensor_file(b"{" * 2000, data), [self.weights]),
                (tensor_file(b"[1]", data), [self.weights]),
                (tensor_file(header, data[:-1]), [self.weights]),
                (tensor_file(header, data + b"\0"), [self.weights]),
                (changed(data_offsets=[begin - 4, end - 4]), [self.weights]),
                (changed(data_offsets=[end, begin]), [name]),
                (changed(data_offsets=[begin, huge]), [name]),
                (changed(data_offsets=[-4, end - begin - 4]), [name]),
                (changed(data_offsets=[begin]), [name]),
                (changed(dtype="F31"), [name, "F31"]),
                (changed(dtype="I32"), [name, "I32"]),
                (changed(dtype="F16"), [name]),
                (changed(shape=[huge, 16]), [name]),
                (changed(shape=[1 << 32, 1 << 32]), [name]),
                (changed(shape=[48, -32]), [name]),
                (changed(shape=[32, 48]), [name, "[48, 32]", "[32, 48]"]),
                (changed(shape="x"), [name])):
            self.write(path, content)
            self.refuse(needles)
        self.write(path, changed(shape=[32, 48]))
        self.refuse([name], "--tp", 2, ranks=2)

    def test_missing_and_extra(self):
        path = "m/" + self.weights
        header, data = read_tensors(self.path(path))
        os.remove(self.path("m/model.safetensors.index.json"))
        os.rename(self.path(path), self.path("m/model.safetensors"))
        norm = header.pop("model.norm.weight")
        self.write("m/model.safetensors", tensor_file({**header, "model.nrom.weight": norm}, data))
        self.refuse("model.n", "--tp", 2, ranks=2)
        header["model.norm.weight"] = norm
        end = len(data)
        extra = {"dtype": "F32", "shape": [2], "data_offsets": [end, end + 8]}
        self.write("m/model.safetensors",
                   tensor_file({**header, "model.surprise": extra}, data + b"\0" * 8))
        self.refuse("model.surprise")
        self.write("m/model.safetensors", tensor_file(
            {**header, "model.layers.0.self_attn.rotary_emb.inv_freq": extra}, data + b"\0" * 8))
        self.good("generate", "m", "--ids", "1,2,3", "-n", 2)

    def test_index(self):
        path = self.path("m/model.safetensors.index.json")
        with open(path) as f:
            good = json.load(f)
        for text in ("", "{", "[]", "{\"weight_map\": 3}", "{\"weight_map\": {\"a\": 5}}"):
            self.write(path, text)
            self.refuse("index.json")
        for file in ("none.safetensors", "../good/" + self.weights, "/etc/passwd"):
            self.write(path, json.dumps({**good, "weight_map": {k: file for k in
                                                                good["weight_map"]}}))
            self.refuse("")

    def test_state(self):
        """A checkpoint's state.json gives the virtual shards; a wrong one is told."""
        for text in ("", "{}", "[]", "{\"virtual_shards\": 0}", "{\"virtual_shards\": -8}"):
            self.write("m/state.json", text)
            self.refuse("state.json")

    def test_prompts(self):
        self.refuse(["either --prompt or --ids"], "-p", "x")
        self.bad(2, "either --prompt or --ids", "generate", "m")
        for ids, needle in (("", "empty"), ("1,,2", "1,,2"), ("1;2", "1;2"), ("-1", "-1"),
                            ("1 2", "1 2"), ("99999999999", "99999999999"), ("1,2,", "1,2,"),
                            (" 1", " 1")):
            self.bad(2, needle, "generate", "m", f"--ids={ids}")
        for ranks, options in ((0, ()), (2, ("--tp", 2))):
            self.bad(2, ["token 300", "vocabulary of 300"], "generate", "m", "--ids", "1,300",
                     *options, ranks=ranks)
        self.bad(2, "UTF-8", "generate", "m", "-p", b"abc\xff".decode(errors="surrogateescape"))
        # Without a start token an empty text is no prompt; with one it is.
        self.good("generate", "m", "-p", "", "-n", 2)

    def test_layout(self):
        self.refuse(["--tp 2", "2 ranks", "found 1"], "--tp", 2)
        self.refuse(["ranks", "found 2"], ranks=2)
        self.refuse(["--tp 3", "virtual shards"], "--tp", 3, ranks=3)
        self.refuse(["2 layers", "pp 3"], "--pp", 3, ranks=3)
        self.refuse("bf16", "--dtype", "bf16")

    def test_training_from_it(self):
        path = "m/" + self.weights
        header, data = read_tensors(self.path(path))
        self.write(path, tensor_file(header, data[:-8]))
        run = self.run_file("from.yaml", "from", model={"config": None, "from": "m"})
        for ranks in (0, 2):
            self.bad(2, self.weights, "train", run, ranks=ranks)


if __name__ == "__main__":
    cli.main()

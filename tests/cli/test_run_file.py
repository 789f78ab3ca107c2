"""Mistakes in run files: each is told once, with its place, and nothing is written."""
import json
import os
import resource
import unittest

import cli


class RunFile(cli.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls("runTest").tokens("tokens")

    def runTest(self):
        pass

    def refuse(self, needles, *overrides, code=2, count=1, text=None, **sections):
        """`text`: the whole file; else the tiny run with these sections changed."""
        options = {k: sections.pop(k) for k in ("ranks", "env", "limits") if k in sections}
        path = self.write("run.yaml", text) if text is not None else self.run_file(**sections)
        result = self.bad(code, needles, "train", path, *overrides, count=count, **options)
        self.assertFalse(os.path.exists(self.path("run")), "something was written")
        return result

    def test_hosts(self):
        """A list that can't be read, and a name that no resolver knows (its label is too long)."""
        run = self.run_file()
        self.bad(2, ["--hosts", "\"a:0\""], "train", run, "--hosts", "a:0")
        self.bad(2, ["--hosts", "host " + "a" * 70], "train", run, "--hosts", "a" * 70 + ":2")

    def test_files(self):
        self.bad(2, ["none.yaml", "found nothing"], "train", "none.yaml")
        self.bad(2, ["expected a file, found a folder", self.dir], "train", self.dir)
        self.refuse(["run.yaml:1:1", "empty"], text="")
        self.refuse(["run.yaml:1:1", "empty"], text="# only this\n")
        self.refuse(["run.yaml:1:1", "UTF-8"], text=bytes(range(256)) * 20)
        self.refuse(["run.yaml:2:", "YAML"], text="run:\n\tname: x\n")
        self.refuse(["run.yaml:1:1", "expected a mapping"], text="[1, 2, 3]\n")
        self.refuse(["run.yaml:1:1", "expected a mapping"], text="hello\n")
        self.refuse(["run.yaml", "bytes"], text="x" * 2000000)

    def test_one_mistake(self):
        tail = f"data: {{train: tokens, seq_len: 16}}\nmodel: {{config: {json.dumps(cli.MODEL)}}}\n"
        for line, needles in (
                ("train: {steps: 2, stesp: 3}", ["run.yaml:1:19", "train.stesp", "train.steps"]),
                ("trian: {steps: 2}\ntrain: {steps: 1}", ["run.yaml:1:1", "trian", "train"]),
                ("train: {steps: 2, learning_rate: 1}", ["train.learning_rate", "unknown key"]),
                ("train: {steps: two}", ["run.yaml:1:16", "train.steps", "integer", "two"]),
                ("train: {steps: [2]}", ["train.steps", "integer", "a list"]),
                ("train: {steps: 0}", ["train.steps", ">= 1", "found 0"]),
                ("train: {steps: 1.5}", ["train.steps", "integer", "1.5"]),
                ("train: {steps: 99999999999999999999}", ["train.steps", "99999999999999999999"]),
                ("train: {steps: 2, lr: -1e-3}", ["train.lr", ">= 0", "-1e-3"]),
                ("train: {steps: 2, lr: .nan}", ["train.lr", "number", ".nan"]),
                ("train: {steps: 2, beta1: 1}", ["train.beta1", "< 1", "found 1"]),
                ("train: {steps: 2, dropout: {ffn: 2}}", ["train.dropout.ffn", "found 2"]),
                ("train: {steps: 2, dropout: 0.1}", ["train.dropout", "mapping", "0.1"]),
                ("train: {steps: 2, schedule: cosin}", ["train.schedule", "cosine", "cosin"]),
                ("train: {steps: 2, warmup: 3}", ["train.warmup", "train.steps", "found 3"]),
                ("train: {steps: 2}\ndevice: {backend: gpu}", ["device.backend", "cuda", "gpu"]),
                ("train: {steps: 2}\nparallel: {exact: maybe}", ["exact", "true|false", "maybe"]),
                ("train:\n  steps: 2\n  lr: 1e-3\n  steps: 3",
                 ["run.yaml:4:3", "train.steps", "given twice", "line 2"]),
                ("train: {steps: 2}\ntrain: {lr: 1}", ["run.yaml:2:1", "train", "given twice"]),
                ("train: {lr: 1}", ["train.steps", "missing"])):
            self.refuse(needles, text=f"{line}\n{tail}")

    def test_model_section(self):
        self.refuse(["model", "exactly one"], model={"config": None, "tokenizer": None})
        self.refuse(["model", "exactly one", "preset", "config"], model={"preset": "tiny-gpt"})
        self.refuse(["model.preset", "tiny-lama", "did you mean tiny-llama"],
                    model={"config": None, "preset": "tiny-lama"})
        self.refuse(["model.config", "hidden_sise"],
                    model={"config": {**cli.MODEL, "hidden_sise": 3}})
        self.refuse(["model.config", "hidden_size"],
                    model={"config": {**cli.MODEL, "hidden_size": 33}})
        self.refuse(["model.config", "model_type", "mamba"],
                    model={"config": {**cli.MODEL, "model_type": "mamba"}})
        self.refuse(["no-model"], model={"config": None, "from": "no-model"})

    def test_several_at_once(self):
        result = self.refuse(["run.sed", "train.steps", "train.lr", "parallel.tp"], count=4,
                             run={"sed": 3}, train={"steps": -1, "lr": "x"}, parallel={"tp": 0})
        places = [line.split(": ")[2] for line in result.errors]
        self.assertEqual(len(set(places)), 4, result)
        self.refuse(["run.yaml", "`train.lr=x`", "`run.nmae=y`"], "train.lr=x", "run.nmae=y",
                    train={"steps": "x"}, count=3)
        many = self.run_tessera("train", self.run_file(train={f"key{i}": i for i in range(500)}))
        self.assertEqual(many.code, 2, many)
        self.assertGreater(len(many.errors), 20, many)
        self.assertIn("more mistakes", many.errors[-1], many)

    def test_overrides(self):
        self.refuse(["`train.stps=3`", "train.steps"], "train.stps=3")
        self.refuse(["`train.lr=abc`", "number"], "train.lr=abc")
        self.refuse(["`data.train=[`"], "data.train=[")
        self.refuse(["KEY=VALUE", "`nonsense`"], "nonsense")
        self.refuse(["`=3`"], "=3")

    def test_device(self):
        self.refuse(["train.precision", "bf16", "fp32"], train={"precision": "bf16"},
                    device={"backend": "cpu"})
        self.refuse(["device.backend", "CUDA"], device={"backend": "cuda"})

    def test_run_dir(self):
        self.write("file", "x")
        for run_dir in ("file", "file/below"):
            self.bad(3, [self.path("file")], "train", self.run_file(run_dir=run_dir))
        self.bad(3, [self.path("file")], "train", self.run_file(run_dir="file/below"), ranks=2)

    def test_instruction_set(self):
        run = self.run_file(run_dir="other")
        for ranks in (0, 2):
            self.bad(2, ["TESSERA_CPU", "portable", "nonsense"], "train", run,
                     env={"TESSERA_CPU": "nonsense"}, ranks=ranks)

    @unittest.skipIf(cli.SLOW, "a sanitizer reserves terabytes of addresses")
    def test_memory(self):
        """A model that doesn't fit: told before the first step, by one rank."""
        wide = {**cli.MODEL, "hidden_size": 8192, "intermediate_size": 28672}
        run = self.run_file(run_dir="big", model={"config": wide})
        limits = [(resource.RLIMIT_AS, 3 << 30)]
        for ranks, overrides in ((0, ()), (2, ()), (2, ("parallel.tp=2",)),
                                 (2, ("parallel.pp=2",))):
            self.bad(3, "memory", "train", run, *overrides, ranks=ranks, limits=limits)
        self.bad(3, "memory", "bench", "train", run, limits=limits)


class Layout(cli.Case):
    """Ranks that don't fit the layout, and layouts that don't fit the model or the batch."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls("runTest").tokens("tokens")

    def runTest(self):
        pass

    def refuse(self, needles, ranks, parallel, **sections):
        run = self.run_file(parallel=parallel, **sections)
        self.bad(2, needles, "train", run, ranks=ranks)
        self.assertFalse(os.path.exists(self.path("run")), "something was written")

    def test_ranks(self):
        self.refuse(["tp * pp * dp", "2 * 2 * 2", "8 ranks", "found 2"], 2,
                    {"tp": 2, "pp": 2, "dp": 2})
        self.refuse(["tp * pp", "2 * 1", "found 1"], 1, {"tp": 2})
        self.refuse(["tp * pp", "4 * 1", "found 2"], 2, {"tp": 4})
        self.refuse(["tp * pp", "1 * 2", "found 3"], 3, {"pp": 2})

    def test_model(self):
        lone = {**cli.MODEL, "num_attention_heads": 1, "num_key_value_heads": 1}
        self.refuse(["parallel.tp", "2 ranks", "1 heads"], 2, {"tp": 2}, model={"config": lone})
        self.refuse(["parallel.pp", "4 pipeline stages", "has 2"], 4, {"pp": 4})
        self.refuse(["parallel.pp", "4 pipeline stages", "chunks 2", "has 2"], 2,
                    {"pp": 2, "schedule": "interleaved", "chunks": 2})

    def test_batch(self):
        self.refuse(["train.micro_batch", "3"], 0, {}, train={"micro_batch": 3})
        self.refuse(["parallel.dp", "3 ranks"], 3, {})
        self.refuse(["parallel.dp", "global batch of 4"], 0, {"dp": 8},
                    train={"global_batch": 4})
        self.refuse(["interleaved", "parallel.pp (2)", "micro-batches of a rank (1)"], 2,
                    {"pp": 2, "schedule": "interleaved", "chunks": 2, "virtual_replicas": 1},
                    train={"micro_batch": 8}, model={"config": {**cli.MODEL,
                                                                "num_hidden_layers": 4}})
        self.refuse(["parallel.chunks", "at least 2"], 0, {"schedule": "interleaved"})

    def test_virtual(self):
        self.refuse(["parallel.tp", "2 ranks", "3 virtual shards"], 2,
                    {"tp": 2, "virtual_shards": 3})
        self.refuse(["train.global_batch", "8 sequences", "5 equal"], 0, {"virtual_replicas": 5})
        self.refuse(["parallel.dp", "2 ranks", "1 pieces"], 2, {"virtual_replicas": 1})

    def test_positions(self):
        gpt = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32,
               "vocab_size": cli.VOCAB}
        self.refuse(["data.seq_len", "32 positions", "found 33"], 0, {}, model={"config": gpt},
                    data={"seq_len": 33})


if __name__ == "__main__":
    cli.main()

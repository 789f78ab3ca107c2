"""`tessera plan`: its bytes are those that a run allocates, and its advice is true."""
import json
import resource
import time

import cli

GPT2 = {"model_type": "gpt2", "n_embd": 48, "n_layer": 4, "n_head": 6, "n_positions": 32,
        "vocab_size": 307}
ODD = {**cli.MODEL, "hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3,
       "intermediate_size": 91, "vocab_size": 307, "num_hidden_layers": 5,
       "attention_bias": True, "mlp_bias": True}
TIED = {**cli.MODEL, "num_hidden_layers": 4, "tie_word_embeddings": True}
PURPOSES = ("weights", "gradients", "accumulators", "moments", "masters", "activations", "scratch",
            "logits", "kernels", "communication", "data")

LAYOUTS = [  # model, (tp, pp, dp), other fields
    (cli.MODEL, (1, 1, 1), {}),
    (cli.MODEL, (1, 1, 1), {"train": {"micro_batch": 4, "recompute": "full"},
                            "device": {"threads": 2}}),
    (ODD, (2, 2, 1), {"parallel": {"sequence": True}}),
    (ODD, (4, 1, 2), {"train": {"recompute": "selective"}}),
    (TIED, (1, 2, 2), {"parallel": {"schedule": "interleaved", "chunks": 2}}),
    (TIED, (2, 2, 2), {"parallel": {"schedule": "gpipe", "virtual_replicas": 2}}),
    (GPT2, (2, 1, 2), {"parallel": {"sequence": True}, "train": {"recompute": "full"}}),
    (GPT2, (1, 3, 1), {"data": {"packing": "isolated"}}),
    (cli.MODEL, (2, 1, 2), {"parallel": {"exact": False}}),
]


class Plan(cli.Case):
    def plan(self, *args, **options):
        return json.loads(self.good("plan", *args, "--json", **options).out.splitlines()[-1])

    def file(self, model, layout=(1, 1, 1), **sections):
        parallel = {**dict(zip(("tp", "pp", "dp"), layout)), **sections.pop("parallel", {})}
        return self.run_file(model={"config": model}, parallel=parallel, **sections)

    def test_bytes_are_those_of_a_run(self):
        for model, layout, sections in cli.some(LAYOUTS):
            with self.subTest(model=model["model_type"], layout=layout, **sections):
                path = self.file(model, layout, **sections)
                world = layout[0] * layout[1] * layout[2]
                plan = self.plan(path)
                out = self.good("bench", "train", path, "--json", "--steps", 1,
                                ranks=world if world > 1 else 0).out
                run = json.loads(out.splitlines()[-1])
                self.assertEqual(run["rank_bytes"]["ranks"], world)
                self.assertEqual(plan["bytes_sent"], run["bytes_sent"])
                for purpose in PURPOSES:
                    planned = [plan["classes"][k][purpose] for k in plan["class_of_rank"]]
                    self.assertEqual(planned, run["rank_bytes"][purpose], purpose)
                    extremes = plan["bytes"][purpose]
                    self.assertEqual(extremes["max"], max(planned))
                    self.assertEqual(planned[extremes["max_rank"]], max(planned))
                    self.assertEqual(planned[extremes["min_rank"]], min(planned))
                totals = [plan["classes"][k]["total"] for k in plan["class_of_rank"]]
                self.assertEqual(plan["host_bytes"], sum(totals))

    def test_messages_between_hosts(self):
        path = self.file(TIED, (2, 2, 1))
        plan = self.plan(path, "--ranks-per-host", 1, env={"TESSERA_SHM": "0"})
        env = {"TESSERA_SHM": "0"}
        run = json.loads(self.good("bench", "train", path, "--json", "--steps", 1, ranks=4,
                                   env=env).out.splitlines()[-1])
        planned = [plan["classes"][k]["communication"] for k in plan["class_of_rank"]]
        self.assertEqual(planned, run["rank_bytes"]["communication"])
        self.assertEqual(plan["host_bytes"], plan["bytes"]["total"]["max"])

    def test_no_second_copy(self):
        """A save that training waits for writes the state from where it is."""
        path = self.file(TIED, (2, 1, 2))
        copied, direct = self.plan(path), self.plan(path, "checkpoint.async=false")
        for a, b in zip(copied["classes"], direct["classes"], strict=True):
            self.assertEqual(b["snapshot"], 0)
            self.assertGreaterEqual(a["snapshot"], a["moments"])
            self.assertEqual(a["total"] - a["snapshot"], b["total"])

    def test_a_device_keeps_what_it_keeps(self):
        path = self.file(TIED, (1, 2, 1))
        cpu, device = self.plan(path), self.plan(path, "device.backend=cuda")
        self.assertGreater(cpu["bytes"]["kernels"]["max"], 0)
        self.assertIsNone(device["bytes"]["kernels"])
        for a, b in zip(cpu["classes"], device["classes"], strict=True):
            self.assertIsNone(b["kernels"])
            self.assertIsNone(a["device_bytes"])
            self.assertEqual(a["total"] - a["kernels"], b["total"])
        text = self.good("plan", path, "train.precision=bf16").out.decode()
        self.assertRegex(text, "scratch of kernels +unknown")
        self.assertNotRegex(self.good("plan", path).out.decode(), "unknown")

    def test_what_lies_on_devices(self):
        """Hosts and devices are filled apart; ranks take a host's devices in turns."""
        path = self.file(TIED, (1, 2, 2))
        cpu = self.plan(path)
        for key in ("devices", "device_bytes", "device_memory_bytes"):
            self.assertIsNone(cpu[key])
        plan = self.plan(path, "device.backend=cuda")
        each = [plan["classes"][k]["device_bytes"] for k in plan["class_of_rank"]]
        total = sum(plan["classes"][k]["total"] for k in plan["class_of_rank"])
        self.assertEqual((plan["devices"], plan["device_bytes"]), (4, max(each)))
        self.assertEqual(plan["host_bytes"], total - sum(each))
        self.assertIsNone(plan["device_memory_bytes"])  # nobody said, and there is none here
        self.assertTrue(plan["fits"])
        gib = 0.999 * max(each) / 2**30
        for n, full in ((1, sum(each)), (2, max(each[0] + each[2], each[1] + each[3])),
                        (3, max(each[0] + each[3], each[1], each[2])), (9, max(each))):
            with self.subTest(devices=n):
                plan = self.plan(path, "device.backend=cuda", "--devices-per-host", n,
                                 "--device-memory", gib)
                self.assertEqual((plan["devices"], plan["device_bytes"]), (n, full))
                self.assertEqual(plan["device_memory_bytes"], int(gib * 2**30))
                self.assertFalse(plan["fits"])
                for advice in plan["advice"]:
                    self.assertLess(advice["device_bytes"], full)
        asked = self.plan(path, "--devices-per-host", 2)  # `auto` will find them
        self.assertEqual((asked["devices"], asked["device_bytes"]), (2, max(each[0] + each[2],
                                                                            each[1] + each[3])))
        self.bad(cli.USAGE, "computes on the CPU", "plan", path, "device.backend=cpu",
                 "--device-memory", 80)
        text = self.good("plan", path, "device.backend=cuda", "--device-memory", gib).out.decode()
        self.assertRegex(text, r"memory of a device +[0-9.]+ MiB of [0-9.]+ MiB, 4 on a host")
        self.assertRegex(text, r"a device [0-9.]+ MiB")

    def test_large_models_need_nothing(self):
        path = self.run_file("large.yaml", model={"config": None, "preset": "llama3.1-405b"},
                             data={"train": None, "seq_len": 8192},
                             train={"global_batch": 64, "recompute": "full"},
                             parallel={"tp": 8, "pp": 16, "dp": 4, "sequence": True})
        began = time.monotonic()
        plan = self.plan(path, "--ranks-per-host", 8, "--memory", 640)
        self.assertLess(time.monotonic() - began, 30)
        self.assertLess(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, 400 * 1024)
        self.assertTrue(plan["fits"])
        self.assertEqual(plan["advice"], [])
        self.assertEqual(len(plan["class_of_rank"]), 512)
        self.assertAlmostEqual(plan["bubble"], 15 / (16 + 15), places=8)
        self.assertGreater(plan["flops_per_step"], 6 * 405e9 * 64 * 8192)

    def test_advice_is_true(self):
        path = self.run_file("gpt2.yaml", model={"config": None, "preset": "gpt2"},
                             data={"seq_len": 256, "train": None},
                             train={"global_batch": 16, "micro_batch": 4},
                             parallel={"tp": 1, "pp": 2, "dp": 2})
        plain = self.plan(path)
        size = plain["host_bytes"]
        plan = self.plan(path, "--memory", 0.8 * size / 2**30)
        self.assertFalse(plan["fits"])
        fit = [a for a in plan["advice"] if a["fits"]]
        self.assertTrue(fit, plan["advice"])
        sizes = [a["host_bytes"] for a in plan["advice"]]
        self.assertEqual(len(sizes), len(set(sizes)), "a change that gains nothing over another")
        for advice in plan["advice"]:
            self.assertLess(advice["host_bytes"], size)
            if "=" in advice["change"] and " on " not in advice["change"]:
                changed = self.plan(path, *advice["change"].split())
                self.assertEqual(changed["host_bytes"], advice["host_bytes"], advice["change"])
                self.assertEqual(changed["bytes"]["total"]["max"], advice["rank_bytes"])
        text = self.good("plan", path, "--memory", 0.8 * size / 2**30).out.decode()
        self.assertIn("It doesn't fit", text)
        self.assertIn(fit[0]["change"], text)

    def test_text(self):
        text = self.good("plan", self.file(ODD, (2, 2, 1))).out.decode()
        for word in ("4 ranks", "weights", "AdamW moments", "activations", "logits",
                     "pipeline bubble", "FLOPs of a step", "available"):
            self.assertIn(word, text)

    def test_mistakes(self):
        path = self.file(cli.MODEL)
        self.bad(cli.USAGE, "parallel.tp", "plan", path, "parallel.tp=3")
        self.bad(cli.USAGE, "train.stepz", "plan", path, "train.stepz=3")
        self.bad(cli.USAGE, "--memory", "plan", path, "--memory", "lots")
        self.bad(cli.USAGE, "dp of at most 256", "plan", path, "parallel.dp=512",
                 "train.global_batch=512", "parallel.virtual_replicas=512")
        self.bad(cli.USAGE, "at most 64", "plan", path, "parallel.chunks=100",
                 "parallel.schedule=interleaved",
                 f"model.config={json.dumps({**cli.MODEL, 'num_hidden_layers': 200})}")
        self.bad(cli.USAGE, "missing.yaml", "plan", "missing.yaml")

    def test_what_cannot_fit_is_refused(self):
        self.tokens("tokens")
        path = self.run_file(model={"config": None, "preset": "gpt3-175b"},
                             train={"global_batch": 2})
        for ranks in (0, 2):
            extra = ["parallel.tp=2"] if ranks else []
            self.bad(cli.RESOURCE, ["can't fit", "available"], "train", path, *extra, ranks=ranks)


if __name__ == "__main__":
    cli.main()

"""The steps of tests/gpu/run that check."""
import json
import os
import re
import shutil
from pathlib import Path

from runner import ROOT, Failed, Missing, laboratory

RUN_FILE = """
run: {{name: gpu, dir: run}}
model: {model}
data: {{train: [{data}], seq_len: {seq_len}}}
train: {{steps: {steps}, global_batch: 4, micro_batch: 2, lr: 1.0e-3, warmup: 1}}
parallel: {{virtual_replicas: 2}}
checkpoint: {{every: 0}}
device: {{backend: cuda, threads: {threads}}}
"""
MODELS = {
    "llama": "{config: {model_type: llama, hidden_size: 288, num_hidden_layers: 4, "
             "num_attention_heads: 9, num_key_value_heads: 3, head_dim: 64, intermediate_size: 768, "
             "vocab_size: 4096}}",
    "gpt2": "{config: {model_type: gpt2, n_embd: 256, n_layer: 4, n_head: 4, n_positions: 256, "
            "vocab_size: 4096}}",
}
SMALL_MODELS = {
    "llama": "{config: {model_type: llama, hidden_size: 64, num_hidden_layers: 2, "
             "num_attention_heads: 2, num_key_value_heads: 1, head_dim: 64, intermediate_size: 48, "
             "vocab_size: 512}}",
    "gpt2": "{config: {model_type: gpt2, n_embd: 128, n_layer: 2, n_head: 2, n_positions: 32, "
            "vocab_size: 512}}",
}
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}  # relative, of each step's loss


def machine(gpu):
    def device():
        out = gpu.run("nvidia-smi", "--query-gpu=name,driver_version,memory.total",
                      "--format=csv,noheader")
        return out.strip()

    def doctor():
        gpu.run(gpu.tessera, "doctor", ok=(0, 3))

    gpu.check("nvidia-smi", device)
    gpu.check("tessera doctor", doctor)


def tests_of(gpu, names, seconds=60):
    """cmocka programs; what they print goes to the log."""
    for name in names:
        def test():
            gpu.run(gpu.program(name), seconds=seconds)
        gpu.check(name, test)


def ops(gpu):
    tests_of(gpu, ["simt_test_backend_ops", "simt_test_backend"])


KERNELS = ("norm", "optim", "elementwise", "tokens", "ranks", "products", "flash", "flash_bwd",
           "decode", "rounding", "sample", "attention")


def kernels(gpu):
    names = KERNELS[:6] if gpu.small else KERNELS
    tests_of(gpu, [f"device_test_{name}" for name in names])


# -- training runs

def data(gpu):
    """A packed data set of pseudo-random but learnable tokens, without a tokenizer."""
    prefix = gpu.work / "tokens"
    if not prefix.with_suffix(".bin").exists():
        text = gpu.work / "text.txt"
        text.write_text(laboratory.make_text(60000, 3), encoding="utf-8")
        gpu.run(gpu.tessera, "tokenizer", "train", "-o", gpu.work / "tokenizer", "--vocab-size",
                512, text)
        gpu.run(gpu.tessera, "data", "build", "-t", gpu.work / "tokenizer", "-o", prefix, text)
    return prefix


def train(gpu, name, model, overrides=(), ranks=1, steps=20):
    """The metrics of a short run, in a folder of that name."""
    run_dir = gpu.work / name
    shutil.rmtree(run_dir, ignore_errors=True)
    path = gpu.work / f"{name}.yaml"
    models = SMALL_MODELS if gpu.small else MODELS
    path.write_text(RUN_FILE.format(
        model=models.get(model, model), data=data(gpu), seq_len=20 if gpu.small else 200,
        steps=3 if gpu.small and steps > 3 else steps, threads=max(1, os.cpu_count() // 2)))
    command = [gpu.tessera, "train", path, f"run.dir={run_dir}", *overrides]
    gpu.run(*command) if ranks == 1 else gpu.mpirun(ranks, *command)
    return laboratory.metrics(run_dir)


def near(a, b, tolerance):
    if len(a) != len(b):
        raise Failed(f"{len(a)} steps, expected {len(b)}")
    worst = max(abs(float(x["loss"]) / float(y["loss"]) - 1) for x, y in zip(a, b))
    if not worst <= tolerance:
        raise Failed(f"losses differ by {worst:.3g}, at most {tolerance:g} is allowed")
    same = all(x["loss"] == y["loss"] for x, y in zip(a, b))
    return "the same bits" if same else f"within {worst:.2g}"


def train_curves(gpu):
    for model in MODELS:
        cpu = train(gpu, f"{model}-cpu", model, ["device.backend=cpu"])
        gpu.check(f"{model}, fp32 beside the CPU", lambda: near(
            train(gpu, f"{model}-cuda", model), cpu, TOLERANCE["fp32"]))
        gpu.check(f"{model}, bf16 beside fp32", lambda: near(
            train(gpu, f"{model}-bf16", model, ["train.precision=bf16"]), cpu, TOLERANCE["bf16"]))


def suite(gpu):
    """The suite's own scripts, which take the object from the environment."""
    groups = [("bf16", "pytorch"), ("cuda", "gpt2"), ("cuda", "llama"), ("bf16", "curve"),
              ("nccl", "host"), ("nccl", "llama"), ("nccl", "gpt2"), ("bf16", "resume"),
              ("bf16", "tied"), ("bf16", "gpt2"), ("bf16", "llama")]
    for script, group in groups[:1] if gpu.small else groups:
        def test():
            out = gpu.run(gpu.python, "-B", ROOT / f"tests/parallel/{script}.py", "--tessera",
                          gpu.tessera, "--group", group, seconds=90)
            return out.splitlines()[0][:80] if script == "bf16" and group == "pytorch" else ""
        gpu.check(f"{script}.py {group}", test)


def same(gpu, a, b):
    laboratory.compare_metrics(a, b)
    return f"{len(a)} steps, equal bits"


def repeat(gpu):
    for precision in ("fp32", "bf16"):
        for exact in ("true", "false"):
            options = [f"train.precision={precision}", f"parallel.exact={exact}"]
            gpu.check(f"{precision}, exact: {exact}, twice", lambda: same(
                gpu, *[train(gpu, f"repeat-{i}", "llama", options) for i in range(2)]))


def ranks(gpu):
    for precision in ("fp32", "bf16"):
        options = [f"train.precision={precision}"]
        four = ["parallel.tp=2", "parallel.pp=2", "parallel.dp=1"]
        one = train(gpu, f"one-{precision}", "llama", options, steps=5)
        for transport in ("nccl", "host"):
            gpu.env["TESSERA_TRANSPORT"] = transport
            gpu.check(f"{precision}: tp 2 x pp 2 over {transport} against one rank", lambda: same(
                gpu, one, train(gpu, f"four-{precision}", "llama", [*options, *four], ranks=4,
                                steps=5)))
        del gpu.env["TESSERA_TRANSPORT"]


def comm(gpu):
    for n in (2, 3, 4):
        for way, name in (("", "NCCL"), ("staged:", "the host")):
            def test():
                return gpu.mpirun(n, gpu.program("test_comm"), f"{way}{gpu.object}",
                                  seconds=90).strip()
            gpu.check(f"collectives through {name}, {n} ranks", test)


def generate(gpu):
    train(gpu, "generated", "llama")
    model = laboratory.checkpoint(gpu.work / "generated")
    ids = ",".join(str(i * 37 % 500) for i in range(8 if gpu.small else 40))

    def tokens(device, dtype):
        return gpu.run(gpu.tessera, "generate", model, "--ids", ids, "-n", 4 if gpu.small else 60,
                       "-t", 0, "--ignore-eos", "--device", device, "--dtype", dtype).split()

    def test():
        both = tokens("cpu", "fp32"), tokens("cuda", "fp32")
        if both[0] != both[1]:
            raise Failed(f"found {both[1]}, the CPU has {both[0]}")
        return f"{len(both[0])} words of greedy tokens equal"

    gpu.check("fp32 tokens against the CPU's", test)
    gpu.check("bf16 tokens, twice", lambda: same_tokens(tokens("cuda", "bf16"),
                                                        tokens("cuda", "bf16")))


def same_tokens(a, b):
    if a != b:
        raise Failed(f"found {b}, at first {a}")


# -- compute-sanitizer

UNSUPPORTED = "Device not supported"  # where the driver is a sandbox's
# What a call returns the programs look at themselves: "not ready" is no error of theirs.
OPTIONS = {"memcheck": ["--report-api-errors", "no"]}


def sanitize(gpu, tool, names):
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).exists():
        raise Missing("there is no compute-sanitizer")
    for name in names:
        def test():
            try:
                out = gpu.run(sanitizer, "--tool", tool, *OPTIONS.get(tool, []),
                              "--error-exitcode", 9, gpu.program(name), seconds=120)
            except Failed:
                if UNSUPPORTED in gpu.log.read_text():
                    raise Missing(f"compute-sanitizer: {UNSUPPORTED}") from None
                raise
            return "; ".join(re.findall(r"=+ ((?:ERROR|RACECHECK) SUMMARY.*)", out))
        if not gpu.check(name, test) and gpu.checks[-1]["result"] == "skipped":
            return


SANITIZED = ["simt_test_backend_ops", *(f"device_test_{name}" for name in (
    "norm", "tokens", "optim", "elementwise", "flash", "flash_bwd", "decode", "products", "sample",
    "attention"))]


def memcheck(gpu):
    sanitize(gpu, "memcheck", SANITIZED)


def racecheck(gpu):
    sanitize(gpu, "racecheck", SANITIZED)


def initcheck(gpu):
    sanitize(gpu, "initcheck", ["simt_test_backend_ops"])


def lines_of(out):
    """The JSON objects among a program's lines."""
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]

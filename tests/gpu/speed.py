"""The steps of tests/gpu/run that time."""
import json
import shutil

from correct import lines_of, train
from runner import ROOT, Failed, Missing, laboratory

# Shares that are asked for: of FlashAttention-2's speed, and of a plain copy's bandwidth.
FLASH_BAR = {"attention": 1.0, "attention backward": 0.8}
COPY_BAR, ADAMW_BAR = 0.8, 0.85
BENCH_FILE = """
run: {{name: bench, dir: bench}}
model: {{preset: {model}}}
data: {{seq_len: {seq_len}}}
train: {{steps: 1000, global_batch: {batch}, micro_batch: {batch}, lr: 1.0e-4,
         precision: {precision}}}
parallel: {{exact: {exact}, tp: {tp}}}
device: {{backend: cuda}}
"""


def bench(gpu):
    """Operations on 16k tokens, as shares of what this device does at its best."""
    runs = [("bf16", "llama3.1-8b", 16384), ("fp32", "gpt2", 4096)]
    if gpu.small:
        runs = [("fp32", "tiny-llama", 8)]
    for dtype, preset, n in runs:
        gpu.check(f"bench ops {dtype}", lambda: one_bench(gpu, dtype, preset, n))


def one_bench(gpu, dtype, preset, n):
    out = gpu.run(gpu.tessera, "bench", "ops", "--device", "cuda", "--dtype", dtype, "--preset",
                  preset, "--tokens", n, "--seq-len", n, "--json", "--seconds",
                  0 if gpu.small else 0.3)
    found = gpu.raw[f"bench {dtype}"] = json.loads(out.splitlines()[-1])
    suffix = "" if dtype == "bf16" else f", {dtype}"
    for op in found["ops"]:
        if op["gflops"] > 0:
            gpu.speed(op["name"] + suffix, op["gflops"] / 1e3, "TFLOP/s", op["peak_fraction"],
                      "peak")
        else:
            bar = None if suffix or op["name"] == "copy" else \
                ADAMW_BAR if op["name"] == "AdamW" else COPY_BAR
            gpu.speed(op["name"] + suffix, op["gb_per_s"], "GB/s", op["copy_fraction"], "copy", bar)
    return f"peak {found['peak_gflops'] / 1e3:.0f} TFLOP/s, copy {found['copy_gb_per_s']:.0f} GB/s"


def peers_run(gpu, name, *more):
    """What gpu_peers.py found: all of it, or what it had when it ended."""
    path = gpu.work / f"{name}.json"
    shape = ["--preset", "llama3.1-8b", "--tokens", 16384, "--seq-len", 16384]
    if gpu.small:
        shape = ["--preset", "tiny-llama", "--tokens", 64, "--seq-len", 64, "--device", "cpu"]
    try:
        gpu.run(gpu.python, "-B", ROOT / "tests/bench/gpu_peers.py", *shape, "--json", path, *more)
    finally:
        if path.exists():
            gpu.raw[name] = json.loads(path.read_text())
    return gpu.raw[name]


def peers(gpu):
    def test():
        try:
            found = peers_run(gpu, "peers")
        finally:
            beside_peers(gpu)
        for op in FLASH_BAR:  # without them nothing would be held against their bars
            if f"{op} (flash)" not in found["peers_ms"] and not gpu.small:
                raise Failed(f"PyTorch has no time of FlashAttention-2 for {op}")

    gpu.check("PyTorch's operations", test)


def beside_peers(gpu):
    ours = {op["name"]: op["ms"]
            for op in gpu.raw.get("bench bf16", gpu.raw.get("bench fp32", {"ops": []}))["ops"]}
    for key, ms in gpu.raw.get("peers", {}).get("peers_ms", {}).items():
        op, peer = key[:-1].split(" (")
        if op in ours:
            bar = FLASH_BAR.get(op) if peer == "flash" else None
            gpu.speed(f"{op}, beside {peer}", ours[op], "ms", ms / ours[op], peer, bar)


def device_bench(gpu, what, *more):
    small = ["--small"] if gpu.small else []
    found = lines_of(gpu.run(gpu.program("bench_device"), *small, what, *more))
    gpu.raw[f"device {what}"] = found
    if not found:
        raise Failed("nothing was measured")
    return found


def flash(gpu):
    """Every head size at every length, and PyTorch's FlashAttention-2 on the same."""
    gpu.check("flash attention's sizes", lambda: device_bench(gpu, "flash") and None)
    gpu.check("FlashAttention-2's", lambda: peers_run(gpu, "heads", "--heads", "--only", "heads")
              and None)
    theirs = gpu.raw.get("heads", {}).get("heads_ms", {})
    for f in gpu.raw.get("device flash", []):
        for op, way in (("attention", "forward"), ("attention backward", "backward")):
            peer = theirs.get(f"d {f['d']}, {f['seq_len']} tokens, {op} (flash)")
            ms = f[f"{way}_ms"]
            gpu.speed(f"flash {way} d {f['d']} T {f['seq_len']}", f[f"{way}_tflops"], "TFLOP/s",
                      peer / ms if peer else None, "FA2",
                      FLASH_BAR[op] if f["d"] == 128 and f["seq_len"] == 16384 else None)


def decode(gpu):
    def test():
        for f in device_bench(gpu, "decode"):
            gpu.speed(f"decode {f['keys']} keys x {f['batch']}", f["ms"], "ms",
                      f["copy_fraction"], "copy")

    gpu.check("decoding at long contexts", test)


def sample(gpu):
    def test():
        for f in device_bench(gpu, "sample"):
            gpu.speed(f"sample {f['name']} x {f['rows']}", f["ms"] * 1e3, "us")

    gpu.check("sampling", test)


def products(gpu):
    """For each shape: the tile that is taken, beside the fastest."""
    def test():
        shapes = {}
        for f in device_bench(gpu, "products"):
            shapes.setdefault((f["name"], f["m"], f["n"], f["k"]), []).append(f)
        for shape, tiles in shapes.items():
            taken = next(t for t in tiles if t["chosen"])
            best = max(tiles, key=lambda t: t["tflops"])
            gpu.speed(f"product {shape[0]}: {taken['tile'][5:]}", taken["tflops"], "TFLOP/s",
                      taken["tflops"] / best["tflops"], best["tile"], 0.95)

    gpu.check("tiles of products", test)


def graph(gpu):
    """Steps of generation as a recorded graph, and asked for one by one."""
    def test():
        name = "llama" if gpu.small else "{preset: smollm2-135m}"
        train(gpu, "decoded", name, ["data.seq_len=20"], steps=1)
        model = laboratory.checkpoint(gpu.work / "decoded")
        found = device_bench(gpu, "generate", model)[0]
        gpu.speed("generate, step by step", found["plain_tokens_per_s"], "tokens/s")
        gpu.speed("generate, recorded", found["graph_tokens_per_s"], "tokens/s",
                  found["graph_tokens_per_s"] / found["plain_tokens_per_s"], "step by step")
        return "the same tokens"

    gpu.check("recorded steps", test)


def bench_file(gpu, name, **fields):
    path = gpu.work / f"{name}.yaml"
    values = {"model": "tiny-llama", "seq_len": 16, "batch": 1, "precision": "fp32",
              "exact": "true", "tp": 1, **fields}
    path.write_text(BENCH_FILE.format(**values))
    return path


def speed(gpu):
    """Whole training steps in bf16: tokens/s and the share of the peak."""
    cases = [("smollm2-135m", 1024, 16), ("llama3.2-1b", 2048, 8), ("gpt2", 1024, 16)]
    for model, seq_len, batch in cases[:1] if gpu.small else cases:
        for exact in ("true", "false"):
            def test():
                fields = {} if gpu.small else {"model": model, "seq_len": seq_len, "batch": batch,
                                               "precision": "bf16"}
                path = bench_file(gpu, "bench", **fields, exact=exact)
                out = gpu.run(gpu.tessera, "bench", "train", path, "--json", "--steps",
                              1 if gpu.small else 8)
                found = gpu.raw[f"train {model} {exact}"] = json.loads(out.splitlines()[-1])
                gpu.speed(f"train {model}, exact: {exact}", found["tokens_per_s"], "tokens/s",
                          found["peak_fraction"], "peak")

            gpu.check(f"bench train {model}, exact: {exact}", test)


def peers_train(gpu):
    """A training step beside PyTorch's, eager and compiled."""
    def test():
        try:
            more = ["--batch", 1, "--train-seq-len", 16] if gpu.small else []
            peers_run(gpu, "peers train", "--only", "train", "--train",
                      "tiny-llama" if gpu.small else "smollm2-135m", "--tessera", gpu.tessera, *more)
        finally:
            rates = next((v for k, v in gpu.raw.get("peers train", {}).items()
                          if k.startswith("train ")), {})
            best = max([r for kind, r in rates.items() if kind.startswith("torch")], default=None)
            for kind, rate in rates.items():
                gpu.speed(f"step: {kind}", rate, "tokens/s", rate / best if best else None,
                          "the best torch")

    gpu.check("training beside PyTorch", test)


def overlap(gpu):
    """Whether sums between ranks run beside the products of a step, as a profiler saw it."""
    nsys = shutil.which("nsys")
    if not nsys:
        raise Missing("there is no nsys")
    fields = {} if gpu.small else {"model": "smollm2-135m", "seq_len": 1024, "batch": 4,
                                   "precision": "bf16"}
    path = bench_file(gpu, "overlap", **fields, tp=2)

    def test():
        gpu.run(nsys, "profile", "--trace", "cuda,nvtx", "--force-overwrite", "true", "-o",
                gpu.work / "overlap", *laboratory.MPIRUN, "-np", 2, gpu.tessera, "bench", "train",
                path, "--steps", 2)
        gpu.run(nsys, "stats", "--report", "cuda_gpu_kern_sum", gpu.work / "overlap.nsys-rep")
        return "see overlap.log"

    gpu.check("profile of tp 2", test)

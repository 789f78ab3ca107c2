#!/usr/bin/env python3
"""PyTorch's operations beside Tessera's, on the same GPU in the same run, in bf16.

    gpu_peers.py [--preset llama3.1-8b] [--tokens 16384] [--seq-len 16384] [--heads]
                 [--train smollm2-135m] [--tessera build/cuda/tessera] [--json FILE]

Attention: scaled_dot_product_attention by cuDNN and by FlashAttention-2 (the "flash" backend),
forward and backward, causal, with grouped queries. Products, norms, cross-entropy and the fused
AdamW as PyTorch has them. --heads: attention per head size and length, the cases of
tests/gpu/bench_device.c. --train: a whole training step, bf16 weights for the layers, eager and
compiled, beside `tessera bench train`. Times are medians of CUDA events after a warm-up. Prints a
table and, last, one JSON object, which FILE has after each part. A part that fails says so and the
others go on; the exit code is 1 then. --device cpu is for trying this script.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).resolve().parent.parent.parent
HEAD_ROWS = 1024  # of logits at once, as in training
RUN_FILE = """run: {{name: bench, dir: {dir}/run}}
model: {{preset: {model}}}
data: {{seq_len: {seq_len}}}
train: {{steps: 1000, global_batch: {batch}, micro_batch: {batch}, lr: 1.0e-4, precision: {precision}}}
parallel: {{exact: {exact}}}
device: {{backend: {device}}}
"""
DEVICE = "cuda"


class HostClock:
    """torch.cuda.Event's place on a CPU."""

    def __init__(self, enable_timing):
        self.at = None

    def record(self):
        self.at = time.monotonic()

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


def on_cuda():
    return DEVICE == "cuda"


def milliseconds(fn, prepare=None, rounds=20):
    """The median time of fn on the device; prepare runs before each, untimed."""
    times = []
    for i in range(rounds + 3):
        if prepare:
            prepare()
        event = torch.cuda.Event if on_cuda() else HostClock
        begin, end = (event(enable_timing=True) for _ in range(2))
        begin.record()
        fn()
        end.record()
        if on_cuda():
            torch.cuda.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def random(*shape, grad=False):
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16).mul_(0.1).requires_grad_(grad)


def attend(heads, kv, d, b, seq_len):
    """Milliseconds of each backend that there is."""
    q, k, v = (random(b, h, seq_len, d, grad=True) for h in (heads, kv, kv))
    found = {}
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn",
                                                                  SDPBackend.CUDNN_ATTENTION)):
        def forward():
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv)

        try:
            with sdpa_kernel(backend):
                out = forward()
                d_out = torch.randn_like(out)
                found["attention", name] = milliseconds(forward)
                found["attention backward", name] = milliseconds(
                    lambda: torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True))
        except RuntimeError as e:
            print(f"{name}, heads of {d}: {str(e).splitlines()[0]}", file=sys.stderr)
    return found


def attention(config, n, seq_len):
    heads, kv = config["num_attention_heads"], config.get("num_key_value_heads")
    d = config.get("head_dim") or config["hidden_size"] // heads
    return attend(heads, kv or heads, d, n // seq_len, seq_len)


def heads(n, lengths, found):
    """The cases of bench_device's flash."""
    for d in (128, 64, 80, 96, 256):
        for seq_len in lengths:
            nq = 32 if d <= 128 else 16
            for (op, peer), ms in attend(nq, nq // 4, d, n // seq_len, seq_len).items():
                found[f"d {d}, {seq_len} tokens, {op} ({peer})"] = ms


def products(config, n):
    c, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    x, up, w, head = random(n, c), random(n, f), random(f, c), random(v, c)
    rows = x[:HEAD_ROWS]
    return {("gemm up", "torch"): milliseconds(lambda: x @ w.T),
            ("gemm down, 8 pieces", "torch"): milliseconds(lambda: up @ w),
            ("gemm weight gradient", "torch"): milliseconds(lambda: up.T @ x),
            ("gemm head", "torch"): milliseconds(lambda: rows @ head.T)}


def memory_bound(config, n):
    c, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    x, y, gate, up = random(n, c), random(n, c), random(n, f), random(n, f)
    weight, logits = random(c), random(HEAD_ROWS, v, grad=True)
    targets = torch.randint(0, v, (HEAD_ROWS,), device=DEVICE)
    master = torch.zeros(f, c, device=DEVICE, requires_grad=True)
    master.grad = torch.randn(f, c, device=DEVICE)
    optimizer = torch.optim.AdamW([master], lr=1e-4, fused=True)
    a, b = (torch.zeros(f, c, device=DEVICE) for _ in range(2))
    loss = torch.compile(lambda t: F.cross_entropy(t.float(), targets))
    norm = torch.compile(lambda t: F.rms_norm(t, (c,), weight, 1e-5))
    gated = torch.compile(lambda g, u: F.silu(g) * u)

    def cross_entropy():
        torch.autograd.grad(loss(logits), logits)

    return {("copy", "torch"): milliseconds(lambda: a.copy_(b)),
            ("norm", "torch"): milliseconds(lambda: norm(x)),
            ("activation", "torch"): milliseconds(lambda: gated(gate, up)),
            ("add", "torch"): milliseconds(lambda: torch.add(x, y)),
            ("cross-entropy, 3 passes", "torch"): milliseconds(cross_entropy),
            ("AdamW", "torch"): milliseconds(optimizer.step)}


def train_step(name, batch, seq_len, compiled):
    """Tokens/s of a PyTorch training step: bf16 layers by autocast, fp32 master weights."""
    from transformers import AutoConfig, AutoModelForCausalLM
    raw = json.loads((ROOT / "configs/models" / f"{name}.json").read_text())
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, key):
            setattr(config, key, 0.0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model = model.to(DEVICE).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, config.vocab_size, (batch, seq_len + 1), device=DEVICE)

    def losses():
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            logits = model(ids[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1))

    forward = torch.compile(losses) if compiled else losses

    def step():
        optimizer.zero_grad(set_to_none=True)
        forward().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return batch * seq_len / milliseconds(step, rounds=10) * 1e3


def last_json(command):
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def tessera_train(tessera, name, batch, seq_len, exact):
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run.yaml"
        run.write_text(RUN_FILE.format(dir=folder, model=name, seq_len=seq_len, batch=batch,
                                       exact=str(exact).lower(), device=DEVICE,
                                       precision="bf16" if on_cuda() else "fp32"))
        return last_json([tessera, "bench", "train", str(run), "--json",
                          "--steps", "10"])["tokens_per_s"]


def show(theirs, ours):
    print(f"{'operation':26}{'peer':>8}{'peer ms':>12}{'Tessera ms':>12}{'speed':>9}")
    for (op, peer), ms in theirs.items():
        own = ours.get(op)
        print(f"{op:26}{peer:>8}{ms:12.4f}" + (f"{own:12.4f}{ms / own:8.2f}x" if own else ""))


class Report:
    """What was found so far, kept in a file: a run that is stopped leaves its beginning."""

    def __init__(self, path):
        self.path, self.found, self.failed = path, {"seconds": {}}, []

    def part(self, name, measure):
        begin = time.monotonic()
        try:
            measure()
        except Exception as e:  # whatever a library throws, the other parts are worth having
            text = str(e).strip().splitlines() or [""]
            self.failed.append(f"{name}: {type(e).__name__}: {text[0][:300]}")
            print(self.failed[-1], flush=True)
        self.found["seconds"][name] = time.monotonic() - begin
        self.found["failed"] = self.failed
        if self.path:
            self.path.write_text(json.dumps(self.found))


def compare_training(report, name, args):
    rates = report.found.setdefault(f"train {name} tokens/s", {})

    def measure(kind, run, *more):
        rates[kind] = run(*more)
        print(f"{name:20}{kind:24}{rates[kind]:12.0f} tokens/s", flush=True)

    for kind, compiled in (("eager", False), ("compiled", True)):
        report.part(f"{name}, {kind}", lambda: measure(
            f"torch {kind}", train_step, name, args.batch, args.train_seq_len, compiled))
    for exact in (True, False) if args.tessera else ():
        report.part(f"{name}, exact: {exact}", lambda: measure(
            f"tessera exact: {exact}", tessera_train, args.tessera, name, args.batch,
            args.train_seq_len, exact))


def parse():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description=__doc__)
    parser.add_argument("--preset", default="llama3.1-8b")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--seq-len", type=int, default=16384)
    parser.add_argument("--heads", action="store_true")
    parser.add_argument("--train", nargs="*", default=[])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--train-seq-len", type=int, default=1024)
    parser.add_argument("--tessera")
    parser.add_argument("--only", choices=("heads", "train"), help="leave the operations out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser.parse_args()


def main():
    global DEVICE
    args = parse()
    DEVICE = args.device
    config = json.loads((ROOT / "configs/models" / f"{args.preset}.json").read_text())
    report, theirs, ours = Report(args.json), {}, {}
    report.found["gpu"] = torch.cuda.get_device_name() if on_cuda() else "cpu"
    report.found["torch"] = torch.__version__

    def add(times):
        theirs.update(times)
        report.found["peers_ms"] = {f"{op} ({peer})": ms for (op, peer), ms in theirs.items()}

    def tessera():
        dtype = "bf16" if on_cuda() else "fp32"
        report.found["tessera"] = last_json(
            [args.tessera, "bench", "ops", "--device", DEVICE, "--dtype", dtype, "--preset",
             args.preset, "--tokens", str(args.tokens), "--seq-len", str(args.seq_len), "--json"])
        ours.update({line["name"]: line["ms"] for line in report.found["tessera"]["ops"]})

    if not args.only:
        report.part("attention", lambda: add(attention(config, args.tokens, args.seq_len)))
        report.part("products", lambda: add(products(config, args.tokens)))
        report.part("memory", lambda: add(memory_bound(config, args.tokens)))
        if args.tessera:
            report.part("tessera", tessera)
        show(theirs, ours)
    if args.heads:
        lengths = [t for t in (16384, 4096, 1024) if args.tokens % t == 0] or [args.seq_len]
        found = report.found["heads_ms"] = {}
        report.part("heads", lambda: heads(args.tokens, lengths, found))
    for name in args.train:
        compare_training(report, name, args)
    print(json.dumps(report.found))
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""A training step in PyTorch beside `tessera bench train`, same shape, batch and threads.

    pytorch_train.py gpt2|smollm2-135m [--batch 4] [--seq-len 256] [--threads 2] [--steps 5]
                     [--tessera build/release/tessera]

Prints PyTorch's best tokens/s over its attention implementations and, with --tessera, the ratio of
both, measured in turn. PyTorch at its best needs two things that this script sets before it starts
itself again: MKL runs at half speed on AMD unless a preloaded symbol says that the CPU is Intel's,
and malloc must keep its pages, or every step pays for fresh ones.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

MODELS = {
    "gpt2": dict(model_type="gpt2"),
    "smollm2-135m": dict(model_type="llama", hidden_size=576, intermediate_size=1536,
                         num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                         vocab_size=49152, max_position_embeddings=8192, rms_norm_eps=1e-5,
                         tie_word_embeddings=True),
}
RUN_FILE = """run: {{name: bench, dir: {dir}/run}}
model: {{preset: {model}}}
data: {{seq_len: {seq_len}}}
train: {{steps: 1000, global_batch: {batch}, micro_batch: {batch}, lr: 1.0e-4}}
device: {{threads: {threads}}}
"""


def preload_intel():
    """Starts this script again with MKL's CPU check answered."""
    if os.environ.get("TESSERA_BENCH_PRELOADED"):
        return
    folder = tempfile.mkdtemp()
    source, shim = os.path.join(folder, "intel.c"), os.path.join(folder, "intel.so")
    with open(source, "w") as f:
        f.write("int mkl_serv_intel_cpu_true(void);\nint mkl_serv_intel_cpu_true(void) { return 1; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source], check=True)
    os.environ.update(TESSERA_BENCH_PRELOADED="1", LD_PRELOAD=shim, MALLOC_MMAP_MAX_="0",
                      MALLOC_TRIM_THRESHOLD_=str(1 << 40), MALLOC_TOP_PAD_=str(1 << 28))
    os.execv(sys.executable, [sys.executable] + sys.argv)


def measure_pytorch(args, attention):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    options = dict(MODELS[args.model])
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float()
    model.train()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    times = []
    for _ in range(args.steps + 1):
        batch = torch.randint(0, config.vocab_size, (args.batch, args.seq_len + 1))
        begin = time.monotonic()
        logits = model(batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]),
                                                 batch[:, 1:].reshape(-1))
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        times.append(time.monotonic() - begin)
    return args.batch * args.seq_len / statistics.median(times[1:])


def measure_tessera(args):
    with tempfile.TemporaryDirectory() as folder:
        run = os.path.join(folder, "run.yaml")
        with open(run, "w") as f:
            f.write(RUN_FILE.format(dir=folder, model=args.model, seq_len=args.seq_len,
                                    batch=args.batch, threads=args.threads))
        env = {k: v for k, v in os.environ.items()
               if k != "LD_PRELOAD" and not k.startswith("MALLOC_")}
        out = subprocess.run([args.tessera, "bench", "train", run, "--json", "--steps",
                              str(args.steps)], check=True, capture_output=True, text=True, env=env)
    return json.loads(out.stdout.splitlines()[-1])


def main():
    preload_intel()
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tessera")
    args = parser.parse_args()
    report = {"model": args.model, "batch": args.batch, "seq_len": args.seq_len,
              "threads": args.threads}
    ours = [measure_tessera(args)] if args.tessera else []
    report["pytorch_tokens_per_s"] = {a: measure_pytorch(args, a) for a in ("sdpa", "eager")}
    report["pytorch_peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    best = max(report["pytorch_tokens_per_s"].values())
    if args.tessera:
        ours.append(measure_tessera(args))
        report["tessera"] = max(ours, key=lambda r: r["tokens_per_s"])
        report["ratio"] = statistics.mean(r["tokens_per_s"] for r in ours) / best
    print(json.dumps(report))


if __name__ == "__main__":
    main()

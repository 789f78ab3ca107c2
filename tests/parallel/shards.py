"""Ranks really hold shards: the bytes of slabs, and the bytes sent per step.

`tessera bench train --json` reports both; the expected bytes sent come from the formulas of
docs/parallelism.md, "Bytes per step", which are written down here a second time.
"""
import json
import math
import os

import lab as laboratory
from lab import SLOW_BUILD

SHARDS = 8
T, BATCH, MICRO = 20, 8, 2

LLAMA = {**laboratory.LLAMA, "hidden_size": 64, "num_key_value_heads": 4, "intermediate_size": 128,
         "vocab_size": 320}
TIED = {**LLAMA, "tie_word_embeddings": True}
SHARED_KV = {**LLAMA, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72,
             "intermediate_size": 91, "vocab_size": 307, "attention_bias": True, "mlp_bias": True}
GPT2 = {**laboratory.GPT2, "n_embd": 64}
FROZEN = {**GPT2, "position": "sinusoidal"}


def bench(lab, model, layout, extra=()):
    tp, pp, dp = layout
    train = {"steps": 10, "global_batch": BATCH, "micro_batch": MICRO,
             "dropout": laboratory.dropout()}
    run_file = lab.write_run("bench", json.dumps({
        "model": {"config": model}, "data": {"seq_len": T}, "train": train}))
    settings = [f"parallel.tp={tp}", f"parallel.pp={pp}", f"parallel.dp={dp}", *extra]
    command = lab.command(math.prod(layout), "bench", "train", run_file, *settings, "--json",
                          "--steps", "2")
    return json.loads(lab.output(command, laboratory.environment()).splitlines()[-1])


# The model's tensors: (elements, how tensor parallelism deals them out, how they are summed).

class Shape:
    def __init__(self, m):
        self.gpt = m["model_type"] != "llama"
        self.C = m.get("n_embd") or m["hidden_size"]
        self.L = m.get("n_layer") or m["num_hidden_layers"]
        self.Hq = m.get("n_head") or m["num_attention_heads"]
        self.Hkv = self.Hq if self.gpt else m["num_key_value_heads"]
        self.D = self.C // self.Hq
        self.F = 4 * self.C if self.gpt else m["intermediate_size"]
        self.vocab = m["vocab_size"]
        self.positions = m.get("n_positions", 0)
        self.tied = m.get("tie_word_embeddings", True)
        self.frozen = m.get("position") == "sinusoidal"
        self.attn_bias = self.gpt or m.get("attention_bias", False)
        self.mlp_bias = self.gpt or m.get("mlp_bias", False)

    def layer(self):
        """(elements, kind) of one block; kind: cut, kv (cut by KV heads) or whole."""
        C, q, kv, F = self.C, self.Hq * self.D, self.Hkv * self.D, self.F
        n_in = 1 if self.gpt else 2  # products of the FFN's input
        out = [(q * C, "cut"), (kv * C, "kv"), (kv * C, "kv"), (q * C, "cut")]
        out += [(F * C, "cut")] * (n_in + 1)
        out += [(C, "whole")] * (4 if self.gpt else 2)  # norms
        if self.attn_bias:
            out += [(q, "cut"), (kv, "kv"), (kv, "kv"), (C, "whole")]
        if self.mlp_bias:
            out += [(F, "cut")] * n_in + [(C, "whole")]
        return out

    def final(self):
        return [(self.C, "whole")] * (2 if self.gpt else 1)

    def table(self):
        return self.vocab * self.C


def held_kv_heads(s, tp):
    """KV heads over all ranks, a head that two ranks need counted twice; and how many such."""
    group, needed = s.Hq // s.Hkv, [0] * s.Hkv
    for r in range(tp):
        lo = s.Hq * (r * SHARDS // tp) // SHARDS
        hi = s.Hq * ((r + 1) * SHARDS // tp) // SHARDS
        for h in {q // group for q in range(lo, hi)}:
            needed[h] += 1
    return sum(needed), sum(n > 1 for n in needed)


def held(s, tp, tensors):
    """Elements that a tensor-parallel group holds together."""
    heads, _ = held_kv_heads(s, tp)
    factor = {"cut": 1, "kv": heads / s.Hkv, "whole": tp}
    return round(sum(n * factor[kind] for n, kind in tensors))


def expected_bytes(s, layout, sequence, full, stages):
    tp, pp, dp = layout
    K = BATCH * T  # tokens of a step
    replicas = 8  # W; BATCH is a multiple of 8
    _, shared = held_kv_heads(s, tp)
    blocks = 40 if sequence else 32
    blocks += 16 if full else 0
    sent_tp = s.L * (blocks * K * s.C + 16 * K * shared * s.D)
    sent_tp += 16 * K * s.C + 24 * K
    if sequence:
        vectors = [n for n, kind in s.layer() * s.L + s.final() if kind == "whole"]
        sent_tp += 8 * replicas * sum(vectors)
    sent_tp *= tp - 1
    sent_pp = 0
    if pp > 1:
        sent_pp = 8 * K * s.C * (stages - 1) * (1 if sequence else tp)
        sent_pp += 8 * s.table() if s.tied else 0
    once = held(s, tp, s.layer() * s.L + s.final()) + s.table()
    once += tp * s.positions * s.C if not s.frozen else 0
    if not s.tied or pp > 1:
        once += s.table()  # the output side is a tensor or a copy of its own
    gradients = once + (s.table() if s.tied and pp == 1 else 0)
    sent_dp = 4 * (dp - 1) * (gradients + once)
    return {"tp": sent_tp, "pp": sent_pp, "dp": sent_dp}


def check_sizes(lab):
    """A rank of 2 x 2 x 1 holds a quarter of the blocks, and little besides."""
    failures = 0
    for name, model in [("llama", LLAMA), ("gpt2", GPT2)]:
        whole = bench(lab, model, (1, 1, 1))
        part = bench(lab, model, (2, 2, 1))
        zero = bench(lab, model, (1, 1, 4))
        shares = {f"blocks' {k}": (part["block_bytes"][k] / whole["block_bytes"][k], 0.3)
                  for k in ("weights", "gradients", "moments")}
        shares["all weights"] = part["weights_bytes"] / whole["weights_bytes"], 0.5
        # The first stage has two micro-batches in flight; norms and residuals are not cut.
        shares["activations"] = part["activations_bytes"] / whole["activations_bytes"], 0.8
        shares["moments over dp=4"] = zero["moments_bytes"] / whole["moments_bytes"], 0.3
        for what, (share, most) in shares.items():
            good = 0.2 <= share <= most
            failures += not good
            print(f"{name:6} {what:20} {share:.3f} of one rank's (at most {most})"
                  f"{'' if good else '  FAILED'}")
    return failures


TRAFFIC = [  # name, model, (tp, pp, dp), sequence, recompute full, chunks
    ("llama", LLAMA, (1, 1, 1), False, False, 1),
    ("llama", LLAMA, (2, 1, 1), False, False, 1),
    ("llama", LLAMA, (2, 1, 1), True, False, 1),
    ("llama", LLAMA, (2, 2, 2), True, True, 1),
    ("llama", LLAMA, (1, 2, 1), False, False, 2),
    ("llama", LLAMA, (1, 4, 1), False, True, 1),
    ("llama", LLAMA, (1, 1, 4), False, False, 1),
    ("llama", LLAMA, (8, 1, 1), True, False, 1),
    ("tied", TIED, (2, 2, 1), False, False, 1),
    ("tied", TIED, (2, 2, 2), True, False, 2),
    ("tied", TIED, (2, 1, 2), False, True, 1),
    ("shared-kv", SHARED_KV, (2, 1, 1), True, False, 1),
    ("shared-kv", SHARED_KV, (4, 2, 1), False, False, 1),
    ("shared-kv", SHARED_KV, (4, 1, 2), True, True, 1),
    ("gpt2", GPT2, (2, 2, 1), False, False, 1),
    ("gpt2", GPT2, (2, 2, 2), True, False, 1),
    ("gpt2", GPT2, (2, 1, 2), True, True, 1),
    ("frozen", FROZEN, (2, 1, 2), True, False, 1),
]


def check_bytes(lab):
    failures = 0
    for name, model, layout, sequence, full, chunks in TRAFFIC[:8] if SLOW_BUILD else TRAFFIC:
        extra = [f"parallel.sequence={str(sequence).lower()}",
                 f"train.recompute={'full' if full else 'none'}"]
        if chunks > 1:
            extra += ["parallel.schedule=interleaved", f"parallel.chunks={chunks}"]
        found = bench(lab, model, layout, extra)["bytes_sent"]
        expected = expected_bytes(Shape(model), layout, sequence, full, layout[1] * chunks)
        bad = found != expected
        failures += bad
        print(f"{name:9} {'x'.join(map(str, layout))} {'sequence' if sequence else '':8} "
              f"{'full' if full else '':4} {chunks}  {found}"
              f"{f'  FAILED: expected {expected}' if bad else ''}", flush=True)
    return failures


def check_transports(lab):
    """Through shared memory and through messages the same bytes are counted."""
    counts = []
    for shm in ("1", "0"):
        os.environ["TESSERA_SHM"] = shm
        counts.append(bench(lab, TIED, (2, 2, 2))["bytes_sent"])
    del os.environ["TESSERA_SHM"]
    print(f"shared memory {counts[0]}, messages {counts[1]}")
    return counts[0] != counts[1]


if __name__ == "__main__":
    laboratory.main(__doc__, {"sizes": check_sizes, "bytes": check_bytes,
                              "transports": check_transports})

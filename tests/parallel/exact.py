"""One run in many layouts: the numbers and the files must be equal to the last bit.

Each group trains one model once on a single rank and then over a pairwise covering array of layout,
pipeline schedule, micro-batch size, sequence parallelism, recompute, threads and instruction set:
for every two of these, every pair of their values that can occur together occurs in some case.
Dropout is on everywhere. What a run over three ranks wrote is also read by one.
"""
import itertools
import math
import shutil
import time

import lab as laboratory
from lab import Different, SLOW_BUILD

STEPS = 3
GLOBAL_BATCH = 16

GPT1 = {**laboratory.GPT2, "model_type": "openai-gpt"}
TRAIN = {"steps": STEPS, "global_batch": GLOBAL_BATCH, "lr": 1e-2, "schedule": "cosine", "warmup": 2,
         "min_lr": 1e-3, "clip": 0.5, "eval_every": 2, "dropout": laboratory.dropout()}


def llama(biases=False, **changes):
    return {**laboratory.LLAMA, "num_hidden_layers": 8, "rms_norm_eps": 1e-5,
            "attention_bias": biases, "mlp_bias": biases, **changes}


def odd(hidden, heads, kv, layers=2):
    """Nothing divides."""
    return {**laboratory.LLAMA, "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv, "intermediate_size": 45,
            "vocab_size": 301, "tie_word_embeddings": True}


SCHEDULES = [("gpipe", 1), ("1f1b", 1), ("interleaved", 2)]
ALL_LAYOUTS = "111 211 121 112 221 212 122 222 411 141 114 421 811 118"


class Group:
    def __init__(self, model, n_layers, layouts, data="train.txt", packing="crossing", seq_len=20,
                 micro_batches=(1, 2, 4, 8), threads=(1, 2), schedules=SCHEDULES,
                 batch=GLOBAL_BATCH, shards=0, replicas=0):
        self.batch, self.shards, self.replicas = batch, shards, replicas
        self.model, self.n_layers, self.data, self.packing = model, n_layers, data, packing
        self.seq_len = seq_len
        self.factors = {
            "layout": [tuple(map(int, s)) for s in layouts.split()],
            "schedule": list(schedules),
            "micro_batch": list(micro_batches),
            "sequence": [False, True],
            "recompute": ["none", "selective", "full"],
            "threads": list(threads),
            "cpu": laboratory.cpus(),
        }

    def feasible(self, case):
        """What `tessera train` accepts (core/run_layout.c)."""
        _, pp, dp = case["layout"]
        schedule, chunks = case["schedule"]
        share, micro = self.batch // dp, case["micro_batch"]
        if share % micro or pp * chunks > self.n_layers:
            return False
        return schedule != "interleaved" or share // micro % pp == 0


GROUPS = {
    "llama": Group(llama(), 8, ALL_LAYOUTS),
    "llama-tied": Group(llama(biases=True, tie_word_embeddings=True), 8,
                        "221 122 212 141 421", data="train.jsonl", packing="isolated"),
    "gpt2": Group(laboratory.GPT2, 4, "111 211 121 112 221 122 222 411 114 811"),
    "gpt1": Group(GPT1, 4, "211 121 112 221 222 411", data="train.jsonl", packing="isolated"),
    # Fewer tokens than token pieces: some pieces are empty.
    "odd-5-1": Group(odd(hidden=40, heads=5, kv=1), 2, "211 212 221", seq_len=6,
                     micro_batches=(1, 2), schedules=SCHEDULES[:2]),
    "odd-9-3": Group(odd(hidden=36, heads=9, kv=3), 2, "211 411 221 412", seq_len=11,
                     micro_batches=(1, 4), schedules=SCHEDULES[:2]),
    # Shards and replicas that three ranks can share, or one. A micro-batch of 4
    # is two replicas, one of 12 all six.
    "three": Group(odd(hidden=36, heads=9, kv=3, layers=6), 6,
                   "111 311 131 113 321 123", seq_len=11, micro_batches=(1, 2, 4, 12), batch=12,
                   shards=6, replicas=6),
}


def covering_array(group):
    """Greedy: always the case with most pairs that are not yet covered; the first of equals."""
    names = list(group.factors)
    cases = [dict(zip(names, v)) for v in itertools.product(*group.factors.values())]
    cases = [c for c in cases if group.feasible(c)]
    number = {}
    masks = []
    for case in cases:
        mask = 0
        for pair in itertools.combinations(case.items(), 2):
            mask |= 1 << number.setdefault(pair, len(number))
        masks.append(mask)
    left, chosen = (1 << len(number)) - 1, []
    while left:
        best = max(range(len(cases)), key=lambda i: bin(masks[i] & left).count("1"))
        left &= ~masks[best]
        chosen.append(cases[best])
    return chosen, cases


def check_covering(group, chosen, feasible):
    """By another way than the greedy's bookkeeping: every pair that some feasible case has."""
    for a, b in itertools.combinations(group.factors, 2):
        can = {(c[a], c[b]) for c in feasible}
        does = {(c[a], c[b]) for c in chosen}
        assert can == does, f"{a} x {b}: not covered: {can - does}"
    for name, values in group.factors.items():
        assert {c[name] for c in chosen} == set(values), f"{name}: a value never occurs"


def overrides(case):
    tp, pp, dp = case["layout"]
    schedule, chunks = case["schedule"]
    return {
        "parallel.tp": tp,
        "parallel.pp": pp,
        "parallel.dp": dp,
        "parallel.schedule": schedule,
        "parallel.chunks": chunks,
        "parallel.sequence": str(case["sequence"]).lower(),
        "train.micro_batch": case["micro_batch"],
        "train.recompute": case["recompute"],
        "device.threads": case["threads"],
    }


def row(number, case, seconds, verdict):
    schedule, chunks = case["schedule"]
    print(f"{number:3}  {'x'.join(map(str, case['layout'])):6} {schedule:11} {chunks}  "
          f"{case['micro_batch']:2}  {'yes' if case['sequence'] else 'no':3} "
          f"{case['recompute']:9} {case['threads']}  {case['cpu']:8} {seconds:5.1f} s  {verdict}",
          flush=True)


def run_case(lab, run_file, case, run_dir):
    n_ranks = math.prod(case["layout"])
    return lab.train(run_file, run_dir, overrides(case), n_ranks, case["cpu"])


def tokens(lab, model, tp):
    return lab.output(lab.command(tp, "generate", model, "--ids", "3,1,4", "-n", 8, "-t", 0,
                                  "--ignore-eos", "--device", "cpu", "--tp", tp),
                      laboratory.environment())


def check_readers(lab, expected, group):
    """The model, whatever its shards, on one rank and on several."""
    tp = max(layout[0] for layout in group.factors["layout"])
    model = laboratory.checkpoint(expected)
    one, many = tokens(lab, model, 1), tokens(lab, model, tp)
    if one != many:
        raise Different(f"generate --tp {tp}: found {many}, one rank has {one}")


def run_group(lab, name):
    group = GROUPS[name]
    lab.make_data()
    train = {**TRAIN, "global_batch": group.batch}
    parallel = {"virtual_shards": group.shards, "virtual_replicas": group.replicas}
    run_file = lab.write_text_run(name, group.model, train, {
        "train": group.data, "seq_len": group.seq_len, "packing": group.packing}, parallel=parallel)
    chosen, feasible = covering_array(group)
    check_covering(group, chosen, feasible)
    n_all = len(chosen)
    if SLOW_BUILD:
        chosen = chosen[2::len(chosen) // 4][:4]
    reference = {"layout": (1, 1, 1), "schedule": ("1f1b", 1), "micro_batch": 1, "sequence": False,
                 "recompute": "none", "threads": 1, "cpu": laboratory.cpus()[0]}
    print(f"{name}: {len(chosen)} of {n_all} cases (pairwise of {len(feasible)})\n"
          f"  n  ranks  schedule    v  mb  seq recompute t  cpu")
    begin = time.monotonic()
    expected = run_case(lab, run_file, reference, lab.dir / "reference")
    losses = {m["valid_loss"] for m in laboratory.metrics(expected) if "valid_loss" in m}
    assert len(losses) == 2, f"expected two validation losses, found {losses}"
    row(0, reference, time.monotonic() - begin, "reference")
    failures = 0
    for i, case in enumerate(chosen, 1):
        begin, verdict = time.monotonic(), "equal"
        try:
            laboratory.compare_runs(expected, run_case(lab, run_file, case, lab.dir / "case"))
        except (Different, RuntimeError) as e:
            failures += 1
            verdict = f"FAILED: {e}"
        row(i, case, time.monotonic() - begin, verdict)
        shutil.rmtree(lab.dir / "case", ignore_errors=True)
    check_readers(lab, expected, group)
    return failures


if __name__ == "__main__":
    laboratory.main(__doc__, {name: lambda lab, name=name: run_group(lab, name)
                              for name in GROUPS})

"""Runs tessera under real mpirun on small models, and compares what the runs wrote.

Shared by the tests of this folder; Python's standard library only.
"""
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SLOW_BUILD = os.environ.get("TESSERA_TEST_SLOW") == "1"  # sanitizers: a small subset is enough
RUN_LIMIT_S = 600
# Ranks on simulated devices, eight to a core of a busy machine, may stand still for seconds. What
# hangs is other tests' matter.
CALM_MS = 120000
MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_btl": "vader,tcp,self",
    "OMPI_MCA_btl_base_warn_component_unused": "0",
}
MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]


# Small models of both families; a test changes what it is about ({**LLAMA, "vocab_size": 301}).
LLAMA = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 8,
         "num_key_value_heads": 2, "intermediate_size": 44, "vocab_size": 307,
         "tie_word_embeddings": False}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 4, "n_head": 8, "n_positions": 24,
        "vocab_size": 307}


def dropout(p=0.1):
    return {"embedding": p, "attention": p, "residual": p, "ffn": p}


class Different(Exception):
    """Two runs that must be equal are not; the text names the first difference."""


class Random:
    """Deterministic on every Python: Knuth's 64-bit linear congruential generator (MMIX)."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % n


def make_text(n_bytes, seed):
    """Words of a few syllables, frequent ones first, in sentences and paragraphs."""
    rng = Random(seed)
    parts = ["ka", "lo", "mi", "ne", "ru", "sta", "th", "or", "el", "é", "wa", "ing"]
    words = ["".join(parts[rng.below(len(parts))] for _ in range(1 + rng.below(3)))
             for _ in range(120)]
    out, size = [], 0
    while size < n_bytes:
        n = 4 + rng.below(9)
        line = " ".join(words[rng.below(1 + rng.below(len(words)))] for _ in range(n))
        out.append(line.capitalize() + (".\n" if rng.below(6) == 0 else ". "))
        size += len(out[-1].encode())
    return "".join(out)


class Lab:
    """A temporary folder with a text, a tokenizer and runs."""

    def __init__(self, tessera, keep=False):
        self.tessera = str(Path(tessera).resolve())
        self.keep = keep

    def __enter__(self):
        self.dir = Path(tempfile.mkdtemp(prefix="tessera-parallel-"))
        self.started = []
        return self

    def __exit__(self, *exception):
        for process in self.started:
            stop(process)
        if self.keep:
            print(f"kept: {self.dir}")
        else:
            shutil.rmtree(self.dir, ignore_errors=True)

    def make_data(self):
        (self.dir / "train.txt").write_text(make_text(24000, 1), encoding="utf-8")
        (self.dir / "valid.txt").write_text(make_text(3000, 2), encoding="utf-8")
        documents = [make_text(100 + 37 * (i % 11), 100 + i) for i in range(60)]
        (self.dir / "train.jsonl").write_text(
            "".join(json.dumps({"text": d}) + "\n" for d in documents), encoding="utf-8")
        self.output([self.tessera, "tokenizer", "train", "-o", str(self.dir / "tokenizer"),
                     "--vocab-size", "300", str(self.dir / "train.txt")], environment())

    def start(self, command, env, **pipes):
        """A process that doesn't outlive the test."""
        process = subprocess.Popen(command, env=env, **pipes)
        self.started.append(process)
        return process

    def output(self, command, env):
        """Standard output of a command that must succeed."""
        process = self.start(command, env, text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=RUN_LIMIT_S)
        if process.returncode != 0:
            raise RuntimeError(f"exit code {process.returncode}\n{out}{err}")
        return out

    def write_run(self, name, text):
        path = self.dir / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    def write_text_run(self, name, model, train, data, **sections):
        """A run file (JSON is YAML): fresh weights of `model`, keys of a config.json, on the texts
        that make_data writes."""
        data = {"train": "train.txt", "valid": "valid.txt", **data}
        model = {"config": model, "tokenizer": "tokenizer"}
        return self.write_run(name, json.dumps({"model": model, "data": data, "train": train,
                                                **sections}))

    def command(self, n_ranks, *arguments):
        launch = MPIRUN + ["-np", str(n_ranks)] if n_ranks > 1 else []
        return launch + [self.tessera, *map(str, arguments)]

    def train(self, run_file, run_dir, overrides, n_ranks, cpu=None):
        """A whole run; returns its directory. Overrides as {field: value}."""
        fields = {"supervise.stall_ms": CALM_MS, **overrides, "run.dir": run_dir}
        arguments = [f"{k}={v}" for k, v in fields.items()]
        self.output(self.command(n_ranks, "train", run_file, *arguments), environment(cpu))
        return Path(run_dir)


def write_indexed(prefix, tokens):
    """One document as Megatron's .bin and .idx (docs/data.md)."""
    uint16, n = 8, len(tokens)
    Path(f"{prefix}.bin").write_bytes(struct.pack(f"<{n}H", *tokens))
    Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, uint16, 1, 2) + struct.pack("<i", n)
        + struct.pack("<q", 0) + struct.pack("<qq", 0, 1))


def environment(cpu=None):
    env = {**MPI_ENVIRONMENT, **os.environ}
    env.pop("TESSERA_CPU", None)
    if cpu:
        env["TESSERA_CPU"] = cpu
    return env


def cpus():
    """What TESSERA_CPU may be on this machine, fastest first."""
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
                .group(1).split())
    found = []
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        found.append("avx512")
    if {"avx2", "fma"} <= flags:
        found.append("avx2")
    return found + ["portable"]


def metrics(run_dir):
    """The lines of metrics.jsonl, each as {key: the number's text}."""
    lines = []
    for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines():
        lines.append({k: v for k, v in re.findall(r'"(\w+)": ([^,}]+)', line)})
    return lines


EXACT_KEYS = ("step", "loss", "grad_norm", "lr", "tokens", "skipped", "valid_loss")


def compare_metrics(expected, found):
    if len(expected) != len(found):
        raise Different(f"metrics.jsonl: {len(found)} lines, expected {len(expected)}")
    for e, f in zip(expected, found):
        for key in EXACT_KEYS:
            if e.get(key) != f.get(key):
                raise Different(f"metrics.jsonl, step {e['step']}: {key} {f.get(key)}, "
                                f"expected {e.get(key)}")


def checkpoint(run_dir):
    """The newest checkpoint's folder."""
    return sorted((Path(run_dir) / "checkpoints").glob("step-*[0-9]"))[-1]


def digests(folder):
    """sha256 of the model's and the optimizer's files, by relative name."""
    files = sorted(folder.glob("*.safetensors")) + sorted((folder / "optimizer").glob("*"))
    assert any(f.parent.name == "optimizer" for f in files), f"{folder}: no optimizer files"
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def tensors(path):
    """name -> (struct's letter, bytes) of a safetensors file; bf16 as whole numbers."""
    data = path.read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + n])
    header.pop("__metadata__", None)
    return {name: ("f" if t["dtype"] == "F32" else "H",
                   data[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]])
            for name, t in header.items()}


def first_difference(expected, found):
    """Names the first tensor and element in which two files differ."""
    if expected.suffix != ".safetensors" or found.suffix != ".safetensors":
        return "bytes differ"
    a, b = tensors(expected), tensors(found)
    for name in a:
        if name not in b:
            return f"no tensor {name}"
        if a[name] != b[name]:
            x, y = ([v[0] for v in struct.iter_unpack(f"<{letter}", text)]
                    for letter, text in (a[name], b[name]))
            if len(x) != len(y):
                return f"tensor {name}: {len(y)} elements, expected {len(x)}"
            bad = [i for i in range(len(x)) if repr(x[i]) != repr(y[i])]
            return (f"tensor {name}[{bad[0]}]: {y[bad[0]]!r}, expected {x[bad[0]]!r} "
                    f"({len(bad)} of {len(x)} elements differ)")
    return "header differs"


def compare_checkpoints(expected, found):
    """Model and optimizer files byte by byte."""
    a, b = digests(expected), digests(found)
    if a.keys() != b.keys():
        raise Different(f"files {sorted(b)}, expected {sorted(a)}")
    for name in a:
        if a[name] != b[name]:
            raise Different(f"{name}: {first_difference(expected / name, found / name)}")


def compare_runs(expected, found):
    compare_metrics(metrics(expected), metrics(found))
    compare_checkpoints(checkpoint(expected), checkpoint(found))


# Processes.

def children(pid):
    """Process ids whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue  # it ended meanwhile
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return sorted(found)


def alive(pid):
    """Whether a process still runs (a zombie doesn't)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def stop(process):
    """Ends mpirun so that it takes its ranks along: they would survive its SIGKILL."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def check_all_gone(pids, limit_s=60.0):
    deadline = time.monotonic() + limit_s
    while left := [p for p in pids if alive(p)]:
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise RuntimeError(f"processes left behind: {left}")
        time.sleep(0.02)


def main(description, cases):
    """Command line of a test: runs one group of cases, or all. Cases: {name: function(lab)}."""
    import argparse
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--tessera", default=os.environ.get("TESSERA", "build/release/tessera"),
                   help="the program under test")
    p.add_argument("--group", choices=sorted(cases), help="one group only")
    p.add_argument("--keep", action="store_true", help="keep the temporary folder")
    a = p.parse_args()
    failures = 0
    for name in [a.group] if a.group else cases:
        with Lab(a.tessera, a.keep) as lab:
            begin = time.monotonic()
            failures += cases[name](lab)
            print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
    if failures:
        print(f"{failures} failures")
    sys.exit(1 if failures else 0)

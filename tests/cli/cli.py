"""What the command-line tests share: running the real binary, and judging what a user sees.

Every run carries a mark of its own in its environment, so that a process that stays behind is
found in /proc, whoever its parent is by then.
"""
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import unittest
import uuid

TESSERA = os.path.abspath(os.environ.get("TESSERA", "build/release/tessera"))
FAULT = os.environ.get("TESSERA_FAULT_LIBRARY", "")
SLOW = os.environ.get("TESSERA_TEST_SLOW") == "1"  # a sanitizer build
TIMEOUT_S = 400 if SLOW else 120
MARK = "TESSERA_TEST_MARK"

USAGE, RESOURCE, PEER, INTERRUPTED = 2, 3, 4, 5  # exit codes

ERROR = re.compile(r"^tessera[a-z -]*: error: ")
LOG = re.compile(r"^\d\d:\d\d:\d\d (info|warn) ")
MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_btl": "vader,tcp,self",
    "OMPI_MCA_btl_base_warn_component_unused": "0",
    # Without it the help texts of one mpirun may hide behind those of another.
    "OMPI_MCA_orte_base_help_aggregate": "0",
}

VOCAB = 300
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "initializer_range": 0.02, "bos_token_id": 0, "eos_token_id": 0,
}


class Result:
    """One finished run: exit code (negative: the signal), output bytes, error text and lines."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err
        self.lines = err.splitlines()
        self.errors = [line for line in self.lines if ERROR.match(line)]

    def __str__(self):
        return f"exit code {self.code}\nstdout: {self.out[-2000:]!r}\nstderr:\n{self.err[-6000:]}"


def marked(mark):
    """Ids of the processes whose environment carries the mark."""
    needle, found = f"{MARK}={mark}".encode(), []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as f:
                if needle in f.read().split(b"\0"):
                    found.append(int(pid))
        except OSError:
            continue
    return found


def children(pid):
    """Ids of the processes that this one has started."""
    found = []
    for child in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{child}/stat", encoding="utf-8", errors="replace") as f:
                fields = f.read().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[1]) == pid:
            found.append(int(child))
    return found


def left_behind(mark):
    """Processes that are still there some seconds after the run; they are killed."""
    deadline = time.monotonic() + 10
    while True:
        found = marked(mark)
        if not found:
            return []
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return found


def command_line(args, ranks, preload):
    line = [TESSERA, *map(str, args)]
    if ranks == 0:
        return line
    mpirun = ["mpirun", "-np", str(ranks), "--oversubscribe", "--bind-to", "none", "--mca",
              "mpi_yield_when_idle", "1"]
    if preload:
        mpirun += ["-x", f"LD_PRELOAD={preload}"]
    return mpirun + line


def content(folder):
    """All files below a folder: {name: bytes}."""
    found = {}
    for root, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(root, name), "rb") as f:
                found[os.path.relpath(os.path.join(root, name), folder)] = f.read()
    return found


def some(cases):
    """All cases, or every fourth where a sanitizer makes them slow."""
    return list(cases)[::4] if SLOW else cases


class Case(unittest.TestCase):
    """A test with a folder for the whole class, self.dir."""

    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp(prefix="tessera-cli-")
        cls.addClassCleanup(shutil.rmtree, cls.dir)

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def run_tessera(self, *args, **options):
        """See run_once. The leak checker itself now and then dies when mpirun ends a rank that is
        just exiting: that run says nothing about tessera and is made again."""
        for _ in range(3):
            result = self.run_once(*args, **options)
            if not (SLOW and "LeakSanitizer has encountered a fatal error" in result.err):
                break
        return result

    def run_once(self, *args, ranks=0, env=None, stdin=b"", stdout=None, limits=(), preload="",
                    during=None):
        """ranks 0: without mpirun. limits: pairs of resource and bytes. during: is called with the
        process while it runs."""
        mark = uuid.uuid4().hex
        variables = {**os.environ, **MPI, MARK: mark, **(env or {})}
        if preload and ranks == 0:
            variables["LD_PRELOAD"] = preload

        def prepare():
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it
            for what, value in limits:
                resource.setrlimit(what, (value, value))

        p = subprocess.Popen(command_line(args, ranks, preload), cwd=self.dir,
                             env=variables, preexec_fn=prepare, stdin=subprocess.PIPE,
                             stdout=stdout or subprocess.PIPE, stderr=subprocess.PIPE)
        if during:
            during(p)
        try:
            out, err = p.communicate(stdin, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            p.kill()
            out, err = p.communicate()
            left_behind(mark)
            self.fail(f"{args}: no end after {TIMEOUT_S} s\n{err.decode(errors='replace')}")
        result = Result(p.returncode, out or b"", err.decode(errors="replace"))
        self.assertEqual(left_behind(mark), [], f"{args}: processes left behind\n{result}")
        return result

    def good(self, *args, **options):
        result = self.run_tessera(*args, **options)
        self.assertEqual(result.code, 0, f"{args}: {result}")
        self.assertEqual(result.errors, [], f"{args}: {result}")
        return result

    def bad(self, code, needles, *args, count=1, **options):
        """The run fails with `code` and `count` messages that hold all of `needles`."""
        result = self.run_tessera(*args, **options)
        about = f"{args}: {result}"
        self.assertEqual(result.code, code, about)
        self.assertEqual(len(result.errors), count, about)
        if options.get("ranks", 0) == 0:  # mpirun has its own words to add
            strange = [s for s in result.lines if not ERROR.match(s) and not LOG.match(s)]
            self.assertEqual(strange, [], about)
        text = "\n".join(result.errors)
        for needle in [needles] if isinstance(needles, str) else needles:
            self.assertIn(needle, text, about)
        self.assertNotIn("Sanitizer", result.err, about)
        return result

    def write(self, name, content):
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb" if isinstance(content, bytes) else "w") as f:
            f.write(content)
        return path

    def documents(self, name, documents):
        """Lists of tokens as a .bin/.idx pair (docs/data.md); returns its prefix."""
        ids, sizes = sum(documents, []), [len(d) for d in documents]
        pointers = [2 * sum(sizes[:i]) for i in range(len(sizes))]
        self.write(name + ".bin", struct.pack(f"<{len(ids)}H", *ids))
        self.write(name + ".idx", b"MMIDIDX\0\0" + struct.pack("<QB", 1, 8) +
                   struct.pack("<QQ", len(sizes), len(sizes) + 1) +
                   struct.pack(f"<{len(sizes)}i", *sizes) +
                   struct.pack(f"<{len(sizes)}q", *pointers) +
                   struct.pack(f"<{len(sizes) + 1}q", *range(len(sizes) + 1)))
        return self.path(name)

    def tokens(self, name, n=4000, vocab=VOCAB, extra=()):
        """`n` made-up tokens in documents of 100."""
        ids = [(i * i + 7 * i) % vocab for i in range(n)] + list(extra)
        return self.documents(name, [ids[at:at + 100] for at in range(0, len(ids), 100)])

    def run_file(self, name="run.yaml", run_dir="run", **sections):
        """A run file of a tiny Llama; sections are merged in, and a key of None is left out."""
        run = {"run": {"name": "test", "dir": run_dir},
               "model": {"config": MODEL},
               "data": {"train": "tokens", "seq_len": 16},
               "train": {"steps": 2, "global_batch": 8, "micro_batch": 1},
               "device": {"threads": 1}}
        for section, keys in sections.items():
            if not isinstance(keys, dict):
                run[section] = keys
                continue
            merged = {**run.get(section, {}), **keys}
            run[section] = {k: v for k, v in merged.items() if v is not None}
        return self.write(name, json.dumps(run, indent=1))  # JSON is YAML

    def text(self, name="text.txt", n=400):
        words = ("In", "the", "beginning", "God", "created", "heaven", "and", "earth", "light")
        return self.write(name, "".join(f"{words[i * i % 9]} {words[i % 7]},\n"
                                        for i in range(n)))


def main():
    unittest.main(verbosity=2, failfast=False)

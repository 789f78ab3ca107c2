"""What is left of a checkpoint when the machine stops: the calls of whole runs are recorded, and
every state that a crash could leave on the disk is given to recovery (crash_states.c)."""
import collections
import glob
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "cli"))
import cli  # noqa: E402

RECORDER = os.environ.get("TESSERA_RECORDER", "")
STATES = os.environ.get("TESSERA_CRASH_STATES", "")
LEAST = 10000  # states verified on files, in each scenario: all together several times 20,000

KINDS = ("create mkdir write truncate extend sync sync_all rename exchange link unlink rmdir hint "
         "unknown").split()
# Small enough that every subset of three can be tried: about 60 operations a save and rank.
MODEL = {**cli.MODEL, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 16,
         "max_position_embeddings": 16}

# What a system call that succeeds does to the files it names.
EFFECT = {
    "write": "write", "writev": "write", "pwrite64": "write", "pwritev": "write",
    "pwritev2": "write", "ftruncate": "truncate", "truncate": "truncate", "fallocate": "extend",
    "fsync": "sync", "fdatasync": "sync", "sync_file_range": "hint", "fadvise64": None,
    "mkdir": "mkdir", "mkdirat": "mkdir", "rename": "rename", "renameat": "rename",
    "renameat2": "rename", "link": "link", "linkat": "link", "unlink": "unlink",
    "unlinkat": "unlink", "rmdir": "unlink",
}
HARMLESS = set("""access faccessat faccessat2 chdir fchdir close dup dup2 dup3 epoll_create1
    epoll_ctl epoll_wait fcntl fgetxattr flock fstat fstatfs getcwd getdents64 getxattr lgetxattr
    lseek lstat newfstatat poll ppoll pread64 preadv read readahead readlink readlinkat readv select
    pselect6 stat statfs statx execve inotify_add_watch""".split())
CALL = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+|0x[0-9a-f]+|\?)")

ON_FILE = re.compile(r"\d+<([^>]*)>")
ON_NAME = re.compile(r'(?:(?:AT_FDCWD|\d+)(?:<([^>]*)>)?, )?"([^"]*)"')


def paths_of(name, args):
    """The files that a call names in strace's spelling; never what it writes into them."""
    if EFFECT.get(name) in ("write", "truncate", "extend", "sync", "hint") and ON_FILE.match(args):
        return [ON_FILE.match(args)[1]]
    return [os.path.join(folder, path) for folder, path in ON_NAME.findall(args)]


def read_record(path):
    """[(kind, path, other, n_data)]"""
    with open(path, "rb") as f:
        data = f.read()
    at, found = 0, []
    while at < len(data):
        kind, _, n_path, n_other, _, n_data = struct.unpack_from("<IIIIQQ", data, at)
        at += 32
        name = data[at:at + n_path].decode()
        other = data[at + n_path:at + n_path + n_other].decode()
        at += n_path + n_other + n_data
        found.append((KINDS[kind], name, other, n_data))
    return found


@unittest.skipIf(cli.SLOW, "the recorder and a sanitizer both replace write()")
class States(cli.Case):
    def setUp(self):
        self.dir = os.path.realpath(self.dir)
        shutil.rmtree(self.path("run"), ignore_errors=True)
        for old in glob.glob(self.path("record*")):
            os.remove(old)
        os.mkdir(self.path("run"))
        self.tokens("tokens", n=200, vocab=16)
        self.run_path = self.run_file(
            model={"config": MODEL}, data={"seq_len": 8}, parallel={"virtual_shards": 2},
            train={"steps": 3, "global_batch": 1, "micro_batch": 1},
            checkpoint={"every": 1, "keep": 2})

    def environment(self, **more):
        return {"TESSERA_RECORD": self.path("record"), "TESSERA_RECORD_BELOW": self.path("run"),
                **more}

    def recorded(self, *options, ranks=0):
        self.good("train", self.run_path, *options, ranks=ranks, preload=RECORDER,
                  env=self.environment())

    def states(self, *options):
        """Replays the record; returns what crash_states prints."""
        below = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix="tessera-crash-", dir=below) as scratch:
            p = subprocess.run([STATES, self.path("record"), self.path("run"), scratch, *options],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(p.stdout, end="", flush=True)
        self.assertEqual(p.returncode, 0, p.stdout)

    def check(self):
        self.states("--least", str(LEAST))
        self.states("--forget")

    def test_one_rank(self):
        self.recorded()
        self.check()

    def test_two_ranks(self):
        self.recorded("parallel.tp=2", ranks=2)
        self.check()

    def test_resumed(self):
        self.recorded("train.steps=1")
        self.recorded()
        self.check()

    def test_replaced(self):
        """A run from the start in a directory that has checkpoints: each is exchanged."""
        self.recorded("train.steps=2")
        self.recorded("checkpoint.resume=none", "train.lr=0.002", "train.steps=2")
        self.states("--least", str(LEAST))

    def test_killed(self):
        """The writer is killed in the middle of a save; the next run cleans up and goes on."""
        self.recorded()
        names = [name for _, name, _, _ in read_record(self.path("record"))]
        first = next(i for i, name in enumerate(names) if "step-00000002" in name)
        last = next(i for i, name in enumerate(names) if "step-00000003" in name)
        for at in range(first + 1, last, (last - first) // 4):
            self.setUp()
            killed = self.run_tessera("train", self.run_path, preload=RECORDER,
                                      env=self.environment(TESSERA_RECORD_KILL=str(at)))
            self.assertEqual(os.path.getsize(self.path("record.count")) >= at, True, killed)
            self.recorded()
            self.states("--least", str(LEAST // 10))  # small saves have few

    def trace(self, ranks, options):
        """Runs under strace and the recorder at once; returns strace's lines."""
        if not shutil.which("strace"):
            self.fail("strace is not installed: launcher/install tests")
        line = ["strace", "-ff", "-qq", "-y", "-s", "4096", "-o", self.path("record-strace"),
                "-e", "trace=%file,%desc,mmap,msync,sync,io_submit,io_uring_setup,io_uring_enter",
                "-E", f"LD_PRELOAD={RECORDER}",
                *cli.command_line(["train", self.run_path, *options], ranks, RECORDER)]
        p = subprocess.run(line, env={**os.environ, **cli.MPI, **self.environment()}, cwd=self.dir,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           timeout=cli.TIMEOUT_S)
        self.assertEqual(p.returncode, 0, p.stdout)
        for name in glob.glob(self.path("record-strace.*")):
            with open(name, encoding="utf-8", errors="replace") as f:
                yield from f

    def escaped(self, ranks, *options):
        """Every change that strace saw below checkpoints/ is in the record, and none more."""
        root = self.path("run/checkpoints")
        seen, strange, made = collections.Counter(), [], set()
        for line in self.trace(ranks, options):
            call = CALL.match(line)
            if line.startswith(("io_", "sync(")):  # which files these change can't be seen
                strange.append(line)
            if not call or "checkpoints" not in call[2] or call[3].startswith(("-", "?")):
                continue
            name, args = call[1], call[2]
            paths = paths_of(name, args)
            paths = [p for p in paths if p.startswith(root)]
            if name in ("open", "openat", "creat"):
                if paths and (name == "creat" or "O_CREAT" in args or "O_TRUNC" in args):
                    made.add(paths[-1])
            elif name == "mmap":
                if root in args and "MAP_SHARED" in args and "PROT_WRITE" in args:
                    strange.append(line)
            elif name in EFFECT:
                effect = EFFECT[name] if paths else None
                if paths and (name == "rmdir" or "AT_REMOVEDIR" in args):
                    effect = "rmdir"
                if paths and "RENAME_EXCHANGE" in args:
                    effect = "exchange"
                if effect:
                    seen[effect, paths[0]] += int(call[3]) if effect == "write" else 1
            elif name not in HARMLESS and paths:
                strange.append(line)
        self.assertEqual(strange, [])
        found = collections.Counter()
        for kind, name, _, n_data in read_record(self.path("record")):
            if kind != "create" and name.startswith(root):
                found[kind, name] += n_data if kind == "write" else 1
        created = {name for kind, name, _, _ in read_record(self.path("record"))
                   if kind == "create" and name.startswith(root)}
        self.assertEqual((found - seen, seen - found), ({}, {}))
        self.assertEqual(created, made)
        self.assertGreater(len(seen), 30)

    def test_nothing_escapes(self):
        self.escaped(0)

    def test_nothing_escapes_of_two_ranks(self):
        self.escaped(2, "parallel.tp=2")


if __name__ == "__main__":
    cli.main()

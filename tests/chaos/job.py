"""A supervised run under test: started, watched from outside, killed piece by piece.

Nothing here asks the program for help: processes are found in /proc by a mark in their environment,
steps in metrics.jsonl, saves by the temporary directory, failures on standard error.
"""
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "parallel"))
import lab as laboratory  # noqa: E402  (found by the line above)

MARK = "TESSERA_TEST_MARK"
LIMIT_S = 60.0  # for anything that has to happen
FAILED = re.compile(r"rank (\d+) on (\S+) failed: (.*); (.*), step (\d+)$")
RESUMING = re.compile(r"resuming after step (\d+) from")
STARTED = re.compile(r"M parameters, (\d+) x (\d+) x (\d+) ranks")


class Broken(Exception):
    """A promise wasn't kept; the text says which one."""


def environ(pid):
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    return dict(part.split("=", 1) for part in raw.decode(errors="replace").split("\0")
                if "=" in part)


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


class Processes:
    """All processes of a run by what they are: {"supervisor": pid, "rank 0": pid, …}."""

    def __init__(self, mark):
        self.by_name, self.all = {}, []
        needle = f"{MARK}={mark}".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if needle not in (entry / "environ").read_bytes():
                    continue
            except OSError:
                continue
            pid = int(entry.name)
            if laboratory.alive(pid):
                self.all.append(pid)
                self.by_name[self.name(pid)] = pid

    @staticmethod
    def name(pid):
        env, words = environ(pid), command_line(pid)
        program = os.path.basename(words[0]) if words else ""
        if program in ("mpirun", "orterun"):
            return "mpirun"
        if "OMPI_COMM_WORLD_RANK" in env:
            return f"rank {env['OMPI_COMM_WORLD_RANK']}"
        if len(words) > 1 and words[1] == "coordinator":
            return "coordinator"
        if "TESSERA_EPOCH" in env:
            return "rank 0"
        return "supervisor" if "train" in words[:2] else f"{program} {pid}"


class Job:
    """One supervisor and what it starts."""

    def __init__(self, command, env, run_dir, log_path):
        self.mark, self.run_dir = uuid.uuid4().hex, Path(run_dir)
        self.lines = []  # (monotonic time, text) of standard error
        self.log = open(log_path, "a", encoding="utf-8")
        self.process = subprocess.Popen(command, env={**env, MARK: self.mark},
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, text=True, errors="replace")
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append((time.monotonic(), line.rstrip("\n")))
            self.log.write(line)
            self.log.flush()

    def processes(self):
        return Processes(self.mark)

    def said(self, pattern, after):
        """First line since `after` that matches: (time, match), or None."""
        for t, text in list(self.lines):
            if t >= after and (m := pattern.search(text)):
                return t, m
        return None

    def wait_for(self, what, condition, limit_s=LIMIT_S, interval_s=0.002):
        """The condition's first true value."""
        deadline = time.monotonic() + limit_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise Broken(f"no {what} within {limit_s:.0f} s\n{self.tail()}")
            time.sleep(interval_s)
        return value

    def wait_for_line(self, pattern, after):
        def line():
            found = self.said(pattern, after)
            if not found and self.process.poll() is not None:
                raise Broken(f"ended with {self.process.returncode}, not '{pattern.pattern}'\n"
                             f"{self.tail()}")
            return found
        return self.wait_for(f"line '{pattern.pattern}'", line)

    def tail(self, n=40):
        return "\n".join(text for _, text in self.lines[-n:])

    # -- what the run directory shows

    def n_steps(self):
        try:
            return (self.run_dir / "metrics.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0

    def committed(self):
        """Newest committed step, 0 when there is none."""
        return max((int(p.name[5:]) for p in (self.run_dir / "checkpoints").glob("step-*")),
                   default=0)

    def saving(self):
        """Whether a save is under way: its temporary directory is there."""
        try:
            return any(e.name.startswith(".tmp-step-")
                       for e in os.scandir(self.run_dir / "checkpoints"))
        except OSError:
            return False

    def wait_for_start(self, after):
        """Until the ranks trained one step since then: (step they resumed from, time)."""
        self.wait_for_line(STARTED, after)
        found = self.said(RESUMING, after)
        resumed = int(found[1].group(1)) if found else 0
        self.wait_for("new step", lambda: self.n_steps() > resumed)
        return resumed, time.monotonic()

    def end(self):
        """Ends all of it, however it is."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in Processes(self.mark).all:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        self.reader.join(5)
        self.process.stderr.close()
        self.log.close()


def wait_all_gone(pids, since, limit_s):
    """Seconds since `since` until none of the processes lives."""
    while left := [p for p in pids if laboratory.alive(p)]:
        if time.monotonic() - since > limit_s:
            names = ", ".join(f"{p} {Processes.name(p)}" for p in left)
            raise Broken(f"left behind after {limit_s:.0f} s: {names}")
        time.sleep(0.005)
    return time.monotonic() - since

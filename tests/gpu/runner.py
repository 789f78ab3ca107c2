"""What the steps of tests/gpu/run share: commands with deadlines, checks, speeds, the report."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/parallel"))
import lab as laboratory  # noqa: E402

TABLE_LIMIT = 9000  # characters; the lines before it take some, too


class Missing(Exception):
    """The step can't be done here; the text says what is missing."""


class Failed(Exception):
    """A check of the step doesn't hold."""


def session_members(session):
    """Processes of a session: mpirun's ranks have groups of their own."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue  # it ended meanwhile
            if int(fields[3]) == session:
                found.append(int(entry.name))
    return found


def end_session(process):
    """Asks, as mpirun then takes its ranks along; then kills what is left."""
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        pass
    for pid in session_members(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Gpu:
    def __init__(self, args, work):
        self.build, self.out = Path(args.build).resolve(), Path(args.out).resolve()
        self.work, self.small, self.python = Path(work), args.small, args.python
        self.tessera = self.build / "tessera"
        self.object = self.build / "libtessera_cuda.so"
        self.end = self.step_end = time.monotonic() + args.seconds
        self.out.mkdir(parents=True, exist_ok=True)
        self.env = self.environment()
        self.steps, self.checks, self.speeds, self.raw = [], [], [], {}
        self.step, self.log = None, None

    def environment(self):
        env = laboratory.environment()
        env["TESSERA_CUDA_OBJECT"] = str(self.object)
        env["OMPI_MCA_plm_rsh_agent"] = shutil.which("ssh") or "/bin/false"
        places = [Path(p) for p in ("/usr/local/cuda/lib64", "/usr/local/nvidia/lib64")]
        finder = "import nvidia; print(list(nvidia.__path__)[0])"
        found = subprocess.run([self.python, "-c", finder], capture_output=True, text=True,
                               timeout=60)
        if found.returncode == 0:  # PyTorch's packages bring the same libraries
            places += sorted(Path(found.stdout.strip()).glob("*/lib"))
        env["LD_LIBRARY_PATH"] = ":".join([str(p) for p in places if p.is_dir()] +
                                          [p for p in [env.get("LD_LIBRARY_PATH")] if p])
        return env

    def run(self, *command, ok=(0,), seconds=None, **environment):
        """A command whose output goes to the step's log; its standard output as text. Whatever
        it started is killed at the end of `seconds`, or of the step's time."""
        left = self.step_end - time.monotonic()
        left = left if seconds is None else min(left, seconds)
        if left < 2:
            raise Missing("no time is left")
        command = [str(c) for c in command]
        self.log_from = self.log.stat().st_size
        with open(self.log, "a", encoding="utf-8") as log, tempfile.TemporaryFile() as caught:
            print("$", *(f"{k}={v}" for k, v in environment.items()), *command, file=log, flush=True)
            # No pipe: who holds it open can't be waited for.
            process = subprocess.Popen(command, env={**self.env, **environment}, stdout=caught,
                                       stderr=log, stdin=subprocess.DEVNULL, cwd=self.work,
                                       start_new_session=True)
            try:
                process.wait(left)
                late = False
            except subprocess.TimeoutExpired:
                late = True
            end_session(process)
            caught.seek(0)
            out = caught.read().decode(errors="replace")
            log.write(out)
        name = Path(command[0]).name
        if late:
            raise Failed(f"{name}: no end after {left:.0f} s; {self.last_words()}")
        if process.returncode not in ok:
            raise Failed(f"{name}: exit code {process.returncode}; {self.last_words()}")
        return out

    def last_words(self):
        """The log's lines that say most, in a few words."""
        text = self.log.read_bytes()[self.log_from:].decode(errors="replace")
        lines = [x.strip() for x in text.splitlines() if x.strip()]
        telling = [x for x in lines[-60:] if any(w in x for w in (
            "ERROR]", "FAILED", "Error:", "error:", "Different", "tessera: ", "found ", "twin"))]
        return " / ".join((telling or lines)[-3:])[:300]

    def mpirun(self, n_ranks, *command, **options):
        return self.run(*laboratory.MPIRUN, "-np", n_ranks, *command, **options)

    def program(self, name):
        path = self.build / "tests" / name
        if not path.exists():
            raise Missing(f"tests/{name} isn't built")
        return path

    # -- what was found

    def check(self, name, test):
        """One line of the table of correctness; a failure stops nothing. test() gives its detail."""
        begin = time.monotonic()
        try:
            result, detail = "passed", test() or ""
        except Missing as e:
            result, detail = "skipped", str(e)
        except (Failed, laboratory.Different, OSError, ValueError, KeyError, IndexError,
                AttributeError, AssertionError) as e:
            result, detail = "FAILED", f"{e}" or type(e).__name__
        self.checks.append({"step": self.step, "name": name, "result": result, "detail": detail,
                            "seconds": time.monotonic() - begin})
        return result == "passed"

    def speed(self, name, value, unit, share=None, of="", bar=None):
        """One line of the table of speeds. share: of the ceiling or the peer that `of` names."""
        met = None if bar is None or share is None else share >= bar
        self.speeds.append({"step": self.step, "name": name, "value": value, "unit": unit,
                            "share": share, "of": of, "bar": bar, "met": met})

    # -- steps

    def do(self, name, function, budget):
        """Runs a step; whatever happens, the next one can follow."""
        begin = time.monotonic()
        self.step, self.log = name, self.work / f"{name}.log"
        self.step_end = min(self.end, begin + budget)
        first = len(self.checks)
        self.log.write_text("")
        self.check("the step itself", lambda: function(self))
        whole = self.checks.pop()
        if whole["result"] != "passed" or len(self.checks) == first:
            self.checks.append(whole)
        bad = [c for c in self.checks[first:] if c["result"] == "FAILED"]
        self.steps.append({"step": name, "seconds": time.monotonic() - begin, "failed": len(bad)})
        print(f"{name:10} {self.steps[-1]['seconds']:6.1f} s  {len(bad)} failed of "
              f"{len(self.checks) - first}", flush=True)
        self.save()

    def save(self):
        """After each step, so that a run that is stopped leaves what it found."""
        report = {"steps": self.steps, "checks": self.checks, "speeds": self.speeds,
                  "raw": self.raw}
        (self.out / "report.json").write_text(json.dumps(report, indent=1))
        (self.out / "table.txt").write_text(self.table())
        with tarfile.open(self.out / "logs.tar.gz", "w:gz") as tar:
            for log in sorted(self.work.glob("*.log")):
                tar.add(log, log.name)

    def table(self):
        """Failures first, then speeds that miss their bar, then the rest, cut at the limit."""
        lines = ["CORRECT"]
        for result in ("FAILED", "skipped"):
            lines += [f"{result:7} {c['step']}: {c['name']}: {c['detail']}"[:360]
                      for c in self.checks if c["result"] == result]
        for step in self.steps:
            good = [c["name"] + (f" ({c['detail']})" if c["detail"] else "") for c in self.checks
                    if c["step"] == step["step"] and c["result"] == "passed"]
            if good:
                lines.append(f"passed  {step['step']}: {'; '.join(good)}"[:500])
        lines += ["", f"SPEED{'':33}value              share"]
        for s in sorted(self.speeds, key=lambda s: {False: 0, True: 1, None: 2}[s["met"]]):
            share = "" if s["share"] is None else f"{s['share']:6.2f} of {s['of']}"
            bar = "" if s["bar"] is None else f" (bar {s['bar']:g}: {'met' if s['met'] else 'MISSED'})"
            lines.append(f"{s['name']:36.36} {s['value']:10.4g} {s['unit']:8} {share}{bar}".rstrip())
        text = "\n".join(lines) + "\n"
        return text if len(text) <= TABLE_LIMIT else text[:TABLE_LIMIT] + "\n(cut; table.txt in full)\n"

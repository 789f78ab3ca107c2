"""`tessera doctor`: every thing is looked at, what is missing is said in clear words."""
import json
import os
import pty
import shutil
import subprocess
import time
import unittest

import cli

CHECKS = ("processor", "cores", "FMA peak", "all cores", "memory", "huge pages", "ulimit -n",
          "ulimit -l", "/dev/shm", "Open MPI", "two ranks", "waiting ranks", "NCCL", "disk",
          "direct I/O", "clock")

# A driver with one old GPU and one new one, or none that starts.
CUDA = r"""
#include <stddef.h>
#include <string.h>
#ifndef ERROR
#define ERROR 0
#endif
int cuInit(unsigned flags) { return flags ? 1 : ERROR; }
int cuDeviceGetCount(int *n) { *n = 2; return 0; }
int cuDriverGetVersion(int *v) { *v = 12080; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, d ? "New One" : "Old One", n); return 0; }
int cuDeviceTotalMem_v2(size_t *n, int d) { *n = (size_t)(d + 1) << 30; return 0; }
int cuDeviceGetAttribute(int *v, int what, int d) { *v = what == 75 ? 7 + d : 0; return 0; }
int cuGetErrorString(int e, const char **s) { *s = "no such thing"; return e == ERROR; }
"""
NVML = r"""
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, "570.1", n); return 0; }
"""


class Doctor(cli.Case):
    def doctor(self, *args, code=0, **options):
        result = self.run_tessera("doctor", "--json", *args, **options)
        self.assertEqual(result.code, code, str(result))
        report = json.loads(result.out.splitlines()[-1])
        states = [c["state"] for c in report["checks"]]
        for state in ("ok", "warn", "fail"):
            self.assertEqual(report[state], states.count(state))
        return {c["check"]: c for c in report["checks"]}

    def test_here(self):
        checks = self.doctor()
        for name in CHECKS:
            self.assertIn(name, checks)
            self.assertNotEqual(checks[name]["state"], "fail", checks[name])
            self.assertTrue(checks[name]["text"])
        self.assertIn("all-reduce", checks["two ranks"]["text"])
        self.assertRegex(checks["FMA peak"]["text"], r"portable \d+ GFLOP/s")
        self.assertFalse([f for f in os.listdir(self.dir) if f.startswith('.tessera')])

    def test_plain_in_a_pipe(self):
        text = self.good("doctor").out.decode()
        self.assertNotIn("\033", text)
        for line in text.splitlines()[:-2]:
            self.assertRegex(line, r"^(ok   |warn |FAIL |      )")

    def test_colours_on_a_terminal(self):
        master, slave = pty.openpty()
        p = subprocess.Popen([cli.TESSERA, "doctor"], cwd=self.dir, stdout=slave,
                             stderr=subprocess.PIPE, env={**os.environ, **cli.MPI})
        os.close(slave)
        out = b""
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            out += part
        p.communicate()
        os.close(master)
        self.assertEqual(p.returncode, 0, out)
        self.assertIn("✓".encode(), out)
        self.assertIn(b"\033[", out)

    def test_without_mpirun(self):
        empty = self.path("empty")
        os.makedirs(empty, exist_ok=True)
        checks = self.doctor(code=cli.RESOURCE, env={"PATH": empty})
        self.assertEqual(checks["Open MPI"]["state"], "fail")
        self.assertIn("mpirun", checks["Open MPI"]["text"])
        self.assertIn("openmpi-bin", checks["Open MPI"]["hint"])
        os.rmdir(empty)

    def script(self, body):
        folder = self.path("bin")
        path = self.write("bin/mpirun", "#!/bin/sh\ncase \"$1\" in --version) echo "
                          f"'mpirun (Open MPI) 4.1.4'; exit 0;; esac\n{body}\n")
        os.chmod(path, 0o755)
        return {"PATH": folder + ":" + os.environ["PATH"]}

    def test_ranks_that_fail(self):
        checks = self.doctor(code=cli.RESOURCE, env=self.script("echo out of slots >&2; exit 7"))
        self.assertEqual(checks["two ranks"]["state"], "fail")
        self.assertIn("out of slots", checks["two ranks"]["text"])
        self.assertIn("7", checks["two ranks"]["text"])

    def test_ranks_that_hang(self):
        began = time.monotonic()
        # a child that holds the pipe and is nobody's child any more
        checks = self.doctor(code=cli.RESOURCE, env=self.script("(sleep 600 &) ; sleep 600"))
        self.assertLess(time.monotonic() - began, 60)
        self.assertEqual(checks["two ranks"]["state"], "fail")
        self.assertIn("no answer", checks["two ranks"]["text"])

    def test_under_mpirun(self):
        result = self.run_tessera("doctor", ranks=1)
        self.assertEqual(result.code, 0, str(result))
        self.assertIn(b"run tessera doctor without mpirun", result.out)

    def library(self, folder, name, source, *flags):
        """Compiles a stand-in for a system library; returns the environment that finds it."""
        path = self.write(f"{folder}/{name}.c", source)
        subprocess.run(["cc", "-shared", "-fPIC", *flags, "-o", self.path(folder, name), path],
                       check=True)
        return {"LD_LIBRARY_PATH": self.path(folder)}

    @unittest.skipUnless(shutil.which("cc"), "needs a compiler")
    def test_gpus(self):
        self.library("gpu", "libnvidia-ml.so.1", NVML)
        checks = self.doctor(env=self.library("gpu", "libcuda.so.1", CUDA))
        self.assertEqual(checks["NVIDIA driver"]["text"], "for CUDA 12.8, 2 GPUs")
        self.assertEqual(checks["NVML"]["text"], "driver 570.1")
        self.assertEqual(checks["GPU 0"]["state"], "warn")
        self.assertIn("sm_80", checks["GPU 0"]["hint"])
        self.assertEqual(checks["GPU 1"]["text"], "New One, sm_80, 2.00 GiB")
        self.assertEqual(checks["GPU 1"]["state"], "ok")

    @unittest.skipUnless(shutil.which("cc"), "needs a compiler")
    def test_broken_drivers(self):
        checks = self.doctor(env=self.library("dead", "libcuda.so.1", CUDA, "-DERROR=100"))
        self.assertEqual(checks["GPU"]["state"], "warn")
        self.assertIn("no such thing (error 100)", checks["GPU"]["text"])
        checks = self.doctor(env=self.library("ancient", "libcuda.so.1", "int cuInit;"))
        self.assertIn("lacks calls", checks["GPU"]["text"])

    def test_folder(self):
        checks = self.doctor("--folder", "/proc")  # nobody can write there
        self.assertEqual(checks["disk"]["state"], "warn")
        self.assertIn("cannot write to /proc", checks["disk"]["text"])
        self.bad(cli.USAGE, "no/such/folder: expected a folder, found nothing", "doctor", "--folder",
                 "no/such/folder")
        self.bad(cli.USAGE, "--folders", "doctor", "--folders", "x")


if __name__ == "__main__":
    cli.main()

#!/usr/bin/env python3
"""A supervised run on three hosts (namespaces of this machine) behind links of 4 Mbit/s.

Links go down in the middle of the run and a rank is killed on another host; each time the line that
says so must name the host, the run must go on with what is left of the hosts, nothing may be left
running behind the broken link, and in the end curve and weights are those of one process that nobody
disturbed, to the last bit. Ends with 77 where such hosts can't be made.
"""
import argparse
import os
import re
import signal
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
from hosts import Hosts, why_not  # noqa: E402
from job import FAILED, STARTED, Broken, Job, environ, laboratory  # noqa: E402

SKIPPED = 77
RUN = """
run: {{name: hosts}}
model:
  config: {{model_type: llama, hidden_size: 16, num_hidden_layers: 3, num_attention_heads: 4,
           num_key_value_heads: 4, intermediate_size: 24, vocab_size: 307}}
  tokenizer: tokenizer
data: {{train: train.txt, seq_len: 8}}
train: {{steps: {steps}, global_batch: 4, micro_batch: 1, lr: 1.0e-2, warmup: 5}}
parallel:
  virtual_shards: 4
  virtual_replicas: 4
  elastic: [{{tp: 1, pp: 3, dp: 1}}, {{tp: 2, pp: 1, dp: 1}}]
checkpoint: {{every: 5, keep: 3}}
device: {{threads: 1}}
"""
STEPS = 600
SLOTS = {"nodea": 2, "nodeb": 1, "nodec": 1}
RATE = "4mbit"  # a step then takes about 0.1 s
DETECTED_S = 5.0   # a link that goes down; 3 s of silence are death
ORPHAN_S = 20.0    # ranks without a coordinator end themselves after 3 s + 5 s, then the daemon
SILENT = re.compile(r"host (\S+) does not answer")
ANSWERS = re.compile(r"host (\S+) answers again")


class Several:
    def __init__(self, lab, hosts):
        self.lab, self.hosts = lab, hosts
        self.run_file = lab.write_run("run", RUN.format(steps=STEPS))

    def undisturbed(self):
        self.expected = self.lab.dir / "undisturbed"
        self.lab.output([self.lab.tessera, "train", str(self.run_file),
                         f"run.dir={self.expected}"], laboratory.environment())

    def start(self):
        where = ",".join(f"{name}:{n}" for name, n in SLOTS.items())
        env = {**laboratory.environment(), "OMPI_MCA_plm_rsh_agent": self.hosts.agent()}
        command = [self.lab.tessera, "train", str(self.run_file), "--hosts", where,
                   "parallel.tp=2", "parallel.pp=1", "parallel.dp=2",
                   f"run.dir={self.lab.dir / 'run'}"]
        self.job = Job(self.hosts.all["nodea"].enter(*command), env, self.lab.dir / "run",
                       self.lab.dir / "output")

    def wait_layout(self, after, tp, pp, dp):
        """Until the ranks run in this layout, and a step is trained."""
        found = self.job.wait_for_line(STARTED, after)[1].groups()
        if found != (str(tp), str(pp), str(dp)):
            raise Broken(f"expected layout {tp} x {pp} x {dp}, found {' x '.join(found)}")
        before = self.job.n_steps()
        self.job.wait_for("new steps", lambda: self.job.n_steps() >= before + 10)

    def wait_failed(self, after, host):
        """Seconds until the line that names the culprit, which must be on this host."""
        t, line = self.job.wait_for_line(FAILED, after)
        if line.group(2) != host:
            raise Broken(f"the failure of {host} was said to be one of {line.group(2)}:\n"
                         f"{line.group(0)}")
        return t - after, line.group(0)

    def wait_for_host(self, pattern, after, name):
        found = self.job.wait_for_line(pattern, after)[1].group(1)
        if found != name:
            raise Broken(f"{found} instead of {name}: '{pattern.pattern}'")

    def wait_empty(self, name, since):
        host = self.hosts.all[name]
        try:
            self.job.wait_for("end", lambda: not host.processes(), ORPHAN_S, 0.05)
        except Broken:
            raise Broken(f"left behind on {name}: {host.processes()}") from None
        return time.monotonic() - since

    def tell(self, what, t, line):
        print(f"{what}: said after {t:.2f} s: {line}", flush=True)

    # -- what happens to the run

    def link_goes_down(self):
        """The others go on without that host, on which nothing stays."""
        t = time.monotonic()
        self.hosts.cable("nodeb", False)
        said = self.wait_failed(t, "nodeb")
        self.tell("link of nodeb down", *said)
        if said[0] > DETECTED_S:
            raise Broken(f"noticed after {said[0]:.1f} s, expected {DETECTED_S} s")
        self.wait_for_host(SILENT, t, "nodeb")
        self.wait_layout(t, 1, 3, 1)
        print(f"three ranks on the others after {time.monotonic() - t:.1f} s; nothing is left on "
              f"nodeb after {self.wait_empty('nodeb', t):.1f} s", flush=True)

    def rank_dies_elsewhere(self):
        """And the host whose link is up again takes part once more."""
        self.hosts.cable("nodeb", True)
        ranks = [p for p in self.hosts.all["nodec"].processes() if "TESSERA_EPOCH" in environ(p)]
        t = time.monotonic()
        os.kill(ranks[0], signal.SIGKILL)
        self.tell("rank on nodec killed", *self.wait_failed(t, "nodec"))
        self.wait_for_host(ANSWERS, t, "nodeb")
        self.wait_layout(t, 2, 1, 2)

    def link_flaps(self):
        """Down just until it is noticed: what the old incarnation left behind must be gone before
        the next one begins there."""
        old = set(self.hosts.all["nodec"].processes())
        t = time.monotonic()
        self.hosts.cable("nodec", False)
        self.tell("link of nodec down", *self.wait_failed(t, "nodec"))
        self.hosts.cable("nodec", True)
        self.wait_layout(t, 2, 1, 2)
        if stale := old & set(self.hosts.all["nodec"].processes()):
            raise Broken(f"of the incarnation before, on nodec: {stale}")

    def run(self):
        self.undisturbed()
        self.hosts.limit(RATE)
        self.start()
        try:
            self.wait_layout(0.0, 2, 1, 2)
            self.link_goes_down()
            self.rank_dies_elsewhere()
            self.link_flaps()
            self.hosts.unlimit()
            code = self.job.process.wait(300)
            if code != 0:
                raise Broken(f"exit code {code}\n{self.job.tail()}")
            for name in self.hosts.all:
                self.wait_empty(name, time.monotonic())
            laboratory.compare_runs(self.expected, self.job.run_dir)
            print(f"{STEPS} steps, curve and weights equal to the undisturbed run")
        finally:
            self.job.end()


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--tessera", default=os.environ.get("TESSERA", "build/release/tessera"))
    p.add_argument("--keep", action="store_true", help="keep the temporary folder")
    a = p.parse_args()
    if reason := why_not():
        print(f"skipped: {reason}")
        sys.exit(SKIPPED)
    with laboratory.Lab(a.tessera, a.keep) as lab:
        lab.make_data()
        hosts = Hosts(SLOTS, lab.dir)
        begin = time.monotonic()
        try:
            Several(lab, hosts).run()
        except (Broken, laboratory.Different) as e:
            print(f"FAILED: {e}")
            sys.exit(1)
        finally:
            hosts.end()
            print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()

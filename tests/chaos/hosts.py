"""Several hosts on one machine: each is a process tree with its own network, processes, host name and
shared memory (namespaces), on a switch that is a network namespace too.

Everything belongs to a process of this test and ends with it, however that ends: the kernel removes
the namespaces, and the links with them. Nothing has a name outside.
"""
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

REMOTE = Path(__file__).resolve().parent / "remote.py"
PORT = 7022
NETWORK = "10.77.0"
PR_SET_PDEATHSIG = 1
NAMESPACES = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child"]


def why_not():
    """Why there can't be such hosts here, or None."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    missing = [name for name in ("ip", "tc", "unshare", "nsenter") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)}: not installed"
    probe = subprocess.run(["unshare", *NAMESPACES, "sh", "-c",
                            "ip link add left type veth peer name right && ip link add both type bridge && "
                            "tc qdisc add dev left root tbf rate 1mbit burst 16kb latency 50ms"],
                           capture_output=True, text=True)
    return None if probe.returncode == 0 else f"no namespaces here: {probe.stderr.strip()}"


def die_with_us():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def child_of(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0])


class Host:
    """A host that is up: `pid` is its first process, as seen from here."""

    def __init__(self, name, address, hosts_file):
        self.name, self.address = name, address
        script = ("mount -t proc proc /proc && mount -t tmpfs tmpfs /dev/shm && "
                  f"mount --bind {hosts_file} /etc/hosts && hostname {name} && "
                  f"ip link set lo up && exec {sys.executable} -B {REMOTE} serve {PORT}")
        env = {"PATH": os.environ["PATH"], "HOME": "/root"}
        self.process = subprocess.Popen(["unshare", *NAMESPACES, "sh", "-ec", script], env=env,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        preexec_fn=die_with_us)
        if self.process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"host {name} did not start")
        self.pid = child_of(self.process.pid)

    def enter(self, *command):
        """Command line that runs `command` there."""
        return ["nsenter", "-t", str(self.pid), "-n", "-u", "-i", "-m", "-p", "--", *command]

    def network(self, *command):
        subprocess.run(["nsenter", "-t", str(self.pid), "-n", "--", *command], check=True)

    def processes(self):
        """What runs there beside the remote shell."""
        own = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdigit() or os.readlink(entry / "ns/pid") != own:
                    continue
                words = (entry / "cmdline").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if state not in "ZX" and str(REMOTE).encode() not in words:
                found[int(entry.name)] = b" ".join(words).decode(errors="replace")
        return found

    def end(self):
        self.process.kill()  # and the kernel kills all that run there
        self.process.wait()
        self.process.stdout.close()


class Hosts:
    """Hosts by name on one switch, with addresses in the order of their names."""

    def __init__(self, names, folder):
        self.all, self.switch = {}, None
        hosts_file = Path(folder) / "hosts"
        addresses = {name: f"{NETWORK}.{i + 1}" for i, name in enumerate(names)}
        hosts_file.write_text("127.0.0.1 localhost\n" +
                              "".join(f"{a} {n}\n" for n, a in addresses.items()))
        try:
            self.switch = Host("switch", None, hosts_file)
            self.switch.network("ip", "link", "add", "bridge", "type", "bridge")
            self.switch.network("ip", "link", "set", "bridge", "up")
            for name, address in addresses.items():
                self.all[name] = Host(name, address, hosts_file)
                self.plug(self.all[name])
        except BaseException:
            self.end()
            raise

    def plug(self, host):
        port = f"to-{host.name}"
        self.switch.network("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0",
                            "netns", str(host.pid))
        self.switch.network("ip", "link", "set", port, "master", "bridge", "up")
        host.network("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
        host.network("ip", "link", "set", "eth0", "up")

    def limit(self, rate):
        """All links, both ways; e.g. "20mbit"."""
        shape = ["root", "tbf", "rate", rate, "burst", "16kb", "latency", "400ms"]
        for host in self.all.values():
            host.network("tc", "qdisc", "replace", "dev", "eth0", *shape)
            self.switch.network("tc", "qdisc", "replace", "dev", f"to-{host.name}", *shape)

    def unlimit(self):
        for host in self.all.values():
            host.network("tc", "qdisc", "del", "dev", "eth0", "root")
            self.switch.network("tc", "qdisc", "del", "dev", f"to-{host.name}", "root")

    def cable(self, name, plugged):
        self.switch.network("ip", "link", "set", f"to-{name}", "up" if plugged else "down")

    def agent(self):
        """For OMPI_MCA_plm_rsh_agent."""
        return f"{sys.executable} -B {REMOTE} run {PORT}"

    def end(self):
        for host in self.all.values():
            host.end()
        if self.switch:
            self.switch.end()

#!/usr/bin/env python3
"""Runs the Python client of docs/protocol.md, as it stands there, against serve_status:
client.py PROGRAM. Needs protoc and Python's protobuf package."""
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def documented():
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/protocol.md").read_text(),
                        re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1, f"expected one Python program in docs/protocol.md, found {len(blocks)}"
    return blocks[0]


def start(program, run):
    server = subprocess.Popen([program, run])
    deadline = time.monotonic() + 20
    while not (run / "coordinator/address").exists():
        assert server.poll() is None and time.monotonic() < deadline, "the server did not start"
        time.sleep(0.02)
    return server


def client(folder, run):
    return subprocess.run([sys.executable, "-B", folder / "client.py", run], text=True, timeout=30,
                          capture_output=True, cwd=folder, env={**os.environ, "PYTHONUTF8": "1"})


def check_status(done):
    assert done.returncode == 0, done.stderr
    for expected in ["epoch: 3", 'run_name: "demo"', "step: 41", "loss: 2.5", "rank: 1",
                     "phase: PHASE_BACKWARD"]:
        assert expected in done.stdout, f"{expected!r} is not in\n{done.stdout}"
    assert done.stdout.count("ranks {") == 2


def another_key(run):
    other = run.with_name("other")
    shutil.copytree(run, other)
    key = other / "coordinator/key"
    digits = key.read_text()
    key.write_text(("1" if digits[0] == "0" else "0") + digits[1:])
    return other


def check_garbage(run):
    address = json.loads((run / "coordinator/address").read_text())
    for garbage in [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 4, b"\xff" * 5000, bytes(64)]:
        with socket.create_connection((address["host"], address["port"]), timeout=10) as s:
            seen = b""
            try:
                s.sendall(garbage)
                if not garbage:
                    s.shutdown(socket.SHUT_WR)  # it can't know otherwise that nothing will come
                while chunk := s.recv(4096):
                    seen += chunk
            except ConnectionError:
                pass  # it closed without having read everything
            assert len(seen) <= 48 + 64, "more than a Challenge came back"


def check_refused(folder, run):
    """The server says why to a client that has the key: of another epoch, of another version."""
    text = (folder / "client.py").read_text()
    for old, new, reason in [("epoch=challenge.epoch", "epoch=2", "expected epoch 3, found 2"),
                             ("    version=1,", "    version=2,", "version: expected 1, found 2")]:
        assert old in text
        (folder / "client.py").write_text(text.replace(old, new))
        done = client(folder, run)
        assert done.returncode == 1 and reason in done.stderr, done.stderr
    (folder / "client.py").write_text(text)


def main():
    with tempfile.TemporaryDirectory() as tmp:
        folder, run = pathlib.Path(tmp), pathlib.Path(tmp, "run")
        subprocess.run(["protoc", f"-I{ROOT / 'proto'}", f"--python_out={tmp}", "control.proto"],
                       check=True)
        (folder / "client.py").write_text(documented())
        server = start(sys.argv[1], run)
        try:
            check_status(client(folder, run))
            done = client(folder, another_key(run))
            assert done.returncode == 1 and "another key" in done.stderr, done.stderr
            check_garbage(run)
            check_refused(folder, run)
            check_status(client(folder, run))
            assert server.poll() is None
        finally:
            server.kill()
            server.wait()
    print("ok")


main()

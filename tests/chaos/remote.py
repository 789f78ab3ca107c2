"""A remote shell as bare as can be, for hosts of namespaces: what ssh is to real ones.

`remote.py serve PORT` is a host's first process: it runs what it is asked to, reaps what nobody else
does, and when it ends its host ends. `remote.py run PORT HOST WORD…` runs a command there with a
login's bare environment, prints what it prints, and ends with its exit code; this is what Open MPI's
plm_rsh_agent is set to.
"""
import os
import socket
import struct
import subprocess
import sys
import threading

CONNECT_S = 3.0
CHUNK = 1 << 16


def receive(sock, n):
    data = b""
    while len(data) < n:
        more = sock.recv(n - len(data))
        if not more:
            raise ConnectionError("the other side hung up")
        data += more
    return data


def send(sock, kind, data):
    sock.sendall(struct.pack("<cI", kind, len(data)) + data)


def answer(sock):
    """One command: its output as frames 'o', its end as a frame 'e'. That the asker is gone does not
    end it, as with ssh."""
    try:
        kind, n = struct.unpack("<cI", receive(sock, 5))
        command = receive(sock, n).decode()
        child = subprocess.Popen(["sh", "-c", command], stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/")
        while data := child.stdout.read1(CHUNK):
            send(sock, b"o", data)
        send(sock, b"e", struct.pack("<i", child.wait()))
    except OSError:
        pass
    finally:
        sock.close()


def listen(port):
    with socket.create_server(("0.0.0.0", port)) as server:
        print("ready", flush=True)
        while True:
            sock, _ = server.accept()
            threading.Thread(target=answer, args=(sock,), daemon=True).start()


def serve(port):
    """The listener's own waits must not meet those for orphans: it is a process of its own."""
    listener = os.fork()
    if listener == 0:
        listen(port)
    while os.wait()[0] != listener:
        pass


def run(port, host, words):
    try:
        sock = socket.create_connection((host, port), CONNECT_S)
    except OSError as e:
        print(f"{host}: {e}", file=sys.stderr)
        return 255
    sock.settimeout(None)
    send(sock, b"c", " ".join(words).encode())
    while True:
        kind, n = struct.unpack("<cI", receive(sock, 5))
        data = receive(sock, n)
        if kind == b"e":
            code = struct.unpack("<i", data)[0]
            return code if code >= 0 else 128 - code
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        sys.exit(run(int(sys.argv[2]), sys.argv[3], sys.argv[4:]))

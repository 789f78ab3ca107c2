#!/usr/bin/env python3
"""Writes corpus/session/ for fuzz_session.c; run it again when a .proto changes."""
import hashlib
import hmac
import pathlib
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parents[1] / "proto"
generated = tempfile.TemporaryDirectory()
subprocess.run(["protoc", f"-I{PROTO}", f"--python_out={generated.name}", "control.proto",
                "checkpoint.proto"], check=True)
sys.path.insert(0, generated.name)
import checkpoint_pb2 as k  # noqa: E402
import control_pb2 as c  # noqa: E402

SECRET, CLIENT, SERVER = b"\x07" * 32, b"\x01" * 32, b"\xfe" * 32  # session_support.h
TO_SERVER, TO_CLIENT, RECORDS = 0, 6, 1  # what the first byte says; plus 2 x the role


def key(salt, info):
    prk = hmac.digest(salt or bytes(32), SECRET, "sha256")
    return hmac.digest(prk, info + b"\x01", "sha256")


KEYS = {"challenge": key(b"", b"tessera challenge"), "hello": key(SERVER, b"tessera hello"),
        "up": key(SERVER + CLIENT, b"tessera client to server"),
        "down": key(SERVER + CLIENT, b"tessera server to client")}


def frame(which, type_, id_, payload, length=None, flags=0):
    head = struct.pack("<IHHQ", len(payload) if length is None else length, type_, flags, id_)
    return head + hmac.digest(KEYS[which], head + payload, "sha256") + payload


def records(*pairs):
    return b"".join(struct.pack("<HH", t, len(p)) + p for t, p in pairs)


challenge = c.Challenge(version=1, nonce=SERVER, epoch=3).SerializeToString()
hello = c.Hello(version=1, nonce=CLIENT, role=c.ROLE_RANK, epoch=3, world=2, tp=1, pp=1, dp=2,
                host="host-1", pid=77, steps=100).SerializeToString()
shards = k.ShardMap(n_parts=1, tensors=[
    k.TensorShards(name="model.layers.0.mlp.up_proj.weight", rows=64, cols=32, regions=[
        k.Region(r0=8 * i, r1=8 * i + 8, c1=32) for i in range(8)])])
digests = [k.RangeDigests(first=3, digests=bytes(range(32)))]
from_rank = [
    (c.FRAME_SHARD_MAP, shards),
    (c.FRAME_HEARTBEAT, c.Heartbeat(step=5, phase=c.PHASE_REDUCE, collective=1 << 40)),
    (c.FRAME_STEP, c.StepReport(step=6, loss=float("nan"), lr=1e-3, tokens=1 << 33)),
    (c.FRAME_SAVE_READY, k.SaveReady(step=6, attempt=1)),
    (c.FRAME_SAVE_PLAN, k.SavePlan(step=6, attempt=1, temporary=".tmp-step-00000006-e3-a1",
                                   range_bytes=1 << 24, elements=99, files=[
                                       k.PlannedFile(path="optimizer/m-1", size=1 << 35)])),
    (c.FRAME_SAVE_VOTE, k.SaveVote(step=6, attempt=1, ok=True, elements=99, ranges=digests)),
    (c.FRAME_SAVE_DIGESTS, k.SaveDigests(step=6, attempt=1, error="disk: é", ranges=digests)),
    (c.FRAME_BYE, c.Bye(exit_code=5))]
from_coordinator = [
    (c.FRAME_WELCOME, c.Welcome(epoch=3, heartbeat_ms=250, lost_ms=3000)),
    (c.FRAME_PULSE, c.Pulse(committed_step=5)),
    (c.FRAME_STOP, c.Stop(save=True, reason="interrupted")),
    (c.FRAME_STATUS, c.Status(epoch=3, run_name="r", last=c.StepReport(step=6), ranks=[
        c.RankStatus(rank=i, host="host-1", alive=True) for i in range(20)])),
    (c.FRAME_FAILED, c.Failed(rank=1, host="host-1", cause="no heartbeat for 3.0 s")),
    (c.FRAME_SAVE_WRITE, k.SaveWrite(step=6, attempt=1)),
    (c.FRAME_SAVE_DIGEST, k.SaveDigest(step=6, spans=[k.RangeSpan(first=1, count=2)] * 20)),
    (c.FRAME_SAVE_DONE, k.SaveDone(step=6, attempt=1, directory="step-00000006")),
    (c.FRAME_SAVE_ABORT, k.SaveAbort(step=6, attempt=1, reason="full disk", exit_code=3)),
    (c.FRAME_REFUSED, c.Refused(reason="epoch 2 is over"))]


def packed(messages):
    return [(t, m.SerializeToString()) for t, m in messages]


def conversation(first, which, messages):
    return first + b"".join(frame(which, t, i + 1, p) for i, (t, p) in enumerate(messages))


hello_frame = frame("hello", c.FRAME_HELLO, 0, hello)
up, down = packed(from_rank), packed(from_coordinator)
beat = up[1][1]
deep = b""
while len(deep) < 34000:
    size = len(deep)
    deep = b"\x52" + bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + deep
files = {
    "stream-rank": (TO_SERVER, conversation(hello_frame, "up", up)),
    "stream-coordinator": (TO_CLIENT, conversation(frame("challenge", c.FRAME_CHALLENGE, 0,
                                                         challenge), "down", down)),
    "stream-replay": (TO_SERVER, hello_frame + frame("up", c.FRAME_HEARTBEAT, 1, beat) * 2),
    "stream-hello-twice": (TO_SERVER, hello_frame * 2),
    "stream-old-key": (TO_SERVER, hello_frame + frame("hello", c.FRAME_HEARTBEAT, 1, beat)),
    "stream-4-gib": (TO_SERVER, hello_frame + frame("up", c.FRAME_HEARTBEAT, 1, b"", 2**32 - 1)),
    "stream-flags": (TO_SERVER, hello_frame + frame("up", c.FRAME_HEARTBEAT, 1, b"", flags=1)),
    "stream-torn": (TO_SERVER, conversation(hello_frame, "up", up)[:-7]),
    "stream-short-nonce": (TO_SERVER, frame("hello", c.FRAME_HELLO, 0,
                                            c.Hello(version=1, nonce=b"x").SerializeToString())),
    "stream-version-2": (TO_SERVER, frame("hello", c.FRAME_HELLO, 0, c.Hello(
        version=2, nonce=CLIENT).SerializeToString()) + hello_frame),
    "records-rank": (TO_SERVER + RECORDS, records(*up)),
    "records-observer": (TO_SERVER + 2 + RECORDS, records((c.FRAME_STATUS_REQUEST, b""))),
    "records-supervisor": (TO_SERVER + 4 + RECORDS, records(down[2], (c.FRAME_STATUS_REQUEST, b""))),
    "records-coordinator": (TO_CLIENT + RECORDS, records(*down)),
    "records-amplify": (TO_CLIENT + RECORDS, records((c.FRAME_STATUS, b"\x5a\x00" * 2000))),
    "records-amplify-little": (TO_CLIENT + RECORDS, records((c.FRAME_STATUS, b"\x5a\x00" * 20))),
    "records-nested": (TO_CLIENT + RECORDS, records((c.FRAME_STATUS, deep))),
    "records-unknown-fields": (TO_SERVER + RECORDS, records((c.FRAME_HEARTBEAT, b"\x78\x01" * 900))),
    "records-not-utf8": (TO_CLIENT + RECORDS, records((c.FRAME_REFUSED, b"\x0a\x02a\xff"))),
    "records-nul": (TO_CLIENT + RECORDS, records((c.FRAME_REFUSED, b"\x0a\x03a\x00b"))),
    "records-enum": (TO_SERVER + RECORDS, records((c.FRAME_HEARTBEAT, b"\x10\x63"))),
    "records-group": (TO_SERVER + RECORDS, records((c.FRAME_HEARTBEAT, b"\x0b\x0c"))),
    "records-long-varint": (TO_SERVER + RECORDS, records((c.FRAME_BYE, b"\x08" + b"\xff" * 10))),
}
target = HERE / "corpus" / "session"
target.mkdir(parents=True, exist_ok=True)
for name, (way, body) in files.items():
    (target / name).write_bytes(bytes([way]) + body)
print(len(files), "files")

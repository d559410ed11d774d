"""A process that speaks the executor's protocol and then misbehaves as it is told.

`MISBEHAVING_START` says how it starts, a job's id what it does with the job. It needs no torch. What it does is real: it really
crashes, hangs, floods its stderr and leaves children behind. Compiling is not its business.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import time

OUT = os.fdopen(os.dup(1), "wb", buffering=0)
IN = os.fdopen(os.dup(0), "rb", buffering=0)
os.dup2(2, 1)


def read_exactly(n):
    data = b""
    while len(data) < n:
        part = IN.read(n - len(data))
        if not part:
            sys.exit(0)
        data += part
    return data


def receive():
    n_json, n_blob = struct.unpack(">IQ", read_exactly(12))
    message = json.loads(read_exactly(n_json))
    read_exactly(n_blob)
    ((name, fields),) = message.items()
    return name, fields


def send(name, fields, blob=b""):
    text = json.dumps({name: fields}).encode()
    OUT.write(struct.pack(">IQ", len(text), len(blob)) + text)
    OUT.write(blob)


def ready(**other):
    toolchain = {
        "fingerprint": "f" * 64,
        "python_version": "3",
        "torch_version": "0",
        "torch_git_version": "",
        "triton_version": "",
        "cuda_version": "",
        "executable": sys.executable,
    }
    fields = {
        "protocol": 4,
        "pid": os.getpid(),
        "toolchain": toolchain,
        "devices": [{"type": "cpu", "name": "misbehaving", "capability": ""}],
        "functions": ["_operator.add"],
        "methods": ["view"],
        "attributes": ["shape"],
        "options": [{"name": "max_autotune", "reserved": False}],
        "import_s": 0.0,
    }
    send("ready", fields | other)


def done(job, blob=b"artifact", segments=None):
    fields = {
        "job": job["job"],
        "segments": segments or [{"range": job["range"], "entry": "e0"}],
        "timings": {"total_s": 1.0, "cpu_s": 2.0, "phases": [{"phase": "compile", "seconds": 1.0}]},
        "returns_tuple": True,
        "n_arguments": 3,
    }
    send("done", fields, blob)


def leave_children():
    """A child, and a child of a child that nobody waits for, all sleeping in this group."""
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    subprocess.Popen(sleep)
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    os.waitpid(child, 0)


def lease(job, mode):
    send("lease", {"job": job["job"], "mode": mode})
    name, fields = receive()
    assert (name, fields) == ("leased", {"job": job["job"]}), (name, fields)


def forever():
    while True:
        time.sleep(600)


def act(job):
    what = job["job"].split(":")[0]
    send("phase", {"job": job["job"], "phase": "rebuild"})
    if what == "ok":
        send("phase", {"job": job["job"], "phase": "compile"})
        done(job, segments=[{"range": [1, 1], "entry": "one"}, {"range": [2, 16], "entry": "rest"}])
    elif what == "echo":
        done(job, json.dumps(job).encode())
    elif what == "surroundings":
        found = {"environment": dict(os.environ), "cwd": os.getcwd(), "nice": os.nice(0), "pgid": os.getpgid(0)}
        found["oom_score_adj"] = open("/proc/self/oom_score_adj").read().strip()
        done(job, json.dumps(found).encode())
    elif what == "large":
        done(job, bytes(range(256)) * 40_000)
    elif what == "failed":
        send("failed", {"job": job["job"], "reason": "COMPILE_ERROR", "message": "no such thing " * 10_000})
    elif what == "flood":
        for i in range(3000):
            os.write(2, b"noise %d\n" % i)
        os.write(2, b"x" * 3_000_000)
        done(job)
    elif what == "say":
        os.write(2, b"hello from the compiler\n")
        done(job)
    elif what == "exit":
        os.write(2, b"first\nRuntimeError: last words")
        sys.exit(3)
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "orphans":
        leave_children()
        os.write(2, b"children are there\n")
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "hang":
        leave_children()
        os.write(2, b"hanging\n")
        send("phase", {"job": job["job"], "phase": "compile"})
        forever()
    elif what == "half":
        OUT.write(struct.pack(">IQ", 2, 1000) + b"{}" + b"some of it")
        forever()
    elif what == "mute":
        OUT.close()
        forever()
    elif what == "truncated":
        OUT.write(struct.pack(">IQ", 2000, 0) + b"{")
        sys.exit(0)
    elif what == "garbage":
        OUT.write(b"Traceback (most recent call last):\n")
        forever()
    elif what == "nonsense":
        send("nonsense", {})
        forever()
    elif what == "huge":
        OUT.write(struct.pack(">IQ", 2, 1 << 40) + b"{}")
        forever()
    elif what == "stranger":
        done(job | {"job": "another"})
        forever()
    elif what == "outside":
        done(job, segments=[{"range": [1, 17], "entry": "e0"}])
        forever()
    elif what == "leases":
        for mode in ("shared", "exclusive"):
            lease(job, mode)
            os.write(2, b"holding a lease\n")
            send("release", {"job": job["job"]})
        lease(job, "exclusive")
        done(job)
    elif what == "leased and dead":
        lease(job, "exclusive")
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "never leased":
        lease(job, "exclusive")
        done(job)
    elif what == "leased twice":
        lease(job, "shared")
        lease(job, "exclusive")
    elif what == "released":
        send("release", {"job": job["job"]})
        forever()
    elif what == "device fault":
        send("failed", {"job": job["job"], "reason": "DEVICE_FAULT", "message": "an illegal memory access"})
        forever()
    elif what == "no allocation":
        send("failed", {"job": job["job"], "reason": "OUT_OF_MEMORY", "message": "tried to allocate 80 GiB"})
        forever()
    elif what == "grow":
        hold = "import time; held = bytearray(b'x' * (480 << 20)); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", hold])
        forever()
    elif what == "peak":
        held = bytearray(b"x" * (160 << 20))
        time.sleep(1)
        del held
        done(job)
    elif what == "unverified":
        done(job)
        forever()
    elif what == "empty":
        done(job, b"")
        forever()
    else:
        raise ValueError(what)


def main():
    start = os.environ.get("MISBEHAVING_START", "ready")
    if start == "exit":
        print("ModuleNotFoundError: No module named 'torch'")
        sys.exit(1)
    name, _ = receive()
    assert name == "hello", name
    if start == "unusable":
        send("unusable", {"reason": "torch is too old here."})
        forever()
    elif start == "hang":
        print("importing for ever")
        leave_children()
        forever()
    elif start == "version":
        ready(protocol=1)
    elif start == "garbage":
        OUT.write(b"Python 2.7 says hello")
        forever()
    else:
        ready()
    while True:
        name, job = receive()
        assert name == "compile", name
        act(job)


main()

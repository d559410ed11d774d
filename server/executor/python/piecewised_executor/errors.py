"""Why a job failed, as the daemon hears it: a reason and a message with a bounded length."""

from __future__ import annotations

import errno
import re
import signal

MAX_MESSAGE_BYTES = 16 * 1024


class JobError(Exception):
    """A job ends with `failed`; `reason` is one of the protocol's."""

    reason = "COMPILE_ERROR"


class CompileError(JobError):
    """The graph does not compile, here and elsewhere."""


class OperatorRefused(CompileError):
    """One of the graph's own operators does not take inputs of these sizes, compiled or not."""


class Unsupported(JobError):
    """The request holds something that this executor does not do."""

    reason = "UNSUPPORTED"


class FrontendUnknown(Unsupported):
    """The toolchain does not have the job's frontend."""

    reason = "FRONTEND_UNKNOWN"


class FrontendMismatch(Unsupported):
    """The frontend, or what it depends on, is another one here than in the worker, or cannot use what that one sent."""

    reason = "FRONTEND_MISMATCH"


class UnprovenRange(JobError):
    """Code came out, but not proven on the whole range."""

    reason = "UNPROVEN_RANGE"


class VerificationFailed(JobError):
    """Code came out, but it does not load as a worker loads it, or gives other values than eager."""

    reason = "VERIFICATION_FAILED"


class OutOfMemory(JobError):
    """An allocation failed, on the machine or on the GPU: nothing to hold against the graph, and this process has grown."""

    reason = "OUT_OF_MEMORY"


class Interrupted(JobError):
    """Something from outside ended it: a compiler was killed, the disk is full. Nothing to hold against the graph."""

    reason = "INTERRUPTED"


#: What says nothing about the graph: the job is tried again, on an executor that has not grown.
Outside = (OutOfMemory, Interrupted)

_OUT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EROFS)

#: How a killed compiler shows in what its driver prints: g++ says the first, a shell the second. Not SIGSEGV, which is the compiler's own
#: answer to the source.
_KILLED = re.compile(
    r"Killed signal terminated program|terminated with signal (9|15)\b|died with <Signals\.SIG(KILL|TERM)|No space left on device"
)


def from_outside(error: BaseException) -> OutOfMemory | Interrupted | None:
    """What lies outside the graph where that is what an error comes down to: compilers wrap what they stumble over. None: it is not."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        text = str(cause)
        # torch.OutOfMemoryError by its name, since this module is imported before torch; the CPU's allocator has no type of its own.
        is_short = isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError"
        is_short |= isinstance(cause, OSError) and cause.errno == errno.ENOMEM
        if is_short or "DefaultCPUAllocator: can't allocate memory" in text:
            return OutOfMemory(describe(cause))
        if (isinstance(cause, OSError) and cause.errno in _OUT_OF_ROOM) or _KILLED.search(text):
            return Interrupted(describe(cause))
        cause = cause.__cause__ or cause.__context__
    return None


def ending(code: int) -> str:
    """How a process ended, by its return code as `subprocess` has it."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def is_from_outside(code: int) -> bool:
    """Whether somebody ended a process, or the system for want of memory: code does not do that to itself."""
    return code in (-signal.SIGKILL, -signal.SIGTERM)


def shorten(message: str, limit: int = MAX_MESSAGE_BYTES) -> str:
    """At most `limit` bytes of UTF-8: head and tail are kept, since compilers say what failed first and why last."""
    data = message.encode("utf-8", "replace")
    if len(data) <= limit:
        return message
    mark = f"\n... {len(data) - limit} bytes and more left out ...\n".encode()
    half = (limit - len(mark)) // 2
    return (data[:half] + mark + data[-half:]).decode("utf-8", "ignore")


def describe(error: BaseException) -> str:
    """Type and message of an error that a compiler raised, with the innermost cause."""
    text = f"{type(error).__name__}: {error}"
    cause = error.__cause__
    while cause is not None and cause.__cause__ is not None:
        cause = cause.__cause__
    if cause is not None and str(cause) not in text:
        text += f"\ncaused by {type(cause).__name__}: {cause}"
    return text

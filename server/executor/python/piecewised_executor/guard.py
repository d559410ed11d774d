"""What ends an executor's whole process group when the daemon is gone, whatever the executor itself is doing.

The executor watches its stdin in a thread, which cannot run while native code holds the interpreter's lock. The process that trials are
forked from has nothing to do most of the time and runs no compiler, so it watches the same pipe: its other end is the daemon's
only, and hangs up when the daemon ends, in whatever way.
"""

from __future__ import annotations

import os
import select
import signal


class Guard:
    """Waits for other things, and meanwhile for the daemon's end of `pipe` to hang up; `leader` is the executor."""

    def __init__(self, pipe: int, leader: int) -> None:
        self._pipe = pipe
        self._leader = leader

    @property
    def fd(self) -> int:
        """The pipe that is watched."""
        return self._pipe

    def wait_for(self, fd: int) -> None:
        """Returns when there is something to read at `fd`, or its other end is gone."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        # Not for what can be read there, which is the executor's: for the hang-up, which is always told.
        poll.register(self._pipe, 0)
        while True:
            events = dict(poll.poll())
            if events.get(self._pipe, 0) & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                self._end_group()
            if fd in events:
                return

    def wait_for_end_of(self, child: int) -> int:
        """Waits for a child of this process and gives its wait status."""
        process = os.pidfd_open(child)
        try:
            self.wait_for(process)
        finally:
            os.close(process)
        return os.waitpid(child, 0)[1]

    def _end_group(self) -> None:
        # Only where the group is the executor's own: started by hand it may be a shell's.
        if os.getpgrp() == self._leader:
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

"""What can go wrong, as exceptions.

Each has a stable ``reason`` in UPPER_SNAKE_CASE (the daemon's own, where it gave one) and ``metadata`` that belongs to
it, such as the node's name; messages are for people and may change. The native module raises these classes too.

Two kinds: what the caller wrote is wrong (:class:`PlanError`, :class:`OptionError`, :class:`ProgramError`,
:class:`EndpointError`, :class:`NotCovered`), which is always raised; and everything else, after which the backend compiles locally unless it
was told ``on_error="raise"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PiecewisedError(Exception):
    """The base of all."""

    #: Stable, in UPPER_SNAKE_CASE; "" where there is none.
    reason: str
    #: What belongs to the reason.
    metadata: dict[str, str]

    def __init__(self, message: str, *, reason: str = "", metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata = dict(metadata or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), str(self), self.reason, self.metadata))


def _rebuild(cls: type[PiecewisedError], message: str, reason: str, metadata: dict[str, str]) -> PiecewisedError:
    return cls(message, reason=reason, metadata=metadata)


class PlanError(PiecewisedError, ValueError):
    """The ranges and sizes break a rule."""


class OptionError(PiecewisedError, ValueError):
    """An option that doesn't exist, that is the operator's, or whose value is not possible."""


class ProgramError(PiecewisedError, ValueError):
    """A program's name, or a piece's place in it, that is not possible."""


class EndpointError(PiecewisedError, ValueError):
    """Text that is not a daemon's address."""


class NotCovered(PiecewisedError, LookupError):
    """A call that nothing was compiled for: its size is outside (``SIZE_NOT_COVERED``), or the guards of what has the size
    don't hold (``GUARD_FAILED``)."""


class Unreachable(PiecewisedError):
    """No daemon answers."""


class ConnectionBroken(PiecewisedError):
    """The connection ended in the middle."""


class BudgetSpent(PiecewisedError):
    """The daemon did not finish in the time that the caller gave."""


class Refused(PiecewisedError):
    """The daemon answered with an error."""


class CompileFailed(PiecewisedError):
    """The daemon could not compile a range."""


class UnsupportedPiece(PiecewisedError):
    """The piece can't be sent: it trains, or it holds something that the protocol has no form for."""


class FormatError(PiecewisedError):
    """A graph, handle or toolchain is not in the project's form."""


class ArtifactError(PiecewisedError):
    """An artifact arrived damaged, isn't what its handle says, or can't be loaded."""


class Untrusted(PiecewisedError):
    """What a daemon sent, or what was kept of it, is not signed by a daemon that this process trusts. Nothing of it was loaded."""


class CacheError(PiecewisedError):
    """The cache folder can't be used."""


class PiecewisedWarning(UserWarning):
    """Something was done another way than asked for, and still is right."""


#: What the caller has to put right: no other way of compiling does.
MISTAKES = (PlanError, OptionError, ProgramError, EndpointError, NotCovered)

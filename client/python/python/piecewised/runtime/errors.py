"""Why an artifact is not loaded."""

from __future__ import annotations


class LoadError(RuntimeError):
    """The artifact can't be loaded in this process; the message says why."""


class MissingKernel(LoadError):
    """An artifact asks for a kernel that it does not hold."""

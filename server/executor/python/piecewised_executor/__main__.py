"""Starts an executor in an interpreter of its own: takes the pipes, imports torch, serves."""

from __future__ import annotations

import os

from .protocol import Channel
from .serve import Inbox, serve, set_standard_streams, wrong_version


def main() -> None:
    """Serves until stdin ends."""
    reader, writer = os.dup(0), os.dup(1)
    set_standard_streams()
    channel = Channel(os.fdopen(reader, "rb"), os.fdopen(writer, "wb"))
    inbox = Inbox(channel)
    inbox.start()
    name, fields, _ = inbox.next()
    if problem := wrong_version(name, fields):
        channel.send("unusable", {"reason": problem})
        return

    from .probe import Unusable, import_torch

    try:
        import_s = import_torch()
    except Unusable as error:
        channel.send("unusable", {"reason": str(error)})
        return
    if (frontend := fields.get("frontend")) is not None:
        from . import frontends

        frontends.preload(frontend)
    serve(channel, inbox, reader, import_s, is_known=bool(fields.get("is_known")))


main()

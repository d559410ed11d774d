"""Frames between the daemon and this process: docs/executor-protocol.md.

A frame is `u32 json_len, u64 blob_len`, big endian, the JSON text, the blob. Writing is safe from several threads.
"""

from __future__ import annotations

import json
import struct
import threading
from typing import Any, BinaryIO

PROTOCOL = 4
# A graph of the largest size that the daemon accepts is far below it; what is above is not a frame.
MAX_JSON_BYTES = 1 << 30

_HEADER = struct.Struct(">IQ")


class ProtocolError(Exception):
    """What came in is not a frame of this protocol."""


class Channel:
    """One direction of reading and one of writing."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO) -> None:
        #: What is read from.
        self.reader = reader
        self._writer = writer
        self._lock = threading.Lock()

    def receive(self) -> tuple[str, dict[str, Any], bytes] | None:
        """The next frame as (message name, fields, blob); None at the end of the stream. Blocks."""
        header = self.reader.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return None
        json_len, blob_len = _HEADER.unpack(header)
        if json_len > MAX_JSON_BYTES or blob_len > MAX_JSON_BYTES:
            raise ProtocolError(f"a frame of {json_len} + {blob_len} bytes")
        text = self.reader.read(json_len)
        blob = self.reader.read(blob_len)
        if len(text) < json_len or len(blob) < blob_len:
            return None
        try:
            ((name, fields),) = json.loads(text).items()
        except (ValueError, AttributeError) as error:
            raise ProtocolError(f"not an object with one key: {error}") from error
        return name, fields, blob

    def send(self, name: str, fields: dict[str, Any], blob: bytes = b"") -> None:
        """Writes one frame."""
        text = json.dumps({name: fields}).encode()
        with self._lock:
            self._writer.write(_HEADER.pack(len(text), len(blob)) + text)
            self._writer.write(blob)
            self._writer.flush()

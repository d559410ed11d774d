"""The trace that a request belongs to, where the process uses OpenTelemetry: sent along, so that the daemon's spans are part of it.

OpenTelemetry is no dependency, and is not imported for this: a process that has a span has imported it.
"""

from __future__ import annotations

import logging
import sys

log = logging.getLogger(__name__)


def current() -> tuple[str | None, str | None]:
    """``traceparent`` and ``tracestate`` of the active span, as W3C Trace Context has them; None where there is none."""
    if "opentelemetry.trace" not in sys.modules:
        return None, None
    headers: dict[str, str] = {}
    try:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
    except Exception as error:  # Whatever another one's tracing does, a piece is compiled all the same.
        log.debug("the active span can't be told: %s", error)
    return headers.get("traceparent"), headers.get("tracestate")

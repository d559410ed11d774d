"""Plans: ranges and single sizes as a caller may write them, checked, and the names of their entries.

An entry ``(start, end)`` is written ``"[start, end]"``, both inclusive, a single size ``"[n, n]"``: so in messages, and as
the keys of ``to_bytes``. :func:`parse_name` takes exactly what :func:`entry_name` gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import _core
from .errors import FormatError, PlanError

Entry = tuple[int, int]

#: The one entry of a piece without a symbolic input, where nobody wrote another: its bounds don't count.
ANY_SIZE: Entry = (1, 2**63 - 1)

#: The options that make a plan.
PLAN_OPTIONS = (
    "compile_ranges",
    "compile_range_endpoints",
    "compile_sizes",
    "is_encoder",
    "max_num_batched_tokens",
)

_NAME = re.compile(r"\[([1-9][0-9]{0,18}), ([1-9][0-9]{0,18})\]")


@dataclass(frozen=True)
class Plan:
    """What a piece is compiled for; the entries are ranges ascending, then single sizes ascending."""

    ranges: list[Entry]
    sizes: list[int]

    @property
    def entries(self) -> list[Entry]:
        """Every entry, in the order in which events name them by position."""
        return _core.plan_entries(self.ranges, self.sizes)

    @classmethod
    def of_entries(cls, entries: Sequence[Entry]) -> Plan:
        """The plan that has these entries, each once, in any order: single sizes may lie in the others, which may not overlap."""
        pairs = _ranges("a plan", entries)
        plan = cls([pair for pair in pairs if pair[0] != pair[1]], [pair[0] for pair in pairs if pair[0] == pair[1]])
        _core.DispatchTable(pairs)
        plan.entries  # noqa: B018  # checks the whole
        return plan


def parse_plan(given: Mapping[str, Any]) -> Plan:
    """The plan of :data:`PLAN_OPTIONS`. A value of None is the same as none. Raises PlanError."""
    explicit, endpoints = given.get("compile_ranges"), given.get("compile_range_endpoints")
    if explicit is not None and endpoints is not None:
        raise PlanError(
            "give compile_ranges or compile_range_endpoints, not both: the second is another way to write the first",
            reason="BAD_RANGE",
        )
    if endpoints is not None:
        # An encoder's endpoints have to end at the limit by themselves: a plan that was made for another is a mistake.
        limit = None if _is_encoder(given) else _batch_limit(given)
        ranges = _core.ranges_from_endpoints(_integers("compile_range_endpoints", endpoints, "BAD_ENDPOINT"), limit)
    else:
        ranges = _ranges("compile_ranges", explicit)
    if _is_encoder(given):
        ranges = _core.extend_for_encoder(ranges, _batch_limit(given))
    sizes = _integers("compile_sizes", given.get("compile_sizes"), "BAD_SIZE")
    if not ranges and not sizes:
        raise PlanError(
            "the plan is empty: say which sizes the model will see, "
            'as in options={"compile_ranges": [[1, 16], [17, 512]], "compile_sizes": [1, 4]}',
            reason="EMPTY_PLAN",
        )
    plan = Plan(ranges, sizes)
    plan.entries  # noqa: B018  # checks the whole
    return plan


def entry_name(entry: Entry) -> str:
    """``"[start, end]"``."""
    return f"[{entry[0]}, {entry[1]}]"


def parse_name(name: Any) -> Entry:
    """The entry of that name; raises FormatError for anything that entry_name doesn't give."""
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is not None:
        start, end = int(match[1]), int(match[2])
        if start <= end < 2**63:
            return start, end
    raise FormatError(
        f"{name!r} is not the name of a range, which is '[start, end]' with 1 <= start <= end, as to_bytes writes it",
        reason="BAD_RANGE_NAME",
    )


def _is_encoder(given: Mapping[str, Any]) -> bool:
    value = given.get("is_encoder")
    if value is not None and not isinstance(value, bool):
        raise PlanError(f"is_encoder is True or False, not {value!r}", reason="BAD_ENCODER_PLAN")
    return bool(value)


def _batch_limit(given: Mapping[str, Any]) -> int | None:
    value = given.get("max_num_batched_tokens")
    if value is not None and (not _is_int(value) or not -(2**63) <= value < 2**63):
        raise PlanError(f"max_num_batched_tokens is a 64-bit integer, not {value!r}", reason="BAD_ENCODER_PLAN")
    return value


def _ranges(what: str, given: Any) -> list[Entry]:
    if given is None:
        return []
    ranges = []
    for item in _items(what, given, "BAD_RANGE"):
        pair = _integers(f"a range of {what}", item, "BAD_RANGE") if not _is_int(item) else []
        if len(pair) != 2:
            raise PlanError(f"{what} holds pairs [start, end], both inclusive; {item!r} is none", reason="BAD_RANGE")
        ranges.append((pair[0], pair[1]))
    return ranges


def _integers(what: str, given: Any, reason: str) -> list[int]:
    if given is None:
        return []
    items = list(_items(what, given, reason))
    for item in items:
        if isinstance(item, str):
            _refuse_text(what, item, reason)
        if not _is_int(item):
            raise PlanError(f"{what} takes integers; {item!r} is a {type(item).__name__}", reason=reason)
        if not -(2**63) <= item < 2**63:
            raise PlanError(f"{what}: {item} does not fit 64 bits", reason=reason)
    return items


def _items(what: str, given: Any, reason: str) -> Iterable[Any]:
    if isinstance(given, str):
        _refuse_text(what, given, reason)
    if not isinstance(given, Sequence | set | frozenset | range):
        raise PlanError(f"{what} takes a list; {given!r} is a {type(given).__name__}", reason=reason)
    return given


def _refuse_text(what: str, text: str, reason: str) -> None:
    if text == "cudagraph_capture_sizes":
        raise PlanError(
            f"{what}: 'cudagraph_capture_sizes' stands for a list that only the caller knows; "
            "expand it first: put the sizes themselves there",
            reason=reason,
        )
    raise PlanError(f"{what} takes integers; {text!r} is a string", reason=reason)


def _is_int(value: Any) -> bool:
    # True is an int for Python, and a mistake in a plan.
    return isinstance(value, int) and not isinstance(value, bool)

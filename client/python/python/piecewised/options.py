"""The backend's options: what the user may write, checked before anything is sent.

The names of piecewised's own options are taken out; every other name is one of ``torch._inductor.config`` and goes to
the daemon, which knows whether it exists.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import _core
from .errors import OptionError, PlanError

_OWN = (
    "compile_ranges",
    "compile_range_endpoints",
    "compile_sizes",
    "endpoint",
    "on_error",
    "progress",
    "budget_s",
    "cache_dir",
)


@dataclass(frozen=True)
class BackendOptions:
    """The options of one ``torch.compile`` call, checked."""

    #: The plan: ranges and single sizes; not both empty.
    ranges: list[tuple[int, int]]
    sizes: list[int]
    #: The daemon's address; None: ``PIECEWISED_ENDPOINT``, else the default socket.
    endpoint: str | None = None
    #: What follows when the daemon can't help: "local" or "raise".
    on_error: str = "local"
    #: Whether to show how far the compiles are; None: if stderr is a terminal.
    progress: bool | None = None
    #: How long the daemon may take for one piece, in seconds; None: as long as it takes.
    budget_s: float | None = None
    #: Where artifacts are kept; None: ``PIECEWISED_CACHE_DIR``, else the user's cache folder.
    cache_dir: str | None = None
    #: Inductor's configuration, as Python values.
    inductor: dict[str, Any] = field(default_factory=dict)

    def inductor_values(self) -> dict[str, Any]:
        """Inductor's configuration in the project's JSON form."""
        return {name: _option_value(name, value) for name, value in sorted(self.inductor.items())}


def parse(options: Mapping[str, Any] | None, inductor: Mapping[str, Any] | None = None) -> BackendOptions:
    """Checks the options of ``torch.compile``. ``inductor`` is what its ``mode`` stands for; options beat it.

    Raises PlanError and OptionError.
    """
    given = dict(options or {})
    for name in given:
        if not isinstance(name, str):
            raise _bad_option(f"the name of an option is a string, not {name!r}", str(name))
    ranges, sizes = _plan(given)
    parsed = BackendOptions(
        ranges=ranges,
        sizes=sizes,
        endpoint=_text(given, "endpoint"),
        on_error=_choice(given, "on_error", ("local", "raise"), "local"),
        progress=_progress(given),
        budget_s=_seconds(given, "budget_s"),
        cache_dir=_text(given, "cache_dir"),
        inductor={**(inductor or {}), **{name: value for name, value in given.items() if name not in _OWN}},
    )
    for name in parsed.inductor:
        _refuse_typing_errors(name)
    parsed.inductor_values()
    return parsed


def _plan(given: Mapping[str, Any]) -> tuple[list[tuple[int, int]], list[int]]:
    explicit, endpoints = given.get("compile_ranges"), given.get("compile_range_endpoints")
    if explicit is not None and endpoints is not None:
        raise PlanError(
            "give compile_ranges or compile_range_endpoints, not both: the second is another way to write the first",
            reason="BAD_RANGE",
        )
    if endpoints is not None:
        ranges = _core.ranges_from_endpoints(_integers("compile_range_endpoints", endpoints, "BAD_ENDPOINT"))
    else:
        ranges = _ranges(explicit)
    sizes = _integers("compile_sizes", given.get("compile_sizes"), "BAD_SIZE")
    if not ranges and not sizes:
        raise PlanError(
            "the plan is empty: say which sizes the model will see, "
            'as in options={"compile_ranges": [[1, 16], [17, 512]], "compile_sizes": [1, 4]}',
            reason="EMPTY_PLAN",
        )
    _core.plan_entries(ranges, sizes)
    return ranges, sizes


def _ranges(given: Any) -> list[tuple[int, int]]:
    if given is None:
        return []
    ranges = []
    for item in _items("compile_ranges", given, "BAD_RANGE"):
        pair = _integers("a range of compile_ranges", item, "BAD_RANGE") if not _is_int(item) else []
        if len(pair) != 2:
            raise PlanError(
                f"compile_ranges holds pairs [start, end], both inclusive; {item!r} is none", reason="BAD_RANGE"
            )
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
            "put the sizes themselves there",
            reason=reason,
        )
    raise PlanError(f"{what} takes integers; {text!r} is a string", reason=reason)


def _is_int(value: Any) -> bool:
    # True is an int for Python, and a mistake in a plan.
    return isinstance(value, int) and not isinstance(value, bool)


def _text(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise _bad_option(f"option {name!r} takes a string, not {value!r}", name)
    return value


def _choice(given: Mapping[str, Any], name: str, choices: tuple[str, ...], default: str) -> str:
    value: str = given.get(name, default)
    if value not in choices:
        raise _bad_option(f"option {name!r} is one of {', '.join(map(repr, choices))}, not {value!r}", name)
    return value


def _progress(given: Mapping[str, Any]) -> bool | None:
    value = given.get("progress", "auto")
    if value == "auto" and isinstance(value, str):
        return None
    if not isinstance(value, bool):
        raise _bad_option(f"option 'progress' is 'auto', True or False, not {value!r}", "progress")
    return value


def _seconds(given: Mapping[str, Any], name: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise _bad_option(f"option {name!r} takes a number of seconds above 0, not {value!r}", name)
    return float(value)


def _option_value(name: str, value: Any) -> Any:
    """A value of Inductor's configuration in the project's JSON form."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return {"bool": value}
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return {"int": value}
    if isinstance(value, float):
        return {"float": repr(value)}
    if isinstance(value, str):
        return {"str": value}
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return {"strs": list(value)}
    raise _bad_option(
        f"option {name!r} can't be sent to the daemon: its value is None, a bool, a 64-bit int, a float, a string or a "
        f"list of strings, not {value!r}",
        name,
    )


def _refuse_typing_errors(name: str) -> None:
    """An unknown name may be Inductor's, which the daemon knows; one that is nearly ours is not."""
    close = difflib.get_close_matches(name, _OWN, n=1, cutoff=0.8)
    if close:
        raise OptionError(
            f"there is no option {name!r}; did you mean {close[0]!r}?",
            reason="UNKNOWN_OPTION",
            metadata={"option": name},
        )


def _bad_option(message: str, name: str) -> OptionError:
    return OptionError(message, reason="BAD_OPTION", metadata={"option": name})

"""The backend's options: what the user may write, checked before anything is sent.

The names of piecewised's own options are taken out; every other name is one of ``torch._inductor.config`` and goes to
the daemon, which knows whether it exists.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .choices import CHOICE_OPTIONS, Choices, bad_option, check_choice, parse_choices
from .errors import OptionError
from .plan import PLAN_OPTIONS, Entry, parse_plan

_OWN = (
    *PLAN_OPTIONS,
    *CHOICE_OPTIONS,
    "splitting_ops",
    "program",
    "compile_mode",
    "on_complete",
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
    ranges: list[Entry]
    sizes: list[int]
    #: How these are compiled, and what of it is taken.
    choices: Choices = field(default_factory=Choices)
    #: The operators that the graph is split at, by name, and which run as they are.
    splitting_ops: list[str] = field(default_factory=list)
    #: The name that the manifest is kept under; None: one that is made from what is compiled.
    program: str | None = None
    #: When ranges compile, where the graph is split: "upfront" or "lazy".
    compile_mode: str = "upfront"
    #: Called once with the ProgramSummary when the program's manifest is committed.
    on_complete: Callable[[Any], object] | None = None
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
        return inductor_values(self.inductor)


def parse(options: Mapping[str, Any] | None, inductor: Mapping[str, Any] | None = None) -> BackendOptions:
    """Checks the options of ``torch.compile``. ``inductor`` is what its ``mode`` stands for; options beat it.

    Raises PlanError and OptionError.
    """
    given = dict(options or {})
    for name in given:
        if not isinstance(name, str):
            raise bad_option(f"the name of an option is a string, not {name!r}", str(name))
    plan = parse_plan(given)
    parsed = BackendOptions(
        ranges=plan.ranges,
        sizes=plan.sizes,
        choices=parse_choices(given, plan.entries),
        splitting_ops=_names(given, "splitting_ops"),
        program=_text(given, "program"),
        compile_mode=_choice(given, "compile_mode", ("upfront", "lazy"), "upfront"),
        on_complete=_callable(given, "on_complete"),
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


def _text(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise bad_option(f"option {name!r} takes a string, not {value!r}", name)
    return value


def _callable(given: Mapping[str, Any], name: str) -> Callable[[Any], object] | None:
    value = given.get(name)
    if value is not None and not callable(value):
        raise bad_option(f"option {name!r} takes a function, not {value!r}", name)
    return value


def _names(given: Mapping[str, Any], name: str) -> list[str]:
    value = given.get(name)
    if value is None:
        return []
    if isinstance(value, str) or not isinstance(value, Sequence | set | frozenset):
        raise bad_option(f"option {name!r} takes a list of operators' names, not {value!r}", name)
    return list(value)


def _choice(given: Mapping[str, Any], name: str, choices: tuple[str, ...], default: str) -> str:
    value: str = given.get(name, default)
    check_choice(name, value, choices)
    return value


def inductor_values(inductor: Mapping[str, Any]) -> dict[str, Any]:
    """Inductor's configuration in the project's JSON form. Raises OptionError."""
    return {name: _option_value(name, value) for name, value in sorted(inductor.items())}


def _progress(given: Mapping[str, Any]) -> bool | None:
    value = given.get("progress", "auto")
    if value == "auto" and isinstance(value, str):
        return None
    if not isinstance(value, bool):
        raise bad_option(f"option 'progress' is 'auto', True or False, not {value!r}", "progress")
    return value


def _seconds(given: Mapping[str, Any], name: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise bad_option(f"option {name!r} takes a number of seconds above 0, not {value!r}", name)
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
    raise bad_option(
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

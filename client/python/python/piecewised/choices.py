"""How the ranges of a plan are to be compiled, beside Inductor's own options, and what of it is taken: tuning, specialisation, hints, artifact
format, swap, guards, priority, warming up.

What each means is said once, in the README's table and in ``piecewised/v1/compile_service.proto``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import FormatError, OptionError
from .plan import Entry, entry_name, parse_name

TUNINGS = ("fast", "full", "tiered")
SPECIALISATIONS = ("range", "generic")
SWAPS = ("auto", "never")
GUARD_POLICIES = ("dispatch", "strict")
FORMATS = ("inductor", "aoti")
PRIORITIES = ("interactive", "prefetch", "background")

#: The options that make a Choices.
CHOICE_OPTIONS = (
    "tuning",
    "specialisation",
    "compile_hints",
    "artifact_format",
    "swap",
    "guards",
    "priority",
    "warm_up",
)


@dataclass(frozen=True)
class Choices:
    """What was chosen, checked."""

    #: "fast", "full", or "tiered": what there is now, and the tuned code when it is there.
    tuning: str = "fast"
    #: "range", or "generic": one compile for all ranges.
    specialisation: str = "range"
    #: The size that code generation thinks of, for the entries that have one given.
    hints: Mapping[Entry, int] = field(default_factory=dict)
    #: What is made: what Inductor makes for Python ("inductor"), or an AOTInductor package ("aoti").
    artifact_format: str = "inductor"
    #: With "tiered": whether the tuned code replaces the other in this process ("auto") or is left to the next one ("never").
    swap: str = "auto"
    #: What follows where compiled code is valid for some calls of a range only: each call decides ("dispatch"), or the range fails
    #: ("strict").
    guards: str = "dispatch"
    #: What goes before it: nothing ("interactive"), what somebody waits for ("prefetch"), everything ("background": no budget bounds it either).
    priority: str = "interactive"
    #: Whether what was loaded is called once before the worker does, with made-up arguments (:mod:`.warming`).
    warm_up: bool = False

    @property
    def is_tiered(self) -> bool:
        """Whether tuned code may come later."""
        return self.tuning == "tiered"

    @property
    def is_strict(self) -> bool:
        """Whether a range that is not proven as a whole fails."""
        return self.guards == "strict"

    @property
    def is_generic(self) -> bool:
        """Whether one compile is for all ranges, so that they have to be asked for together."""
        return self.specialisation == "generic"

    def in_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """CompileOptions in the project's JSON form, with what was chosen here. Tiered says so in the request, not in them."""
        tuning = "fast" if self.is_tiered else self.tuning
        return {**options, "specialisation": self.specialisation, "tuning": tuning}

    def hints_for(self, entries: Sequence[Entry]) -> list[int]:
        """The hints of a request for these entries; 0 leaves the choice to the daemon."""
        return [self.hints.get(entry, 0) for entry in entries] if self.hints else []

    def content(self) -> dict[str, Any]:
        """What of it makes other code, as JSON."""
        hints = sorted([*entry, hint] for entry, hint in self.hints.items())
        content = {"tuning": self.tuning, "specialisation": self.specialisation, "hints": hints}
        # Only where it is not the usual one: programs are named by this, and had their names before there was another.
        return content if self.artifact_format == FORMATS[0] else {**content, "artifact_format": self.artifact_format}


def parse_choices(given: Mapping[str, Any], entries: Sequence[Entry]) -> Choices:
    """The choices of :data:`CHOICE_OPTIONS` for a plan with these entries. A value of None is the same as none. Raises OptionError."""
    return Choices(
        tuning=_choice(given, "tuning", TUNINGS),
        specialisation=_choice(given, "specialisation", SPECIALISATIONS),
        hints=_hints(given.get("compile_hints"), entries),
        artifact_format=_choice(given, "artifact_format", FORMATS),
        swap=_choice(given, "swap", SWAPS),
        guards=_choice(given, "guards", GUARD_POLICIES),
        priority=_choice(given, "priority", PRIORITIES),
        warm_up=_flag(given, "warm_up"),
    )


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises OptionError unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise bad_option(f"option {name!r} is one of {', '.join(map(repr, choices))}, not {value!r}", name)


def bad_option(message: str, name: str) -> OptionError:
    """The error for an option that has a value it can't have."""
    return OptionError(message, reason="BAD_OPTION", metadata={"option": name})


def _choice(given: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = given.get(name)
    if value is None:
        return choices[0]
    check_choice(name, value, choices)
    return str(value)


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_option(f"option {name!r} is True or False, not {value!r}", name)
    return bool(value)


def _hints(given: Any, entries: Sequence[Entry]) -> dict[Entry, int]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise _bad_hints(f"it takes a dict from ranges to sizes, as in {{'[1, 16]': 4}}, not {given!r}")
    hints = {}
    for name, hint in given.items():
        entry = _entry(name)
        if entry not in entries:
            raise _bad_hints(f"{name!r} is none of the plan's entries, {', '.join(map(entry_name, entries))}")
        if isinstance(hint, bool) or not isinstance(hint, int) or not entry[0] <= hint <= entry[1]:
            raise _bad_hints(f"the hint for {entry_name(entry)} is one of its sizes, not {hint!r}")
        hints[entry] = hint
    return hints


def _entry(name: Any) -> Entry:
    if isinstance(name, str):
        try:
            return parse_name(name)
        except FormatError as error:
            raise _bad_hints(str(error)) from None
    if isinstance(name, tuple) and len(name) == 2:
        return name
    raise _bad_hints(f"{name!r} is no range, which is '[start, end]' or (start, end)")


def _bad_hints(problem: str) -> OptionError:
    return bad_option(f"option 'compile_hints': {problem}", "compile_hints")

"""What PiecewiseBackend's arguments come to: plan, entries, argument to dispatch on, program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .errors import OptionError, PlanError
from .loading import Compiled
from .plan import Entry, Plan, entry_name, parse_plan
from .program import Program, ProgramSummary


def plan_of(entries: Sequence[Entry] | None, options: dict[str, Any], *, is_required: bool) -> Plan | None:
    """The plan that the arguments make; None: they make none, and need not. Raises PlanError."""
    is_given = any(value for value in options.values())
    if entries is not None:
        if is_given:
            raise PlanError("give the plan itself or what makes one, not both", reason="BAD_RANGE")
        return Plan.of_entries(entries)
    return parse_plan(options) if is_given or is_required else None


def entries_of(plan: Plan, argument: int | None) -> list[Entry]:
    """The entries of a plan for a piece that is dispatched on ``argument``. Raises PlanError."""
    entries = plan.entries
    if argument is None and len(entries) != 1:
        raise PlanError(
            "the piece has no symbolic input, so that there is nothing to dispatch on, and its plan must come to exactly "
            f"one entry; it has {', '.join(map(entry_name, entries))}",
            reason="STATIC_GRAPH",
        )
    return entries


def precompiled_argument(values: Sequence[Any], sym_shape_indices: Sequence[int] | None) -> int | None:
    """What is dispatched on: what was compiled says so, else the caller has to. Raises OptionError."""
    found = next((value.handle["dispatch_argument"] for value in values if isinstance(value, Compiled)), -1)
    if sym_shape_indices is None:
        if found == -1:
            raise OptionError(
                "callables don't say what they are dispatched on: give sym_shape_indices ([]: nothing)",
                reason="BAD_OPTION",
                metadata={"option": "sym_shape_indices"},
            )
        return found
    given = sym_shape_indices[0] if len(sym_shape_indices) else None
    if found not in (-1, given):
        raise OptionError(
            f"sym_shape_indices[0] is {given}, but what was compiled is dispatched on {found}",
            reason="BAD_OPTION",
            metadata={"option": "sym_shape_indices"},
        )
    return given


def program_of(
    program: Program | str | None,
    n_pieces: int | None,
    run: str | None,
    on_complete: Callable[[ProgramSummary], object] | None,
    *,
    is_compiling: bool,
) -> Program | None:
    """The program that the arguments name. Raises OptionError and ProgramError."""
    if isinstance(program, str) and is_compiling:
        return Program(program, 1 if n_pieces is None else n_pieces, run=run, on_complete=on_complete)
    if run is not None or on_complete is not None or (program is not None and not is_compiling):
        raise OptionError(
            "run and on_complete belong to a program that is given by its name, and a program to a graph; a Program has "
            "its own",
            reason="BAD_OPTION",
            metadata={"option": "program"},
        )
    if program is None:
        return None
    assert isinstance(program, Program)
    if n_pieces not in (None, program.n_pieces):
        raise OptionError(
            f"n_pieces is {n_pieces}, but the program has {program.n_pieces}",
            reason="DIFFERENT_TOTALS",
            metadata={"option": "n_pieces"},
        )
    return program

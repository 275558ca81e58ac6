"""Where checks register themselves under the id of their statement."""

from __future__ import annotations

from collections.abc import Callable

from vmm.conformance.rig import Rigs

Check = Callable[[Rigs], None]

CHECKS: dict[str, Check] = {}


def check(statement: str) -> Callable[[Check], Check]:
    """Registers a function as the check of a statement.  ValueError when it has one."""

    def register(function: Check) -> Check:
        if statement in CHECKS:
            raise ValueError(f"{statement} has two checks")
        CHECKS[statement] = function
        return function

    return register


def how(function: Check) -> str:
    """What a check does, in one sentence."""
    return " ".join((function.__doc__ or "").split("\n\n")[0].split())

"""Trying statements over transports.

Owns what a verdict is.  A check that raises `Violation` (or the driver library's `DeviceViolation`) found the device
breaking the statement; any other exception is a failure too, since a device that conforms gives no cause for one.
Where it was not the driver's side that raised it, the code of the device has broken down: the result says so, since any
other statement would have found that as well.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from devices.errors import ConfigError
from vmm.conformance import checks
from vmm.conformance.catalogue import Statement, statements
from vmm.conformance.rig import DoesNotApply, NotBuilt, Rigs
from vmm.conformance.transports import TRANSPORTS, TransportRow
from vmm.models import did_you_mean

Verdict = Literal["passed", "failed", "cannot be tested", "does not apply"]

_DRIVERS_SIDE = ("vmm.testing.", "vmm.conformance.")
_MISTAKES = (AttributeError, NameError, TypeError, NotBuilt)  # in code, wherever they come up


@dataclass(frozen=True, slots=True)
class Result:
    """One statement over one transport: `detail` says what the device did wrong, why nobody could find out, or why
    there is nothing to find out.  `crashed`: the device did not answer wrongly, its code broke down."""

    statement: Statement
    transport: str
    verdict: Verdict
    detail: str
    how: str
    seconds: float
    crashed: bool = False


def select(ids: Iterable[str]) -> list[Statement]:
    """The statements with these ids, or whose part's letter is given; all if none is.  ConfigError for another word."""
    wanted = [word.upper() for word in ids]
    every = statements()
    known = {statement.id for statement in every} | {statement.id[0] for statement in every}
    for word in wanted:
        if word not in known:
            raise ConfigError(f"There is no statement {word!r}{did_you_mean(word, known)}")
    return [s for s in every if not wanted or s.id in wanted or s.id[0] in wanted]


def select_transports(names: Iterable[str]) -> list[TransportRow]:
    """The transports with these names; all if none is given.  ConfigError for another word."""
    wanted, known = list(names), [row.name for row in TRANSPORTS]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"There is no transport {name!r}, only {', '.join(known)}{did_you_mean(name, known)}")
    return [row for row in TRANSPORTS if not wanted or row.name in wanted]


def run(
    chosen: Iterable[Statement], rows: Iterable[TransportRow], progress: Callable[[Statement], None] = lambda _: None
) -> Iterator[Result]:
    """Each statement over each of the transports that it applies to."""
    rows = list(rows)
    for statement in chosen:
        progress(statement)
        for row in rows:
            if row in statement.transports():
                yield try_one(statement, row)


def try_one(statement: Statement, row: TransportRow) -> Result:
    """One statement over one transport."""
    if statement.untestable:
        return Result(statement, row.name, "cannot be tested", statement.untestable, "", 0.0)
    check = checks.CHECKS[statement.id]
    start = time.perf_counter()
    verdict: Verdict = "passed"
    detail, crashed, rigs = "", False, Rigs(row)
    try:
        check(rigs)
    except DoesNotApply as reason:
        verdict, detail = "does not apply", str(reason)
    except AssertionError as violation:
        verdict, detail = "failed", str(violation)
    except Exception as error:
        verdict, detail = "failed", f"{type(error).__name__}: {error}"
        crashed = isinstance(error, _MISTAKES) or not _is_of_the_drivers_side(error)
    finally:
        rigs.close()
    return Result(statement, row.name, verdict, detail, checks.how(check), time.perf_counter() - start, crashed)


def _is_of_the_drivers_side(error: Exception) -> bool:
    """Whether the driver library or a check raised it, and not what they had called."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals["__name__"]).startswith(_DRIVERS_SIDE)

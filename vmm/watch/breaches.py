"""What was found: each broken rule once, with when it was seen first and how often since; and what is waited for.

Owns the list and the times by which something must have happened.  Refuses to know what the rules mean.

A time that has passed counts from when it passed, not from when somebody looked: who looks how often changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from devices.state import COUNTER, TEXT, TIME_NS, Many, Pairs, Record, Stateful, Table
from vmm.watch.rules import RULES, Rule

PATIENCE_NS = 1_000_000_000
"""The specification says "after", never how soon.  A driver that takes a second of guest time has forgotten it."""


@dataclass(frozen=True, slots=True)
class Breach:
    """A broken rule.  `time_ns` and `detail` are of the first time, `count` says how often (or how many pages)."""

    id: str
    time_ns: int
    count: int
    detail: str

    def __post_init__(self) -> None:
        if self.id not in RULES:
            raise ValueError(f"there is no rule {self.id!r}")

    @property
    def rule(self) -> Rule:
        return RULES[self.id]

    @property
    def text(self) -> str:
        """One line for people."""
        rule = self.rule
        return f"the driver breaks {rule.id} (§{rule.section}, {rule.level}): {self.detail}. {rule.sentence}"

    def report(self) -> dict[str, str | int]:
        """As the report has it."""
        rule = self.rule
        return {
            "id": rule.id,
            "section": rule.section,
            "level": rule.level,
            "sentence": rule.sentence,
            "detail": self.detail,
            "time_ns": self.time_ns,
            "count": self.count,
        }


_BREACH = Record(Breach, id=TEXT, time_ns=TIME_NS, count=COUNTER, detail=TEXT)


class Breaches(Stateful):
    """The list, in the order in which they were found."""

    STATE: ClassVar[Table] = {
        "_found": Many(_BREACH, longest=len(RULES)),
        "_untold": Many(_BREACH, longest=len(RULES)),
        "_awaited": Pairs(TEXT, TIME_NS),
    }

    def __init__(self) -> None:
        self._found: list[Breach] = []
        self._untold: list[Breach] = []
        self._awaited: dict[str, int] = {}

    def __iter__(self) -> Iterator[Breach]:
        return iter(tuple(self._found))

    def add(self, rule_id: str, time_ns: int, detail: str, count: int = 1) -> None:
        """The rule was broken, `count` times."""
        for place, breach in enumerate(self._found):
            if breach.id == rule_id:
                self._found[place] = replace(breach, count=breach.count + count)
                return
        self._found.append(Breach(rule_id, time_ns, count, detail))
        self._untold.append(self._found[-1])

    def take_untold(self) -> list[Breach]:
        """What was found for the first time since the last call."""
        untold, self._untold = self._untold, []
        return untold

    # -- what is waited for --------------------------------------------------------------------------------------------

    def expect(self, rule_id: str, now_ns: int) -> None:
        """From now on the driver has its time for what `rule_id` asks."""
        self._awaited[rule_id] = now_ns + PATIENCE_NS

    def met(self, *rule_ids: str) -> None:
        """It was done, or is not asked any more."""
        for rule_id in rule_ids:
            self._awaited.pop(rule_id, None)

    def forget_expectations(self) -> None:
        self._awaited.clear()

    def take_overdue(self, now_ns: int) -> list[tuple[int, str]]:
        """(when its time was over, rule) for all that nothing came of, in that order; they are not awaited any more."""
        overdue = sorted((due_ns, rule_id) for rule_id, due_ns in self._awaited.items() if due_ns <= now_ns)
        self.met(*(rule_id for _, rule_id in overdue))
        return overdue

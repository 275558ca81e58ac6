"""The one table: rows with a value for each way of backing RAM, and what must be reached."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from bench.rig import BACKINGS


@dataclass
class Row:
    """One measurement, by backing; a value that does not depend on it stands under "".

    `bounds` are what must be reached, by backing too: at most that much if `at_most`, else at least."""

    name: str
    unit: str
    values: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    at_most: bool = False
    note: str = ""

    def reached(self) -> bool:
        """Whether every value keeps its bound."""
        pairs = [(self.values[backing], bound) for backing, bound in self.bounds.items() if backing in self.values]
        return all(value <= bound if self.at_most else value >= bound for value, bound in pairs)

    def cells(self) -> tuple[str, str, str, str, str]:
        """Name, value on a memory file, on anonymous RAM, what must be reached, and whether it is."""
        shared = self.values.get("")
        values = [_number(self.values.get(backing, shared)) for backing in BACKINGS]
        if shared is not None:
            values[1] = ""
        sign = "≤" if self.at_most else "≥"
        must = " / ".join(f"{sign} {bound:g}" for bound in dict.fromkeys(self.bounds.values()))
        verdict = self.note or ("" if not self.bounds else "reached" if self.reached() else "not reached")
        return f"{self.name}, {self.unit}", *values, must, verdict  # type: ignore[return-value]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def machine() -> str:
    """The processor's name, how many there are, and how much else they had to do in the last minute."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else "unknown processor"
    return f"{name}, {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}, this benchmark being 1 of it"


def render(rows: list[Row]) -> str:
    """The table as text that is Markdown as well."""
    header = ("measurement", "memfd", "anonymous", "must be", "")
    table = [header, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]

    def line(cells: tuple[str, ...]) -> str:
        padded = (
            cell.rjust(width) if column in (1, 2) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if i in (1, 2) else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, table[1:])])

"""The statements as `statements.toml` has them.

Owns the reading of the file and the rules that hold for it: ids are unique, every transport or group it names exists.
Refuses to know how a statement is tried.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from vmm.conformance.transports import TRANSPORTS, TransportRow

PARTS = {
    "G": "general facilities",
    "S": "split virtqueues",
    "P": "packed virtqueues",
    "C": "virtio over PCI",
    "M": "virtio over MMIO",
    "D": "the memory balloon",
    "L": "the balloon, legacy interface",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One obligation: `level` is the keyword, "text" where the specification says it without one, `section` of virtio
    1.3, `on` a group of transports.

    `untestable` is the reason why no driver could find out, or empty."""

    id: str
    section: str
    level: str
    on: str
    text: str
    untestable: str = ""

    @property
    def part(self) -> str:
        """What it is about."""
        return PARTS[self.id[0]]

    @property
    def sentence(self) -> str:
        """What the device must, must not, may, …"""
        return self.text if self.level == "text" else f"{self.level} {self.text}"

    def transports(self) -> list[TransportRow]:
        """The transports that it applies to, in the order of the table."""
        return [row for row in TRANSPORTS if self.on in row.groups]


@functools.cache
def statements() -> tuple[Statement, ...]:
    """The whole catalogue.  ValueError for one that is not in order."""
    file = resources.files("vmm.conformance") / "statements.toml"
    found = tuple(_statement(entry) for entry in tomllib.loads(file.read_text("utf-8"))["statement"])
    if len({statement.id for statement in found}) != len(found):
        raise ValueError("two statements have the same id")
    return found


def _statement(entry: dict[str, Any]) -> Statement:
    statement = Statement(**entry)
    if not statement.transports():
        raise ValueError(f"{statement.id}: there is no transport in {statement.on!r}")
    return statement

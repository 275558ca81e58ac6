"""The simplest interrupt controller: a bit for each line, a mask, and one line to the processor.

Registers of 32 bits, little-endian: Pending at 0 (read-only, the lines that are high) and Enabled at 4.  The processor
is asked for while a line is both.  Lines are levels, and nothing is latched: whoever drives a line takes it back.

It knows which names its lines have and nothing of who drives them.  Resettable; it keeps no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from devices.effects import NOTHING, Effects
from devices.registers import Register, RegisterMap
from devices.state import Stateful, Table, uint

BLOCK_BYTES = 8
MOST_LINES = 32


class LineController(Stateful):
    """Line n of `names` is bit n.  ValueError for more than 32, or two of one name."""

    REGISTERS: ClassVar[RegisterMap] = RegisterMap(
        "line controller",
        BLOCK_BYTES,
        (Register(0, 4, "pending", "ro"), Register(4, 4, "enabled", "rw")),
    )
    STATE: ClassVar[Table] = dict.fromkeys(("pending", "enabled"), uint(32))

    def __init__(self, names: Sequence[str]) -> None:
        if len(names) > MOST_LINES or len(set(names)) < len(names):
            raise ValueError(f"there must be at most {MOST_LINES} lines with names of their own, not {list(names)}")
        self._bits = {name: 1 << number for number, name in enumerate(names)}
        self.pending = self.enabled = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LineController) and vars(self) == vars(other)

    def set_line(self, name: str, level: bool) -> Effects:
        """A new level of the line `name`; KeyError when there is none."""
        bit = self._bits[name]
        self.pending = self.pending | bit if level else self.pending & ~bit
        return NOTHING

    def is_pending(self) -> bool:
        """Whether the processor is asked for."""
        return bool(self.pending & self.enabled)

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return self.REGISTERS.read(self, offset, size, now_ns)

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        return self.REGISTERS.write(self, offset, size, value, now_ns)

    def reset(self) -> Effects:
        """Nothing is enabled; the levels are the drivers' own."""
        self.enabled = 0
        return NOTHING

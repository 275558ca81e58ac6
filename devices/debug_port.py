"""The debug port 402h, where firmware writes what it has to say before any console exists (QEMU's and Bochs's).

A byte written is output; reading gives E9h, by which firmware sees that somebody listens.  Bytes beyond the port read
as FFh and ignore writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from devices.effects import NOTHING, Effects
from devices.state import Bytes, Stateful, Table

LISTENS = 0xE9


@dataclass
class DebugPort(Stateful):
    """A bus handler for one port; resettable: what was written and not yet taken is lost."""

    output: bytearray = field(default_factory=bytearray)

    STATE: ClassVar[Table] = {"output": Bytes(1 << 40)}

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return (LISTENS if offset == 0 else 0xFF) | ((1 << 8 * size) - 1) & ~0xFF, NOTHING

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        if offset == 0:
            self.output.append(value & 0xFF)
        return NOTHING

    def collect(self, data: bytes) -> None:
        """All of `data`, as if it had been written byte by byte."""
        self.output += data

    def take_output(self) -> bytes:
        """Everything written since the last call."""
        data = bytes(self.output)
        self.output.clear()
        return data

    def reset(self) -> Effects:
        self.output.clear()
        return NOTHING

"""What a debugger may ask of a processor, between two runs of it.

Nothing here is seen by the guest: breakpoints are not written into memory, and a step sets no flag that it could read.
The count of blocks, and with the virtual clock all that the guest does, is the same with breakpoints, watchpoints and
single steps as without.  Three things can tell: an interrupt waits until the debugger steps no more (unless
`steps_take_interrupts`), what the debugger itself writes, and a store of the guest into the very block that is being
stepped through, which counts one block less.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class StopKind(enum.Enum):
    STEP = "step"
    BREAKPOINT = "breakpoint"
    WATCHPOINT = "watchpoint"


class Access(enum.Enum):
    """What a watchpoint looks for."""

    WRITE = "write"
    READ = "read"
    ANY = "access"


@dataclass(frozen=True, slots=True)
class Watchpoint:
    """`length` bytes from the linear address `gva` on, and what must not happen to them unseen."""

    gva: int
    length: int
    access: Access


@dataclass(frozen=True, slots=True)
class DebugStop:
    """Why it stopped: before the instruction at a breakpoint's linear `address`; or after the instruction that has used
    what `watchpoint` watches from `address` on."""

    kind: StopKind
    address: int = 0
    watchpoint: Watchpoint | None = None


class CpuDebugger(Protocol):
    """Between two runs of its processor; addresses are linear.

    `breakpoints` and `watchpoints` may be changed freely and count from the next run on.  A breakpoint stops before the
    instruction that begins there, whatever memory is or will be mapped there.  A watchpoint follows the memory that its
    address is mapped to whenever the processor is run: stores by other addresses count, those of devices do not."""

    breakpoints: set[int]
    watchpoints: set[Watchpoint]
    steps_take_interrupts: bool

    def step(self) -> None:
        """The next run ends after one instruction: at the first one of a handler, if an exception or interrupt came in
        its place, after one iteration of a repeated string instruction."""
        ...

    def go_on(self) -> None:
        """The next run does not stop at a breakpoint where it begins."""
        ...

    def detach(self) -> None:
        """Forget breakpoints, watchpoints and a step that was asked for."""
        ...

    def registers(self) -> dict[str, int]:
        """All registers by name, those of the floating-point units too: see `saved_state.py`."""
        ...

    def set_registers(self, values: dict[str, int]) -> None:
        """Change some of them.  KeyError for an unknown name."""
        ...

    def read_memory(self, gva: int, length: int) -> bytes:
        """What is at a linear address, up to the first byte that cannot be read: not mapped, or no memory.  Nothing has
        an effect: registers of devices are not read, pages of RAM that the host took back stay away."""
        ...

    def write_memory(self, gva: int, data: bytes) -> bool:
        """Write all of it, whether or not the guest may; False, and nothing done, where there is no RAM."""
        ...


def covers(ranges: Sequence[tuple[int, int]], first: int, last: int) -> bool:
    """Whether one of the (first, last) ranges touches first ≤ address ≤ last."""
    return any(start <= last and first <= end for start, end in ranges)

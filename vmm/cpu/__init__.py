"""The processor: what a machine may ask of it, and what it asks of the machine.

`Cpu` is the contract; what an x86 processor has besides is in `x86.py`, and `UnicornCpu` in `unicorn_cpu.py` is one.
Importing this package does not import Unicorn; only modules of this package do.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from devices.errors import ConfigError
from devices.state import State
from vmm.cpu.debug import CpuDebugger, DebugStop


class Platform(Protocol):
    """What a CPU asks of the machine while it runs.  Called on the CPU's thread, in the middle of an instruction."""

    def mmio_read(self, gpa: int, size: int) -> int:
        """What the bytes at `gpa` read as, the first of them the lowest."""
        ...

    def mmio_write(self, gpa: int, size: int, value: int) -> None: ...


class ExitReason(enum.Enum):
    BUDGET = "budget"  # the blocks asked for are executed
    REQUESTED = "requested"  # `request_exit` was called
    HALTED = "halted"  # HLT, and no interrupt that it could take
    TRIPLE_FAULT = "triple fault"
    DEBUGGER = "debugger"  # something that the debugger wanted to stop at


@dataclass(frozen=True, slots=True)
class Exit:
    """Why `run` came back.

    `interrupts_enabled` (with HALTED) tells whether an interrupt can wake it.  `vector` (with TRIPLE_FAULT) is the
    exception that could not be delivered first, `registers` are then the CPU's at that exception.  `stop` (with
    DEBUGGER) is what was stopped at."""

    reason: ExitReason
    interrupts_enabled: bool = False
    vector: int = -1
    registers: dict[str, int] = field(default_factory=dict)
    stop: DebugStop | None = None

    def describe(self) -> str:
        """One sentence with vector, CS:RIP and the general registers, for a triple fault."""
        values = self.registers
        if self.reason is not ExitReason.TRIPLE_FAULT or not values:
            return f"the run ended: {self.reason.value}"
        names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))
        dump = " ".join(f"{name}={values[name]:#x}" for name in (*names, "rflags", "cr0", "cr2", "cr3", "cr4"))
        return f"triple fault after exception {self.vector} at {values['cs']:04x}:{values['rip']:#x}, {dump}"


class Cpu(Protocol):
    """One processor.  Everything is called from one thread."""

    @property
    def blocks(self) -> int:
        """Blocks executed so far, counting the delivery of an exception or interrupt as one.

        Exact inside a callback too; never changed by observing or stopping."""
        ...

    def reset(self) -> None:
        """To the reset vector.  `blocks` goes on."""
        ...

    def run(self, budget_blocks: int) -> Exit:
        """Execute until `blocks` has grown by the budget or something else ends it.

        It may grow by one or two more where no stop is possible: after a store into the block's own code, and when the
        last block raises an exception."""
        ...

    def request_exit(self) -> None:
        """From inside a callback: leave before the next block."""
        ...

    def set_irq(self, asserted: bool) -> None:
        """Whether an interrupt waits; it is delivered at the first block boundary where the guest can take it."""
        ...

    @property
    def irq_asserted(self) -> bool: ...

    def registers(self) -> dict[str, int]:
        """All registers by name, as the processor's own module lists them."""
        ...

    def set_registers(self, values: dict[str, int]) -> None:
        """Change some of them, between runs."""
        ...

    def save_state(self) -> State: ...

    def check_state(self, saved: Any, where: str) -> None: ...

    def restore_state(self, saved: Any) -> None:
        """Go on from a state that another processor, or this one earlier, has saved; between runs, RAM as it was."""
        ...

    def translate(self, gva: int) -> int | None:
        """The guest-physical address behind one of the program's, or None."""
        ...

    def peek(self, gpa: int, length: int) -> bytes | None:
        """Bytes of memory at a guest-physical address, within one page and without any effect: no device is read, and
        a page that the host took back stays away.  None where there is no memory."""
        ...

    def drop_translations(self, writes: Sequence[tuple[int, int]]) -> None:
        """Forget translated code at (gpa, length) ranges that somebody else than the guest has changed."""
        ...

    @property
    def debugger(self) -> CpuDebugger | None:
        """What a debugger can do with it; None if this processor has nothing of the kind.  It costs nothing as long as
        nobody asks for it."""
        ...

    def close(self) -> None: ...


class ClosedCpu:
    """Stands in a CPU's place once it is closed, so that nothing of what was freed is ever touched."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks

    def __getattr__(self, name: str) -> Any:
        raise ConfigError("The machine is closed.")

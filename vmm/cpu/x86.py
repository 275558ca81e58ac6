"""What an x86 processor has beyond `vmm.cpu.Cpu`, and asks beyond `vmm.cpu.Platform`: ports, vectors, shadow RAM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from devices.effects import Shadow
from vmm.cpu import Cpu, Platform


class X86Platform(Platform, Protocol):
    """What an x86 CPU asks of the machine while it runs.  Called on its thread, in the middle of an instruction."""

    def port_read(self, port: int, size: int) -> int: ...
    def port_write(self, port: int, size: int, value: int) -> None: ...

    @property
    def collectors(self) -> Mapping[int, Callable[[bytes], object]]:
        """By port, what takes many bytes as if each had been written there by `port_write`: for ports where a byte is
        kept and nothing else comes of it."""
        ...

    def tsc(self) -> int:
        """The time-stamp counter that RDTSC and RDTSCP shall see."""
        ...

    def tsc_of_blocks(self) -> tuple[int, int] | None:
        """How `tsc` follows from the block count for as long as the CPU does not leave `run`: (ticks a block, ticks at
        block 0), so that the CPU need not ask.  None: it must."""
        ...

    def acknowledge_irq(self) -> int:
        """The vector to deliver.  Called only while `set_irq(True)` is in force, which it ends.

        If another interrupt waits already, call `set_irq(True)` again, here or later."""
        ...


class X86Cpu(Cpu, Protocol):
    """An x86 processor."""

    def map_shadow(self, shadows: Sequence[Shadow]) -> None:
        """Let ranges between C0000h and FFFFFh read from and write to RAM or the ROM; from inside a callback too."""
        ...

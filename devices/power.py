"""The ways for a guest to end its own run: exit with a code, power off, panic.

Each device is a handful of bits on a port and turns a write into a `Stop`.  None of them knows what stopping means: the
machine decides that.  (The reset control at CF9h lies inside the PCI host bridge's ports and belongs to it.)

The devices are resettable; none of them keeps time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from devices.effects import NOTHING, Effects, Event, Stop, StopKind
from devices.registers import Register, RegisterMap
from devices.state import Stateful, Table, uint

SCI_EN = 1 << 0
BM_RLD = 1 << 1
SLP_TYP_SHIFT = 10
SLP_TYP = 7 << SLP_TYP_SHIFT
SLP_EN = 1 << 13
SOFT_OFF = 0  # the SLP_TYP of state S5 on this board, as on QEMU's

PVPANIC_PANICKED, PVPANIC_CRASH_LOADED = 1 << 0, 1 << 1


@dataclass
class ExitDevice:
    """Port 5F4h, one write-only register of 32 bits: writing it ends the run, its low byte is the guest's exit code.

    A write of any width that covers the low byte counts; one that touches only the upper bytes is ignored.  It reads
    as zero.
    """

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return 0, NOTHING

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        return Effects(stop=Stop(StopKind.QUIT, value & 0xFF)) if offset == 0 else NOTHING

    def reset(self) -> Effects:
        return NOTHING


@dataclass
class IsaDebugExit:
    """Ports F4h to F7h, QEMU's isa-debug-exit: writing any of them ends the run with exit code (value << 1) | 1.

    The code is a byte, as a process's exit status is.  The ports read as zero.
    """

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return 0, NOTHING

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        return Effects(stop=Stop(StopKind.QUIT, (value << 1 | 1) & 0xFF))

    def reset(self) -> Effects:
        return NOTHING


PM1A_CONTROL = RegisterMap("PM1a control", 2, [Register(0, 2, "control", "rw")])


@dataclass
class Pm1aControl(Stateful):
    """Port 604h, the power management control register (ACPI §4.8.3.2.1), 16 bits.

    BM_RLD and SLP_TYP read back.  SCI_EN is always set: it is the hardware's to say that power management events are
    SCIs, and there is no legacy mode to leave.  Setting SLP_EN enters the state that SLP_TYP names: 0 is S5, power off;
    the board has no other, an `Event` reports the attempt.  GBL_RLS and SLP_EN read as zero.  A byte write merges with
    the other byte, so that writing 20h to 605h powers off too.
    """

    name: str = "pm1a"
    control: int = SCI_EN

    STATE: ClassVar[Table] = {"control": uint(16)}

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return PM1A_CONTROL.read(self, offset, size, now_ns)

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        return PM1A_CONTROL.write(self, offset, size, value, now_ns)

    def write_control(self, value: int, now_ns: int) -> Effects:
        self.control = value & (BM_RLD | SLP_TYP) | SCI_EN
        if not value & SLP_EN:
            return NOTHING
        sleep_type = (value & SLP_TYP) >> SLP_TYP_SHIFT
        if sleep_type == SOFT_OFF:
            return Effects(stop=Stop(StopKind.POWERED_OFF))
        text = f"the guest asked for the sleep type {sleep_type}; only {SOFT_OFF}, power off, exists"
        return Effects(events=(Event(self.name, "unknown-sleep-type", text),))

    def reset(self) -> Effects:
        self.control = SCI_EN
        return NOTHING


@dataclass
class Pvpanic:
    """Port 505h, QEMU's pvpanic device: reading tells which events the host understands, writing reports one.

    Bit 0 is "panicked" and ends the run.  Bit 1 is "crash loaded": the guest has panicked and goes on with the kernel
    it keeps for that case, so an `Event` says so and nothing stops.  Other bits, and bytes beyond the port, are ignored
    and read as zero.
    """

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return (PVPANIC_PANICKED | PVPANIC_CRASH_LOADED if offset == 0 else 0), NOTHING

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        if offset == 0 and value & PVPANIC_PANICKED:
            return Effects(stop=Stop(StopKind.PANICKED))
        if offset == 0 and value & PVPANIC_CRASH_LOADED:
            text = "the guest has panicked and goes on with its crash kernel"
            return Effects(events=(Event("pvpanic", "crash-loaded", text),))
        return NOTHING

    def reset(self) -> Effects:
        return NOTHING

"""A board just big enough for the firmware: RAM, a processor, fw_cfg, a serial port, PCI functions, the ways to end.

It is not `vmm.machine`: what the host offers can be left out or broken here, byte by byte.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import firmware
from devices.bus import AddressSpace
from devices.effects import Effects, Stop
from devices.fw_cfg import FwCfg
from devices.fw_cfg_dma import FwCfgDma
from devices.memory import GuestMemory
from devices.pci.function import PciFunction
from devices.pci.host_bridge import HostBridge
from devices.power import ExitDevice, Pvpanic
from devices.serial import Serial
from vmm.cpu import Exit
from vmm.cpu.unicorn_cpu import UnicornCpu

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
EXECUTABLE, WRITABLE, READABLE = 1, 2, 4
HLT = b"\xf4"
USABLE = 1
ENOUGH_BLOCKS = 3_000_000

BOOT_INFO = struct.Struct("<8sIIQIIQQQQ")
MEMORY_RANGE = struct.Struct("<QQII")


@dataclass(frozen=True)
class Segment:
    """A piece of a guest in RAM; `data` lies at its start."""

    base: int
    length: int
    flags: int
    data: bytes = b""


@dataclass(frozen=True)
class BootInfo:
    magic: bytes
    version: int
    size: int
    memory_map: list[tuple[int, int, int]]
    """(base, length, type)"""
    pci_functions: int
    cmdline: bytes
    ram_bytes: int
    image: tuple[int, int]


def describe(entry: int, segments: Sequence[Segment], magic: bytes = b"BVMMPAY1", flags: int = 0) -> bytes:
    """The contents of opt/balloon-vmm/payload."""
    header = struct.pack("<8sQII", magic, entry, len(segments), flags)
    return header + b"".join(struct.pack("<QQII", s.base, s.length, s.flags, 0) for s in segments)


def e820(*ranges: tuple[int, int, int]) -> bytes:
    """The contents of etc/e820, from (base, length, type)."""
    return b"".join(struct.pack("<QQI", *one) for one in ranges)


@dataclass
class Lab:
    """`layout` is RAM as (gpa, bytes).  `files` replaces fw_cfg's files; None as contents takes one away."""

    layout: Sequence[tuple[int, int]] = ((0, 640 * KIB), (MIB, 15 * MIB))
    segments: Sequence[Segment] = (Segment(MIB, 4096, READABLE | EXECUTABLE, HLT),)
    entry: int = MIB
    cmdline: bytes = b"\0"
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    functions: Sequence[PciFunction] = ()
    dma: bool = False
    """Whether fw_cfg has its DMA interface."""
    power_on_pattern: bytes = b"\0"
    """What low RAM holds when the processor starts."""

    collectors: Mapping[int, Callable[[bytes], object]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.memory = GuestMemory(self.layout)
        self.memory.write(0, self.power_on_pattern * (64 * KIB // len(self.power_on_pattern)))
        for segment in self.segments:
            self.memory.write(segment.base, segment.data)
        files: dict[str, bytes | None] = {
            "etc/e820": e820(*((gpa, size, USABLE) for gpa, size in self.layout)),
            "opt/balloon-vmm/payload": describe(self.entry, self.segments),
            "opt/balloon-vmm/cmdline": self.cmdline,
            **self.files,
        }
        self.ports, self.mmio = AddressSpace("port", 16), AddressSpace("memory", 52)
        self.serial = Serial()
        self.ports.add(0x3F8, 8, self.serial, "COM1")
        self.ports.add(0x505, 1, Pvpanic(), "pvpanic")
        fw_cfg = FwCfg({name: data for name, data in files.items() if data is not None}, dma=self.dma)
        self.ports.add(0x510, 2, fw_cfg, "fw_cfg")
        if self.dma:
            self.ports.add(0x514, 8, FwCfgDma(fw_cfg, self.memory), "fw_cfg DMA")
        self.ports.add(0x5F4, 4, ExitDevice(), "exit device")
        self.bridge = HostBridge(self.ports, self.mmio, self.memory)
        for function in self.functions:
            self.bridge.plug(function)
        self.cpu = UnicornCpu(self.memory, self, firmware.image())
        self.stop: Stop | None = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.cpu.close()
        self.memory.close()

    def run(self) -> Exit:
        """From the reset vector until the guest halts or something ends the machine."""
        exit_ = self.cpu.run(ENOUGH_BLOCKS)
        self.console = self.serial.take_output().decode()
        self.lines = self.console.splitlines()
        return exit_

    # -- what the processor sees ---------------------------------------------------------------------------------------

    def port_read(self, port: int, size: int) -> int:
        value, effects = self.ports.read(port, size, 0)
        self._carry_out(effects)
        return value

    def port_write(self, port: int, size: int, value: int) -> None:
        self._carry_out(self.ports.write(port, size, value, 0))

    def mmio_read(self, gpa: int, size: int) -> int:
        return self.mmio.read(gpa, size, 0)[0]

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        self._carry_out(self.mmio.write(gpa, size, value, 0))

    def tsc(self) -> int:
        return 0

    def tsc_of_blocks(self) -> tuple[int, int] | None:
        return None

    def acknowledge_irq(self) -> int:
        raise AssertionError("nothing here interrupts")

    def _carry_out(self, effects: Effects) -> None:
        if effects.shadows:
            self.cpu.map_shadow(effects.shadows)
        if effects.stop is not None:
            self.stop = effects.stop
            self.cpu.request_exit()

    # -- what the firmware left behind ---------------------------------------------------------------------------------

    def boot_info(self) -> BootInfo:
        """The block RDI points at."""
        fields = BOOT_INFO.unpack(self.memory.read(self.cpu.registers()["rdi"], BOOT_INFO.size))
        magic, version, size, map_gpa, entries, functions, cmdline_gpa, ram_bytes, start, end = fields
        ranges = MEMORY_RANGE.iter_unpack(self.memory.read(map_gpa, entries * MEMORY_RANGE.size))
        cmdline = self.memory.read(cmdline_gpa, 2048).split(b"\0")[0]
        return BootInfo(magic, version, size, [r[:3] for r in ranges], functions, cmdline, ram_bytes, (start, end))

    def page(self, address: int) -> tuple[int, bool, bool] | None:
        """(gpa, writable, executable) of a linear address, walked by the rules of the Intel SDM 3A §4.5; None where
        nothing is mapped."""
        table, writable, executable = self.cpu.registers()["cr3"] & ~0xFFF, True, True
        for shift in (39, 30, 21, 12):
            entry = self.memory.read_int(table + (address >> shift & 511) * 8, 8)
            if not entry & 1:
                return None
            writable &= bool(entry & 2)
            executable &= not entry >> 63
            table = entry & 0x000F_FFFF_FFFF_F000
            if shift == 12 or entry & 0x80:
                return table | address & (1 << shift) - 1, writable, executable
        raise AssertionError("the last level returns")

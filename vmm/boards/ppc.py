"""The PowerPC board: RAM from 0 on, and a handful of devices above F0000000h.

There is no firmware and no PCI.  The host puts the guest and what it is told into RAM, and the processor begins at its
entry.  Registers of 32 bits are little-endian, as those of the devices are elsewhere.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar, NoReturn

from devices import interval_timer
from devices.bus import AddressSpace, Handler
from devices.effects import Effects
from devices.errors import ConfigError
from devices.interval_timer import IntervalTimer
from devices.irq import lines
from devices.irq.lines import LineController
from devices.memory import PAGE_BYTES
from devices.power import ExitDevice, Pvpanic
from devices.serial import Serial
from devices.state import PART, Many, Table
from devices.virtio.transport.mmio import BLOCK_BYTES, VirtioMmio
from devices.virtio.transport.mmio_legacy import VirtioMmioLegacy
from vmm import loader
from vmm.boards.board import Board, Resettable, Saved, make_memory
from vmm.boards.pc import make_device
from vmm.config import PPC, MachineConfig
from vmm.models import MMIO_PLACES

if TYPE_CHECKING:
    from vmm.cpu import Cpu, Platform

UART, UART_BYTES = 0xF0000000, 8
EXIT, EXIT_BYTES = 0xF0001000, 4
PVPANIC = 0xF0001010
INTERRUPTS = 0xF0002000
TIMER = 0xF0003000
MMIO_BASE, MMIO_STEP = 0xF0010000, 0x1000

TIMER_LINE, UART_LINE = "timer", "uart"
MMIO_LINES = tuple(f"virtio-mmio {place}" for place in range(MMIO_PLACES))
LINES = (TIMER_LINE, UART_LINE, *MMIO_LINES)  # bit 0 of the controller, bit 1, …

# What a guest is told, below its image; docs/architecture.md, "The PowerPC board".
BOOT_INFO, MEMORY_MAP, CMDLINE = 0x4000, 0x4100, 0x4800
BOOT_INFO_MAGIC, BOOT_INFO_VERSION = int.from_bytes(b"BVMMBOOT", "little"), 1
_BOOT_INFO = struct.Struct(">QIIQIIQQQQ")
_RANGE = struct.Struct(">QQII")
USABLE, RESERVED, IMAGE = 1, 2, 3


class PpcBoard(Board):
    """Everything that `config` asks for, wired and at power-on; with `saved` no file is read.

    ConfigError when the guest cannot be loaded, a device is unknown, or the host cannot give the RAM.
    """

    STATE: ClassVar[Table] = {
        **dict.fromkeys(("interrupts", "timer", "serial"), PART),
        **dict.fromkeys(("transports", "entropy"), Many(PART)),
    }
    balloon_driver = "virtio-balloon-device"
    interrupts: LineController
    transports: list[VirtioMmio]

    def __init__(self, config: MachineConfig, saved: Saved | None = None) -> None:
        self.config = config
        self.rom, self.payload, self.entry = b"", None, 0
        self.memory = make_memory([(0, config.memory_bytes)], config, saved)
        try:
            if saved is None:
                self._load(config)
            self._build(config)
        except BaseException:
            self.memory.close()
            raise

    def _load(self, config: MachineConfig) -> None:
        """Put the guest into RAM, and what it is told."""
        payload = loader.load(loader.read_image(config.guest, PPC), self.memory, arch=PPC)
        self.payload, self.entry = payload, payload.entry
        self._tell_guest(payload)

    def _tell_guest(self, payload: loader.Payload) -> None:
        """Write the boot information block, in the processor's order."""
        start = min(segment.gpa for segment in payload.segments) // PAGE_BYTES * PAGE_BYTES
        end = -(-max(segment.gpa + segment.size_bytes for segment in payload.segments) // PAGE_BYTES) * PAGE_BYTES
        ram_bytes = self.config.memory_bytes
        borders = ((0, loader.FIRMWARE_END, RESERVED), (loader.FIRMWARE_END, start, USABLE), (start, end, IMAGE))
        ranges = [each for each in (*borders, (end, ram_bytes, USABLE)) if each[0] < each[1]]
        cmdline = self.config.parameter_bytes + b"\0"
        usable_bytes = ram_bytes - loader.FIRMWARE_END
        block = (BOOT_INFO_MAGIC, BOOT_INFO_VERSION, _BOOT_INFO.size, MEMORY_MAP, len(ranges), 0)
        self.memory.write(BOOT_INFO, _BOOT_INFO.pack(*block, CMDLINE, usable_bytes, start, end))
        self.memory.write(MEMORY_MAP, b"".join(_RANGE.pack(low, high - low, kind, 0) for low, high, kind in ranges))
        self.memory.write(CMDLINE, cmdline)
        self.memory.take_writes()

    def _build(self, config: MachineConfig) -> None:
        self.mmio = AddressSpace("memory", 32)
        self.entropy = []
        self.interrupts = LineController(LINES)
        self.timer = IntervalTimer(TIMER_LINE)
        self.serial = Serial(UART_LINE)
        self.transports = []
        table: list[tuple[int, int, Handler, str]] = [
            (UART, UART_BYTES, self.serial, "16550"),
            (EXIT, EXIT_BYTES, ExitDevice(), "exit device"),
            (PVPANIC, 1, Pvpanic(), "pvpanic"),
            (INTERRUPTS, lines.BLOCK_BYTES, self.interrupts, "interrupt controller"),
            (TIMER, interval_timer.BLOCK_BYTES, self.timer, "timer"),
        ]
        for place in config.devices:
            kind = VirtioMmioLegacy if place.flag("force-legacy") else VirtioMmio
            device = make_device(self, place)
            device.driver_order = ">"  # what a legacy driver's rings and payloads are in
            transport = kind(device, MMIO_LINES[place.slot])
            self.transports.append(transport)
            table.append((MMIO_BASE + MMIO_STEP * place.slot, BLOCK_BYTES, transport, place.id))
        for base, length, handler, owner in table:
            self.mmio.add(base, length, handler, owner)
        self.timed = (self.timer, *self.transports)

    def reset(self) -> Effects:
        self._load(self.config)
        effects = self.interrupts.reset()
        devices: tuple[Resettable, ...] = (self.timer, self.serial, *self.transports)
        for device in devices:
            effects |= device.reset()
        return effects

    def press_power_button(self, now_ns: int) -> NoReturn:
        raise ConfigError("The PowerPC board has no power button.")

    def make_cpu(self, platform: Platform) -> Cpu:
        """A CPU at the guest's entry."""
        from vmm.cpu.ppc.ppc_cpu import PpcCpu

        return PpcCpu(self.memory, platform, self.entry, BOOT_INFO)

"""The board: which device sits at which address, on which line and in which slot, as tables.

Only this module and `vmm.machine` name concrete devices.  A `Board` is built from a configuration: RAM with the guest's
image in it, both address spaces, and the devices; it has no CPU and no clock of its own.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import firmware
from devices.bus import AddressSpace, Handler
from devices.effects import NOTHING, Effects, Line
from devices.errors import ConfigError
from devices.fw_cfg import FwCfg
from devices.irq.lapic import LocalApic
from devices.memory import GuestMemory
from devices.pci.host_bridge import HostBridge
from devices.power import ExitDevice, Pm1aControl, Pvpanic
from devices.rtc import Rtc
from devices.serial import Serial
from devices.state import COUNTER, FLAG, PART, TEXT, Many, Pairs, Stateful, Table
from devices.timer import PortB, Timer8254
from devices.virtio import spec
from devices.virtio.balloon import Balloon
from devices.virtio.device import VirtioDevice
from devices.virtio.rng import Rng
from devices.virtio.transport.pci_modern import VirtioPciModern
from vmm import loader
from vmm.config import DeviceConfig, MachineConfig

if TYPE_CHECKING:
    from vmm.cpu import Cpu, Platform

CONVENTIONAL_END = 0xA0000
EXTENDED_BASE = 0x100000
PCI_HOLE_BASE = 0xC0000000
HIGH_BASE = 1 << 32
ROM_SHADOW_BASE = 0xF0000
INTERRUPT_BASE, INTERRUPT_BYTES = 0xFEE00000, 0x100000
E820_USABLE, E820_RESERVED = 1, 2
VIRTUAL_START_UNIX_S = 1_258_502_400  # 2009-11-18, the day of the review; a constant, so that runs are repeatable


def ram_layout(memory_bytes: int) -> list[tuple[int, int]]:
    """Where `memory_bytes` of RAM lie: (gpa, size).  The 384 KiB at A0000h are counted but are no RAM, as on a PC."""
    low_end = min(memory_bytes, PCI_HOLE_BASE)
    layout = [(0, CONVENTIONAL_END)]
    if low_end > EXTENDED_BASE:
        layout.append((EXTENDED_BASE, low_end - EXTENDED_BASE))
    if memory_bytes > low_end:
        layout.append((HIGH_BASE, memory_bytes - low_end))
    return layout


def e820(layout: list[tuple[int, int]]) -> bytes:
    """The memory map as QEMU's etc/e820: le64 address, le64 length, le32 type for each entry."""
    entries = [(gpa, size, E820_USABLE) for gpa, size in layout]
    entries += [(ROM_SHADOW_BASE, firmware.ROM_BYTES, E820_RESERVED)]
    entries += [(HIGH_BASE - firmware.ROM_BYTES, firmware.ROM_BYTES, E820_RESERVED)]
    return b"".join(struct.pack("<QQI", *entry) for entry in sorted(entries))


@dataclass(frozen=True, slots=True)
class Rom:
    """The firmware as a bus handler, for whoever looks through the bus; the CPU has it mapped.  Writes vanish."""

    image: bytes

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return int.from_bytes(self.image[offset : offset + size], "little"), NOTHING

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        return NOTHING


class Timed(Protocol):
    """Something with deadlines in guest time."""

    def next_deadline_ns(self) -> int | None: ...

    def advance(self, now_ns: int) -> Effects: ...


class SeededEntropy(Stateful):
    """Bytes that depend on `seed` and on how many were taken before, and on nothing else."""

    STATE: ClassVar[Table] = {"taken_bytes": COUNTER}
    _BLOCK_BYTES = hashlib.blake2b().digest_size

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.taken_bytes = 0

    def __call__(self, count: int) -> bytes:
        """The next `count` bytes."""
        first, skip = divmod(self.taken_bytes, self._BLOCK_BYTES)
        self.taken_bytes += count
        last = -(-self.taken_bytes // self._BLOCK_BYTES)
        return b"".join(self._block(index) for index in range(first, last))[skip : skip + count]

    def _block(self, index: int) -> bytes:
        return hashlib.blake2b(self.seed.encode() + index.to_bytes(8, "little")).digest()


class Board(Stateful):
    """Everything that `config` asks for, wired and at power-on.

    ConfigError when the guest cannot be loaded, a device is unknown, or the host cannot give the RAM.
    """

    STATE: ClassVar[Table] = {
        **dict.fromkeys(("lapic", "timer", "rtc", "serial", "pm1a", "fw_cfg", "host_bridge"), PART),
        "entropy": Many(PART),
        "lines": Pairs(TEXT, FLAG),
    }

    def __init__(self, config: MachineConfig) -> None:
        self.config = config
        layout = ram_layout(config.memory_bytes)
        self.memory = GuestMemory(layout)
        try:
            self.payload = loader.load(loader.read_image(config.guest), self.memory)
            self._build(config, layout)
        except BaseException:
            self.memory.close()
            raise

    def _build(self, config: MachineConfig, layout: list[tuple[int, int]]) -> None:
        self.ports = AddressSpace("port", 16)
        self.mmio = AddressSpace("memory", 52)
        self.lines: dict[str, bool] = {}
        self.entropy: list[SeededEntropy] = []
        self.rom = firmware.image()
        high_bytes = sum(size for gpa, size in layout if gpa >= HIGH_BASE)
        start_s = VIRTUAL_START_UNIX_S if config.clock == "virtual" else int(time.time())
        self.lapic = LocalApic()
        self.timer = Timer8254()
        self.rtc = Rtc(start_s, config.memory_bytes - high_bytes, high_bytes)
        self.serial = Serial()
        self.pm1a = Pm1aControl()
        self.fw_cfg = FwCfg(
            {
                "etc/e820": e820(layout),
                "opt/balloon-vmm/payload": self.payload.description(),
                "opt/balloon-vmm/cmdline": config.parameter_bytes + b"\0",
            }
        )
        self._claim()
        self.host_bridge = HostBridge(self.ports, self.mmio, self.memory)
        self.transports = [VirtioPciModern(self._make_device(device), device.slot) for device in config.devices]
        for transport in self.transports:
            self.host_bridge.plug(transport)
        self.timed: tuple[Timed, ...] = (self.lapic, self.timer, self.rtc, *self.transports)

    def _claim(self) -> None:
        """Give every device at a fixed address its range."""
        table: list[tuple[AddressSpace, int, int, Handler, str]] = [
            (self.ports, 0x40, 4, self.timer, "8254"),
            (self.ports, 0x61, 1, PortB(self.timer), "8254 port B"),
            (self.ports, 0x70, 2, self.rtc, "CMOS"),
            (self.ports, 0x3F8, 8, self.serial, "COM1"),
            (self.ports, 0x505, 1, Pvpanic(), "pvpanic"),
            (self.ports, 0x510, 2, self.fw_cfg, "fw_cfg"),
            (self.ports, 0x5F4, 4, ExitDevice(), "exit device"),
            (self.ports, 0x604, 2, self.pm1a, "PM1a control"),
            (self.mmio, ROM_SHADOW_BASE, firmware.ROM_BYTES, Rom(self.rom), "firmware"),
            (self.mmio, INTERRUPT_BASE, 0x1000, self.lapic, "local APIC"),
            (self.mmio, HIGH_BASE - firmware.ROM_BYTES, firmware.ROM_BYTES, Rom(self.rom), "firmware"),
        ]
        for space, base, length, handler, owner in table:
            space.add(base, length, handler, owner)

    def _make_device(self, device: DeviceConfig) -> VirtioDevice:
        return _MAKERS[device.driver](self, device)

    # -- what the machine asks -----------------------------------------------------------------------------------------

    @property
    def virtio_devices(self) -> list[VirtioDevice]:
        """The virtio devices in the order of their slots."""
        return [transport.device for transport in self.transports]

    @property
    def balloon(self) -> tuple[VirtioPciModern, Balloon] | None:
        """The first balloon with its transport."""
        for transport in self.transports:
            if isinstance(transport.device, Balloon):
                return transport, transport.device
        return None

    def need_balloon(self) -> tuple[VirtioPciModern, Balloon]:
        """The balloon; ConfigError when the machine has none."""
        found = self.balloon
        if found is None:
            raise ConfigError("This machine has no balloon; add one with -device virtio-balloon-pci.")
        return found

    def make_cpu(self, platform: Platform) -> Cpu:
        """A CPU at the reset vector of our firmware."""
        from vmm.cpu.unicorn_cpu import UnicornCpu

        return UnicornCpu(self.memory, platform, self.rom)

    def set_line(self, line: Line) -> None:
        """Remember the level of an interrupt line.  This board has no controller that takes lines: MSI-X is the way."""
        self.lines[line.name] = line.level

    @staticmethod
    def is_interrupt_address(address: int) -> bool:
        """Whether a device's write to this address is an interrupt message (Intel SDM 3A §11.11)."""
        return INTERRUPT_BASE <= address < INTERRUPT_BASE + INTERRUPT_BYTES


_FEATURE_OF = {
    "indirect_desc": spec.VIRTIO_F_INDIRECT_DESC,
    "event_idx": spec.VIRTIO_F_EVENT_IDX,
    "must-tell-host": spec.VIRTIO_BALLOON_F_MUST_TELL_HOST,
    "stats-vq": spec.VIRTIO_BALLOON_F_STATS_VQ,
}


def _features(device: DeviceConfig, names: Iterable[str]) -> int:
    """The mask to offer: VERSION_1, and each of the properties `names` that is on."""
    return sum(1 << _FEATURE_OF[name] for name in names if device.flag(name)) | 1 << spec.VIRTIO_F_VERSION_1


def _make_balloon(board: Board, device: DeviceConfig) -> VirtioDevice:
    return Balloon(board.memory, name=device.id, features=_features(device, _FEATURE_OF))


def _make_rng(board: Board, device: DeviceConfig) -> VirtioDevice:
    entropy: Callable[[int], bytes] = os.urandom
    if board.config.clock == "virtual":
        board.entropy.append(SeededEntropy(device.id))
        entropy = board.entropy[-1]
    features = _features(device, ("indirect_desc", "event_idx"))
    return Rng(board.memory, entropy, name=device.id, features=features)


_MAKERS: dict[str, Callable[[Board, DeviceConfig], VirtioDevice]] = {
    "virtio-balloon-pci": _make_balloon,
    "virtio-rng-pci": _make_rng,
}

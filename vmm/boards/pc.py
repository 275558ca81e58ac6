"""The PC: which device sits at which address, on which line and in which slot, as tables.

Everything about an x86 board is here: ports beside memory, PCI, fw_cfg and ACPI for the firmware, interrupt messages.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias, cast

import firmware
from devices import fw_cfg, fw_cfg_dma
from devices.acpi import PmEvents, PmTimer
from devices.bus import AddressSpace, Handler
from devices.debug_port import DebugPort
from devices.effects import NOTHING, Effects
from devices.fw_cfg import FwCfg
from devices.fw_cfg_dma import FwCfgDma
from devices.irq.lapic import LocalApic
from devices.irq.wiring import FIRST_PIRQ_PIN, TIMER_PIN, InterruptWiring
from devices.keyboard import KeyboardController, SystemControlA
from devices.pci.ecam import WINDOW_BYTES, Ecam
from devices.pci.host_bridge import RESET_CONTROL_PORT, RESET_HARD, RESET_NOW, HostBridge
from devices.pci.piix import PIRQRC, PM_BYTES, IsaBridge, PowerManagement
from devices.pci.piix import SLOT as SOUTH_BRIDGE_SLOT
from devices.power import SOFT_OFF, ExitDevice, IsaDebugExit, Pm1aControl, Pvpanic
from devices.rtc import CENTURY, Rtc
from devices.serial import Serial
from devices.state import PART, Many, Table
from devices.timer import PortB, Timer8254
from devices.virtio import spec
from devices.virtio.balloon import Balloon, Numbering
from devices.virtio.device import VirtioDevice
from devices.virtio.policy import POLICIES, Policy
from devices.virtio.profiles import PROFILES
from devices.virtio.queue import LEGACY_RING_FEATURES
from devices.virtio.rng import Rng
from devices.virtio.transport.mmio import BLOCK_BYTES, VirtioMmio
from devices.virtio.transport.mmio_legacy import VirtioMmioLegacy
from devices.virtio.transport.pci_function import VirtioPciFunction
from devices.virtio.transport.pci_legacy import VirtioPciLegacy
from devices.virtio.transport.pci_modern import VirtioPciModern
from devices.virtio.transport.pci_transitional import VirtioPciTransitional
from firmware import acpi
from vmm import loader
from vmm.boards.board import Board, Resettable, Saved, SeededEntropy, make_memory
from vmm.config import NO_FIRMWARE, DeviceConfig, MachineConfig
from vmm.watch import WatchedBalloon

if TYPE_CHECKING:
    from vmm.cpu.x86 import X86Cpu, X86Platform

VirtioTransport: TypeAlias = VirtioPciFunction | VirtioMmio

CONVENTIONAL_END = 0xA0000
EXTENDED_BASE = 0x100000
PCI_HOLE_BASE = 0xC0000000
HIGH_BASE = 1 << 32
SHADOW_BASE, SHADOW_BYTES = 0xC0000, 0x40000
ROM_SHADOW_BASE = 0xF0000
ECAM_BASE = PCI_HOLE_BASE  # the 256 MiB behind the last RAM below 4 GiB; firmware places BARs above them
IO_APIC_BASE = 0xFEC00000
MMIO_BASE, MMIO_STEP = 0xFEC10000, 0x1000  # virtio-mmio, behind what firmware hands out to PCI
INTERRUPT_BASE, INTERRUPT_BYTES = 0xFEE00000, 0x100000
PCI_MEMORY_BASE = ECAM_BASE + WINDOW_BYTES  # up to the I/O APIC
PM_BASE = 0x600
COM1, COM1_PORTS = 0x3F8, 8
CMOS, CMOS_PORTS = 0x70, 2
PIC_MASTER, PIC_SLAVE, PIC_PORTS = 0x20, 0xA0, 2
ELCR, ELCR_PORTS = 0x4D0, 2
#: ports where an access of up to four bytes may reach the 8259 pair, which changes its output without a word of it
SILENT_PORTS = frozenset(
    port
    for base, length in ((PIC_MASTER, PIC_PORTS), (PIC_SLAVE, PIC_PORTS), (ELCR, ELCR_PORTS))
    for port in range(base - 3, base + length)
)
DEBUG_PORT, PVPANIC = 0x402, 0x505
FW_CFG, FW_CFG_DMA = 0x510, 0x514

# Interrupt lines.  Lines 0 to 15 are the inputs of the 8259 pair; PIRQ 0 to 3 are A to D.
MMIO_LINES = ("isa12", "isa14", "isa15", "isa6")
ISA_LINES = {"isa0": 0, "isa4": 4, "isa8": 8, "isa9": 9, "isa12": 12, "isa14": 14, "isa15": 15, "isa6": 6}
PCI_LINES = {f"00:{slot:02x}.0 INTA": (slot - 1) % 4 for slot in range(1, 32)}
PIRQ_INPUTS = (5, 10, 11)  # inputs of the 8259 pair that no ISA device has
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


def memory_map(layout: list[tuple[int, int]], rom_bytes: int) -> tuple[tuple[int, int, int], ...]:
    """What is RAM and what is reserved, as ascending (address, length, type of E820)."""
    entries = [(gpa, size, E820_USABLE) for gpa, size in layout]
    entries += [(ROM_SHADOW_BASE, EXTENDED_BASE - ROM_SHADOW_BASE, E820_RESERVED)]
    entries += [(ECAM_BASE, WINDOW_BYTES, E820_RESERVED)]
    entries += [(HIGH_BASE - rom_bytes, rom_bytes, E820_RESERVED)]
    return tuple(sorted(entries))


def e820(layout: list[tuple[int, int]], rom_bytes: int = firmware.ROM_BYTES) -> bytes:
    """The memory map as QEMU's etc/e820: le64 address, le64 length, le32 type for each entry."""
    return b"".join(struct.pack("<QQI", *entry) for entry in memory_map(layout, rom_bytes))


def has_fw_cfg_dma(config: MachineConfig) -> bool:
    """Only our firmware is offered DMA: others point it at shadow RAM too, which is the processor's alone here."""
    return not config.bios


def platform(config: MachineConfig) -> acpi.Platform:
    """The board as its ACPI tables describe it."""
    fw_cfg_ports = FW_CFG_DMA + fw_cfg_dma.PORTS - FW_CFG if has_fw_cfg_dma(config) else fw_cfg.PORTS
    return acpi.Platform(
        memory_window=acpi.Window(PCI_MEMORY_BASE, IO_APIC_BASE - 1),
        ecam=acpi.Window(ECAM_BASE, ECAM_BASE + WINDOW_BYTES - 1),
        local_apic=INTERRUPT_BASE,
        io_apic=IO_APIC_BASE,
        first_pirq_pin=FIRST_PIRQ_PIN,
        timer_pin=TIMER_PIN,
        sci_line=ISA_LINES["isa9"],
        pci_pins=tuple(
            acpi.PciPin(d.slot, 0, PCI_LINES[f"00:{d.slot:02x}.0 INTA"]) for d in config.devices if d.bus == "pci"
        ),
        virtio_mmio=tuple(
            acpi.MmioDevice(d.slot, mmio_base(d), BLOCK_BYTES, ISA_LINES[MMIO_LINES[d.slot]])
            for d in config.devices
            if d.bus == "mmio"
        ),
        isa_bridge_slot=SOUTH_BRIDGE_SLOT,
        pirq_register=PIRQRC,
        pirq_inputs=PIRQ_INPUTS,
        pm_base=PM_BASE,
        pm_ports=PM_BYTES,
        power_off_type=SOFT_OFF,
        reset_port=RESET_CONTROL_PORT,
        reset_value=RESET_HARD | RESET_NOW,
        century_register=CENTURY,
        serial=acpi.IsaDevice(COM1, COM1_PORTS, ISA_LINES["isa4"]),
        clock=acpi.IsaDevice(CMOS, CMOS_PORTS, ISA_LINES["isa8"]),
        panic=acpi.IsaDevice(PVPANIC, 1),
        firmware_files=acpi.IsaDevice(FW_CFG, fw_cfg_ports),
        trigger_ports=acpi.IsaDevice(ELCR, ELCR_PORTS),
    )


def mmio_base(device: DeviceConfig) -> int:
    """Where the registers of a virtio-mmio device are."""
    return MMIO_BASE + MMIO_STEP * device.slot


def _transport(device: VirtioDevice, place: DeviceConfig) -> VirtioTransport:
    """`device` behind the interfaces that its properties ask for."""
    if place.bus == "mmio":
        return (VirtioMmioLegacy if place.flag("force-legacy") else VirtioMmio)(device, MMIO_LINES[place.slot])
    if place.flag("disable-legacy"):
        return VirtioPciModern(device, place.slot)
    return (VirtioPciLegacy if place.flag("disable-modern") else VirtioPciTransitional)(device, place.slot)


@dataclass(frozen=True, slots=True)
class Rom:
    """The firmware as a bus handler, for whoever looks through the bus; the CPU has it mapped.  Writes vanish."""

    image: bytes

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return int.from_bytes(self.image[offset : offset + size], "little"), NOTHING

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        return NOTHING


class PcBoard(Board):
    """Everything that `config` asks for, wired and at power-on; with `saved` no file is read.

    ConfigError when the guest cannot be loaded, a device is unknown, or the host cannot give the RAM.
    """

    STATE: ClassVar[Table] = {
        **dict.fromkeys(("lapic", "interrupts", "timer", "rtc", "serial", "debug_port", "keyboard", "port_92"), PART),
        **dict.fromkeys(("pm1a", "pm_events", "fw_cfg", "fw_cfg_dma", "host_bridge"), PART),
        "entropy": Many(PART),
        "mmio_transports": Many(PART),
    }
    balloon_driver = "virtio-balloon-pci"
    interrupts: InterruptWiring

    def __init__(self, config: MachineConfig, saved: Saved | None = None) -> None:
        self.config = config
        layout = ram_layout(config.memory_bytes)
        self.memory = make_memory(layout, config, saved)
        try:
            self.rom = _rom(config) if saved is None else saved.rom
            self.memory_map = memory_map(layout, len(self.rom))
            self.acpi_files = acpi.build(platform(config))
            self.payload = self._load(config) if saved is None else None
            self._build(config, layout)
        except BaseException:
            self.memory.close()
            raise

    def _load(self, config: MachineConfig) -> loader.Payload | None:
        """Put the guest into RAM, if there is one."""
        if not config.guest:
            return None
        modules = loader.read_modules(config.modules)
        boot = loader.BootData(config.parameter_bytes, modules, self.memory_map)
        return loader.load(loader.read_image(config.guest)._replace(name=config.name), self.memory, boot)

    def _build(self, config: MachineConfig, layout: list[tuple[int, int]]) -> None:
        self.ports = AddressSpace("port", 16)
        self.mmio = AddressSpace("memory", 52)
        self.entropy = []
        high_bytes = sum(size for gpa, size in layout if gpa >= HIGH_BASE)
        start_s = VIRTUAL_START_UNIX_S if config.clock == "virtual" else int(time.time())
        self.lapic = LocalApic()
        self.timer = Timer8254()
        self.rtc = Rtc(start_s, config.memory_bytes - high_bytes, high_bytes)
        self.serial = Serial()
        self.pm1a = Pm1aControl()
        self.fw_cfg = FwCfg(self._fw_cfg_files(layout), _fw_cfg_items(config), dma=has_fw_cfg_dma(config))
        self.fw_cfg_dma = FwCfgDma(self.fw_cfg, self.memory)
        self.debug_port = DebugPort()
        self.collectors = {DEBUG_PORT: self.debug_port.collect}
        self.pm_events = PmEvents()
        self.keyboard, self.port_92 = KeyboardController(), SystemControlA()
        self.isa_bridge = IsaBridge()
        self.interrupts = InterruptWiring(ISA_LINES, PCI_LINES, self.isa_bridge, self.lapic)
        self._claim()
        self.host_bridge = HostBridge(self.ports, self.mmio, self.memory)
        self.mmio.add(ECAM_BASE, WINDOW_BYTES, Ecam(self.host_bridge), "PCI configuration")
        transports = [_transport(make_device(self, device), device) for device in config.devices]
        self.transports = transports
        self.mmio_transports = [each for each in transports if isinstance(each, VirtioMmio)]
        for place, transport in zip(config.devices, transports, strict=True):
            if isinstance(transport, VirtioMmio):
                self.mmio.add(mmio_base(place), BLOCK_BYTES, transport, place.id)
        functions = [each for each in transports if isinstance(each, VirtioPciFunction)]
        for function in (self.isa_bridge, PowerManagement(PM_BASE, self._pm_ports()), *functions):
            self.host_bridge.plug(function)
        self.timed = (self.lapic, self.timer, self.rtc, self.pm_events, *self.transports)

    def _fw_cfg_files(self, layout: list[tuple[int, int]]) -> dict[str, bytes]:
        files = {"etc/e820": e820(layout, len(self.rom)), **self.acpi_files}
        if self.payload is not None:
            files["opt/balloon-vmm/payload"] = self.payload.description()
            files["opt/balloon-vmm/cmdline"] = self.config.parameter_bytes + b"\0"
        if self.config.bios:
            files["etc/sercon-port"] = struct.pack("<Q", COM1)  # SeaBIOS: the console is serial, there is no screen
        return files

    def _claim(self) -> None:
        """Give every device at a fixed address its range."""
        pic = self.interrupts.pic
        rom, alias = Rom(self.rom), Rom(self.rom[-SHADOW_BYTES // 2 :].rjust(SHADOW_BYTES, b"\xff"))
        table: list[tuple[AddressSpace, int, int, Handler, str]] = [
            (self.ports, PIC_MASTER, PIC_PORTS, pic.handler(0), "8259 master"),
            (self.ports, 0x40, 4, self.timer, "8254"),
            (self.ports, 0x60, 1, self.keyboard.data, "8042"),
            (self.ports, 0x61, 1, PortB(self.timer), "8254 port B"),
            (self.ports, 0x64, 1, self.keyboard.command, "8042"),
            (self.ports, CMOS, CMOS_PORTS, self.rtc, "CMOS"),
            (self.ports, 0x92, 1, self.port_92, "port 92h"),
            (self.ports, PIC_SLAVE, PIC_PORTS, pic.handler(1), "8259 slave"),
            (self.ports, 0xF4, 4, IsaDebugExit(), "isa-debug-exit"),
            (self.ports, COM1, COM1_PORTS, self.serial, "COM1"),
            (self.ports, DEBUG_PORT, 1, self.debug_port, "debug port"),
            (self.ports, ELCR, ELCR_PORTS, pic.elcr, "8259 edge/level control"),
            (self.ports, PVPANIC, 1, Pvpanic(), "pvpanic"),
            (self.ports, FW_CFG, fw_cfg.PORTS, self.fw_cfg, "fw_cfg"),
            (self.ports, 0x5F4, 4, ExitDevice(), "exit device"),
            (self.mmio, SHADOW_BASE, SHADOW_BYTES, alias, "firmware below 1 MiB"),
            (self.mmio, IO_APIC_BASE, 0x20, self.interrupts.ioapic, "I/O APIC"),
            (self.mmio, INTERRUPT_BASE, 0x1000, self.lapic, "local APIC"),
            (self.mmio, HIGH_BASE - len(self.rom), len(self.rom), rom, "firmware"),
        ]
        if has_fw_cfg_dma(self.config):
            table.append((self.ports, FW_CFG_DMA, fw_cfg_dma.PORTS, self.fw_cfg_dma, "fw_cfg DMA"))
        for space, base, length, handler, owner in table:
            space.add(base, length, handler, owner)

    def _pm_ports(self) -> AddressSpace:
        """The power management ports as the PIIX4 has them, counted from their base."""
        ports = AddressSpace("power management", 6)
        ports.add(0, 4, self.pm_events, "PM1a events")
        ports.add(4, 2, self.pm1a, "PM1a control")
        ports.add(8, 4, PmTimer(), "PM timer")
        return ports

    # -- what the machine asks -----------------------------------------------------------------------------------------

    def reset(self) -> Effects:
        self.payload = self._load(self.config)
        effects = self.host_bridge.reset() | self.interrupts.reset()
        devices: list[Resettable] = [self.timer, self.rtc, self.serial, self.keyboard, self.port_92, self.debug_port]
        devices += [self.pm1a, self.pm_events, self.fw_cfg, self.fw_cfg_dma, *self.mmio_transports]
        for device in devices:
            effects |= device.reset()
        return effects

    def press_power_button(self, now_ns: int) -> Effects:
        return self.pm_events.press_power_button(now_ns)

    def take_debug_output(self) -> bytes:
        return self.debug_port.take_output()

    def make_cpu(self, platform: X86Platform) -> X86Cpu:
        """A CPU at the reset vector of our firmware."""
        from vmm.cpu.unicorn_cpu import UnicornCpu

        return UnicornCpu(self.memory, platform, self.rom)

    @staticmethod
    def is_interrupt_address(address: int) -> bool:
        """Whether a device's write to this address is an interrupt message (Intel SDM 3A §11.11)."""
        return INTERRUPT_BASE <= address < INTERRUPT_BASE + INTERRUPT_BYTES


def _rom(config: MachineConfig) -> bytes:
    """What the processor finds below 4 GiB; without firmware there is an empty ROM."""
    if config.bios == NO_FIRMWARE:
        return b"\xff" * firmware.ROM_BYTES
    return loader.read_firmware(config.bios) if config.bios else firmware.image()


def _fw_cfg_items(config: MachineConfig) -> dict[int, bytes]:
    """What firmware asks for by number."""
    return {
        fw_cfg.KEY_RAM_SIZE: struct.pack("<Q", config.memory_bytes),
        fw_cfg.KEY_NOGRAPHIC: struct.pack("<H", 1),
        fw_cfg.KEY_NB_CPUS: struct.pack("<H", 1),
        fw_cfg.KEY_BOOT_MENU: struct.pack("<H", 0),
        fw_cfg.KEY_MAX_CPUS: struct.pack("<H", 1),
    }


_RING_FEATURE_OF = {
    "indirect_desc": spec.VIRTIO_F_INDIRECT_DESC,
    "event_idx": spec.VIRTIO_F_EVENT_IDX,
    "packed": spec.VIRTIO_F_RING_PACKED,
    "in_order": spec.VIRTIO_F_IN_ORDER,
    "queue_reset": spec.VIRTIO_F_RING_RESET,
    "notification-data": spec.VIRTIO_F_NOTIFICATION_DATA,
    "notify_on_empty": spec.VIRTIO_F_NOTIFY_ON_EMPTY,
    "any_layout": spec.VIRTIO_F_ANY_LAYOUT,
}
_FEATURE_OF = {
    **_RING_FEATURE_OF,
    "must-tell-host": spec.VIRTIO_BALLOON_F_MUST_TELL_HOST,
    "stats-vq": spec.VIRTIO_BALLOON_F_STATS_VQ,
    "deflate-on-oom": spec.VIRTIO_BALLOON_F_DEFLATE_ON_OOM,
    "free-page-hint": spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT,
    "page-poison": spec.VIRTIO_BALLOON_F_PAGE_POISON,
    "free-page-reporting": spec.VIRTIO_BALLOON_F_PAGE_REPORTING,
}


def _features(device: DeviceConfig, names: Iterable[str]) -> int:
    """The mask to offer: each of the properties `names` that is on and that an interface of the device has room for."""
    features = sum(1 << _FEATURE_OF[name] for name in names if device.flag(name)) | 1 << spec.VIRTIO_F_VERSION_1
    if not device.has_modern_interface:
        return features & 0xFFFFFFFF
    return features if device.has_legacy_interface else features & ~LEGACY_RING_FEATURES


class BalloonUnderWatch(WatchedBalloon, Balloon):
    """The balloon where its driver is to be watched."""

    STATE: ClassVar[Table] = {**Balloon.STATE, "watch": PART}


def _make_balloon(board: Board, device: DeviceConfig) -> VirtioDevice:
    kind = BalloonUnderWatch if board.config.watch_driver else Balloon
    return kind(
        board.memory,
        name=device.id,
        features=_features(device, _FEATURE_OF),
        queue_size=device.number("queue-size"),
        numbering=cast(Numbering, device.choice("queue-numbering")),
        stats_format=device.choice("stats-format"),
        policy=_policy(device),
    )


def _policy(device: DeviceConfig) -> Policy:
    """What becomes of its driver's mistakes."""
    profile = PROFILES.get(device.choice("profile"))
    return POLICIES[device.choice("guest-errors")] if profile is None else profile.policy


def _make_rng(board: Board, device: DeviceConfig) -> VirtioDevice:
    entropy: Callable[[int], bytes] = os.urandom
    if board.config.clock == "virtual":
        board.entropy.append(SeededEntropy(device.id))
        entropy = board.entropy[-1]
    features = _features(device, _RING_FEATURE_OF)
    return Rng(board.memory, entropy, name=device.id, features=features, queue_size=device.number("queue-size"))


def make_device(board: Board, device: DeviceConfig) -> VirtioDevice:
    """The device that `device` describes, for this board or another."""
    return _MAKERS[device.driver](board, device)


_MAKERS: dict[str, Callable[[Board, DeviceConfig], VirtioDevice]] = {
    **dict.fromkeys(("virtio-balloon-pci", "virtio-balloon-device"), _make_balloon),
    **dict.fromkeys(("virtio-rng-pci", "virtio-rng-device"), _make_rng),
}

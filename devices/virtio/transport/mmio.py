"""The virtio transport over memory-mapped registers, version 2 (virtio 1.3 §4.2).

Owns the registers of one device in a block of their own, and its interrupt line.  Refuses to know where the block
stands, how the operating system learns of it, and what kind of device it carries.

- Registers have 32 bits.  A write takes effect where it covers all of them, whatever else it covers; reading gives the
  bytes that are covered.  The device's configuration from 100h on takes any width.
- The line is a level: high while InterruptStatus has a bit.  Nothing but InterruptACK and a reset takes one back.
- There is no bus that could keep the device from RAM: it may always use its queues.

Invariant: after Status 0 nothing is left of the old driver: no selection and no event.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Final

from devices.effects import NOTHING, Effects, Line
from devices.registers import Access, Register, RegisterMap
from devices.state import PART, Int, Stateful, Table, uint
from devices.virtio import spec
from devices.virtio.device import Notifications, Queue, VirtioDevice

BLOCK_BYTES: Final = 0x200
VENDOR_ID: Final = spec.VIRTIO_PCI_VENDOR_ID
_BITS = 0xFFFFFFFF
COMMON: Final[dict[str, tuple[str, Access]]] = {
    "MagicValue": ("magic_value", "ro"),
    "Version": ("version", "ro"),
    "DeviceID": ("device_id", "ro"),
    "VendorID": ("vendor_id", "ro"),
    "DeviceFeatures": ("device_features", "ro"),
    "DeviceFeaturesSel": ("device_features_sel", "wo"),
    "DriverFeatures": ("driver_features", "wo"),
    "DriverFeaturesSel": ("driver_features_sel", "wo"),
    "QueueSel": ("queue_sel", "wo"),
    "QueueSizeMax": ("queue_size_max", "ro"),
    "QueueSize": ("queue_size", "wo"),
    "QueueNotify": ("queue_notify", "wo"),
    "InterruptStatus": ("interrupt_status", "ro"),
    "InterruptACK": ("interrupt_ack", "wo"),
    "Status": ("device_status", "rw"),
}
_MODERN: Final[dict[str, tuple[str, Access]]] = {
    "QueueReady": ("queue_ready", "rw"),
    "QueueDescLow": ("queue_desc_low", "wo"),
    "QueueDescHigh": ("queue_desc_high", "wo"),
    "QueueDriverLow": ("queue_driver_low", "wo"),
    "QueueDriverHigh": ("queue_driver_high", "wo"),
    "QueueDeviceLow": ("queue_device_low", "wo"),
    "QueueDeviceHigh": ("queue_device_high", "wo"),
    # There is no shared memory: whichever region is asked for has the length and the address -1.
    "SHMLenLow": ("no_shared_memory", "ro"),
    "SHMLenHigh": ("no_shared_memory", "ro"),
    "SHMBaseLow": ("no_shared_memory", "ro"),
    "SHMBaseHigh": ("no_shared_memory", "ro"),
    "QueueReset": ("queue_reset", "rw"),
    "ConfigGeneration": ("config_generation", "ro"),
}


def register_map(name: str, table: dict[str, tuple[str, Access]]) -> RegisterMap:
    """The block of registers in `table`: the specification's name -> attribute and access."""
    rows = sorted((spec.VIRTIO_MMIO_REGISTERS[each], *row) for each, row in table.items())
    return RegisterMap(name, spec.VIRTIO_MMIO_CONFIG, _registers(rows))


def _registers(rows: Iterable[tuple[int, str, Access]]) -> Iterable[Register]:
    for offset, name, access in rows:
        yield Register(offset, 4, name, access, whole=True)


class VirtioMmio(Stateful):
    """`device` behind registers that take `BLOCK_BYTES`; `line` is the name of its interrupt line.

    ValueError when its configuration needs more room."""

    VERSION: ClassVar[int] = spec.VIRTIO_MMIO_VERSION
    REGISTERS: ClassVar[RegisterMap] = register_map("virtio-mmio", COMMON | _MODERN)
    STATE: ClassVar[Table] = {
        "device": PART,
        **dict.fromkeys(("device_features_sel", "driver_features_sel", "queue_sel"), uint(32)),
        "interrupt_status": Int(0, spec.VIRTIO_MMIO_INT_VRING | spec.VIRTIO_MMIO_INT_CONFIG),
    }

    def __init__(self, device: VirtioDevice, line: str) -> None:
        if spec.VIRTIO_MMIO_CONFIG + device.config_size > BLOCK_BYTES:
            raise ValueError(f"{device.name} has {device.config_size} bytes of configuration, more than fit")
        self.device = device
        self.line = line
        device.set_dma_enabled(True, 0)
        self.interrupt_status = 0
        self._forget_driver()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, VirtioMmio) and vars(self) == vars(other)

    def _forget_driver(self) -> None:
        self.device_features_sel = self.driver_features_sel = self.queue_sel = 0

    # -- what the machine calls ----------------------------------------------------------------------------------------

    def signal(self, notifications: Notifications) -> Effects:
        """What a notification of the driver takes on this transport (§4.2.3.4)."""
        queues, config, deadline, events = notifications
        status = self.interrupt_status
        if queues:
            status |= spec.VIRTIO_MMIO_INT_VRING
        if config:
            status |= spec.VIRTIO_MMIO_INT_CONFIG
        effects = Effects(deadline=deadline, events=events) if deadline or events else NOTHING
        return effects | self._set_interrupts(status)

    def _set_interrupts(self, status: int) -> Effects:
        before, self.interrupt_status = self.interrupt_status, status
        if bool(before) == bool(status):
            return NOTHING
        return Effects(lines=(Line(self.line, bool(status)),))

    def next_deadline_ns(self) -> int | None:
        """The device's next deadline in absolute guest time."""
        return self.device.next_deadline_ns()

    def advance(self, now_ns: int) -> Effects:
        """Let the device do what is due."""
        return self.signal(self.device.advance(now_ns))

    def reset(self) -> Effects:
        """Power-on for the registers and the device behind them."""
        self.device.reset()
        self.device.set_dma_enabled(True, 0)
        self._forget_driver()
        return self._set_interrupts(0) | Effects(deadline=True)

    # -- the bus -------------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        """The value of `size` bytes at `offset` of the block; zero where nothing is."""
        value, effects = self.REGISTERS.read(self, offset, size, now_ns)
        begin, length = self._configuration(offset, size)
        if length > 0:
            value |= self.device.read_config(begin, length) << 8 * (begin + spec.VIRTIO_MMIO_CONFIG - offset)
        return value, effects

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        """Write the low `size` bytes of `value` at `offset` of the block."""
        effects = self.REGISTERS.write(self, offset, size, value, now_ns)
        begin, length = self._configuration(offset, size)
        if length > 0 and self._claimed():
            part = value >> 8 * (begin + spec.VIRTIO_MMIO_CONFIG - offset) & (1 << 8 * length) - 1
            effects |= self.signal(self.device.write_config(begin, length, part, now_ns))
        return effects

    def _configuration(self, offset: int, size: int) -> tuple[int, int]:
        """What an access covers of the device's configuration: offset in it, bytes (0 or less for none)."""
        begin = max(offset - spec.VIRTIO_MMIO_CONFIG, 0)
        end = min(offset + size - spec.VIRTIO_MMIO_CONFIG, self.device.config_size)
        return begin, end - begin

    def _claimed(self) -> bool:
        """The driver changes something; always true, since there is no other way to this device."""
        return self.device.claim(legacy=False)

    # -- the whole device ----------------------------------------------------------------------------------------------

    magic_value = spec.VIRTIO_MMIO_MAGIC
    vendor_id = VENDOR_ID
    no_shared_memory = _BITS

    @property
    def version(self) -> int:
        return self.VERSION

    @property
    def device_id(self) -> int:
        return self.device.device_id

    @property
    def device_features(self) -> int:
        """The 32 bits that DeviceFeaturesSel shows; none beyond the 64 that are defined."""
        return (
            self.device.modern_features >> 32 * self.device_features_sel & _BITS if self.device_features_sel < 2 else 0
        )

    def write_driver_features(self, value: int, now_ns: int) -> Effects:
        if self.driver_features_sel < 2 and self._claimed():
            shift = 32 * self.driver_features_sel
            kept = self.device.driver_features & ~(_BITS << shift)
            self.device.write_driver_features(kept | value << shift)
        return NOTHING

    def write_queue_notify(self, value: int, now_ns: int) -> Effects:
        """The value is the queue's number, with NOTIFICATION_DATA in its lower half (§4.2.3.3)."""
        if not self._claimed():
            return NOTHING
        index = value & 0xFFFF if self.device.has_feature(spec.VIRTIO_F_NOTIFICATION_DATA) else value
        return self.signal(self.device.notify(index, now_ns, value))

    def write_interrupt_ack(self, value: int, now_ns: int) -> Effects:
        return self._set_interrupts(self.interrupt_status & ~value)

    @property
    def device_status(self) -> int:
        return int(self.device.status)

    def write_device_status(self, value: int, now_ns: int) -> Effects:
        if value:
            self._claimed()
            return self.signal(self.device.write_status(value, now_ns))
        effects = self.signal(self.device.write_status(0, now_ns))
        self._forget_driver()
        return effects | self._set_interrupts(0)

    @property
    def config_generation(self) -> int:
        return self.device.config_generation

    # -- the selected queue --------------------------------------------------------------------------------------------

    def _queue(self) -> Queue | None:
        queues = self.device.queues
        return queues[self.queue_sel] if self.queue_sel < len(queues) else None

    @property
    def queue_size_max(self) -> int:
        """0 where there is no such queue."""
        queue = self._queue()
        return queue.max_size if queue is not None and self.device.has_queue(queue) else 0

    def read_queue_size_max(self, now_ns: int) -> int:
        size = self.queue_size_max
        if not size:
            self.device.queue_looked_for(self.queue_sel)
        return size

    def _write_queue(self, field: str, value: int, now_ns: int) -> Effects:
        if not self._claimed() or (self._queue() is None and field != "enabled"):
            return NOTHING  # what a driver wants of a queue that is not there the device may have a word on
        return self.signal(self.device.write_queue(self.queue_sel, field, value, now_ns))

    def write_queue_size(self, value: int, now_ns: int) -> Effects:
        return self._write_queue("size", value, now_ns)

    @property
    def queue_ready(self) -> int:
        queue = self._queue()
        return int(queue.enabled) if queue is not None else 0

    def write_queue_ready(self, value: int, now_ns: int) -> Effects:
        """1 puts the queue into use, 0 takes it out (§4.2.2.2)."""
        if value == 1:
            return self._write_queue("enabled", 1, now_ns)
        return self.signal(self.device.stop_queue(self.queue_sel)) if value == 0 else NOTHING

    queue_reset = 0
    """§4.2.2.1: a reset of a queue is over before the driver can look."""

    def write_queue_reset(self, value: int, now_ns: int) -> Effects:
        """1 resets the queue, with RING_RESET (§2.6.1)."""
        return self._write_queue("reset", 1, now_ns) if value == 1 else NOTHING

    def _write_half(self, field: str, shift: int, value: int, now_ns: int) -> Effects:
        queue = self._queue()
        if queue is None:
            return NOTHING
        kept: int = getattr(queue, field) & ~(_BITS << shift)
        return self._write_queue(field, kept | value << shift, now_ns)

    def write_queue_desc_low(self, value: int, now_ns: int) -> Effects:
        return self._write_half("desc_gpa", 0, value, now_ns)

    def write_queue_desc_high(self, value: int, now_ns: int) -> Effects:
        return self._write_half("desc_gpa", 32, value, now_ns)

    def write_queue_driver_low(self, value: int, now_ns: int) -> Effects:
        return self._write_half("driver_gpa", 0, value, now_ns)

    def write_queue_driver_high(self, value: int, now_ns: int) -> Effects:
        return self._write_half("driver_gpa", 32, value, now_ns)

    def write_queue_device_low(self, value: int, now_ns: int) -> Effects:
        return self._write_half("device_gpa", 0, value, now_ns)

    def write_queue_device_high(self, value: int, now_ns: int) -> Effects:
        return self._write_half("device_gpa", 32, value, now_ns)

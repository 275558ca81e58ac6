"""What a machine may ask of its board, whatever processor stands on it.

A board is RAM with the guest's image in it, a bus, devices on it and the lines between them, built after a
configuration; it has no CPU and no clock of its own.  What only one kind of processor has (ports, interrupt messages)
belongs to that board's module.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from devices.bus import AddressSpace
from devices.effects import Effects
from devices.errors import ConfigError
from devices.memory import GuestMemory
from devices.serial import Serial
from devices.state import COUNTER, Stateful, Table
from devices.virtio.balloon import Balloon
from devices.virtio.device import Notifications, VirtioDevice
from vmm.config import MachineConfig
from vmm.watch import WatchedBalloon

if TYPE_CHECKING:
    from vmm.cpu import Cpu
    from vmm.loader import Payload


class Timed(Protocol):
    """Something with deadlines in guest time."""

    def next_deadline_ns(self) -> int | None: ...

    def advance(self, now_ns: int) -> Effects: ...


class Resettable(Protocol):
    """Something that can begin anew."""

    def reset(self) -> Effects: ...


class Interrupts(Protocol):
    """The lines of a board, and whether one of them asks for the processor."""

    def set_line(self, name: str, level: bool) -> Effects: ...

    def is_pending(self) -> bool: ...


class Transport(Timed, Protocol):
    """A virtio device as the board's bus has it."""

    @property
    def device(self) -> VirtioDevice: ...

    def signal(self, notifications: Notifications) -> Effects: ...


@dataclass(frozen=True, slots=True)
class Saved:
    """What a board of a saved machine gets instead of files: the ROM, and its RAM, where the guest is or will be."""

    rom: bytes
    memory: GuestMemory


def make_memory(layout: list[tuple[int, int]], config: MachineConfig, saved: Saved | None) -> GuestMemory:
    """The RAM of a board that has it at `layout`, (gpa, bytes) of each region.  ConfigError if what was saved has it
    elsewhere, or the host cannot give it."""
    if saved is None:
        return GuestMemory(layout, backing=config.ram_backing)
    if [(region.gpa, region.size) for region in saved.memory.regions] != layout:
        saved.memory.close()
        raise ConfigError("The saved state is of a machine with other places of RAM.")
    return saved.memory


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


class Board(Stateful, ABC):
    """The part of a board that is the same for all.  A subclass fills the attributes in.

    `rom` is what the processor finds at power-on (it may be empty), `payload` the guest that was put into RAM (None
    where there is none, or RAM comes with a saved state), `interrupts` the lines, `timed` whoever has deadlines,
    `transports` the virtio devices in the order in which the user named them, `entropy` where random bytes come from
    that must not differ from run to run; `balloon_driver` is what the user calls a balloon on this board."""

    config: MachineConfig
    memory: GuestMemory
    rom: bytes
    mmio: AddressSpace
    serial: Serial
    payload: Payload | None
    interrupts: Interrupts
    timed: Sequence[Timed]
    transports: Sequence[Transport]
    entropy: list[SeededEntropy]
    balloon_driver: ClassVar[str]

    @abstractmethod
    def make_cpu(self, platform: Any) -> Cpu:
        """The board's processor at power-on; `platform` answers what it asks."""

    @abstractmethod
    def press_power_button(self, now_ns: int) -> Effects:
        """ConfigError where there is none."""

    @abstractmethod
    def reset(self) -> Effects:
        """Every device as at power-on, and the guest's image in RAM again; what the host set, and counters, stay.
        ConfigError, and nothing done, when the image cannot be read."""

    def take_debug_output(self) -> bytes:
        """What came out of the debug port since the last call; nothing where there is no such port."""
        return b""

    # -- its virtio devices --------------------------------------------------------------------------------------------

    @property
    def virtio_devices(self) -> list[VirtioDevice]:
        """The virtio devices in the order of their places."""
        return [transport.device for transport in self.transports]

    @property
    def balloon(self) -> tuple[Transport, Balloon] | None:
        """The first balloon with its transport."""
        for transport in self.transports:
            if isinstance(transport.device, Balloon):
                return transport, transport.device
        return None

    @property
    def watched(self) -> tuple[Transport, WatchedBalloon] | None:
        """The same if its driver is watched."""
        found = self.balloon
        return (found[0], found[1]) if found is not None and isinstance(found[1], WatchedBalloon) else None

    def need_balloon(self) -> tuple[Transport, Balloon]:
        """The balloon; ConfigError when the machine has none."""
        found = self.balloon
        if found is None:
            raise ConfigError(f"This machine has no balloon; add one with -device {self.balloon_driver}.")
        return found

"""How a Linux guest's root looks at the balloon's configuration space past the driver, through sysfs: `poison_val`.

A legacy function has it in its I/O BAR (virtio 1.3 §4.1.4.10), a modern one lets itself be read through the window in
PCI configuration space (§4.1.4.9), which takes where to look from the capability of the device's configuration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from tests.boot.guest import Linux

PCI = "/sys/bus/pci/devices/0000:00:03.0"
POISON_VAL = 12
VENDOR_CAPABILITY, CAPABILITY_POINTER = 9, 0x34
DEVICE_CFG, PCI_CFG = 4, 5
CAP_BAR, CAP_OFFSET, CAP_LENGTH, CAP_DATA = 4, 8, 12, 16


def _read(guest: Linux, file: str, offset: int, count: int = 1) -> bytes:
    """`count` words of 4 bytes, each by one access."""
    text = guest.ask(f"dd if={PCI}/{file} bs=4 skip={offset // 4} count={count} 2>/dev/null | od -An -v -tx1")
    return bytes.fromhex(text)


def _write(guest: Linux, file: str, offset: int, data: bytes) -> None:
    """All of it by one access."""
    octal = "".join(f"\\{byte:03o}" for byte in data)
    size = len(data)
    guest.ask(f"printf '{octal}' | dd of={PCI}/{file} bs={size} seek={offset // size} conv=notrunc 2>/dev/null")


class Registers(ABC):
    """A place where the guest finds the balloon's configuration space."""

    @abstractmethod
    def read_poison_val(self, guest: Linux) -> int: ...

    @abstractmethod
    def write_poison_val(self, guest: Linux, value: int) -> None: ...


class LegacyRegisters(Registers):
    """The configuration space begins at byte `offset` of the I/O BAR."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def read_poison_val(self, guest: Linux) -> int:
        return int.from_bytes(_read(guest, "resource0", self._offset + POISON_VAL), "little")

    def write_poison_val(self, guest: Linux, value: int) -> None:
        _write(guest, "resource0", self._offset + POISON_VAL, value.to_bytes(4, "little"))


class Window(Registers):
    """The window of a function that a modern driver finds."""

    def _aim(self, guest: Linux) -> int:
        """Open it on `poison_val`; where its data is in configuration space."""
        space = _read(guest, "config", 0, 64)
        device = window = 0
        at = space[CAPABILITY_POINTER]
        while at:
            if space[at] == VENDOR_CAPABILITY:
                device = at if space[at + 3] == DEVICE_CFG else device
                window = at if space[at + 3] == PCI_CFG else window
            at = space[at + 1]
        assert device and window
        offset = int.from_bytes(space[device + CAP_OFFSET : device + CAP_OFFSET + 4], "little") + POISON_VAL
        _write(guest, "config", window + CAP_BAR, space[device + CAP_BAR : device + CAP_BAR + 1])
        _write(guest, "config", window + CAP_OFFSET, offset.to_bytes(4, "little"))
        _write(guest, "config", window + CAP_LENGTH, (4).to_bytes(4, "little"))
        return window + CAP_DATA

    def read_poison_val(self, guest: Linux) -> int:
        return int.from_bytes(_read(guest, "config", self._aim(guest)), "little")

    def write_poison_val(self, guest: Linux, value: int) -> None:
        _write(guest, "config", self._aim(guest), value.to_bytes(4, "little"))


PCI_WINDOW = Window()

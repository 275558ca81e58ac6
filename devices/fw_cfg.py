"""fw_cfg: named read-only files that the host hands to the firmware (QEMU's documented interface; DMA is fw_cfg_dma).

The guest writes a key to the selector and reads the item byte by byte from the data port.  Keys 0 and 1 identify the
interface, 19h is the directory of the files, the files follow from 20h on in the order of their names; items with fixed
keys of their own (the size of RAM, the number of processors) lie between them.  Selecting an
item starts it from its first byte; past its end, and for keys that nobody has, the data reads as zero.

The device does not know what the files mean.  Nothing the guest does can change an item.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from devices.effects import NOTHING, Effects
from devices.state import COUNTER, Bytes, Pairs, Stateful, Table, uint

PORTS = 2  # the selector at 510h, the data at 511h

KEY_SIGNATURE = 0x0000
KEY_ID = 0x0001
KEY_RAM_SIZE = 0x0003  # le64, RAM below and above 4 GiB
KEY_NOGRAPHIC = 0x0004  # le16
KEY_NB_CPUS = 0x0005  # le16
KEY_BOOT_MENU = 0x000E  # le16
KEY_MAX_CPUS = 0x000F  # le16
KEY_FILE_DIRECTORY = 0x0019
KEY_FIRST_FILE = 0x0020
KEY_LIMIT = 0x4000
_WRITE_CHANNEL = 0x4000  # an obsolete bit of the selector: the same item, for writing

SIGNATURE = b"QEMU"
ID_TRADITIONAL, ID_DMA = 1 << 0, 1 << 1

MAX_NAME_BYTES = 55
MAX_ITEM_BYTES = (1 << 32) - 1  # the directory has 32 bits for a size
_DIRECTORY_ENTRY = struct.Struct(">IHH56s")  # size, key, reserved, NUL-terminated name; big-endian, unlike the rest


class FwCfg(Stateful):
    """The items of `files` (name to contents) at ports 510h and 511h; a bus handler, resettable.

    `dma` says that the board has the DMA interface too.  `items` have fixed keys, from 2 to 1Fh and not 19h.
    ValueError when a key is another, a name is empty, longer than 55 bytes or not ASCII, or when there are more files
    than keys.

    Accesses: a 16-bit write to the selector selects.  Wider writes select by their low half, narrower ones and all
    writes to the data port are ignored.  Reads are made of bytes: the selector's reads as zero, the data port's is the
    next byte of the item, and bytes beyond the two ports are FFh, as from a bus where nobody answers.  So a 16-bit
    read at 511h consumes one byte, not two; use string instructions of bytes.
    """

    STATE: ClassVar[Table] = {
        "_items": Pairs(uint(16), Bytes(MAX_ITEM_BYTES)),
        "selected": uint(16),
        "position_bytes": COUNTER,
    }

    def __init__(
        self, files: Mapping[str, bytes], items: Mapping[int, bytes] = MappingProxyType({}), *, dma: bool = False
    ) -> None:
        for key in items:
            if not KEY_ID < key < KEY_FIRST_FILE or key == KEY_FILE_DIRECTORY:
                raise ValueError(f"fw_cfg: an item's key must be 2 to 1fh and not 19h, not {key:#x}")
        if len(files) > KEY_LIMIT - KEY_FIRST_FILE:
            raise ValueError(f"fw_cfg: there are keys for {KEY_LIMIT - KEY_FIRST_FILE} files, not for {len(files)}")
        named = sorted((_encode_name(name), contents) for name, contents in files.items())
        interfaces = ID_TRADITIONAL | (ID_DMA if dma else 0)
        self._items: dict[int, bytes] = {KEY_SIGNATURE: SIGNATURE, KEY_ID: struct.pack("<I", interfaces), **items}
        entries = []
        for key, (name, contents) in enumerate(named, KEY_FIRST_FILE):
            self._items[key] = bytes(contents)
            entries.append(_DIRECTORY_ENTRY.pack(len(contents), key, 0, name))
        self._items[KEY_FILE_DIRECTORY] = struct.pack(">I", len(entries)) + b"".join(entries)
        self.selected = KEY_SIGNATURE
        self.position_bytes = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FwCfg) and vars(self) == vars(other)

    def reset(self) -> Effects:
        """Select the signature again; the items are the board's and stay."""
        self.select(KEY_SIGNATURE)
        return NOTHING

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        value = sum(self._read_port(offset + i) << 8 * i for i in range(size))
        return value, NOTHING

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        if offset == 0 and size >= 2:
            self.select(value & 0xFFFF)
        return NOTHING

    def select(self, key: int) -> None:
        """Start reading the item of `key`, 16 bits as the selector has them, from its first byte."""
        self.selected = key & ~_WRITE_CHANNEL
        self.position_bytes = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes of the item, fewer at its end."""
        item = self._items.get(self.selected, b"")
        taken = item[self.position_bytes : self.position_bytes + count]
        self.position_bytes += len(taken)
        return taken

    def _read_port(self, port: int) -> int:
        if port != 1:
            return 0 if port == 0 else 0xFF
        return int.from_bytes(self.take(1), "little")


def _encode_name(name: str) -> bytes:
    if not name.isascii() or not 0 < len(name) <= MAX_NAME_BYTES or "\0" in name:
        raise ValueError(f"fw_cfg: a file name must be 1 to {MAX_NAME_BYTES} ASCII characters, not {name!r}")
    return name.encode("ascii")

"""C0000h to FFFFFh as the CPU sees it: the ROM's copy below 1 MiB, and the RAM that may stand in its place.

For each 16 KiB reads come from the ROM or from RAM, and writes go to RAM or vanish; a chipset says which (`set`).  The
CPU runs on one window of host memory that always holds what reads shall find.  Where reads come from the ROM, the RAM's
bytes are kept aside, so that nothing written is lost.  Only where both ways lead to RAM is the window writable; all
other stores come to `write`, which knows where they belong.  So a change is complete at once, for data in the middle of
a block too; translated code follows before the next block.

This RAM is the processor's alone: no device reaches it.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Any, ClassVar

from devices.state import FLAG, Bytes, Many, Pairs, State, Stateful, Table, uint
from vmm.cpu import binding

BASE, END = 0xC0000, 0x100000
SEGMENT_BYTES = 0x4000
ALIAS_BYTES = 0x20000  # so much of the ROM's end is seen below 1 MiB

_SIZE = END - BASE
_READ_ONLY = binding.PROT_READ | binding.PROT_EXECUTE


class ShadowMemory(Stateful):
    """The window of an `engine`.  At first reads find the ROM and writes vanish.

    `changed(gpa, length)` hears of every change that is not the guest's own store."""

    STATE: ClassVar[Table] = {"reads_ram": Many(FLAG), "writes_ram": Many(FLAG)}
    BESIDE: ClassVar = ("ram",)
    _RAM: ClassVar = Pairs(uint(4), Bytes(SEGMENT_BYTES))

    def __init__(self, engine: binding.Engine, rom: bytes, changed: Callable[[int, int], None]) -> None:
        self._engine = engine
        self._changed = changed
        self._rom = rom[-ALIAS_BYTES:].rjust(_SIZE, b"\xff")
        self._hidden = bytearray(_SIZE)
        self._mapping = mmap.mmap(-1, _SIZE)
        self._mapping[:] = self._rom
        self._window = memoryview(self._mapping)
        self.reads_ram = [False] * (_SIZE // SEGMENT_BYTES)
        self.writes_ram = [False] * (_SIZE // SEGMENT_BYTES)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))

    def pieces(self) -> list[tuple[int, int, int]]:
        """What the owner of the engine must map before `start`: (gpa, length, host address)."""
        return [(BASE + at, SEGMENT_BYTES, self._address + at) for at in range(0, _SIZE, SEGMENT_BYTES)]

    def start(self) -> None:
        """Take the guest's stores from now on."""
        self._engine.take_protected_writes(BASE, END - 1, self.write)

    @property
    def view(self) -> memoryview:
        """What reads find, from C0000h on; not to be written to."""
        return self._window.toreadonly()

    def set(self, gpa: int, length: int, *, reads_ram: bool, writes_ram: bool) -> None:
        """Say where reads come from and writes go to, for whole segments from `gpa` on."""
        for segment in range((gpa - BASE) // SEGMENT_BYTES, (gpa + length - BASE) // SEGMENT_BYTES):
            self._set_segment(segment, reads_ram, writes_ram)
        self._changed(gpa, length)

    def _set_segment(self, segment: int, reads_ram: bool, writes_ram: bool) -> None:
        start = segment * SEGMENT_BYTES
        span = slice(start, start + SEGMENT_BYTES)
        if reads_ram and not self.reads_ram[segment]:
            self._window[span] = self._hidden[span]
        elif self.reads_ram[segment] and not reads_ram:
            self._hidden[span] = self._window[span]
            self._window[span] = self._rom[span]
        self.reads_ram[segment], self.writes_ram[segment] = reads_ram, writes_ram
        protection = binding.PROT_ALL if reads_ram and writes_ram else _READ_ONLY
        self._engine.protect_memory(BASE + start, SEGMENT_BYTES, protection)

    # -- the state: also what the RAM holds, by segments that are not all zero -----------------------------------------

    def save_state(self) -> State:
        ram = {n: data for n in range(len(self.reads_ram)) if (data := self._ram_of(n)).count(0) != SEGMENT_BYTES}
        return {**super().save_state(), "ram": self._RAM.save(ram)}

    def _ram_of(self, segment: int) -> bytes:
        span = slice(segment * SEGMENT_BYTES, (segment + 1) * SEGMENT_BYTES)
        return bytes(self._window[span] if self.reads_ram[segment] else self._hidden[span])

    def check_state(self, saved: Any, where: str) -> None:
        super().check_state(saved, where)
        self._RAM.check({}, saved["ram"], f"{where}.ram")

    def restore_state(self, saved: Any) -> None:
        """The owner of the engine forgets all translations."""
        ram = self._RAM.restore({}, saved["ram"])
        for segment in range(len(self.reads_ram)):
            self._set_segment(segment, reads_ram=False, writes_ram=False)
            span = slice(segment * SEGMENT_BYTES, (segment + 1) * SEGMENT_BYTES)
            self._hidden[span] = ram.get(segment, b"").ljust(SEGMENT_BYTES, b"\0")
            self._set_segment(segment, saved["reads_ram"][segment], saved["writes_ram"][segment])

    # -- the CPU's side ------------------------------------------------------------------------------------------------

    def write(self, gpa: int, size: int, value: int) -> None:
        """A store of `size` bytes that may begin or end outside the window; what is outside vanishes."""
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        for offset, byte in enumerate(data, gpa - BASE):
            if 0 <= offset < _SIZE and self.writes_ram[offset // SEGMENT_BYTES]:
                target = self._window if self.reads_ram[offset // SEGMENT_BYTES] else self._hidden
                target[offset] = byte

    def close(self) -> None:
        """Let go of the window."""
        self._window.release()

"""The framing of gdb's remote serial protocol ("Overview", "Packet Acknowledgment" and "Binary Data" in its manual).

A packet is `$DATA#NN`, NN the sum of DATA modulo 256 in hexadecimal.  In DATA the bytes `#`, `$`, `}` and, in answers,
`*` are written as `}` and the byte with bit 5 changed.  Between packets come `+` and `-`, which acknowledge or ask
again, and the byte 03h, which interrupts.  Everything else between packets is noise.  Without I/O: bytes in, items out.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

LONGEST_PACKET_BYTES = 0x4000
"""Of the data of one packet, as it is sent; a longer one is thrown away."""

_START, _END, _ESCAPE, _REPEAT, _INTERRUPT = b"$#}*\x03"
_ESCAPED = frozenset((_START, _END, _ESCAPE, _REPEAT))
_ESCAPE_BIT = 0x20
_CHECKSUM_DIGITS = 2


class Mark(enum.Enum):
    """What is no packet."""

    ACKNOWLEDGED = "+"
    REFUSED = "-"
    INTERRUPT = "\x03"
    DAMAGED = "damaged"  # a packet whose checksum is wrong, or that is too long


class PacketReader:
    """Takes bytes cut anywhere and gives whole packets (their data, unescaped) and marks.

    A checksum counts only while `checks`: without acknowledgments nobody looks at it."""

    def __init__(self) -> None:
        self.checks = True
        self._data: bytearray | None = None  # of the packet that has begun
        self._checksum: bytearray | None = None  # the digits of it that have come

    @property
    def pending_bytes(self) -> int:
        """How much is kept of a packet that has not ended."""
        return len(self._data or b"")

    def feed(self, data: bytes) -> Iterator[bytes | Mark]:
        """The items that end in `data`, in their order."""
        for byte in data:
            item = self._take(byte)
            if item is not None:
                yield item

    def _take(self, byte: int) -> bytes | Mark | None:
        if self._data is None:
            return self._take_between(byte)
        if self._checksum is not None:
            self._checksum.append(byte)
            return self._end() if len(self._checksum) == _CHECKSUM_DIGITS else None
        if byte == _END:
            self._checksum = bytearray()
        elif byte == _START:  # it can stand in no packet: the one before was never ended
            self._data.clear()
        elif len(self._data) <= LONGEST_PACKET_BYTES:
            self._data.append(byte)
        return None

    def _take_between(self, byte: int) -> Mark | None:
        if byte == _START:
            self._data = bytearray()
        elif byte in b"+-\x03":
            return Mark(chr(byte))
        return None

    def _end(self) -> bytes | Mark:
        data, digits = bytes(self._data or b""), bytes(self._checksum or b"")
        self._data = self._checksum = None
        if len(data) > LONGEST_PACKET_BYTES or (self.checks and not _is_sum(digits, data)):
            return Mark.DAMAGED
        return unescape(data)


def _is_sum(digits: bytes, data: bytes) -> bool:
    try:
        return bytes.fromhex(digits.decode("ascii")) == bytes((sum(data) & 0xFF,))
    except ValueError:
        return False


def unescape(data: bytes) -> bytes:
    """The bytes that `data` stands for; an escape at its very end stands for nothing."""
    if _ESCAPE not in data:
        return data
    result, rest = bytearray(), iter(data)
    for byte in rest:
        if byte == _ESCAPE:
            result += bytes(following ^ _ESCAPE_BIT for following in [next(rest, None)] if following is not None)
        else:
            result.append(byte)
    return bytes(result)


def escape(data: bytes) -> bytes:
    """`data` as it can stand in a packet."""
    return b"".join(bytes((_ESCAPE, byte ^ _ESCAPE_BIT)) if byte in _ESCAPED else bytes((byte,)) for byte in data)


def packet(data: bytes) -> bytes:
    """A whole packet of `data`, which is escaped already."""
    return b"$%s#%02x" % (data, sum(data) & 0xFF)

"""Resource descriptors: which addresses and interrupts a device uses (ACPI 6.5 §6.4).

Every function returns one descriptor as ASL's macro of that name would; `template` closes a list of them.  Bounds are
the first and the last address, inclusive.
"""

from __future__ import annotations

import struct

from firmware.acpi import aml

_END_TAG = b"\x79\x00"  # a checksum of zero stands for "not computed"
_DECODE_16 = 1
_CONSUMER, _SHARED = 1 << 0, 1 << 3  # not set: edge, active low
_BOUNDS_FIXED = 1 << 2 | 1 << 3  # _MIF and _MAF; decoded positively, for what lies behind the bridge
_MEMORY, _IO, _BUS = 0, 1, 2
_ENTIRE_RANGE = 3  # _RNG: ISA ports and others
_READ_WRITE = 1


def template(*descriptors: bytes) -> bytes:
    """ResourceTemplate () {descriptors}, a buffer."""
    return aml.buffer(b"".join(descriptors) + _END_TAG)


def io(port: int, length: int) -> bytes:
    """IO (Decode16, port, port, 1, length)"""
    return struct.pack("<BBHHBB", 0x47, _DECODE_16, port, port, 1, length)


def irq_no_flags(line: int) -> bytes:
    """IRQNoFlags () {line}: one of the 16 inputs of the 8259 pair, a rising edge."""
    return struct.pack("<BH", 0x22, 1 << line)


def level_interrupts(*lines: int) -> bytes:
    """Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) {lines}

    The first line stands at byte 5 of the descriptor."""
    flags = _CONSUMER | _SHARED
    return struct.pack(f"<BHBB{len(lines)}I", 0x89, 2 + 4 * len(lines), flags, len(lines), *lines)


def memory32_fixed(base: int, length: int) -> bytes:
    """Memory32Fixed (ReadWrite, base, length)"""
    return struct.pack("<BHBII", 0x86, 9, _READ_WRITE, base, length)


def word_bus_number(first: int, last: int) -> bytes:
    """WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, first, last, 0, last - first + 1)"""
    return _word_space(_BUS, 0, first, last)


def word_io(first: int, last: int) -> bytes:
    """WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, first, last, 0, last - first + 1)"""
    return _word_space(_IO, _ENTIRE_RANGE, first, last)


def _word_space(kind: int, flags: int, first: int, last: int) -> bytes:
    return struct.pack("<BHBBBHHHHH", 0x88, 13, kind, _BOUNDS_FIXED, flags, 0, first, last, 0, last - first + 1)


def dword_memory(first: int, last: int) -> bytes:
    """DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite, 0, first, last, 0, …)"""
    length = last - first + 1
    return struct.pack("<BHBBBIIIII", 0x87, 23, _MEMORY, _BOUNDS_FIXED, _READ_WRITE, 0, first, last, 0, length)

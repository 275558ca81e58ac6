"""Every way to break the structure of a split ring, each with a name and the section that forbids it.

A mistake is made on a `RawQueue` and published, not kicked.  `make` returns the head a device should name, or None
where the fault is not in one chain.  What a device owes the driver for any of them is the same: it must not follow, it
should set DEVICE_NEEDS_RESET (§2.1.2), it stays up, and after a reset it works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vmm.testing.driver import INDIRECT_DESC
from vmm.testing.layout import Descriptor
from vmm.testing.raw import INDIRECT, NEXT, WRITE, RawQueue

NOWHERE = 0x7F00_0000_0000
"""An address that no board has RAM at."""
HEAD = 1
"""The head that the single-chain mistakes use."""


class Mistake(NamedTuple):
    """One broken rule and the `section` that states it.  `needs` and `without` are masks of features: what must be
    negotiated for it to be a mistake, and what must not."""

    name: str
    section: str
    make: Callable[[RawQueue], int | None]
    needs: int = 0
    without: int = 0


def available_index_jumps(raw: RawQueue) -> None:
    """The available index runs further ahead than the queue has entries."""
    raw.available_index(raw.avail_idx + raw.size + 1)


def available_index_goes_back(raw: RawQueue) -> None:
    """The available index is taken back to before a buffer that the device has returned already."""
    raw.available_index(raw.used_idx - 1)


def available_index_half_way_round(raw: RawQueue) -> None:
    """As far ahead as 16 bits can be read either way."""
    raw.available_index(raw.avail_idx + 0x8000)


def head_out_of_range(raw: RawQueue) -> int:
    """The first index that the descriptor table does not have."""
    raw.available(raw.size)
    return raw.size


def head_far_out_of_range(raw: RawQueue) -> int:
    raw.available(0xFFFF)
    return 0xFFFF


def next_out_of_range(raw: RawQueue) -> int:
    raw.descriptor(HEAD, raw.buffer(bytes(4)), 4, NEXT, raw.size)
    raw.available(HEAD)
    return HEAD


def chain_of_one_that_loops(raw: RawQueue) -> int:
    raw.descriptor(HEAD, raw.buffer(bytes(4)), 4, NEXT, HEAD)
    raw.available(HEAD)
    return HEAD


def chain_that_loops(raw: RawQueue) -> int:
    """Three descriptors in a ring, entered from a fourth."""
    gpa = raw.buffer(bytes(4))
    for slot, following in ((HEAD, 4), (4, 5), (5, 6), (6, 4)):
        raw.descriptor(slot, gpa, 4, NEXT, following)
    raw.available(HEAD)
    return HEAD


def readable_after_writable(raw: RawQueue) -> int:
    gpa = raw.buffer(bytes(8))
    raw.descriptor(HEAD, gpa, 4, NEXT | WRITE, 2)
    raw.descriptor(2, gpa + 4, 4)
    raw.available(HEAD)
    return HEAD


def zero_length_descriptor(raw: RawQueue) -> int:
    """A buffer element without a byte: what QEMU refuses as well."""
    raw.descriptor(HEAD, raw.buffer(bytes(4)), 0)
    raw.available(HEAD)
    return HEAD


def buffer_outside_ram(raw: RawQueue) -> int:
    raw.descriptor(HEAD, NOWHERE, 4)
    raw.available(HEAD)
    return HEAD


def buffer_half_outside_ram(raw: RawQueue) -> int:
    """The last two bytes below the PC's hole at A0000h, and two in it."""
    raw.descriptor(HEAD, 0x9FFFE, 4)
    raw.available(HEAD)
    return HEAD


def buffer_wraps_around_64_bits(raw: RawQueue) -> int:
    """The sum of address and length is a small, harmless number."""
    raw.descriptor(HEAD, 2**64 - 8, 0x1000)
    raw.available(HEAD)
    return HEAD


def buffer_of_4_gib(raw: RawQueue) -> int:
    """A length of all ones from the start of RAM."""
    raw.descriptor(HEAD, 0, 0xFFFF_FFFF)
    raw.available(HEAD)
    return HEAD


def writable_buffer_outside_ram(raw: RawQueue) -> int:
    raw.descriptor(HEAD, NOWHERE, 4, WRITE)
    raw.available(HEAD)
    return HEAD


def second_descriptor_outside_ram(raw: RawQueue) -> int:
    raw.descriptor(HEAD, raw.buffer(bytes(4)), 4, NEXT, 2)
    raw.descriptor(2, NOWHERE, 4)
    raw.available(HEAD)
    return HEAD


def writable_buffer_half_outside_ram(raw: RawQueue) -> int:
    """A page below the PC's hole at A0000h, and one in it."""
    raw.descriptor(HEAD, 0x9F000, 0x2000, WRITE)
    raw.available(HEAD)
    return HEAD


def writable_buffer_wraps_around_64_bits(raw: RawQueue) -> int:
    """The range would end at the first pages of RAM."""
    raw.descriptor(HEAD, 2**64 - 0x1000, 0x3000, WRITE)
    raw.available(HEAD)
    return HEAD


def writable_buffer_of_4_gib(raw: RawQueue) -> int:
    raw.descriptor(HEAD, 0, 0xFFFF_F000, WRITE)
    raw.available(HEAD)
    return HEAD


def second_writable_buffer_outside_ram(raw: RawQueue) -> int:
    """The first buffer is a page that could be taken; a chain is taken whole or not at all."""
    raw.descriptor(HEAD, raw.buffer(bytes(0x1000)), 0x1000, WRITE | NEXT, 2)
    raw.descriptor(2, NOWHERE, 0x1000, WRITE)
    raw.available(HEAD)
    return HEAD


def writable_buffer_of_no_bytes(raw: RawQueue) -> int:
    raw.descriptor(HEAD, raw.buffer(bytes(0x1000)), 0, WRITE)
    raw.available(HEAD)
    return HEAD


def same_head_twice(raw: RawQueue) -> int:
    """One chain made available twice before it came back."""
    raw.descriptor(HEAD, raw.buffer(bytes(4)), 4)
    raw.available(HEAD, HEAD)
    return HEAD


def indirect_not_negotiated(raw: RawQueue) -> int:
    raw.descriptor(HEAD, raw.table([Descriptor(raw.buffer(bytes(4)), 4)]), 16, INDIRECT)
    raw.available(HEAD)
    return HEAD


def indirect_and_next(raw: RawQueue) -> int:
    raw.descriptor(HEAD, raw.table([Descriptor(raw.buffer(bytes(4)), 4)]), 16, INDIRECT | NEXT, 2)
    raw.descriptor(2, raw.buffer(bytes(4)), 4)
    raw.available(HEAD)
    return HEAD


def table_in_table(raw: RawQueue) -> int:
    inner = raw.table([Descriptor(raw.buffer(bytes(4)), 4)])
    raw.descriptor(HEAD, raw.table([Descriptor(inner, 16, INDIRECT)]), 16, INDIRECT)
    raw.available(HEAD)
    return HEAD


def table_in_itself(raw: RawQueue) -> int:
    gpa = raw.table([Descriptor(0, 0)])
    raw.driver.memory.write(gpa, Descriptor(gpa, 16, INDIRECT).pack())
    raw.descriptor(HEAD, gpa, 16, INDIRECT)
    raw.available(HEAD)
    return HEAD


def table_of_no_bytes(raw: RawQueue) -> int:
    raw.descriptor(HEAD, raw.table([Descriptor(raw.buffer(bytes(4)), 4)]), 0, INDIRECT)
    raw.available(HEAD)
    return HEAD


def table_of_one_and_a_half(raw: RawQueue) -> int:
    raw.descriptor(HEAD, raw.table([Descriptor(raw.buffer(bytes(4)), 4)] * 2), 24, INDIRECT)
    raw.available(HEAD)
    return HEAD


def table_outside_ram(raw: RawQueue) -> int:
    raw.descriptor(HEAD, NOWHERE, 16, INDIRECT)
    raw.available(HEAD)
    return HEAD


def table_of_4_gib(raw: RawQueue) -> int:
    """As many descriptors as 32 bits of length can hold (CVE-2011-2212)."""
    raw.descriptor(HEAD, raw.table([Descriptor(raw.buffer(bytes(4)), 4)]), 0xFFFF_FFF0, INDIRECT)
    raw.available(HEAD)
    return HEAD


def next_out_of_table(raw: RawQueue) -> int:
    """`next` would still be inside the queue's own table."""
    entries = [Descriptor(raw.buffer(bytes(4)), 4, NEXT, 2), Descriptor(raw.buffer(bytes(4)), 4)]
    raw.descriptor(HEAD, raw.table(entries), 32, INDIRECT)
    raw.available(HEAD)
    return HEAD


def table_that_loops(raw: RawQueue) -> int:
    gpa = raw.buffer(bytes(4))
    raw.descriptor(HEAD, raw.table([Descriptor(gpa, 4, NEXT, 1), Descriptor(gpa, 4, NEXT, 0)]), 32, INDIRECT)
    raw.available(HEAD)
    return HEAD


def chain_longer_than_the_queue(raw: RawQueue) -> int:
    """A table of one descriptor more than the queue has."""
    gpa, count = raw.buffer(bytes(4)), raw.size + 1
    entries = [Descriptor(gpa, 4, NEXT if i + 1 < count else 0, i + 1) for i in range(count)]
    raw.descriptor(HEAD, raw.table(entries), 16 * count, INDIRECT)
    raw.available(HEAD)
    return HEAD


def readable_after_writable_in_table(raw: RawQueue) -> int:
    gpa = raw.buffer(bytes(8))
    raw.descriptor(HEAD, raw.table([Descriptor(gpa, 4, NEXT | WRITE, 1), Descriptor(gpa, 4)]), 32, INDIRECT)
    raw.available(HEAD)
    return HEAD


def readable_table_after_writable(raw: RawQueue) -> int:
    """A writable descriptor first, then a table whose buffer is readable."""
    gpa = raw.buffer(bytes(8))
    raw.descriptor(HEAD, gpa, 4, NEXT | WRITE, 2)
    raw.descriptor(2, raw.table([Descriptor(gpa, 4)]), 16, INDIRECT)
    raw.available(HEAD)
    return HEAD


RING_MISTAKES = (
    Mistake("available_index_jumps", "2.7.13", available_index_jumps),
    Mistake("available_index_goes_back", "2.7.13", available_index_goes_back),
    Mistake("available_index_half_way_round", "2.7.13", available_index_half_way_round),
    Mistake("head_out_of_range", "2.7.6", head_out_of_range),
    Mistake("head_far_out_of_range", "2.7.6", head_far_out_of_range),
    Mistake("next_out_of_range", "2.7.5", next_out_of_range),
    Mistake("chain_of_one_that_loops", "2.7.5.2", chain_of_one_that_loops),
    Mistake("chain_that_loops", "2.7.5.2", chain_that_loops),
    Mistake("readable_after_writable", "2.7.4.2", readable_after_writable),
    Mistake("zero_length_descriptor", "2.7.5", zero_length_descriptor),
    Mistake("buffer_outside_ram", "2.7.5", buffer_outside_ram),
    Mistake("buffer_half_outside_ram", "2.7.5", buffer_half_outside_ram),
    Mistake("buffer_wraps_around_64_bits", "2.7.5", buffer_wraps_around_64_bits),
    Mistake("buffer_of_4_gib", "2.7.5", buffer_of_4_gib),
    Mistake("writable_buffer_outside_ram", "2.7.5", writable_buffer_outside_ram),
    Mistake("second_descriptor_outside_ram", "2.7.5", second_descriptor_outside_ram),
    Mistake("same_head_twice", "2.7.13", same_head_twice),
    Mistake("indirect_not_negotiated", "2.7.5.3.1", indirect_not_negotiated, without=INDIRECT_DESC),
    Mistake("indirect_and_next", "2.7.5.3.1", indirect_and_next, INDIRECT_DESC),
    Mistake("table_in_table", "2.7.5.3.1", table_in_table, INDIRECT_DESC),
    Mistake("table_in_itself", "2.7.5.3.1", table_in_itself, INDIRECT_DESC),
    Mistake("table_of_no_bytes", "2.7.5.3", table_of_no_bytes, INDIRECT_DESC),
    Mistake("table_of_one_and_a_half", "2.7.5.3", table_of_one_and_a_half, INDIRECT_DESC),
    Mistake("table_outside_ram", "2.7.5", table_outside_ram, INDIRECT_DESC),
    Mistake("table_of_4_gib", "2.7.5", table_of_4_gib, INDIRECT_DESC),
    Mistake("next_out_of_table", "2.7.5", next_out_of_table, INDIRECT_DESC),
    Mistake("table_that_loops", "2.7.5", table_that_loops, INDIRECT_DESC),
    Mistake("chain_longer_than_the_queue", "2.7.5", chain_longer_than_the_queue, INDIRECT_DESC),
    Mistake("readable_after_writable_in_table", "2.7.4.2", readable_after_writable_in_table, INDIRECT_DESC),
    Mistake("readable_table_after_writable", "2.7.4.2", readable_table_after_writable, INDIRECT_DESC),
)
"""`section` is the shortest number that is right: a device may name a subsection of it."""

RANGE_MISTAKES = (
    Mistake("writable_buffer_half_outside_ram", "2.7.5", writable_buffer_half_outside_ram),
    Mistake("writable_buffer_wraps_around_64_bits", "2.7.5", writable_buffer_wraps_around_64_bits),
    Mistake("writable_buffer_of_4_gib", "2.7.5", writable_buffer_of_4_gib),
    Mistake("second_writable_buffer_outside_ram", "2.7.5", second_writable_buffer_outside_ram),
    Mistake("writable_buffer_of_no_bytes", "2.7.5", writable_buffer_of_no_bytes),
)
"""The same for queues whose device-writable buffers are ranges of memory to be given up (§5.5.6.5, §5.5.6.7): a device
that took the part of a range that is RAM would touch memory that the driver did not speak of."""

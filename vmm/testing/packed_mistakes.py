"""Every way to break the structure of a packed ring, each with a name and the section that forbids it.

As in `vmm.testing.mistakes`: a mistake is made on a `RawPackedQueue` and is visible to the device at once, but not
kicked.  `make` returns the place of the first descriptor of the chain at fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vmm.testing.driver import INDIRECT_DESC
from vmm.testing.layout import PackedDescriptor
from vmm.testing.mistakes import NOWHERE
from vmm.testing.raw import INDIRECT, NEXT, WRITE, RawPackedQueue


class PackedMistake(NamedTuple):
    """One broken rule and the `section` that states it.  `needs` and `without` are masks of features: what must be
    negotiated for it to be a mistake, and what must not."""

    name: str
    section: str
    make: Callable[[RawPackedQueue], int]
    needs: int = 0
    without: int = 0


def loop_over_the_whole_ring(raw: RawPackedQueue) -> int:
    """Every descriptor says that another follows, and all of them are available."""
    gpa = raw.buffer(bytes(4))
    place = raw.descriptor(gpa, 4, NEXT)
    for _ in range(raw.size - 1):
        raw.descriptor(gpa, 4, NEXT)
    return place


def list_that_goes_on_where_nothing_is_available(raw: RawPackedQueue) -> int:
    """The last descriptor of the list was never written."""
    return raw.descriptor(raw.buffer(bytes(4)), 4, NEXT)


def list_that_goes_on_in_the_wrong_round(raw: RawPackedQueue) -> int:
    """Its second descriptor is marked for the other wrap counter."""
    gpa = raw.buffer(bytes(8))
    place = raw.descriptor(gpa, 4, NEXT)
    raw.descriptor(gpa + 4, 4, available=False)
    return place


def packed_readable_after_writable(raw: RawPackedQueue) -> int:
    gpa = raw.buffer(bytes(8))
    place = raw.descriptor(gpa, 4, NEXT | WRITE)
    raw.descriptor(gpa + 4, 4)
    return place


def packed_zero_length_descriptor(raw: RawPackedQueue) -> int:
    return raw.descriptor(raw.buffer(bytes(4)), 0)


def zero_length_descriptor_in_a_list(raw: RawPackedQueue) -> int:
    place = raw.descriptor(raw.buffer(bytes(4)), 4, NEXT)
    raw.descriptor(raw.buffer(bytes(4)), 0)
    return place


def packed_buffer_outside_ram(raw: RawPackedQueue) -> int:
    return raw.descriptor(NOWHERE, 4)


def packed_buffer_half_outside_ram(raw: RawPackedQueue) -> int:
    """The last two bytes below the PC's hole at A0000h, and two in it."""
    return raw.descriptor(0x9FFFE, 4)


def packed_buffer_wraps_around_64_bits(raw: RawPackedQueue) -> int:
    return raw.descriptor(2**64 - 8, 0x1000)


def packed_buffer_of_4_gib(raw: RawPackedQueue) -> int:
    return raw.descriptor(0, 0xFFFF_FFFF)


def packed_writable_buffer_outside_ram(raw: RawPackedQueue) -> int:
    return raw.descriptor(NOWHERE, 4, WRITE)


def packed_second_descriptor_outside_ram(raw: RawPackedQueue) -> int:
    place = raw.descriptor(raw.buffer(bytes(4)), 4, NEXT)
    raw.descriptor(NOWHERE, 4)
    return place


def buffer_id_twice(raw: RawPackedQueue) -> int:
    """Two buffers with one id, made available together."""
    gpa = raw.buffer(bytes(4))
    raw.descriptor(gpa, 4, buffer_id=1)
    return raw.descriptor(gpa, 4, buffer_id=1)


def packed_indirect_not_negotiated(raw: RawPackedQueue) -> int:
    return raw.descriptor(raw.table([PackedDescriptor(raw.buffer(bytes(4)), 4)]), 16, INDIRECT)


def packed_indirect_and_next(raw: RawPackedQueue) -> int:
    place = raw.descriptor(raw.table([PackedDescriptor(raw.buffer(bytes(4)), 4)]), 16, INDIRECT | NEXT)
    raw.descriptor(raw.buffer(bytes(4)), 4)
    return place


def table_at_the_end_of_a_list(raw: RawPackedQueue) -> int:
    """What a split ring allows: direct descriptors, then an indirect one."""
    place = raw.descriptor(raw.buffer(bytes(4)), 4, NEXT)
    raw.descriptor(raw.table([PackedDescriptor(raw.buffer(bytes(4)), 4)]), 16, INDIRECT)
    return place


def packed_table_of_no_bytes(raw: RawPackedQueue) -> int:
    return raw.descriptor(raw.table([PackedDescriptor(raw.buffer(bytes(4)), 4)]), 0, INDIRECT)


def packed_table_of_one_and_a_half(raw: RawPackedQueue) -> int:
    return raw.descriptor(raw.table([PackedDescriptor(raw.buffer(bytes(4)), 4)] * 2), 24, INDIRECT)


def packed_table_outside_ram(raw: RawPackedQueue) -> int:
    return raw.descriptor(NOWHERE, 16, INDIRECT)


def packed_table_of_4_gib(raw: RawPackedQueue) -> int:
    """As many descriptors as 32 bits of length can hold."""
    return raw.descriptor(raw.table([PackedDescriptor(raw.buffer(bytes(4)), 4)]), 0xFFFF_FFF0, INDIRECT)


def table_longer_than_the_queue(raw: RawPackedQueue) -> int:
    gpa, count = raw.buffer(bytes(4)), raw.size + 1
    return raw.descriptor(raw.table([PackedDescriptor(gpa, 4)] * count), 16 * count, INDIRECT)


def packed_readable_after_writable_in_table(raw: RawPackedQueue) -> int:
    gpa = raw.buffer(bytes(8))
    return raw.descriptor(raw.table([PackedDescriptor(gpa, 4, 0, WRITE), PackedDescriptor(gpa, 4)]), 32, INDIRECT)


def table_with_a_buffer_outside_ram(raw: RawPackedQueue) -> int:
    return raw.descriptor(raw.table([PackedDescriptor(NOWHERE, 4)]), 16, INDIRECT)


PACKED_MISTAKES = (
    PackedMistake("loop_over_the_whole_ring", "2.8.17", loop_over_the_whole_ring),
    PackedMistake(
        "list_that_goes_on_where_nothing_is_available", "2.8.17", list_that_goes_on_where_nothing_is_available
    ),
    PackedMistake("list_that_goes_on_in_the_wrong_round", "2.8.17", list_that_goes_on_in_the_wrong_round),
    PackedMistake("packed_readable_after_writable", "2.8.17", packed_readable_after_writable),
    PackedMistake("packed_zero_length_descriptor", "2.8.13", packed_zero_length_descriptor),
    PackedMistake("zero_length_descriptor_in_a_list", "2.8.13", zero_length_descriptor_in_a_list),
    PackedMistake("packed_buffer_outside_ram", "2.8.13", packed_buffer_outside_ram),
    PackedMistake("packed_buffer_half_outside_ram", "2.8.13", packed_buffer_half_outside_ram),
    PackedMistake("packed_buffer_wraps_around_64_bits", "2.8.13", packed_buffer_wraps_around_64_bits),
    PackedMistake("packed_buffer_of_4_gib", "2.8.13", packed_buffer_of_4_gib),
    PackedMistake("packed_writable_buffer_outside_ram", "2.8.13", packed_writable_buffer_outside_ram),
    PackedMistake("packed_second_descriptor_outside_ram", "2.8.13", packed_second_descriptor_outside_ram),
    PackedMistake("buffer_id_twice", "2.8.21.1", buffer_id_twice),
    PackedMistake("packed_indirect_not_negotiated", "2.8.19", packed_indirect_not_negotiated, without=INDIRECT_DESC),
    PackedMistake("packed_indirect_and_next", "2.8.19", packed_indirect_and_next, INDIRECT_DESC),
    PackedMistake("table_at_the_end_of_a_list", "2.8.19", table_at_the_end_of_a_list, INDIRECT_DESC),
    PackedMistake("packed_table_of_no_bytes", "2.8.7", packed_table_of_no_bytes, INDIRECT_DESC),
    PackedMistake("packed_table_of_one_and_a_half", "2.8.7", packed_table_of_one_and_a_half, INDIRECT_DESC),
    PackedMistake("packed_table_outside_ram", "2.8.13", packed_table_outside_ram, INDIRECT_DESC),
    PackedMistake("packed_table_of_4_gib", "2.8", packed_table_of_4_gib, INDIRECT_DESC),
    PackedMistake("table_longer_than_the_queue", "2.8.17", table_longer_than_the_queue, INDIRECT_DESC),
    PackedMistake(
        "packed_readable_after_writable_in_table", "2.8.17", packed_readable_after_writable_in_table, INDIRECT_DESC
    ),
    PackedMistake("table_with_a_buffer_outside_ram", "2.8.13", table_with_a_buffer_outside_ram, INDIRECT_DESC),
)
"""`section` is the shortest number that is right: a device may name a subsection of it, and of a table that is both too
long and not in RAM either."""

"""Chains followed in lock-step: what it accepts and what it leaves to the other way.  RAM here is never touched."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from devices.errors import DriverError
from devices.memory import GuestMemory
from devices.virtio.walk import Walker
from vmm.testing.layout import Descriptor
from vmm.testing.raw import INDIRECT, NEXT, WRITE

GIB = 1 << 30
TABLE_GPA = 0x1000
SIZE = 16


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """4 GiB in one piece, of which the host backs one page."""
    with GuestMemory(((0, 4 * GIB),)) as memory:
        yield memory


def place(memory: GuestMemory, lengths: list[int]) -> Walker:
    """A table whose first chain has buffers of these lengths, and whose last descriptor is a chain of 4 bytes."""
    last = len(lengths) - 1
    for i, length in enumerate(lengths):
        memory.write(TABLE_GPA + 16 * i, Descriptor(0, length, NEXT * (i < last), i + 1).pack())
    memory.write(TABLE_GPA + 16 * (SIZE - 1), Descriptor(0, 4).pack())
    return Walker(memory, TABLE_GPA, SIZE, False)


HEADS = np.array([0, SIZE - 1], np.intp)


@pytest.mark.parametrize("lengths", [[0xFFFF_FFFF, 1], [0x8000_0000, 0x8000_0000], [GIB] * 4])
def test_2_7_5_2_a_chain_of_2_to_the_32_bytes_is_as_long_as_one_may_be(memory: GuestMemory, lengths: list[int]) -> None:
    walker = place(memory, lengths)
    chains = walker.in_lock_step(HEADS)
    assert chains is not None
    assert chains.readable_bytes() == [1 << 32, 4]
    assert walker.one_by_one(HEADS.tolist(), bytearray(SIZE)).readable_bytes() == [1 << 32, 4]


@pytest.mark.parametrize("lengths", [[0xFFFF_FFFF, 2], [0x8000_0000, 0x8000_0001], [GIB] * 4 + [1], [0xFFFF_FFFF] * 15])
def test_2_7_5_2_a_longer_chain_is_refused_both_ways(memory: GuestMemory, lengths: list[int]) -> None:
    walker = place(memory, lengths)
    assert walker.in_lock_step(HEADS) is None
    with pytest.raises(DriverError, match=r"more than 2\^32"):
        walker.one_by_one(HEADS.tolist(), bytearray(SIZE))


def test_2_7_5_2_chains_that_are_that_long_only_together_are_accepted(memory: GuestMemory) -> None:
    """The rule is each chain's."""
    for slot in range(SIZE):
        memory.write(TABLE_GPA + 16 * slot, Descriptor(0, 0xFFFF_FFFF).pack())
    chains = Walker(memory, TABLE_GPA, SIZE, False).in_lock_step(np.arange(SIZE))
    assert chains is not None and len(chains) == SIZE


def test_2_7_3_a_big_endian_table_and_its_indirect_ones_are_followed_both_ways(memory: GuestMemory) -> None:
    """Big-endian chains are as quick as any: neither way leaves them to the other."""
    inner = 0x8000
    chains = [Descriptor(0x10_0000, 8, NEXT, 1), Descriptor(0x20_0000, 12, WRITE), Descriptor(inner, 32, INDIRECT)]
    for slot, entry in enumerate(chains):
        memory.write(TABLE_GPA + 16 * slot, entry.pack(">"))
    for slot, entry in enumerate((Descriptor(0x30_0000, 1, NEXT, 1), Descriptor(0x40_0000, 2))):
        memory.write(inner + 16 * slot, entry.pack(">"))
    walker, heads = Walker(memory, TABLE_GPA, SIZE, True, ">"), np.array([2, 0], np.intp)
    together, singly = walker.in_lock_step(heads), walker.one_by_one(heads.tolist(), bytearray(SIZE))
    assert together is not None
    for found in (together, singly):
        assert found.addr.tolist() == [0x30_0000, 0x40_0000, 0x10_0000, 0x20_0000]
        assert found.length.tolist() == [1, 2, 8, 12]
        assert found.writable.tolist() == [False, False, False, True]

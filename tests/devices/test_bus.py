"""Address spaces: who answers where, and what happens at the edges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.bus import AddressSpace, OverlapError
from devices.effects import NOTHING, Effects, Event


class Bytes:
    """Memory of `length` bytes that notes each access and reports it as an event."""

    def __init__(self, name: str, length: int) -> None:
        self.name = name
        self.bytes = bytearray(range(length))
        self.accesses: list[tuple[str, int, int, int]] = []

    def event(self) -> Effects:
        return Effects(events=(Event(self.name, "access", str(len(self.accesses))),))

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        self.accesses.append(("read", offset, size, now_ns))
        assert offset + size <= len(self.bytes)
        return int.from_bytes(self.bytes[offset : offset + size], "little"), self.event()

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        self.accesses.append(("write", offset, size, now_ns))
        assert offset + size <= len(self.bytes)
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")
        return self.event()


def space(*layout: tuple[int, int]) -> tuple[AddressSpace, list[Bytes]]:
    made = AddressSpace("port", 16)
    handlers = [Bytes(f"device{i}", length) for i, (_, length) in enumerate(layout)]
    for handler, (base, length) in zip(handlers, layout, strict=True):
        made.add(base, length, handler, handler.name)
    return made, handlers


def test_an_access_inside_a_range_goes_to_its_owner_as_it_is() -> None:
    ports, (first, second) = space((0x70, 2), (0x3F8, 8))
    assert ports.read(0x71, 1, 5)[0] == 1
    assert first.accesses == [("read", 1, 1, 5)]
    assert ports.write(0x3F8, 4, 0xAABBCCDD, 6) == Effects(events=(Event("device1", "access", "1"),))
    assert second.accesses == [("write", 0, 4, 6)]
    assert second.bytes[:5] == b"\xdd\xcc\xbb\xaa\x04"


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF), (8, 0xFFFFFFFFFFFFFFFF)])
def test_where_nobody_answers_reads_give_ones_and_writes_vanish(size: int, ones: int) -> None:
    ports, _ = space((0x70, 2))
    for address in (0, 0x68 - size, 0x72, 0xFFFF, 0x10000, 1 << 60):
        assert ports.read(address, size, 0) == (ones, NOTHING)
        assert ports.write(address, size, 0, 0) == NOTHING


LAYOUT = [(0x10, 4), (0x14, 1), (0x16, 3), (0x20, 8), (0xFFFC, 4)]


@given(
    address=st.one_of(st.integers(0x0C, 0x2A), st.integers(0xFFF4, 0x10002)),
    size=st.sampled_from([1, 2, 4, 8]),
    value=st.integers(0, (1 << 64) - 1),
)
def test_an_access_that_straddles_is_bytes_to_their_owners(address: int, size: int, value: int) -> None:
    ports, handlers = space(*LAYOUT)
    expected = {base + i: i for base, length in LAYOUT for i in range(length)}
    seen = bytes(expected.get(address + i, 0xFF) for i in range(size))
    got, effects = ports.read(address, size, 9)
    assert got == int.from_bytes(seen, "little")
    assert len(effects.events) == sum(len(handler.accesses) for handler in handlers)
    whole = any(base <= address and address + size <= base + length for base, length in LAYOUT)
    assert {each[2] for handler in handlers for each in handler.accesses} <= ({size} if whole else {1})

    value &= (1 << 8 * size) - 1
    ports.write(address, size, value, 9)
    written = value.to_bytes(size, "little")
    for handler, (base, length) in zip(handlers, LAYOUT, strict=True):
        for i in range(length):
            inside = address <= base + i < address + size
            assert handler.bytes[i] == (written[base + i - address] if inside else i)


def test_a_straddling_access_reaches_its_owners_in_ascending_order() -> None:
    ports, _ = space((0x10, 2), (0x12, 2))
    _, effects = ports.read(0x10, 4, 0)
    assert [event.source for event in effects.events] == ["device0", "device0", "device1", "device1"]
    effects = ports.write(0x11, 2, 0, 0)
    assert [(event.source, event.text) for event in effects.events] == [("device0", "3"), ("device1", "3")]


@pytest.mark.parametrize(
    ("base", "length", "there"),
    [(0x10, 4, 0), (0x0F, 2, 0), (0x13, 1, 0), (0x0E, 0x20, 0), (0x2F, 8, 1), (0x12, 30, 0)],
)
def test_two_owners_of_one_address_are_both_named(base: int, length: int, there: int) -> None:
    ports, _ = space((0x10, 4), (0x30, 4))
    old = [(0x10, 0x13), (0x30, 0x33)][there]
    with pytest.raises(OverlapError) as caught:
        ports.add(base, length, Bytes("new", length), "new")
    assert str(caught.value) == (
        f"new at {base:#x}-{base + length - 1:#x} overlaps device{there} at {old[0]:#x}-{old[1]:#x} in the port space"
    )
    assert [found.owner for found in ports.ranges] == ["device0", "device1"]


@pytest.mark.parametrize(("base", "length"), [(0xFFFF, 2), (0x10000, 1), (-1, 2), (5, 0), (5, -1)])
def test_a_range_outside_the_space_is_refused(base: int, length: int) -> None:
    ports = AddressSpace("port", 16)
    with pytest.raises(ValueError) as caught:
        ports.add(base, length, Bytes("new", 4), "new")
    assert str(caught.value) == f"new: the range {base:#x}+{length:#x} is not inside the port space"
    assert ports.ranges == ()


def test_ranges_stand_in_ascending_order_and_may_adjoin() -> None:
    ports, _ = space((0x20, 4), (0x10, 4), (0x14, 0xC), (0xFFFF, 1))
    assert [(found.base, found.end) for found in ports.ranges] == [
        (0x10, 0x14),
        (0x14, 0x20),
        (0x20, 0x24),
        (0xFFFF, 0x10000),
    ]
    assert [found.owner if (found := ports.find(address)) else None for address in (0xF, 0x10, 0x1F, 0x20, 0x24)] == [
        None,
        "device1",
        "device2",
        "device0",
        None,
    ]


def test_a_range_that_is_given_back_can_be_claimed_again_elsewhere() -> None:
    ports, (first, second) = space((0x10, 4), (0x20, 4))
    claimed = ports.find(0x10)
    assert claimed is not None
    ports.remove(claimed)
    assert ports.read(0x10, 1, 0) == (0xFF, NOTHING)
    assert ports.read(0x21, 1, 0)[0] == 1
    ports.add(0x1E, 2, first, "moved")
    assert ports.read(0x1F, 1, 0)[0] == 1
    assert first.accesses == [("read", 1, 1, 0)]
    assert len(second.accesses) == 1
    with pytest.raises(ValueError):
        ports.remove(claimed)

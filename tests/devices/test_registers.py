"""Register tables: every width, alignment and straddle, against a plain array of bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.effects import NOTHING, Effects, Event, Line
from devices.registers import Access, Register, RegisterMap

SIZE = 32
TABLE = [
    Register(0, 4, "alpha", "rw"),
    Register(4, 1, "beta", "rw"),
    Register(5, 1, "gamma", "ro"),
    Register(6, 2, "delta", "rw"),
    # 8 to 11 is a gap
    Register(12, 8, "epsilon", "rw"),
    Register(20, 4, "zeta", "wo"),
    Register(24, 2, "eta", "ro"),
    # 26 to 31 is a gap
]
MAP = RegisterMap("test block", SIZE, TABLE)
ACCESSES = st.tuples(st.integers(0, SIZE + 4), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1))


@dataclass
class Plain:
    """An owner without a side effect anywhere."""

    alpha: int = 0x11223344
    beta: int = 0x55
    gamma: int = 0x66
    delta: int = 0x7788
    epsilon: int = 0x99AABBCCDDEEFF00
    zeta: int = 0x12345678
    eta: int = 0xABCD

    def as_bytes(self) -> bytearray:
        block = bytearray(SIZE + 16)
        for register in TABLE:
            value: int = getattr(self, register.name)
            block[register.offset : register.offset + register.size] = value.to_bytes(register.size, "little")
        return block


def bytes_that(access: tuple[Access, ...]) -> set[int]:
    return {r.offset + i for r in TABLE if r.access in access for i in range(r.size)}


READABLE, WRITABLE = bytes_that(("ro", "rw")), bytes_that(("rw", "wo"))


@given(st.lists(ACCESSES, max_size=8))
def test_any_access_is_that_of_an_array_of_bytes(accesses: list[tuple[int, int, int]]) -> None:
    owner = Plain()
    oracle = owner.as_bytes()
    for offset, size, value in accesses:
        seen = bytes(oracle[i] if i in READABLE else 0 for i in range(offset, offset + size))
        assert MAP.read(owner, offset, size) == (int.from_bytes(seen, "little"), NOTHING)
        assert MAP.write(owner, offset, size, value) == NOTHING
        for i, byte in enumerate(value.to_bytes(8, "little")[:size]):
            if offset + i in WRITABLE:
                oracle[offset + i] = byte
        assert owner.as_bytes() == oracle


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("offset", range(SIZE))
def test_bits_beyond_the_access_are_not_written(offset: int, size: int) -> None:
    clean, dirty = Plain(), Plain()
    MAP.write(clean, offset, size, 0)
    MAP.write(dirty, offset, size, ~0 << 8 * size)
    assert clean == dirty


@dataclass
class Alive:
    """Reading `alpha` counts, `gamma` is computed, writing reports; `delta` has side effects both ways."""

    calls: list[tuple[str, int, int]] = field(default_factory=list)
    beta: int = 0
    delta: int = 0x1234
    epsilon: int = 0
    eta: int = 1 << 20 | 7  # wider than its register

    def read_alpha(self, now_ns: int) -> tuple[int, Effects]:
        self.calls.append(("read alpha", 0, now_ns))
        return 0xFFFF_0000_0001, Effects(deadline=True)

    def write_alpha(self, value: int, now_ns: int) -> Effects:
        self.calls.append(("write alpha", value, now_ns))
        return Effects(events=(Event("test", "alpha", "written"),))

    def read_gamma(self, now_ns: int) -> int:
        return now_ns

    def read_delta(self, now_ns: int) -> int:
        self.calls.append(("read delta", 0, now_ns))
        return 0x9999

    def write_delta(self, value: int, now_ns: int) -> Effects:
        self.calls.append(("write delta", value, now_ns))
        return Effects(lines=(Line("delta", True),))

    def write_zeta(self, value: int, now_ns: int) -> Effects:
        self.calls.append(("write zeta", value, now_ns))
        return NOTHING


def test_a_read_method_gives_the_value_or_the_value_and_its_effects() -> None:
    owner = Alive()
    assert MAP.read(owner, 0, 4, 77) == (1, Effects(deadline=True))
    assert owner.calls == [("read alpha", 0, 77)]
    assert MAP.read(owner, 5, 1, 0x42) == (0x42, NOTHING)


def test_what_a_register_cannot_hold_is_not_read() -> None:
    owner = Alive()
    assert MAP.read(owner, 24, 2) == (7, NOTHING)
    assert MAP.read(owner, 24, 4) == (7, NOTHING)
    assert MAP.read(owner, 5, 1, 0x1FF) == (0xFF, NOTHING)
    assert MAP.read(owner, 0, 8, 0)[0] & 0xFFFFFFFF == 1


def test_each_register_that_an_access_touches_is_used_once_and_in_ascending_order() -> None:
    owner = Alive()
    value, effects = MAP.read(owner, 2, 8, 5)
    assert (value, effects) == (0x9999_05_00_0000, Effects(deadline=True))
    assert owner.calls == [("read alpha", 0, 5), ("read delta", 0, 5)]
    owner.calls.clear()
    effects = MAP.write(owner, 0, 8, 0xAABB_CC_DD_11223344, 6)
    assert owner.calls == [("write alpha", 0x11223344, 6), ("write delta", 0xAABB, 6)]
    assert owner.beta == 0xDD
    assert effects == Effects(events=(Event("test", "alpha", "written"),), lines=(Line("delta", True),))


def test_a_partial_write_merges_with_the_attribute_and_never_reads() -> None:
    owner = Alive()
    MAP.write(owner, 7, 1, 0xAB, 1)
    assert owner.calls == [("write delta", 0xAB34, 1)]


def test_where_there_is_no_attribute_the_other_bytes_of_a_partial_write_are_zero() -> None:
    owner = Alive()
    MAP.write(owner, 22, 1, 0xAB, 1)
    assert owner.calls == [("write zeta", 0xAB0000, 1)]


def test_write_only_registers_read_as_zero_and_read_only_ones_ignore_writes() -> None:
    owner = Plain()
    assert MAP.read(owner, 20, 4) == (0, NOTHING)
    assert MAP.read(owner, 20, 8) == (0xABCD << 32, NOTHING)
    assert MAP.write(owner, 24, 2, 0) == NOTHING
    assert MAP.write(owner, 5, 1, 0) == NOTHING
    assert (owner.gamma, owner.eta) == (0x66, 0xABCD)


def test_a_large_register_may_be_written_in_halves() -> None:
    owner = Plain()
    MAP.write(owner, 12, 4, 0x01020304)
    MAP.write(owner, 16, 4, 0x05060708)
    assert owner.epsilon == 0x0506070801020304
    assert MAP.read(owner, 16, 4) == (0x05060708, NOTHING)


def test_an_empty_block_reads_as_zero_everywhere() -> None:
    empty = RegisterMap("nothing", 0, ())
    assert empty.read(object(), 0, 4) == (0, NOTHING)
    assert empty.write(object(), 0, 4, 1) == NOTHING


@pytest.mark.parametrize(
    ("registers", "sentence"),
    [
        ([Register(0, 4, "a", "rw"), Register(3, 1, "b", "rw")], "x: b at 0x3 is empty, overlaps or leaves the block"),
        ([Register(4, 4, "a", "rw"), Register(0, 4, "b", "rw")], "x: b at 0x0 is empty, overlaps or leaves the block"),
        ([Register(6, 4, "a", "rw")], "x: a at 0x6 is empty, overlaps or leaves the block"),
        ([Register(0, 0, "a", "rw")], "x: a at 0x0 is empty, overlaps or leaves the block"),
    ],
)
def test_a_table_that_cannot_be_is_refused(registers: list[Register], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        RegisterMap("x", 8, registers)
    assert str(caught.value) == sentence


# -- registers that take a whole value only --------------------------------------------------------------------------

WHOLE = RegisterMap("whole", 8, [Register(0, 4, "address", "rw", whole=True), Register(4, 2, "beside", "rw")])


@dataclass
class Acts:
    """Remembers what was written to `address`."""

    address: int = 0x11223344
    beside: int = 0x5566
    written: list[int] = field(default_factory=list)

    def write_address(self, value: int, now_ns: int) -> Effects:
        self.written.append(value)
        return NOTHING


@given(st.integers(0, 7), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1))
def test_a_whole_register_is_written_by_an_access_that_covers_it_or_not_at_all(
    offset: int, size: int, value: int
) -> None:
    owner, plain = Acts(), Acts().beside.to_bytes(2, "little")
    WHOLE.write(owner, offset, size, value)
    covers = offset == 0 and size >= 4
    assert owner.written == ([value & 0xFFFFFFFF] if covers else [])
    beside = bytearray(plain)
    for i, byte in enumerate(value.to_bytes(8, "little")[:size]):
        if 4 <= offset + i < 6:
            beside[offset + i - 4] = byte
    assert owner.beside == int.from_bytes(beside, "little"), "its neighbour is written as ever"


def test_a_whole_register_is_read_like_any_other() -> None:
    assert [WHOLE.read(Acts(), at, 1)[0] for at in range(6)] == [0x44, 0x33, 0x22, 0x11, 0x66, 0x55]


def test_a_register_is_found_by_its_name() -> None:
    assert WHOLE.find("beside") == Register(4, 2, "beside", "rw")
    with pytest.raises(KeyError):
        WHOLE.find("nowhere")

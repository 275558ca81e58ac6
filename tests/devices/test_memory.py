"""Guest RAM: what is RAM and what is not, reading and writing it, and giving it back to the host."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import hostcalls
from devices.errors import ConfigError, OutsideRam
from devices.memory import GuestMemory, Run
from tests.devices.ram_cases import HIGH, LAYOUT, MIB, PAGE, RAM_BYTES, is_ram, ram

__all__ = ["ram"]

TOP = (1 << 64) - 1

EDGES = sorted({edge for gpa, size in LAYOUT for edge in (gpa, gpa + size)})
ADDRESSES = st.one_of(
    st.builds(lambda edge, delta: max(edge + delta, 0), st.sampled_from(EDGES), st.integers(-20, 20)),
    st.integers(0, 11 * PAGE),
    st.integers(0, TOP),
    st.integers(TOP - 20, TOP),
)
LENGTHS = st.one_of(
    st.integers(0, 40), st.integers(PAGE - 20, 3 * PAGE), st.integers(TOP - 20, TOP), st.integers(0, TOP)
)


# -- what is RAM -----------------------------------------------------------------------------------------------------


@given(gpa=ADDRESSES, length=LENGTHS)
def test_a_range_is_ram_when_every_byte_of_it_is(gpa: int, length: int) -> None:
    with GuestMemory(LAYOUT) as memory:
        expected = is_ram(gpa, length)
        assert memory.contains(gpa, length) == expected
        assert memory.contains(np.uint64(gpa), np.uint64(length)) == expected  # type: ignore[arg-type]
        region = memory.region_of(gpa, length)
        holders = [(base, size) for base, size in LAYOUT if base <= gpa < base + size and gpa + length <= base + size]
        assert [(region.gpa, region.size)] == holders if region is not None else not holders
        assert region is None or expected


@given(st.lists(st.tuples(ADDRESSES, LENGTHS), max_size=12))
def test_arrays_of_ranges_are_judged_like_single_ones(ranges: list[tuple[int, int]]) -> None:
    with GuestMemory(LAYOUT) as memory:
        gpas = np.array([gpa for gpa, _ in ranges], np.uint64)
        lengths = np.array([length for _, length in ranges], np.uint64)
        assert memory.are_ram(gpas, lengths).tolist() == [is_ram(*each) for each in ranges]


def to_an_edge(gpa: int, edge: int, delta: int) -> tuple[int, int]:
    return gpa, max(edge - gpa, 0) + delta


ENDING_AT_AN_EDGE = st.builds(to_an_edge, st.sampled_from(EDGES), st.sampled_from(EDGES), st.sampled_from([-1, 0, 1]))


@given(ranges=st.lists(ENDING_AT_AN_EDGE.filter(lambda place: place[1] >= 0), min_size=1, max_size=12))
def test_a_range_may_end_where_ram_ends_and_not_a_byte_later(ranges: list[tuple[int, int]]) -> None:
    with GuestMemory(LAYOUT) as memory:
        gpas, lengths = np.array(ranges, np.uint64).T
        expected = [is_ram(*each) for each in ranges]
        assert memory.are_ram(gpas, lengths).tolist() == expected
        assert [memory.contains(*each) for each in ranges] == expected


@given(st.lists(st.one_of(st.integers(0, 12), st.integers(HIGH // PAGE - 3, HIGH // PAGE + 6), st.integers(0, TOP))))
def test_pages_are_ram_when_all_their_bytes_are(pfns: list[int]) -> None:
    with GuestMemory(LAYOUT) as memory:
        expected = [pfn * PAGE in RAM_BYTES for pfn in pfns]
        assert memory.are_ram_pages(np.array(pfns, np.uint64)).tolist() == expected
        low = [pfn for pfn in pfns if pfn < 1 << 32]
        answer = memory.are_ram_pages(np.array(low, np.uint32))
        assert answer.tolist() == [pfn * PAGE in RAM_BYTES for pfn in low]


def test_a_page_frame_number_is_not_cut_to_32_bits_when_it_becomes_an_address() -> None:
    with GuestMemory([(0, MIB), (HIGH, MIB)]) as memory:
        pfns = np.array([0x100000, 0x1000FF, 0x100100, 0xFFFFFFFF], np.uint32)
        assert memory.are_ram_pages(pfns).tolist() == [True, True, False, False]


def test_pages_keep_their_shape_and_order(ram: GuestMemory) -> None:
    assert ram.are_ram_pages(np.array([[6, 0], [9, 7]], np.uint32)).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("length", [-1, -PAGE, -(1 << 64)])
def test_no_length_is_negative(ram: GuestMemory, length: int) -> None:
    assert not ram.contains(PAGE, length)
    with pytest.raises(OutsideRam):
        ram.view(PAGE, length)
    with pytest.raises(OutsideRam):
        ram.read(PAGE, length)


@pytest.mark.parametrize(
    ("layout", "sentence"),
    [
        ([(0, 100)], "RAM at 0x0 must be whole pages of 4096 bytes, not 0x64 bytes"),
        ([(12, PAGE)], "RAM at 0xc must be whole pages of 4096 bytes, not 0x1000 bytes"),
        ([(0, 2 * PAGE), (PAGE, PAGE)], "RAM at 0x1000 must follow what ends at 0x2000 and not be empty"),
        ([(PAGE, PAGE), (0, PAGE)], "RAM at 0x0 must follow what ends at 0x2000 and not be empty"),
        ([(0, 0)], "RAM at 0x0 must follow what ends at 0x0 and not be empty"),
        ([], "RAM must end between 1 byte and 8 EiB, not at 0x0"),
        ([((1 << 63), PAGE)], "RAM must end between 1 byte and 8 EiB, not at 0x8000000000001000"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(
    layout: list[tuple[int, int]], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostcalls, "PAGE_BYTES", PAGE)
    with pytest.raises(ValueError) as caught:
        GuestMemory(layout)
    assert str(caught.value) == sentence


# -- reading and writing ---------------------------------------------------------------------------------------------


def test_ram_begins_as_zeros(ram: GuestMemory) -> None:
    assert ram.read(0, 6 * PAGE) == bytes(6 * PAGE)
    assert ram.read(HIGH, 4 * PAGE) == bytes(4 * PAGE)


def test_a_view_aliases_ram(ram: GuestMemory) -> None:
    view = ram.view(HIGH + 5, 3)
    view[:] = [1, 2, 3]
    assert ram.read(HIGH + 4, 5) == b"\0\1\2\3\0"
    ram.write(HIGH + 6, b"\xff")
    assert view.tolist() == [1, 255, 3]


def test_a_view_does_not_cross_regions_even_where_they_adjoin(ram: GuestMemory) -> None:
    with pytest.raises(OutsideRam) as caught:
        ram.view(4 * PAGE - 1, 2)
    assert str(caught.value) == "the 2 bytes at 0x3fff are not all in guest RAM (virtio §2.6)"


def test_reads_and_writes_cross_adjoining_regions(ram: GuestMemory) -> None:
    ram.write(4 * PAGE - 3, b"abcdef")
    assert ram.read(4 * PAGE - 4, 8) == b"\0abcdef\0"
    assert ram.peek(4 * PAGE - 4, 8) == b"\0abcdef\0"
    assert ram.view(4 * PAGE, 3).tobytes() == b"def"


@pytest.mark.parametrize("data", [b"xyz", bytearray(b"xyz"), memoryview(b"xyz"), np.frombuffer(b"xyz", np.uint8)])
def test_a_write_that_does_not_fit_changes_nothing(
    ram: GuestMemory, data: bytes | bytearray | memoryview | np.ndarray[tuple[int], np.dtype[np.uint8]]
) -> None:
    ram.write(6 * PAGE - 3, data)
    assert ram.read(6 * PAGE - 3, 3) == b"xyz"
    before = ram.read(6 * PAGE - 2, 2)
    ram.take_writes()
    with pytest.raises(OutsideRam):
        ram.write(6 * PAGE - 2, data)
    assert ram.read(6 * PAGE - 2, 2) == before
    assert ram.take_writes() == []


def test_wide_elements_are_written_as_their_bytes(ram: GuestMemory) -> None:
    ram.write(8, np.array([0x0102, 0x0304], "<u2"))
    assert ram.read(8, 4) == b"\x02\x01\x04\x03"


def test_writing_nothing_is_no_error_inside_ram_and_one_outside(ram: GuestMemory) -> None:
    ram.write(0, b"")
    ram.write(0, bytearray())
    assert ram.take_writes() == []
    with pytest.raises(OutsideRam):
        ram.write(7 * PAGE, b"")


def test_integers_are_little_endian(ram: GuestMemory) -> None:
    ram.write_int(16, 4, 0x11223344)
    assert ram.read(16, 4) == b"\x44\x33\x22\x11"
    assert ram.read_int(17, 2) == 0x2233


def test_records_are_views_or_copies_in_the_byte_order_of_their_dtype(ram: GuestMemory) -> None:
    little = np.dtype([("addr", "<u8"), ("len", "<u4"), ("flags", "<u2"), ("next", "<u2")])
    big = np.dtype([("addr", ">u8"), ("len", ">u4"), ("flags", ">u2"), ("next", ">u2")])
    ram.write(PAGE, bytes(range(32)))
    view, copy = ram.view_records(PAGE, little, 2), ram.gather_records(PAGE, little, 2)
    assert int(view["addr"][1]) == 0x1716151413121110
    assert copy["next"].tolist() == [0x0F0E, 0x1F1E]
    assert ram.gather_records(PAGE, big, 2)["len"].tolist() == [0x08090A0B, 0x18191A1B]
    view["flags"][0] = 0x55AA
    assert ram.read(PAGE + 12, 2) == b"\xaa\x55"
    assert int(copy["flags"][0]) == 0x0D0C
    copy["flags"][0] = 7
    assert ram.read(PAGE + 12, 2) == b"\xaa\x55"


def test_records_may_be_unaligned_none_at_all_or_outside(ram: GuestMemory) -> None:
    ram.write(0x101, b"\x34\x12")
    assert ram.view_records(0x101, "<u2", 1).tolist() == [0x1234]
    assert ram.view_records(0, "<u4", 0).shape == ram.gather_records(0, "<u4", 0).shape == (0,)
    assert ram.gather_records(4 * PAGE - 2, "<u4", 1).tolist() == [0]
    with pytest.raises(OutsideRam):
        ram.gather_records(HIGH, "<u8", TOP)
    with pytest.raises(OutsideRam):
        ram.view_records(10 * PAGE - 1, "<u2", 1)


# -- many places at once ---------------------------------------------------------------------------------------------

PLACES = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 10 * PAGE), st.integers(HIGH, HIGH + 4 * PAGE), st.sampled_from(EDGES), ADDRESSES),
        st.sampled_from([0, 1, 7, 16, 16, 16, 100, PAGE, PAGE + 1, TOP]),
    ),
    max_size=8,
)
SAME_LENGTH = st.builds(
    lambda gpas, length: [(gpa, length) for gpa in gpas],
    st.lists(st.one_of(st.integers(0, 4 * PAGE), st.integers(HIGH, HIGH + 2 * PAGE)), max_size=8),
    st.sampled_from([0, 1, 8, 16, 1000, PAGE, PAGE + 1]),
)


def numbered(memory: GuestMemory) -> None:
    """Give every byte of RAM a value that tells where it is."""
    for region in memory.regions:
        region.array[:] = np.arange(region.gpa, region.end, dtype=np.uint64) * 7 % 251


@given(places=st.one_of(PLACES, SAME_LENGTH))
def test_gather_reads_the_pieces_one_after_the_other(places: list[tuple[int, int]]) -> None:
    with GuestMemory(LAYOUT) as memory:
        numbered(memory)
        gpas, lengths = [gpa for gpa, _ in places], [length for _, length in places]
        bad = [place for place in places if not is_ram(*place)]
        if bad:
            with pytest.raises(OutsideRam) as caught:
                memory.gather(gpas, lengths)
            assert (caught.value.gpa, caught.value.length) == bad[0]
        else:
            expected = bytes(address * 7 % 251 for gpa, length in places for address in range(gpa, gpa + length))
            assert memory.gather(gpas, lengths).tobytes() == expected


@given(places=st.one_of(PLACES, SAME_LENGTH))
def test_reading_many_together_is_reading_them_one_by_one(places: list[tuple[int, int]]) -> None:
    with GuestMemory(LAYOUT) as memory:
        numbered(memory)
        bad = [place for place in places if not is_ram(*place)]
        if bad:
            with pytest.raises(OutsideRam) as caught:
                memory.read_together(places)
            assert (caught.value.gpa, caught.value.length) == bad[0]
        else:
            expected = [bytes(at * 7 % 251 for at in range(gpa, gpa + length)) for gpa, length in places]
            assert memory.read_together(places) == b"".join(expected)


@given(places=st.one_of(PLACES, SAME_LENGTH))
def test_scatter_writes_the_pieces_one_after_the_other_or_nothing(places: list[tuple[int, int]]) -> None:
    with GuestMemory(LAYOUT) as memory:
        gpas, lengths = [gpa for gpa, _ in places], [length for _, length in places]
        fits = all(is_ram(*place) for place in places)
        total = sum(length for length in lengths if length < TOP)
        data = bytes(i % 255 + 1 for i in range(total))
        oracle: dict[int, int] = {}
        if fits:
            memory.scatter(gpas, lengths, data)
            position = 0
            for gpa, length in places:
                oracle.update(zip(range(gpa, gpa + length), data[position : position + length], strict=True))
                position += length
        elif TOP not in lengths:
            with pytest.raises(OutsideRam):
                memory.scatter(gpas, lengths, data)
        for region in memory.regions:
            expected = bytes(oracle.get(address, 0) for address in range(region.gpa, region.end))
            assert region.array.tobytes() == expected
        written = {a for gpa, length in memory.take_writes() for a in range(gpa, gpa + length)}
        assert written == set(oracle)


@pytest.mark.parametrize("length", [1, 2, 16, PAGE])
@pytest.mark.parametrize("end", [6 * PAGE, 10 * PAGE, HIGH + 4 * PAGE])
def test_pieces_of_one_length_may_end_where_ram_ends_and_not_a_byte_later(
    ram: GuestMemory, length: int, end: int
) -> None:
    numbered(ram)
    gpas = [end - length, 0, end - length]
    expected = ram.read(end - length, length) + ram.read(0, length) + ram.read(end - length, length)
    assert ram.gather(gpas, [length] * 3).tobytes() == expected
    ram.scatter(gpas, [length] * 3, expected)
    ram.take_writes()
    for late in ([end - length + 1, 0], [0, end - length + 1], [0, end], [0, TOP - length + 1]):
        with pytest.raises(OutsideRam) as caught:
            ram.gather(late, [length] * 2)
        assert caught.value.gpa == max(late)
        with pytest.raises(OutsideRam):
            ram.scatter(late, [length] * 2, bytes(2 * length))
    assert ram.take_writes() == []


def test_a_gather_is_a_copy_whatever_the_pieces_look_like(ram: GuestMemory) -> None:
    for lengths in ([4], [4, 4], [4, 5], [4, 4, 4]):
        gpas = [0, 64, HIGH][: len(lengths)]
        before = ram.gather(gpas, lengths)
        ram.view(0, 4)[:] += 1
        assert before.tobytes() != ram.gather(gpas, lengths).tobytes()
        before[:] = 0xEE
        assert 0xEE not in ram.gather(gpas, lengths)


def test_data_of_the_wrong_size_is_not_scattered(ram: GuestMemory) -> None:
    with pytest.raises(ValueError, match="data must be 8 bytes, not 7"):
        ram.scatter([0, 64], [4, 4], bytes(7))
    with pytest.raises(ValueError, match=r"two lists of one length, not \(2,\) and \(1,\)"):
        ram.gather([0, 64], [4])


# -- who wrote what, and the end -------------------------------------------------------------------------------------


def covered(writes: list[tuple[int, int]]) -> set[int]:
    return {address for gpa, length in writes for address in range(gpa, gpa + length)}


def test_every_host_side_write_is_remembered_once(ram: GuestMemory) -> None:
    ram.write(0x100, b"abcd")
    ram.write_int(HIGH, 2, 1)
    ram.scatter([0x40, 0x80], [2, 2], b"wxyz")
    ram.discard([Run(2, 1)])
    ram.view(0x200, 1)[0] = 1
    ram.wrote(0x200, 1)
    assert ram.has_writes
    expected = [(0x100, 4), (HIGH, 2), (0x40, 2), (0x80, 2), (2 * PAGE, PAGE), (0x200, 1)]
    assert covered(ram.take_writes()) == covered(expected)
    assert ram.take_writes() == []
    assert not ram.has_writes
    ram.read(0, 100), ram.peek(0, 100), ram.view(0, 100)
    assert ram.take_writes() == []


def test_closing_twice_or_with_a_view_alive_is_no_error_and_leaves_no_descriptor() -> None:
    open_before = sorted(os.listdir("/proc/self/fd"))
    memory = GuestMemory(LAYOUT)
    view = memory.view(0, 2)
    view[:] = 7
    memory.close()
    memory.close()
    assert view.tolist() == [7, 7]
    assert memory.fd is None
    assert memory.backed_bytes() == 0
    with pytest.raises(OutsideRam):
        memory.read(0, 1)
    del view
    assert sorted(os.listdir("/proc/self/fd")) == open_before


def test_a_forgotten_ram_is_given_back() -> None:
    gc.collect()  # what other tests left behind must not go in between
    open_before = sorted(os.listdir("/proc/self/fd"))
    memory = GuestMemory(LAYOUT)
    del memory
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == open_before


def test_a_big_endian_host_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings are read as words of the host."""
    monkeypatch.setattr("sys.byteorder", "big")
    with pytest.raises(ConfigError, match=r"^the host must be little-endian, as the guest's memory is$"):
        GuestMemory(LAYOUT)

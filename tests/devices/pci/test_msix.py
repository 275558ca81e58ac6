"""The MSI-X table and pending bits (PCI 3.0 §6.8.2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.effects import NOTHING, Effects, Message
from devices.pci.msix import CONTROL_ENABLE, CONTROL_FUNCTION_MASK, MAX_VECTORS, MsixTable

PBA = 0x800
MASKED, UNMASKED = 1, 0


def table(vectors: int = 4) -> MsixTable:
    """Enabled, allowed to send, vector n pointing at FEE0n000h with data 40h + n, all unmasked."""
    msix = MsixTable(vectors, 1)
    msix.configure(CONTROL_ENABLE, True)
    for vector in range(vectors):
        msix.write(16 * vector, 8, 0xFEE00000 | vector << 12)
        msix.write(16 * vector + 8, 8, 0x40 + vector)
    return msix


def message(vector: int) -> Effects:
    return Effects(messages=(Message(0xFEE00000 | vector << 12, 0x40 + vector),))


def set_mask(msix: MsixTable, vector: int, mask: int) -> Effects:
    return msix.write(16 * vector + 12, 4, mask)


def test_6_8_2_all_vectors_are_masked_after_reset() -> None:
    msix = MsixTable(3, 1)
    assert [msix.read(16 * vector + 12, 4) for vector in range(3)] == [1, 1, 1]
    assert [msix.read(16 * vector, 8) for vector in range(3)] == [0, 0, 0]
    assert msix.read(PBA, 8) == 0


def test_an_unmasked_vector_sends_its_message_to_the_address_in_the_table() -> None:
    msix = table()
    assert msix.notify(2) == message(2)
    msix.write(16 * 2, 8, 0x12_3456789C)
    msix.write(16 * 2 + 8, 4, 0xDEADBEEF)
    assert msix.notify(2).messages == ((0x12_3456789C, 0xDEADBEEF),)
    assert not msix.is_pending(2)


def test_6_8_3_4_a_masked_vector_waits_and_the_write_that_unmasks_it_sends_it_once() -> None:
    msix = table()
    set_mask(msix, 1, MASKED)
    assert msix.notify(1) == NOTHING
    assert msix.notify(1) == NOTHING
    assert msix.read(PBA, 4) == 0b10
    assert set_mask(msix, 1, UNMASKED) == message(1)
    assert msix.read(PBA, 4) == 0
    assert set_mask(msix, 1, UNMASKED) == NOTHING


def test_unmasking_one_vector_leaves_the_others_waiting() -> None:
    msix = table()
    for vector in (0, 1, 2):
        set_mask(msix, vector, MASKED)
        msix.notify(vector)
    assert set_mask(msix, 1, UNMASKED) == message(1)
    assert msix.read(PBA, 1) == 0b101


@pytest.mark.parametrize(("offset", "size"), [(12, 1), (12, 2), (8, 8), (10, 8)])
def test_a_mask_can_be_lifted_by_a_write_of_any_width(offset: int, size: int) -> None:
    msix = table()
    set_mask(msix, 1, MASKED)
    msix.notify(1)
    kept = msix.read(16 + offset, size) & ~(1 << 8 * (12 - offset))
    assert msix.write(16 + offset, size, kept) == message(1)


def test_6_8_2_3_the_function_mask_stands_above_the_vectors_masks() -> None:
    msix = table()
    msix.configure(CONTROL_ENABLE | CONTROL_FUNCTION_MASK, True)
    set_mask(msix, 3, MASKED)
    assert [msix.notify(vector) for vector in (0, 3)] == [NOTHING, NOTHING]
    assert set_mask(msix, 0, UNMASKED) == NOTHING
    assert msix.configure(CONTROL_ENABLE, True) == message(0)
    assert msix.read(PBA, 1) == 0b1000


def test_no_message_without_bus_mastering() -> None:
    msix = table()
    msix.configure(CONTROL_ENABLE, False)
    assert msix.notify(0) == NOTHING
    assert msix.is_pending(0)
    assert msix.configure(CONTROL_ENABLE, True) == message(0)


def test_while_disabled_nothing_is_sent_and_nothing_new_is_remembered() -> None:
    msix = table()
    set_mask(msix, 1, MASKED)
    msix.notify(1)
    msix.configure(0, True)
    assert msix.notify(0) == NOTHING
    assert set_mask(msix, 1, UNMASKED) == NOTHING
    assert msix.read(PBA, 1) == 0b10
    assert msix.configure(CONTROL_ENABLE, True) == message(1)


@pytest.mark.parametrize("vector", [-1, 4, 0xFFFF])
def test_a_vector_that_does_not_exist_is_ignored(vector: int) -> None:
    msix = table(4)
    assert msix.notify(vector) == NOTHING
    assert msix == table(4)


def test_forgotten_messages_are_never_sent() -> None:
    msix = table()
    set_mask(msix, 0, MASKED)
    msix.notify(0)
    msix.forget_pending()
    assert set_mask(msix, 0, UNMASKED) == NOTHING


def test_the_pending_bits_ignore_writes() -> None:
    msix = table()
    set_mask(msix, 0, MASKED)
    msix.notify(0)
    msix.write(PBA, 8, 0)
    assert msix.read(PBA, 8) == 1
    msix.write(PBA, 8, 0xFFFFFFFF)
    assert msix.read(PBA, 8) == 1


def test_6_8_2_reserved_bits_read_as_zero() -> None:
    msix = MsixTable(1, 1)
    msix.write(0, 8, 0xFFFFFFFF_FFFFFFFF)
    msix.write(8, 8, 0xFFFFFFFF_FFFFFFFF)
    assert msix.read(0, 8) == 0xFFFFFFFF_FFFFFFFC
    assert msix.read(8, 8) == 0x00000001_FFFFFFFF


def test_reset_brings_back_the_fresh_table() -> None:
    msix = table()
    set_mask(msix, 0, MASKED)
    msix.notify(0)
    msix.reset()
    assert msix == MsixTable(4, 1)


@pytest.mark.parametrize("vectors", [1, 2, 128, 129, MAX_VECTORS])
def test_table_and_pending_bits_fit_their_range_and_do_not_overlap(vectors: int) -> None:
    msix = MsixTable(vectors, 1)
    assert 16 * vectors <= msix.pba_offset
    assert msix.pba_offset + 8 * -(-vectors // 64) <= msix.bar.size
    assert msix.pba_offset % 8 == 0
    msix.configure(CONTROL_ENABLE, True)
    msix.notify(vectors - 1)
    assert msix.read(msix.pba_offset + (vectors - 1) // 64 * 8, 8) == 1 << (vectors - 1) % 64


@pytest.mark.parametrize("vectors", [0, MAX_VECTORS + 1])
def test_a_table_of_an_impossible_size_is_our_own_bug(vectors: int) -> None:
    with pytest.raises(ValueError, match=f"the number of MSI-X vectors must be 1 to 2048, not {vectors}"):
        MsixTable(vectors, 1)


OFFSETS = st.one_of(st.integers(0, 0x48), st.integers(PBA - 8, PBA + 16), st.integers(0xFF8, 0xFFF))


@given(st.lists(st.tuples(OFFSETS, st.integers(1, 8), st.integers(0, (1 << 64) - 1)), max_size=10))
def test_any_access_is_the_same_as_its_bytes_one_by_one(accesses: list[tuple[int, int, int]]) -> None:
    whole, pieces = table(), table()
    for offset, size, value in accesses:
        whole.write(offset, size, value)
        for i in range(size):
            pieces.write(offset + i, 1, value >> 8 * i & 0xFF)
        assert whole.read(offset, size) == sum(pieces.read(offset + i, 1) << 8 * i for i in range(size))
    assert whole == pieces


@given(st.data())
def test_no_notification_is_lost_or_doubled_by_masks(data: st.DataObject) -> None:
    """Between two deliveries of a vector any number of notifications may fold into one, but never into none."""
    msix = table(3)
    waiting: set[int] = set()
    for _ in range(data.draw(st.integers(1, 20))):
        vector = data.draw(st.integers(0, 2))
        match data.draw(st.sampled_from(["notify", "mask", "unmask", "function mask", "function unmask"])):
            case "notify":
                waiting.add(vector)
                effects = msix.notify(vector)
            case "mask":
                effects = set_mask(msix, vector, MASKED)
            case "unmask":
                effects = set_mask(msix, vector, UNMASKED)
            case "function mask":
                effects = msix.configure(CONTROL_ENABLE | CONTROL_FUNCTION_MASK, True)
            case _:
                effects = msix.configure(CONTROL_ENABLE, True)
        sent = [m.data - 0x40 for m in effects.messages]
        assert len(sent) == len(set(sent)) and waiting.issuperset(sent)
        waiting.difference_update(sent)
        assert msix.read(PBA, 1) == sum(1 << v for v in waiting)
    effects = msix.configure(CONTROL_ENABLE, True)
    delivered = {m.data - 0x40 for m in effects.messages}
    for vector in range(3):
        delivered.update(m.data - 0x40 for m in set_mask(msix, vector, UNMASKED).messages)
    assert delivered == waiting

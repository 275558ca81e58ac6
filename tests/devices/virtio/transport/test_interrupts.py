"""How the driver hears of things: MSI-X vectors, the ISR status and INTx (§4.1.4.5, §4.1.5.1.2, §4.1.5.3, §4.1.5.4)."""

from __future__ import annotations

import pytest

from devices.effects import NOTHING, Effects, Event, Line, Message
from devices.virtio.device import NO_NOTIFICATIONS, Notifications
from tests.devices.virtio.transport.recording import (
    COMMAND,
    INTERRUPT_STATUS,
    INTX_DISABLE,
    ISR,
    LINE,
    MASTER,
    MEMORY,
    NO_VECTOR,
    STATUS,
    Rig,
)

QUEUE_BIT, CONFIG_BIT = 1, 2
RISE = Effects(lines=(Line(LINE, True),))
FALL = Effects(lines=(Line(LINE, False),))


def used(*queues: int) -> Notifications:
    return Notifications(queues=queues)


CONFIG = Notifications(config=True)


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def msix() -> Rig:
    """MSI-X on; queue n on vector n, the configuration on vector 3."""
    rig = Rig()
    rig.enable_msix()
    rig.map_vectors(0, 1, 2, config=3)
    return rig


def messages(*vectors: int) -> Effects:
    return Effects(messages=tuple(Message(0xFEE00000 | v << 12, 0x60 + v) for v in vectors))


def message_control(rig: Rig) -> int:
    return rig.capabilities()[0x1100] + 2


# -- vectors -----------------------------------------------------------------------------------------------------------


def test_4_1_5_1_2_1_every_event_can_be_mapped_to_every_vector_and_reads_back(rig: Rig) -> None:
    for vector in (0, 1, 2, 3, NO_VECTOR):
        rig.map_vectors(vector, vector, vector, config=vector)
        assert rig.get("config_msix_vector") == vector
        for index in range(3):
            rig.set("queue_select", index)
            assert rig.get("queue_msix_vector") == vector


@pytest.mark.parametrize("vector", [4, 0x7FF, 0x800, 0xFFFE])
def test_4_1_5_1_2_1_a_vector_that_does_not_exist_reads_back_as_no_vector(rig: Rig, vector: int) -> None:
    rig.map_vectors(1, config=1)
    rig.map_vectors(vector, config=vector)
    rig.set("queue_select", 0)
    assert rig.get("queue_msix_vector") == NO_VECTOR
    assert rig.get("config_msix_vector") == NO_VECTOR


def test_4_1_5_1_2_1_nothing_is_mapped_after_reset(rig: Rig) -> None:
    assert rig.get("config_msix_vector") == NO_VECTOR
    for index in range(3):
        rig.set("queue_select", index)
        assert rig.get("queue_msix_vector") == NO_VECTOR


# -- MSI-X -------------------------------------------------------------------------------------------------------------


def test_4_1_5_3_a_used_buffer_makes_its_queue_s_message(msix: Rig) -> None:
    assert msix.function.signal(used(1)) == messages(1)
    assert msix.function.signal(used(0, 2)) == messages(0, 2)


def test_4_1_5_4_a_configuration_change_makes_its_own_message(msix: Rig) -> None:
    assert msix.function.signal(CONFIG) == messages(3)
    assert msix.function.signal(used(2) | CONFIG) == messages(2, 3)


def test_4_1_5_4_one_message_may_stand_for_several_events(msix: Rig) -> None:
    msix.map_vectors(1, 1, 1, config=1)
    assert msix.function.signal(used(0, 1, 2) | CONFIG) == messages(1)


def test_4_1_5_3_1_no_vector_no_interrupt(msix: Rig) -> None:
    msix.map_vectors(NO_VECTOR, 1, NO_VECTOR, config=NO_VECTOR)
    assert msix.function.signal(used(0, 2)) == NOTHING
    assert msix.function.signal(used(0, 1)) == messages(1)


def test_4_1_5_4_1_no_vector_no_configuration_interrupt(msix: Rig) -> None:
    msix.map_vectors(0, 1, 2, config=NO_VECTOR)
    assert msix.function.signal(CONFIG) == NOTHING


def test_with_msix_the_pin_stays_low_and_the_queue_bit_clear(msix: Rig) -> None:
    assert msix.function.signal(used(0)).lines == ()
    assert msix.read(ISR, 1) == 0
    assert not msix.config(STATUS, 2) & INTERRUPT_STATUS


def test_4_1_4_5_1_a_configuration_change_sets_its_isr_bit_with_msix_too(msix: Rig) -> None:
    msix.function.signal(CONFIG)
    assert not msix.config(STATUS, 2) & INTERRUPT_STATUS
    assert msix.read(ISR, 1) == CONFIG_BIT


def test_a_masked_vector_waits_and_is_sent_by_the_write_that_unmasks_it(msix: Rig) -> None:
    msix.function.access_write(1, 16 * 1 + 12, 4, 1, 0)
    assert msix.function.signal(used(1)) == NOTHING
    assert msix.function.access_read(1, 0x800, 4, 0) == (0b10, NOTHING)
    assert msix.function.access_write(1, 16 * 1 + 12, 4, 0, 0) == messages(1)


def test_without_bus_mastering_messages_wait(msix: Rig) -> None:
    msix.set_config(COMMAND, 2, MEMORY)
    assert msix.function.signal(used(0) | CONFIG) == NOTHING
    assert msix.set_config(COMMAND, 2, MEMORY | MASTER) == messages(0, 3)


def test_2_4_1_no_message_of_the_old_driver_after_reset(msix: Rig) -> None:
    msix.function.access_write(1, 16 * 1 + 12, 4, 1, 0)
    msix.function.signal(used(1))
    msix.set("device_status", 0)
    assert msix.function.access_write(1, 16 * 1 + 12, 4, 0, 0) == NOTHING
    assert msix.function.signal(used(0, 1, 2)) == NOTHING


# -- ISR and INTx ------------------------------------------------------------------------------------------------------


def test_4_1_4_5_1_a_used_buffer_sets_bit_0_and_raises_the_pin(rig: Rig) -> None:
    assert rig.function.signal(used(0)) == RISE
    assert rig.config(STATUS, 2) & INTERRUPT_STATUS
    assert rig.read_with_effects(ISR, 1) == (QUEUE_BIT, FALL)


def test_4_1_4_5_1_a_configuration_change_sets_bit_1_and_raises_the_pin(rig: Rig) -> None:
    assert rig.function.signal(CONFIG) == RISE
    assert rig.read_with_effects(ISR, 1) == (CONFIG_BIT, FALL)


def test_4_1_4_5_1_reading_the_isr_clears_it(rig: Rig) -> None:
    rig.function.signal(used(0) | CONFIG)
    assert rig.read_with_effects(ISR, 1) == (QUEUE_BIT | CONFIG_BIT, FALL)
    assert not rig.config(STATUS, 2) & INTERRUPT_STATUS
    assert rig.read_with_effects(ISR, 1) == (0, NOTHING)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_isr_can_be_read_in_any_width(rig: Rig, size: int) -> None:
    rig.function.signal(used(0))
    assert rig.read_with_effects(ISR, size) == (QUEUE_BIT, FALL)


def test_only_the_isr_s_own_byte_clears_it(rig: Rig) -> None:
    rig.function.signal(used(0))
    assert rig.read_with_effects(ISR + 1, 4) == (0, NOTHING)
    assert rig.read_with_effects(ISR - 1, 2) == (0, NOTHING)
    assert rig.write(ISR, 1, 0) == NOTHING
    assert rig.read(ISR, 1) == QUEUE_BIT


def test_the_pin_rises_once_for_several_events(rig: Rig) -> None:
    assert rig.function.signal(used(0)) == RISE
    assert rig.function.signal(used(1) | CONFIG) == NOTHING


def test_vectors_mean_nothing_while_msix_is_disabled(rig: Rig) -> None:
    rig.map_vectors(NO_VECTOR, 1, 2, config=NO_VECTOR)
    assert rig.function.signal(used(0)) == RISE


def test_intx_disable_holds_the_pin_low_while_the_isr_tells(rig: Rig) -> None:
    rig.set_config(COMMAND, 2, INTX_DISABLE)
    assert rig.function.signal(used(0)) == NOTHING
    assert rig.config(STATUS, 2) & INTERRUPT_STATUS
    assert rig.set_config(COMMAND, 2, 0) == RISE


def test_enabling_msix_takes_the_pin_down(rig: Rig) -> None:
    rig.function.signal(used(0))
    assert rig.set_config(message_control(rig), 2, 0x8000) == FALL
    assert rig.set_config(message_control(rig), 2, 0) == RISE


# -- passing on --------------------------------------------------------------------------------------------------------


def test_deadline_and_events_are_passed_on(rig: Rig) -> None:
    event = Event("recorder0", "kind", "text")
    assert rig.function.signal(Notifications(deadline=True, events=(event,))) == Effects(deadline=True, events=(event,))
    assert rig.function.signal(NO_NOTIFICATIONS) == NOTHING


def test_time_is_the_device_s(rig: Rig) -> None:
    assert rig.function.next_deadline_ns() is None
    rig.device.deadline_ns = 500
    rig.device.answer = used(2)
    assert rig.function.next_deadline_ns() == 500
    assert rig.function.advance(500) == RISE
    assert rig.device.calls == [("advance", 500)]


def test_bus_mastering_is_told_to_the_device_when_it_changes(rig: Rig) -> None:
    rig.device.answer = used(0)
    assert rig.set_config(COMMAND, 2, MEMORY, 1) == NOTHING
    assert rig.set_config(COMMAND, 2, MEMORY | MASTER, 2) == RISE
    rig.device.answer = NO_NOTIFICATIONS
    rig.set_config(COMMAND, 2, MASTER, 3)
    rig.set_config(COMMAND, 1, 0, 4)
    assert rig.device.calls == [("dma", True, 2), ("dma", False, 4)]


def test_a_device_starts_without_bus_mastering(rig: Rig) -> None:
    assert not rig.device.dma_enabled
    rig.set_config(COMMAND, 2, MASTER)
    assert rig.device.dma_enabled
    rig.function.reset()
    assert not rig.device.dma_enabled


def test_what_an_access_brings_about_comes_back_from_it(msix: Rig) -> None:
    msix.device.answer = used(1)
    assert msix.write(0x3004, 2, 1) == messages(1)
    assert msix.set("queue_enable", 1) == messages(1)
    assert msix.set("device_status", 0xF) == messages(1)

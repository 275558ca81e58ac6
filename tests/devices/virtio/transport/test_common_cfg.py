"""Common configuration (§4.1.4.3), device-specific configuration (§4.1.4.6) and notifications (§4.1.5.2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.effects import NOTHING, Effects, Event
from devices.virtio.device import Notifications
from tests.devices.virtio.transport.recording import DEVICE, ISR, MASTER, MEMORY, NO_VECTOR, NOTIFY, Rig, place


@pytest.fixture
def rig() -> Rig:
    return Rig()


# -- the whole device --------------------------------------------------------------------------------------------------


def test_4_1_4_3_1_offered_features_are_shown_in_words_and_zero_beyond(rig: Rig) -> None:
    words = []
    for select in (0, 1, 2, 0xFFFFFFFF):
        rig.set("device_feature_select", select)
        assert rig.get("device_feature_select") == select
        words.append(rig.get("device_feature"))
    assert words == [0x1234_5678, 0x8000_0000, 0, 0]


def test_4_1_4_3_1_driver_features_read_back_in_words(rig: Rig) -> None:
    for select, word in ((0, 0x11), (1, 0x22), (2, 0x33)):
        rig.set("driver_feature_select", select)
        rig.set("driver_feature", word)
    assert rig.device.driver_features == 0x22_0000_0011
    words = []
    for select in (0, 1, 2):
        rig.set("driver_feature_select", select)
        words.append(rig.get("driver_feature"))
    assert words == [0x11, 0x22, 0]


def test_driver_features_can_be_rewritten(rig: Rig) -> None:
    rig.set("driver_feature", 0xFFFFFFFF)
    rig.set("driver_feature", 0x1)
    assert rig.device.driver_features == 1


def test_num_queues_is_what_the_device_has(rig: Rig) -> None:
    rig.set("num_queues", 0xFFFF)
    assert rig.get("num_queues") == 3


def test_status_goes_to_the_device_and_comes_from_it(rig: Rig) -> None:
    rig.set("device_status", 0x0F, now_ns=77)
    assert rig.device.calls == [("status", 0x0F, 77)]
    rig.device.status = 0x4F
    assert rig.get("device_status") == 0x4F


def test_4_1_4_3_1_config_generation_is_the_device_s(rig: Rig) -> None:
    rig.device.config_generation = 0xAB
    rig.set("config_generation", 0)
    assert rig.get("config_generation") == 0xAB


def test_2_1_2_status_zero_forgets_the_old_driver(rig: Rig) -> None:
    rig.map_vectors(0, 1, 2, config=3)
    rig.set("device_feature_select", 1)
    rig.set("driver_feature_select", 1)
    rig.set("queue_select", 2)
    rig.function.signal(Notifications(config=True))
    effects = rig.set("device_status", 0)
    assert [line.level for line in effects.lines] == [False]
    assert rig.read(ISR, 1) == 0
    for field in ("device_feature_select", "driver_feature_select", "queue_select", "device_status"):
        assert rig.get(field) == 0
    assert rig.get("config_msix_vector") == NO_VECTOR
    for index in range(3):
        rig.set("queue_select", index)
        assert rig.get("queue_msix_vector") == NO_VECTOR
        assert rig.get("queue_enable") == 0


def test_what_a_status_write_brings_about_is_passed_on(rig: Rig) -> None:
    event = Event("recorder0", "reset", "…")
    rig.device.answer = Notifications(deadline=True, events=(event,))
    assert rig.set("device_status", 0) == Effects(deadline=True, events=(event,))


# -- the selected queue ------------------------------------------------------------------------------------------------


def test_queue_fields_belong_to_the_selected_queue(rig: Rig) -> None:
    for index in range(3):
        rig.set("queue_select", index)
        rig.set("queue_size", 8 << index)
        rig.set("queue_desc", 0x1_0000_0000 * index + 0x1000)
        rig.set("queue_driver", 0x2_0000_0000 * index + 0x2000)
        rig.set("queue_device", 0x3_0000_0000 * index + 0x3000)
    for index, queue in enumerate(rig.device.queues):
        rig.set("queue_select", index)
        assert rig.get("queue_select") == index
        assert rig.get("queue_size") == queue.size == 8 << index
        assert rig.get("queue_desc") == queue.desc_gpa == 0x1_0000_0000 * index + 0x1000
        assert rig.get("queue_driver") == queue.driver_gpa == 0x2_0000_0000 * index + 0x2000
        assert rig.get("queue_device") == queue.device_gpa == 0x3_0000_0000 * index + 0x3000
        assert rig.get("queue_notify_off") == index


def test_4_1_4_3_1_a_queue_that_the_device_does_not_have_now_shows_the_size_0(rig: Rig) -> None:
    rig.set("queue_select", 1)
    rig.device.queues[1].exists = False
    assert rig.get("queue_size") == 0
    rig.set("queue_select", 2)
    assert rig.get("queue_size") == 256
    assert rig.device.looked_for == [1], "it hears what the driver did not find"


@pytest.mark.parametrize("field", ["queue_desc", "queue_driver", "queue_device"])
def test_4_1_3_2_the_halves_of_a_64_bit_field_are_independent(rig: Rig, field: str) -> None:
    offset, _ = place(field)
    rig.write(offset + 4, 4, 0x1)
    assert rig.get(field) == 0x1_0000_0000
    rig.write(offset, 4, 0xABCD_E000)
    assert rig.get(field) == 0x1_ABCD_E000
    rig.write(offset + 4, 4, 0x2)
    assert rig.get(field) == 0x2_ABCD_E000
    assert rig.read(offset, 8) == 0x2_ABCD_E000


def test_an_8_byte_write_sets_a_64_bit_field_at_once(rig: Rig) -> None:
    rig.write(place("queue_desc")[0], 8, 0x12_3456_7000, now_ns=5)
    assert rig.device.calls == [("queue", 0, "desc_gpa", 0x12_3456_7000, 5)]


def test_4_1_4_3_2_queue_enable_takes_one_and_ignores_anything_else(rig: Rig) -> None:
    for value in (0, 2, 0xFFFF):
        rig.set("queue_enable", value)
        assert rig.device.calls == []
    rig.set("queue_enable", 1, now_ns=9)
    assert rig.device.calls == [("queue", 0, "enabled", 1, 9)]
    rig.device.queues[0].enabled = True
    rig.set("queue_enable", 0)
    assert rig.get("queue_enable") == 1


def test_whether_a_queue_may_change_is_the_device_s_decision(rig: Rig) -> None:
    rig.set("queue_size", 3, now_ns=4)
    rig.set("queue_device", 5, now_ns=6)
    assert rig.device.calls == [
        ("queue", 0, "size", 3, 4),
        ("queue", 0, "device_gpa", 5, 6),
        ("queue", 0, "device_gpa", 5, 6),
    ]


@pytest.mark.parametrize("index", [3, 0x7FFF, 0xFFFF])
def test_4_1_4_3_1_a_queue_that_does_not_exist_has_size_zero_and_takes_nothing(rig: Rig, index: int) -> None:
    rig.set("queue_select", index)
    for field in ("queue_size", "queue_desc", "queue_driver", "queue_device", "queue_msix_vector", "queue_enable"):
        assert rig.set(field, 1) == NOTHING
    assert rig.device.calls == [("queue", index, "enabled", 1, 0)], "the device hears of it and need not care"
    for field in ("queue_size", "queue_enable", "queue_desc", "queue_driver", "queue_device", "queue_notify_off"):
        assert rig.get(field) == 0
    assert rig.get("queue_msix_vector") == NO_VECTOR
    assert rig.get("queue_select") == index


def test_fields_of_features_that_are_not_offered_read_as_zero(rig: Rig) -> None:
    rig.write(0x38, 8, 0xFFFFFFFF_FFFFFFFF)
    assert rig.read(0x38, 8) == 0
    assert rig.device.calls == []


# -- device-specific configuration -------------------------------------------------------------------------------------


def test_4_1_4_6_device_configuration_is_read_in_any_width(rig: Rig) -> None:
    assert rig.read(DEVICE, 1) == 0x40
    assert rig.read(DEVICE + 2, 2) == 0x4342
    assert rig.read(DEVICE + 4, 4) == 0x47464544
    assert rig.read(DEVICE + 1, 8) == 0x48474645_44434241


def test_device_configuration_ends_where_its_capability_says(rig: Rig) -> None:
    assert rig.read(DEVICE + 12, 4) == 0x4D4C
    assert rig.read(DEVICE + 14, 4) == 0
    assert rig.read(DEVICE + 0xFF8, 8) == 0
    rig.write(DEVICE + 14, 8, 0xFFFFFFFF_FFFFFFFF)
    assert rig.device.calls == []
    rig.write(DEVICE + 12, 4, 0xAABBCCDD, now_ns=3)
    assert rig.device.calls == [("config", 12, 2, 0xCCDD, 3)]


def test_a_configuration_write_can_signal(rig: Rig) -> None:
    rig.device.answer = Notifications(config=True)
    assert rig.write(DEVICE + 4, 4, 1).lines == (("00:03.0 INTA", True),)


# -- notifications -----------------------------------------------------------------------------------------------------


def test_4_1_4_4_each_queue_has_its_own_address(rig: Rig) -> None:
    for index in (2, 0, 1):
        rig.set("queue_select", index)
        rig.write(NOTIFY + 4 * rig.get("queue_notify_off"), 2, index, now_ns=index)
    assert rig.device.calls == [("notify", 2, 2), ("notify", 0, 0), ("notify", 1, 1)]


def test_the_address_names_the_queue_whatever_the_value(rig: Rig) -> None:
    rig.write(NOTIFY + 4, 2, 0x5555)
    assert rig.device.calls == [("notify", 1, 0)]


@pytest.mark.parametrize(
    ("offset", "size", "notified"),
    [
        (0, 1, []),
        (1, 1, []),
        (1, 2, []),
        (2, 2, []),
        (0, 4, [0]),
        (1, 4, []),
        (2, 4, [1]),
        (3, 4, [1]),
        (4, 8, [1, 2]),
        (0, 8, [0, 1]),
        (8, 8, [2, 3]),
        (12, 2, [3]),  # there is no such queue: the device hears of it all the same
        (0xFFE, 2, []),
    ],
)
def test_a_write_notifies_the_queues_whose_two_bytes_it_covers(
    rig: Rig, offset: int, size: int, notified: list[int]
) -> None:
    rig.write(NOTIFY + offset, size, 0)
    assert rig.device.calls == [("notify", index, 0) for index in notified]


@pytest.mark.parametrize(
    ("offset", "size", "value", "data"),
    [
        (4, 2, 1, [None]),
        (4, 4, 0x8005_0001, [0x8005_0001]),
        (0, 8, 0x8005_0001_0003_0000, [0x0003_0000, 0x8005_0001]),
        (0, 6, 0x0001_0003_0000, [0x0003_0000, None]),
        (2, 4, 0x0001_FFFF, [None]),
    ],
)
def test_2_9_the_32_bits_at_a_queue_s_address_are_a_notification_s_data(
    rig: Rig, offset: int, size: int, value: int, data: list[int | None]
) -> None:
    rig.write(NOTIFY + offset, size, value)
    assert rig.device.notified_data == data


def test_4_1_4_3_2_queue_reset_resets_the_selected_queue_if_it_is_enabled(rig: Rig) -> None:
    rig.set("queue_select", 1)
    rig.set("queue_reset", 1)  # it is not
    assert rig.device.calls == []
    rig.device.queues[1].enabled = True
    for value in (0, 2, 0xFFFF):
        rig.set("queue_reset", value)
    assert rig.device.calls == []
    rig.set("queue_reset", 1, now_ns=7)
    assert rig.device.calls == [("queue", 1, "reset", 1, 7)]
    assert rig.get("queue_reset") == 0
    rig.set("queue_select", 9)
    rig.set("queue_reset", 1)
    assert (rig.device.calls[1:], rig.get("queue_reset")) == ([], 0)


def test_the_last_of_very_many_queues_has_its_address_too() -> None:
    rig = Rig(queues=1024)
    rig.write(NOTIFY + 4 * 1023, 2, 1023)
    assert rig.device.calls == [("notify", 1023, 0)]


def test_notification_addresses_read_as_zero(rig: Rig) -> None:
    assert rig.read(NOTIFY, 4) == 0
    assert rig.device.calls == []


# -- any access --------------------------------------------------------------------------------------------------------

PLACES = st.one_of(
    st.integers(0, 0x48),
    st.sampled_from([0x1000, 0x2000, 0x3000]).flatmap(lambda base: st.integers(base - 8, base + 16)),
    st.integers(0, 0x3FFF),
)
SIZES = st.sampled_from([1, 2, 4, 8])
WRITES = st.lists(st.tuples(PLACES, SIZES, st.integers(0, (1 << 64) - 1)), max_size=15)


@given(WRITES)
def test_no_access_of_any_width_or_alignment_raises(writes: list[tuple[int, int, int]]) -> None:
    rig = Rig()
    for offset, size, value in writes:
        rig.write(offset, size, value & (1 << 8 * size) - 1)
        assert 0 <= rig.read(offset, size) < 1 << 8 * size


@given(st.integers(0, 0x3F), SIZES)
def test_a_wide_read_is_the_bytes_it_covers(offset: int, size: int) -> None:
    rig = Rig()
    rig.map_vectors(2, 1, 0, config=3)
    rig.set("queue_select", 1)
    rig.set("queue_desc", 0x1122_3344_5566_7788)
    rig.set("driver_feature", 0x99AA_BBCC)
    assert rig.read(offset, size) == sum(rig.read(offset + i, 1) << 8 * i for i in range(size))


@given(WRITES, st.booleans())
def test_2_4_1_a_reset_function_equals_a_fresh_one(writes: list[tuple[int, int, int]], master: bool) -> None:
    rig = Rig()
    rig.enable_msix(master=master)
    rig.set_config(4, 2, MEMORY | MASTER)
    for offset, size, value in writes:
        rig.write(offset, size, value & (1 << 8 * size) - 1)
        rig.function.signal(Notifications(queues=(0, 2), config=True))
    rig.function.reset()
    assert rig.function == Rig().function


def test_functions_that_a_driver_has_used_differ_from_fresh_ones(rig: Rig) -> None:
    rig.set("queue_select", 1)
    assert rig.function != Rig().function

"""The PCI configuration access capability (§4.1.4.9): a window in configuration space into the structures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.effects import NOTHING, Effects, Line
from devices.virtio.device import Notifications
from tests.devices.virtio.transport.recording import COMMAND, DEVICE, ISR, LINE, NOTIFY, Rig, place


class WindowRig(Rig):
    """A rig that can also go through the window, as §4.1.4.9 tells a driver to."""

    def __init__(self) -> None:
        super().__init__()
        self.at = self.capabilities()[5]
        self.data = self.at + 16

    def aim(self, offset: int, length: int, bar: int = 4) -> None:
        self.set_config(self.at + 4, 1, bar)
        self.set_config(self.at + 12, 4, length)
        self.set_config(self.at + 8, 4, offset)

    def peek(self, offset: int, length: int, bar: int = 4) -> int:
        self.aim(offset, length, bar)
        return self.config(self.data, length)

    def poke(self, offset: int, length: int, value: int, bar: int = 4, now_ns: int = 0) -> Effects:
        self.aim(offset, length, bar)
        return self.set_config(self.data, length, value, now_ns)


@pytest.fixture
def rig() -> WindowRig:
    return WindowRig()


def test_4_1_4_9_1_a_read_shows_what_the_structure_holds(rig: WindowRig) -> None:
    assert rig.peek(place("num_queues")[0], 2) == 3
    assert rig.peek(place("device_feature")[0], 4) == 0x1234_5678
    assert rig.peek(DEVICE + 3, 1) == 0x43


def test_4_1_4_9_1_a_write_reaches_the_structure(rig: WindowRig) -> None:
    rig.poke(place("queue_select")[0], 2, 1)
    rig.poke(place("queue_size")[0], 2, 64)
    rig.poke(place("device_status")[0], 1, 3, now_ns=8)
    rig.poke(NOTIFY + 8, 2, 2, now_ns=9)
    assert rig.device.calls == [("queue", 1, "size", 64, 0), ("status", 3, 8), ("notify", 2, 9)]


def test_the_window_works_with_memory_decoding_off(rig: WindowRig) -> None:
    assert rig.config(COMMAND, 2) == 0
    assert rig.function.bar_regions() == ()
    rig.poke(place("device_feature_select")[0], 4, 1)
    assert rig.peek(place("device_feature")[0], 4) == 0x8000_0000


def test_side_effects_come_back_from_the_configuration_access(rig: WindowRig) -> None:
    rig.function.signal(Notifications(queues=(0,)))
    rig.aim(ISR, 1)
    assert rig.function.read_config(rig.data, 1, 0) == (1, Effects(lines=(Line(LINE, False),)))
    assert rig.function.read_config(rig.data, 1, 0) == (0, NOTHING)
    rig.device.answer = Notifications(queues=(2,))
    assert rig.poke(NOTIFY + 8, 2, 2) == Effects(lines=(Line(LINE, True),))


def test_the_window_reaches_the_register_that_bar_selects(rig: WindowRig) -> None:
    rig.poke(8, 4, 0xCAFE, bar=1)
    assert rig.function.access_read(1, 8, 4, 0) == (0xCAFE, NOTHING)
    assert rig.peek(8, 4, bar=1) == 0xCAFE


def test_aiming_touches_nothing(rig: WindowRig) -> None:
    rig.function.signal(Notifications(queues=(0,)))
    rig.aim(ISR, 1)
    rig.aim(NOTIFY, 2)
    assert rig.device.calls == []
    assert rig.read(ISR, 1) == 1


@pytest.mark.parametrize("length", [0, 3, 5, 8, 0xFFFFFFFF])
def test_regression_a_window_of_another_length_is_shut(rig: WindowRig, length: int) -> None:
    rig.aim(NOTIFY, length)
    assert rig.set_config(rig.data, 4, 0x12345678) == NOTHING
    assert rig.device.calls == []
    assert rig.config(rig.data, 4) == 0x12345678


@pytest.mark.parametrize("bar", [0, 2, 3, 5, 6, 255])
def test_a_window_into_a_register_that_does_not_exist_is_shut(rig: WindowRig, bar: int) -> None:
    rig.aim(0, 4, bar)
    assert rig.set_config(rig.data, 4, 0xFFFFFFFF) == NOTHING
    assert rig.get("device_feature_select") == 0
    assert rig.config(rig.data, 4) == 0xFFFFFFFF


@pytest.mark.parametrize(("offset", "length"), [(0x4000, 1), (0x3FFF, 2), (0x3FFD, 4), (0xFFFFFFFF, 4)])
def test_a_window_beyond_the_register_s_range_is_shut(rig: WindowRig, offset: int, length: int) -> None:
    rig.aim(offset, length)
    rig.set_config(rig.data, 4, 0x0BADF00D)
    assert rig.config(rig.data, 4) == 0x0BADF00D


def test_4_1_4_9_1_a_write_uses_the_first_length_bytes_of_the_data(rig: WindowRig) -> None:
    rig.aim(place("queue_size")[0], 2)
    rig.set_config(rig.data, 4, 0xFFFF_0080)
    assert rig.device.calls == [("queue", 0, "size", 0x80, 0)]


def test_4_1_4_9_1_a_read_leaves_the_rest_of_the_data_as_it_was(rig: WindowRig) -> None:
    rig.aim(0, 3)
    rig.set_config(rig.data, 4, 0xAABBCCDD)
    rig.aim(place("num_queues")[0], 2)
    assert rig.config(rig.data, 4) == 0xAABB_0003


def test_any_byte_of_the_data_makes_the_whole_access(rig: WindowRig) -> None:
    rig.aim(place("device_feature")[0], 4)
    assert rig.config(rig.data + 2, 1) == 0x34
    rig.aim(place("queue_size")[0], 2)
    rig.set_config(rig.data, 1, 0x40)
    rig.set_config(rig.data + 1, 1, 0x00)
    assert rig.device.queues[0].size == 0x40


def test_an_access_that_also_covers_the_length_uses_the_new_length(rig: WindowRig) -> None:
    rig.aim(place("queue_size")[0], 4)
    rig.set_config(rig.at + 12, 8, 0x0020 << 32 | 2)
    assert rig.device.calls == [("queue", 0, "size", 0x20, 0)]


@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 0x40), st.integers(0x0FFC, 0x1004), st.integers(0x2000, 0x2010), st.just(NOTIFY)),
            st.sampled_from([1, 2, 4]),
            st.integers(0, 0xFFFFFFFF),
        ),
        max_size=12,
    )
)
def test_the_window_does_what_a_direct_access_does(accesses: list[tuple[int, int, int]]) -> None:
    direct, window = Rig(), WindowRig()
    for offset, length, value in accesses:
        value &= (1 << 8 * length) - 1
        assert window.poke(offset, length, value) == direct.write(offset, length, value)
        assert window.peek(offset, length) == direct.read(offset, length)
        notify = Notifications(queues=(0,))
        assert window.function.signal(notify) == direct.function.signal(notify)
    assert window.device == direct.device
    assert window.device.calls == direct.device.calls


CONFIG_ACCESS = st.tuples(st.integers(0, 0x100), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF))


@given(st.lists(CONFIG_ACCESS, max_size=20))
def test_no_configuration_access_raises(accesses: list[tuple[int, int, int]]) -> None:
    rig = WindowRig()
    for offset, size, value in accesses:
        rig.set_config(offset, size, value & (1 << 8 * size) - 1)
        assert 0 <= rig.config(offset, size) < 1 << 8 * size
    rig.function.reset()
    assert rig.function == Rig().function

"""What a driver finds before it touches the device: identity, capabilities, layout (§4.1.2 to §4.1.4)."""

from __future__ import annotations

import pytest

from tests.devices.virtio.transport.recording import Rig

COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG = 1, 2, 3, 4, 5
MSIX = 0x1100


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_4_1_2_1_vendor_and_device_id(rig: Rig) -> None:
    assert rig.config(0x00, 2) == 0x1AF4
    assert rig.config(0x02, 2) == 0x1040 + rig.device.device_id


def test_4_1_2_1_no_legacy_driver_is_invited(rig: Rig) -> None:
    assert rig.config(0x08, 1) >= 1
    assert rig.config(0x2E, 2) >= 0x40


def test_the_class_is_other(rig: Rig) -> None:
    assert rig.config(0x08, 4) >> 8 == 0x00FF00


def test_the_function_has_qemu_s_base_address_registers(rig: Rig) -> None:
    for offset in range(0x10, 0x28, 4):
        rig.set_config(offset, 4, 0xFFFFFFFF)
    sizes = [rig.config(offset, 4) for offset in range(0x10, 0x28, 4)]
    assert sizes == [0, 0xFFFFF000, 0, 0, 0xFFFFC004, 0xFFFFFFFF]


def test_4_1_4_every_structure_has_its_capability(rig: Rig) -> None:
    assert set(rig.capabilities()) == {MSIX, COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG}


def test_4_1_4_6_a_device_without_configuration_has_no_device_capability() -> None:
    assert set(Rig(config_size=0).capabilities()) == {MSIX, COMMON_CFG, NOTIFY_CFG, ISR_CFG, PCI_CFG}


@pytest.mark.parametrize(
    ("cfg_type", "cap_len", "offset", "length"),
    [
        (COMMON_CFG, 16, 0x0000, 64),
        (ISR_CFG, 16, 0x1000, 1),
        (DEVICE_CFG, 16, 0x2000, 14),
        (NOTIFY_CFG, 20, 0x3000, 12),
    ],
)
def test_4_1_4_each_capability_says_where_its_structure_is(
    rig: Rig, cfg_type: int, cap_len: int, offset: int, length: int
) -> None:
    at = rig.capabilities()[cfg_type]
    assert rig.config(at, 1) == 0x09
    assert rig.config(at + 2, 1) == cap_len
    assert rig.config(at + 4, 1) == 4
    assert rig.config(at + 8, 4) == offset
    assert rig.config(at + 12, 4) == length


def test_4_1_4_2_the_driver_cannot_change_a_capability(rig: Rig) -> None:
    for cfg_type in (COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG):
        at = rig.capabilities()[cfg_type]
        before = rig.config(at, 8), rig.config(at + 8, 8)
        rig.set_config(at, 8, 0xFFFFFFFF_FFFFFFFF)
        rig.set_config(at + 8, 8, 0xFFFFFFFF_FFFFFFFF)
        assert (rig.config(at, 8), rig.config(at + 8, 8)) == before


def test_4_1_4_3_1_offset_of_the_common_configuration_is_aligned(rig: Rig) -> None:
    assert rig.config(rig.capabilities()[COMMON_CFG] + 8, 4) % 4 == 0


def test_4_1_4_6_1_offset_of_the_device_configuration_is_aligned(rig: Rig) -> None:
    assert rig.config(rig.capabilities()[DEVICE_CFG] + 8, 4) % 4 == 0


def test_4_1_4_4_1_the_notification_structure_holds_every_queue() -> None:
    for queues in (1, 3, 5, 64):
        rig = Rig(queues=queues)
        at = rig.capabilities()[NOTIFY_CFG]
        offset, length, multiplier = (rig.config(at + i, 4) for i in (8, 12, 16))
        assert offset % 4 == 0
        # A power of two that is a multiple of 4: good with and without VIRTIO_F_NOTIFICATION_DATA.
        assert multiplier & multiplier - 1 == 0 and multiplier % 4 == 0
        for index in range(queues):
            rig.set("queue_select", index)
            assert length >= rig.get("queue_notify_off") * multiplier + 4


def test_4_1_4_9_1_the_window_s_capability_is_open(rig: Rig) -> None:
    at = rig.capabilities()[PCI_CFG]
    assert rig.config(at + 2, 1) == 20
    for offset, size in ((4, 1), (8, 4), (12, 4)):
        value = (1 << 8 * size) - 1
        rig.set_config(at + offset, size, value)
        assert rig.config(at + offset, size) == value


def test_4_1_5_1_2_1_the_table_has_a_vector_for_each_queue_and_the_configuration(rig: Rig) -> None:
    at = rig.capabilities()[MSIX]
    assert rig.config(at + 2, 2) & 0x7FF == 3
    assert rig.config(at + 4, 4) == 0x000 | 1
    assert rig.config(at + 8, 4) == 0x800 | 1


def test_a_device_with_more_queues_than_addresses_is_our_own_bug() -> None:
    with pytest.raises(ValueError, match="recorder0 has 1025 queues, more than the transport can address"):
        Rig(queues=1025)

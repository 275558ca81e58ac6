"""The device status field and feature negotiation (virtio 1.3 §2.1, §2.2, §3.1)."""

from __future__ import annotations

import pytest

from devices.virtio import spec
from devices.virtio.status import feature_objections, next_status

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
VERSION_1 = 1 << spec.VIRTIO_F_VERSION_1


@pytest.mark.parametrize(
    ("status", "written", "expected"),
    [
        (0, 1, 1),
        (1, 3, 3),
        (0, 3, 3),  # ACKNOWLEDGE and DRIVER in one write
        (0, 15, 15),
        (3, 11, 11),
        (11, 15, 15),
        (0, 2, 0),  # DRIVER needs ACKNOWLEDGE
        (1, 9, 1),  # FEATURES_OK needs DRIVER
        (3, 7, 3),  # DRIVER_OK needs FEATURES_OK
        (15, 1, 15),  # only a reset clears bits
        (11, 4, 15),
        (3, 3 | 16 | 32, 3),  # bits without a meaning here
        (3, 3 | NEEDS_RESET, 3),  # is the device's to set
        (15 | NEEDS_RESET, 15, 15 | NEEDS_RESET),  # and not the driver's to clear
        (11 | NEEDS_RESET, 15, 15 | NEEDS_RESET),
        (0, FAILED, FAILED),
        (3, 3 | FAILED, 3 | FAILED),
        (3 | FAILED, 15, 3 | FAILED),  # §2.1.1: reset before trying again
    ],
)
def test_2_1_a_write_leads_to(status: int, written: int, expected: int) -> None:
    assert next_status(status, written, True) == expected


def test_2_2_2_features_ok_is_refused_and_so_is_what_needs_it() -> None:
    assert next_status(3, 11, False) == 3
    assert next_status(0, 15, False) == 3


@pytest.mark.parametrize("status", range(256))
def test_2_1_1_no_write_clears_a_bit_or_touches_needs_reset(status: int) -> None:
    for written in range(1, 256):
        new = next_status(status, written, True)
        assert new & status == status
        assert (new ^ status) & (NEEDS_RESET | 16 | 32) == 0


def objections(offered: int, accepted: int, requires: dict[int, int] | None = None) -> list[str]:
    return list(feature_objections(offered, accepted, requires or {}, spec.DeviceId.BALLOON))


def test_2_2_1_any_subset_with_version_1_is_fine() -> None:
    assert objections(VERSION_1 | 3, VERSION_1 | 2) == []


def test_2_2_1_what_was_not_offered_is_named() -> None:
    assert objections(VERSION_1, VERSION_1 | 1 << 1 | 1 << 60) == [
        "VIRTIO_BALLOON_F_STATS_VQ was not offered",
        "bit 60 was not offered",
    ]


def test_6_1_version_1_must_be_accepted_where_it_is_offered() -> None:
    assert objections(VERSION_1, 0) == ["VIRTIO_F_VERSION_1 was not accepted"]
    assert objections(0, 0) == []


def test_2_2_1_a_feature_needs_the_one_it_depends_on() -> None:
    everything = VERSION_1 | 1 << 4 | 1 << 5
    assert objections(everything, VERSION_1 | 1 << 5, {5: 4}) == [
        "VIRTIO_BALLOON_F_PAGE_REPORTING needs VIRTIO_BALLOON_F_PAGE_POISON"
    ]
    assert objections(everything, VERSION_1 | 1 << 4, {5: 4}) == []
    assert objections(everything, everything, {5: 4}) == []

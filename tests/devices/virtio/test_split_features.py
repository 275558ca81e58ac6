"""What a split ring can do besides: in-order use (§2.7.9), and notifications that announce something (§2.9)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devices.memory import GuestMemory
from devices.virtio import split
from tests.devices.virtio.rings import BUFFERS, LAYOUT, WRITE, RawRing


@pytest.fixture
def ring() -> Iterator[RawRing]:
    """Eight valid one-descriptor chains, none offered."""
    with GuestMemory(LAYOUT) as memory:
        made = RawRing(8, memory)
        for index in range(8):
            made.set_descriptor(index, BUFFERS + 16 * index, 4)
        yield made


@pytest.fixture(params=["one by one", "lock-step"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rule holds on both ways."""
    monkeypatch.setattr(split, "LOCK_STEP_FROM_CHAINS", 1 if request.param == "lock-step" else 1 << 16)


@pytest.mark.usefixtures("way")
def test_2_7_9_in_order_one_element_stands_for_a_batch(ring: RawRing) -> None:
    """The last head, where the first one's element would be; the index goes on by the whole batch."""
    queue = ring.queue(in_order=True)
    for round_ in range(3):
        ring.offer(*range(round_ * 3 % 8, round_ * 3 % 8 + 2), 7 - round_)
        chains = queue.take_available()
        assert chains is not None
        before = ring.memory.read(ring.used + 4, 64)
        queue.put_used(chains)
        place = 8 * (3 * round_ % 8)
        after = ring.memory.read(ring.used + 4, 64)
        assert after[place : place + 8] == bytes([7 - round_, *bytes(7)])
        assert after[:place] + after[place + 8 :] == before[:place] + before[place + 8 :]
        assert ring.used_idx() == 3 * (round_ + 1)


@pytest.mark.usefixtures("way")
def test_2_7_9_in_order_what_was_not_wholly_written_is_not_skipped(ring: RawRing) -> None:
    for index in range(3):
        ring.set_descriptor(index, BUFFERS, 4, WRITE)
    ring.offer(0, 1, 2)
    queue = ring.queue(in_order=True)
    chains = queue.take_available()
    assert chains is not None
    queue.put_used(chains)
    assert ring.used_elements() == [(0, 0), (1, 0), (2, 0)]


def test_2_9_an_announcement_is_compared_with_the_ring(ring: RawRing) -> None:
    queue = ring.queue()
    ring.offer(*range(6))
    chains = queue.take_available()
    assert chains is not None
    queue.put_used(chains)
    assert [queue.misannounced(index << 16) for index in (6, 3)] == ["", ""]  # the ring may be ahead
    assert queue.misannounced(7 << 16) == "available index 7, the ring's is 6"
    assert queue.misannounced(0x8000 << 16) != ""

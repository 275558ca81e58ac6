"""What every virtio device does, shown on the smallest one: it holds what it is given until it is told to return it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devices.memory import GuestMemory
from devices.registers import Register, RegisterMap
from devices.virtio import device as core
from devices.virtio import spec
from devices.virtio.chains import Chains
from devices.virtio.device import NO_NOTIFICATIONS, Notifications, Queue, QueueSpec, VirtioDevice
from tests.devices.virtio.rings import BUFFERS, INDIRECT, LAYOUT, NEXT, TABLES, RawRing, descriptor

VERSION_1 = 1 << spec.VIRTIO_F_VERSION_1
INDIRECT_DESC = 1 << spec.VIRTIO_F_INDIRECT_DESC
OPTIONAL, OTHER = 0, 1


class Holder(VirtioDevice):
    """Two queues, the second only with feature 0; feature 0 needs feature 1.  Completes at once, or when asked to."""

    device_id = spec.DeviceId.CONSOLE
    config = RegisterMap("holder", 8, (Register(0, 4, "level", "ro"), Register(4, 4, "wish", "rw")))
    feature_requires = {OPTIONAL: OTHER}  # noqa: RUF012

    def __init__(self, memory: GuestMemory, size: int = 8) -> None:
        super().__init__(
            memory, "holder0", VERSION_1 | INDIRECT_DESC | 3, [QueueSpec("a", size), QueueSpec("b", size, OPTIONAL)]
        )
        self.level = self.wish = 0
        self.at_once = True
        self.held: list[tuple[Queue, Chains]] = []
        self.due_ns: int | None = None
        self.went_live = 0

    def process(self, queue: Queue, chains: Chains, now_ns: int) -> Notifications:
        if self.at_once:
            return self.complete(queue, chains)
        self.held.append((queue, chains))
        return NO_NOTIFICATIONS

    def release(self) -> Notifications:
        queue, chains = self.held.pop()
        return self.complete(queue, chains)

    def live(self, now_ns: int) -> Notifications:
        self.went_live += 1
        return NO_NOTIFICATIONS

    def lost(self) -> None:
        self.wish = 0
        self.held = []

    def deadline_ns(self) -> int | None:
        return self.due_ns

    def deadline_reached(self, now_ns: int) -> Notifications:
        self.due_ns = None
        return self.release()

    def settings(self) -> tuple[object, ...]:
        return self.level, self.wish, [chains.head.tolist() for _, chains in self.held]


class Rig:
    """A holder on two raw rings, and the steps of its driver."""

    def __init__(self, memory: GuestMemory) -> None:
        self.device = Holder(memory)
        self.rings = [RawRing(8, memory, at) for at in (0, 0x800)]
        for ring in self.rings:
            for index in range(8):
                ring.set_descriptor(index, BUFFERS, 4)

    def negotiate(self, features: int = VERSION_1 | INDIRECT_DESC | 3) -> Notifications:
        self.device.set_dma_enabled(True, 0)
        self.device.write_status(3, 0)
        self.device.write_driver_features(features)
        return self.device.write_status(11, 0)

    def enable(self, index: int = 0) -> Notifications:
        ring = self.rings[index]
        for field, value in (
            ("size", 8),
            ("desc_gpa", ring.desc),
            ("driver_gpa", ring.avail),
            ("device_gpa", ring.used),
        ):
            assert self.device.write_queue(index, field, value, 0) == NO_NOTIFICATIONS
        return self.device.write_queue(index, "enabled", 1, 0)

    def start(self) -> Rig:
        self.negotiate()
        self.enable(0)
        self.enable(1)
        self.device.write_status(15, 0)
        return self

    def kinds(self, notifications: Notifications) -> list[str]:
        return [event.kind for event in notifications.events]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(LAYOUT) as made:
        yield made


@pytest.fixture
def rig(memory: GuestMemory) -> Rig:
    return Rig(memory)


# -- notifications as values -------------------------------------------------------------------------------------------


def test_notifications_join_in_order_without_duplicates() -> None:
    both = Notifications(queues=(2,), deadline=True) | Notifications(queues=(0, 2), config=True)
    assert both == Notifications(queues=(0, 2), config=True, deadline=True)
    assert (NO_NOTIFICATIONS | both) is both and (both | NO_NOTIFICATIONS) is both
    assert both and not NO_NOTIFICATIONS


# -- negotiation -------------------------------------------------------------------------------------------------------


def test_3_1_1_what_was_negotiated_is_told_by_name(rig: Rig) -> None:
    told = rig.negotiate(VERSION_1 | INDIRECT_DESC)
    assert [event[:] for event in told.events] == [
        ("holder0", "features", "negotiated VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1")
    ]
    assert rig.device.has_feature(spec.VIRTIO_F_INDIRECT_DESC) and not rig.device.has_feature(OTHER)


@pytest.mark.parametrize(
    ("features", "why"),
    [
        (3, "VIRTIO_F_VERSION_1 was not accepted"),
        (VERSION_1 | 1 << 5, "bit 5 was not offered"),
        (VERSION_1 | 1 << OPTIONAL, "bit 0 needs bit 1"),
    ],
)
def test_2_2_2_an_invalid_set_is_refused_and_may_be_corrected(rig: Rig, features: int, why: str) -> None:
    told = rig.negotiate(features)
    assert rig.device.status == 3
    assert [event.text for event in told.events] == [f"FEATURES_OK is refused: {why}"]
    rig.device.write_driver_features(VERSION_1)
    rig.device.write_status(11, 0)
    assert rig.device.status == 11


def test_3_1_1_features_are_frozen_by_features_ok_until_a_reset(rig: Rig) -> None:
    rig.negotiate(VERSION_1)
    rig.device.write_driver_features(VERSION_1 | 2)
    assert rig.device.driver_features == VERSION_1
    rig.device.write_status(0, 0)
    assert (rig.device.status, rig.device.driver_features) == (0, 0)


def test_the_life_of_a_driver_is_told(rig: Rig) -> None:
    kinds = rig.kinds(rig.negotiate()) + rig.kinds(rig.enable(1)) + rig.kinds(rig.device.write_status(15, 0))
    kinds += rig.kinds(rig.device.write_status(128, 0)) + rig.kinds(rig.device.write_status(0, 0))
    assert kinds == ["features", "queue-enabled", "driver-ok", "failed", "reset"]


# -- queues ------------------------------------------------------------------------------------------------------------


def test_a_queue_is_enabled_only_after_features_ok_and_with_its_feature(rig: Rig) -> None:
    rig.device.write_status(3, 0)
    assert rig.enable() == NO_NOTIFICATIONS
    rig.negotiate(VERSION_1)
    assert rig.enable(1) == NO_NOTIFICATIONS
    (told,) = rig.enable(0).events
    assert told.text == "queue 0 (a) is enabled with 8 entries"
    assert [queue.enabled for queue in rig.device.queues] == [True, False]


@pytest.mark.parametrize("size", [0, 3, 16, 65536, -8])
def test_4_1_4_3_2_a_wrong_size_leaves_the_old_one(rig: Rig, size: int) -> None:
    rig.device.write_queue(0, "size", 4, 0)
    rig.device.write_queue(0, "size", size, 0)
    assert rig.device.queues[0].size == 4


@pytest.mark.parametrize(
    ("field", "value"), [("size", 4), ("desc_gpa", 0), ("driver_gpa", 0), ("device_gpa", 0), ("enabled", 0)]
)
def test_regression_an_enabled_queue_does_not_change(rig: Rig, field: str, value: int) -> None:
    rig.start()
    before = repr(rig.device.queues[0])
    assert rig.device.write_queue(0, field, value, 0) == NO_NOTIFICATIONS
    assert repr(rig.device.queues[0]) == before


@pytest.mark.parametrize("index", [-1, 2, 65535])
def test_queues_that_do_not_exist_are_ignored(rig: Rig, index: int) -> None:
    rig.start()
    assert rig.device.notify(index, 0) == NO_NOTIFICATIONS
    assert rig.device.write_queue(index, "size", 4, 0) == NO_NOTIFICATIONS


@pytest.mark.parametrize("size", [0, 3, 65536])
def test_a_device_cannot_be_built_with_a_wrong_queue_size(memory: GuestMemory, size: int) -> None:
    with pytest.raises(ValueError, match=f"a power of two up to 32768, not {size}"):
        Holder(memory, size)


def test_2_7_1_a_misplaced_ring_needs_a_reset_and_is_not_enabled(rig: Rig) -> None:
    rig.rings[0].used = 0xA0000
    rig.negotiate()
    told = rig.enable()
    assert rig.device.needs_reset and not rig.device.queues[0].enabled
    assert (told.config, rig.kinds(told)) == (False, ["needs-reset"])
    assert rig.device.write_status(15, 0).config, "the driver hears of it once it is ready"


# -- when queues are served --------------------------------------------------------------------------------------------


def test_2_1_2_a_kick_before_driver_ok_consumes_nothing_and_is_not_forgotten(rig: Rig) -> None:
    rig.negotiate()
    rig.enable()
    rig.rings[0].offer(0, 1)
    assert rig.device.notify(0, 0) == NO_NOTIFICATIONS
    assert rig.rings[0].used_idx() == 0
    assert rig.device.write_status(15, 0).queues == (0,)
    assert rig.rings[0].used_idx() == 2
    assert rig.device.went_live == 1


def test_a_kick_without_bus_mastering_waits_for_it(rig: Rig) -> None:
    rig.start()
    rig.device.set_dma_enabled(False, 0)
    rig.rings[0].offer(0)
    assert rig.device.notify(0, 0) == NO_NOTIFICATIONS
    assert rig.rings[0].used_idx() == 0
    assert rig.device.set_dma_enabled(True, 0).queues == (0,)
    assert rig.rings[0].used_idx() == 1


def test_a_queue_enabled_late_is_looked_at(rig: Rig) -> None:
    rig.negotiate()
    rig.device.write_status(15, 0)
    rig.rings[0].offer(0)
    assert rig.enable().queues == (0,)


@pytest.mark.parametrize("status", [128, 0])
def test_2_4_1_nothing_is_consumed_after_failed_or_reset(rig: Rig, status: int) -> None:
    rig.start()
    rig.device.write_status(status, 0)
    rig.rings[0].offer(0)
    before = rig.device.memory.read(0, 0xA0000)
    assert rig.device.notify(0, 0) == NO_NOTIFICATIONS
    assert rig.device.memory.read(0, 0xA0000) == before


def test_2_9_a_spurious_kick_is_harmless(rig: Rig) -> None:
    rig.start()
    assert rig.device.notify(0, 0) == NO_NOTIFICATIONS


def test_requests_are_counted_across_resets(rig: Rig) -> None:
    rig.start()
    rig.rings[0].offer(0, 1, 2)
    rig.device.notify(0, 0)
    rig.device.write_status(0, 0)
    assert rig.device.queues[0].requests == 3


# -- completion later --------------------------------------------------------------------------------------------------


def test_chains_are_completed_later_and_out_of_order(rig: Rig) -> None:
    rig.start()
    rig.device.at_once = False
    for head in (4, 6):
        rig.rings[0].offer(head)
        assert rig.device.notify(0, 0) == NO_NOTIFICATIONS
    assert rig.device.release().queues == (0,)
    assert rig.device.release().queues == (0,)
    assert rig.rings[0].used_elements() == [(6, 0), (4, 0)]


def test_chains_are_completed_at_a_deadline(rig: Rig) -> None:
    rig.start()
    rig.device.at_once = False
    rig.rings[0].offer(4)
    rig.device.notify(0, 0)
    rig.device.due_ns = 500
    assert rig.device.next_deadline_ns() == 500
    assert rig.device.advance(499) == NO_NOTIFICATIONS
    assert rig.device.advance(500).queues == (0,)
    assert rig.device.next_deadline_ns() is None


def test_2_4_1_chains_held_over_a_reset_are_forgotten(rig: Rig) -> None:
    rig.start()
    rig.device.at_once = False
    rig.rings[0].offer(4)
    rig.device.notify(0, 0)
    rig.device.due_ns = 500
    rig.device.write_status(0, 0)
    assert rig.device.next_deadline_ns() is None
    assert rig.device.advance(1000) == NO_NOTIFICATIONS
    assert rig.rings[0].used_idx() == 0


def test_completing_for_a_driver_that_is_gone_is_a_bug_and_says_so(rig: Rig) -> None:
    rig.start()
    rig.device.at_once = False
    rig.rings[0].offer(4)
    rig.device.notify(0, 0)
    rig.device.set_dma_enabled(False, 0)
    with pytest.raises(RuntimeError, match="holder0: a cannot be used now"):
        rig.device.release()


def test_the_work_of_one_call_is_bounded_and_the_rest_is_carried_on_with(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight chains of eight descriptors, and room for twenty in one call: three, three, two."""
    monkeypatch.setattr(core, "WORK_LIMIT", 20)
    links = [descriptor(BUFFERS, 4, NEXT if i < 7 else 0, i + 1) for i in range(8)]
    rig.rings[0].set_table(TABLES, *links)
    for head in range(8):
        rig.rings[0].set_descriptor(head, TABLES, 128, INDIRECT)
    rig.start()
    rig.rings[0].offer(*range(8))
    told, done = rig.device.notify(0, 70), [rig.rings[0].used_idx()]
    assert told.deadline and told.queues == (0,)
    while (due := rig.device.next_deadline_ns()) is not None:
        assert due == 70
        rig.device.advance(70)
        done.append(rig.rings[0].used_idx())
    assert done == [3, 6, 8]


# -- the driver's mistakes ---------------------------------------------------------------------------------------------


def test_2_1_2_a_broken_ring_needs_a_reset_and_tells_where(rig: Rig) -> None:
    rig.start()
    rig.rings[1].set_descriptor(5, 0xA0000, 4)
    rig.rings[1].offer(5)
    told = rig.device.notify(1, 0)
    assert rig.device.needs_reset and rig.device.status == 15 | 64
    assert (told.config, told.queues) == (True, ())
    assert [event[:] for event in told.events] == [
        (
            "holder0",
            "needs-reset",
            "the device needs reset: queue 1, head 5: the 4 bytes at 0xa0000 are not all in guest RAM (virtio §2.7.5)",
        )
    ]


def test_after_an_error_nothing_is_consumed_on_any_queue_until_the_reset(rig: Rig) -> None:
    rig.start()
    rig.rings[1].set_avail_idx(9)
    rig.device.notify(1, 0)
    rig.rings[0].offer(0)
    assert rig.device.notify(0, 0) == NO_NOTIFICATIONS
    assert rig.rings[0].used_idx() == 0
    rig.device.write_status(0, 0)
    rig.rings[1].set_avail_idx(0)
    rig.start()
    assert not rig.device.needs_reset
    assert rig.rings[0].used_idx() == 1


def test_an_error_takes_back_nothing_that_was_done_before_it(rig: Rig) -> None:
    rig.negotiate()
    rig.enable(0)
    rig.enable(1)
    rig.rings[0].offer(0)
    rig.rings[1].set_avail_idx(9)
    told = rig.device.write_status(15, 0)
    assert told.queues == (0,) and told.config
    assert rig.kinds(told) == ["driver-ok", "needs-reset"]


# -- configuration space -----------------------------------------------------------------------------------------------


def test_2_5_reads_are_little_endian_and_zero_behind_the_end(rig: Rig) -> None:
    rig.device.level = 0x11223344
    assert rig.device.read_config(0, 4) == 0x11223344
    assert rig.device.read_config(1, 2) == 0x2233
    assert rig.device.read_config(8, 4) == 0
    assert rig.device.config_size == 8


def test_only_the_drivers_fields_are_written(rig: Rig) -> None:
    rig.device.write_config(0, 8, (5 << 32) | 7, 0)
    assert (rig.device.level, rig.device.wish) == (0, 5)


def test_2_5_the_generation_changes_between_reads_that_may_differ(rig: Rig) -> None:
    rig.start()
    first = rig.device.config_generation
    assert rig.device.config_changed().config
    assert rig.device.config_generation != first
    for _ in range(255):
        rig.device.config_changed()
    assert rig.device.config_generation == first + 1, "changes that nobody read between count once"
    rig.device.read_config(0, 4)
    rig.device.config_changed()
    assert rig.device.config_generation == first + 2


def test_a_driver_that_is_not_ready_is_not_told_of_changes(rig: Rig) -> None:
    rig.negotiate()
    assert not rig.device.config_changed().config


# -- reset -------------------------------------------------------------------------------------------------------------


def test_a_reset_device_equals_a_freshly_built_one(rig: Rig, memory: GuestMemory) -> None:
    rig.start()
    rig.device.at_once = False
    rig.rings[0].offer(4)
    rig.device.notify(0, 0)
    rig.device.write_config(4, 4, 9, 0)
    assert rig.device != Holder(memory)
    rig.device.reset()
    assert rig.device == Holder(memory)


def test_2_4_a_drivers_reset_leaves_bus_mastering_to_the_bus(rig: Rig, memory: GuestMemory) -> None:
    rig.start()
    rig.device.write_status(0, 0)
    assert rig.device.dma_enabled
    fresh = Holder(memory)
    fresh.set_dma_enabled(True, 0)
    assert rig.device == fresh


def test_devices_at_different_places_of_a_ring_differ(memory: GuestMemory) -> None:
    one, other = Rig(memory).start(), Rig(memory).start()
    assert one.device == other.device
    one.rings[0].offer(0)
    one.device.notify(0, 0)
    assert one.device != other.device
    assert one.device != "a device"

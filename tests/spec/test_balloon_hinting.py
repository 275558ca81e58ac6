"""§5.5.6.5 free page hinting.  D6 to D11 are the device's normative statements.

Contents are looked at through the memory file, so that looking does not bring a page back."""

from __future__ import annotations

import errno
import os

import pytest

from devices import hostcalls
from devices.virtio import spec
from devices.virtio.balloon import Balloon
from tests.fixtures import MakeMachine
from tests.support import BalloonMachine, Way, build_with
from vmm.testing.balloon import DONE, FREE_PAGE_HINT, INFLATEQ, STATS_VQ, STATSQ, STOP
from vmm.testing.driver import EVENT_IDX, INDIRECT_DESC

PAGE = 4096
build_hinting = build_with(spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT, spec.VIRTIO_BALLOON_F_PAGE_REPORTING)
RING_FEATURES = {"plain": EVENT_IDX | INDIRECT_DESC, "both": 0}
"""What each variant leaves out."""


def kernel_tracks_writes() -> bool:
    try:
        os.close(hostcalls.open_write_watch())
    except OSError:
        return False
    return True


needs_tracking = pytest.mark.skipif(not kernel_tracks_writes(), reason="this kernel does not track writes")


@pytest.fixture(params=RING_FEATURES)
def balloon(make_machine: MakeMachine, way: Way, request: pytest.FixtureRequest) -> BalloonMachine:
    """A started machine with hinting."""
    machine = make_machine(way, build=build_hinting)
    machine.driver.start(machine.driver.transport.read_device_features() & ~RING_FEATURES[request.param])
    machine.driver.take_interrupts()
    machine.events.clear()
    return machine


def start(machine: BalloonMachine, *, acknowledge: bool = True) -> int:
    """The host starts a round; its id."""
    machine.host(machine.balloon.start_hinting(machine.now_ns, acknowledge=acknowledge))
    return machine.driver.hint_cmd_id


def ranges(pfns: list[int]) -> list[tuple[int, int]]:
    return [(pfn * PAGE, PAGE) for pfn in pfns]


def kinds(machine: BalloonMachine) -> list[str]:
    return [event.kind for event in machine.events]


# -- the queue and the configuration -----------------------------------------------------------------------------------


def test_5_5_3_hinting_is_offered_only_when_asked_for(machine: BalloonMachine) -> None:
    assert not machine.driver.transport.read_device_features() & FREE_PAGE_HINT


def test_5_5_2_free_page_vq_is_the_queue_behind_statsq_and_before_reporting_vq(balloon: BalloonMachine) -> None:
    assert (balloon.driver.free_page_vq, balloon.driver.reporting_vq) == (3, 4)
    names = ["inflateq", "deflateq", "statsq", "free_page_vq", "reporting_vq"]
    assert [queue.name for queue in balloon.balloon.queues] == names


def test_it_has_the_two_entries_that_linux_needs(make_machine: MakeMachine, way: Way) -> None:
    machine = make_machine(way, build=build_with(spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT, queue_size=1))
    assert machine.driver.transport.queue_max_size(machine.driver.free_page_vq) == 2


@pytest.mark.parametrize(
    ("bits", "without", "size"),
    [((), 1 << 4, 8), ((3,), 1 << 4, 12), ((), 0, 16), ((3,), 0, 16)],
    ids=["neither", "hint", "poison", "both"],
)
def test_5_5_4_the_configuration_ends_with_the_last_field_whose_feature_is_offered(
    make_machine: MakeMachine, way: Way, bits: tuple[int, ...], without: int, size: int
) -> None:
    machine = make_machine(way, build=build_with(*bits, without=without))
    assert machine.balloon.config_size == size


def test_5_5_4_the_driver_cannot_write_the_command_id(balloon: BalloonMachine) -> None:
    cmd_id = start(balloon)
    balloon.driver.write_config(8, 4, 0xFFFFFFFF)
    balloon.driver.write_config(9, 1, 0xFF)
    assert balloon.driver.hint_cmd_id == cmd_id


def test_5_5_6_5_the_driver_is_told_of_a_new_id_and_of_done(balloon: BalloonMachine) -> None:
    before = balloon.driver.transport.read_config_generation()
    cmd_id = start(balloon)
    assert cmd_id >= 2
    assert balloon.driver.take_interrupts().config == 1
    legacy = balloon.driver.is_legacy  # which has no generation (§2.5.4)
    assert legacy or balloon.driver.transport.read_config_generation() != before
    balloon.driver.hint_round([])
    assert balloon.driver.take_interrupts().config == 1


def test_5_5_6_5_buffers_come_back_with_length_0(balloon: BalloonMachine) -> None:
    cmd_id = start(balloon, acknowledge=False)
    pfns = balloon.filled_pfns(3)
    used = [*balloon.driver.send_id(cmd_id), *balloon.driver.hint(ranges(pfns)), *balloon.driver.send_id(STOP)]
    assert [each.length for each in used] == [0] * 5


# -- D9: what may be discarded -----------------------------------------------------------------------------------------


@needs_tracking
def test_d9_a_page_that_was_not_written_since_the_id_is_given_back(balloon: BalloonMachine) -> None:
    pfns = balloon.filled_pfns(64)
    start(balloon)
    before = balloon.memory.backed_bytes()
    balloon.driver.hint_round(ranges(pfns))
    assert balloon.memory.backed_bytes() <= before - 60 * PAGE  # rings and ids may be new
    assert balloon.are_zero(pfns)
    assert balloon.memory.backed_bytes() <= before - 60 * PAGE, "looking brought pages back"
    assert (balloon.balloon.hinted_pages, balloon.balloon.hint_discarded_pages) == (64, 64)
    assert balloon.balloon.discarded_bytes == 64 * PAGE


@needs_tracking
@pytest.mark.parametrize("byte", [0, PAGE - 1])
def test_d9_a_page_written_since_the_id_keeps_its_contents(balloon: BalloonMachine, byte: int) -> None:
    """Written before the hint, after it was placed in the ring, or after it was published: it is never lost."""
    pfns = balloon.filled_pfns(6)
    cmd_id = start(balloon)
    driver, queue = balloon.driver, balloon.driver.free_page_vq
    driver.send_id(cmd_id)
    balloon.memory.write(pfns[0] * PAGE + byte, b"\x5a")
    for pfn in pfns:
        driver.offer(queue, writable=[(pfn * PAGE, PAGE)])
    balloon.memory.write(pfns[2] * PAGE + byte, b"\x5a")
    driver.queues[queue].publish()
    balloon.memory.write(pfns[4] * PAGE + byte, b"\x5a")
    driver.kick(queue, force=True)
    driver.collect(queue)
    assert balloon.are_filled(pfns[0::2])
    assert balloon.are_zero(pfns[1::2])
    assert (balloon.balloon.hinted_pages, balloon.balloon.hint_discarded_pages) == (6, 3)


@needs_tracking
def test_d9_a_page_of_another_round_counts_from_its_own_id(balloon: BalloonMachine) -> None:
    """What was written before a newer id may go under the newer one."""
    pfns = balloon.filled_pfns(2)
    start(balloon)
    balloon.memory.write(pfns[0] * PAGE, b"\x5a")
    balloon.driver.hint_round(ranges(pfns))
    assert balloon.are_filled(pfns[:1]) and balloon.are_zero(pfns[1:])
    start(balloon)
    balloon.driver.hint_round(ranges(pfns))
    assert balloon.are_zero(pfns)


@needs_tracking
def test_d9_a_write_after_the_page_went_stays(balloon: BalloonMachine) -> None:
    """The driver may release a hinted page at any time; hinted once more in the round, it is a written page."""
    pfns = balloon.filled_pfns(2)
    cmd_id = start(balloon)
    balloon.driver.send_id(cmd_id)
    balloon.driver.hint(ranges(pfns))
    balloon.memory.write(pfns[0] * PAGE, b"\x5a" * PAGE)
    balloon.driver.hint(ranges(pfns))
    balloon.driver.send_id(STOP)
    assert balloon.are_filled(pfns[:1]) and balloon.are_zero(pfns[1:])


@needs_tracking
def test_d9_what_a_device_wrote_counts_as_written_too(balloon: BalloonMachine) -> None:
    """The rings lie in guest RAM: a foolish driver that hints them loses nothing it needs."""
    start(balloon)
    layout = balloon.driver.queues[balloon.driver.free_page_vq].layout
    balloon.driver.hint_round([(layout.device_gpa // PAGE * PAGE, PAGE)])
    assert balloon.driver.hint_cmd_id == DONE
    assert not balloon.driver.needs_reset


def test_only_whole_pages_are_hints(balloon: BalloonMachine) -> None:
    pfns = balloon.filled_pfns(3)
    start(balloon)
    balloon.driver.hint_round([(pfns[0] * PAGE + 1, PAGE), (pfns[1] * PAGE, PAGE - 1), (pfns[2] * PAGE, 1)])
    assert balloon.are_filled(pfns)
    assert balloon.balloon.hinted_pages == 0
    assert balloon.balloon.ignored_bytes == 2 * PAGE


# -- where the host cannot tell ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "number"),
    [("open_write_watch", errno.EPERM), ("open_write_watch", errno.EINVAL), ("watch_writes", errno.EBUSY)],
)
def test_a_host_that_does_not_track_writes_counts_and_says_so(
    balloon: BalloonMachine, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """A kernel before 6.7, or one that refuses userfaultfd: nothing is discarded."""

    def refuse(*_arguments: int) -> int:
        raise OSError(number, os.strerror(number))

    if call == "watch_writes" and not kernel_tracks_writes():
        monkeypatch.setattr(hostcalls, "open_write_watch", lambda: os.open("/dev/null", os.O_RDONLY))
    monkeypatch.setattr(hostcalls, call, refuse)
    pfns = balloon.filled_pfns(4)
    start(balloon)
    (told,) = [event.text for event in balloon.events if event.kind == "hinting"]
    assert "counted and not given back: the host does not tell which pages" in told
    assert os.strerror(number) in told and "Linux 6.7" in told
    balloon.driver.hint_round(ranges(pfns))
    assert balloon.are_filled(pfns)
    assert (balloon.balloon.hinted_pages, balloon.balloon.hint_discarded_pages) == (4, 0)
    assert balloon.driver.hint_cmd_id == DONE


@needs_tracking
def test_a_host_that_cannot_scan_counts_and_says_so(balloon: BalloonMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: int) -> None:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    monkeypatch.setattr(hostcalls, "unwritten_runs", refuse)
    pfns = balloon.filled_pfns(1)
    start(balloon)
    assert "not given back" in balloon.events[0].text
    balloon.driver.hint_round(ranges(pfns))
    assert balloon.are_filled(pfns)


# -- D6, D7, D8: ids ---------------------------------------------------------------------------------------------------


def test_d6_the_id_is_stop_until_hints_are_wanted_and_after_a_reset(balloon: BalloonMachine) -> None:
    assert balloon.driver.hint_cmd_id == STOP
    start(balloon)
    balloon.driver.start()
    assert balloon.driver.hint_cmd_id == STOP


def test_d6_the_host_can_stop_a_round_and_hints_are_ignored_then(balloon: BalloonMachine) -> None:
    pfns = balloon.filled_pfns(2)
    cmd_id = start(balloon)
    balloon.driver.send_id(cmd_id)
    balloon.driver.take_interrupts()
    balloon.host(balloon.balloon.stop_hinting(balloon.now_ns))
    assert balloon.driver.hint_cmd_id == STOP
    assert balloon.driver.take_interrupts().config == 1
    balloon.driver.hint(ranges(pfns))
    balloon.driver.send_id(STOP)
    assert balloon.driver.hint_cmd_id == STOP
    assert balloon.are_filled(pfns)
    assert (balloon.balloon.hinted_pages, balloon.balloon.stale_hint_pages) == (0, 2)


def test_d7_ids_count_up_and_go_on_over_a_reset(balloon: BalloonMachine) -> None:
    ids = []
    for _ in range(3):
        ids.append(start(balloon))
        balloon.driver.hint_round([])
    balloon.driver.start()
    ids += [start(balloon), start(balloon)]
    assert ids == [2, 3, 4, 5, 6]


def at_the_last_id(machine: BalloonMachine, unstopped: int) -> None:
    """Put the device where it has issued all ids but the last one, `unstopped` of them since the last STOP."""
    state = machine.balloon.save_state()
    hinting = state["hinting"]
    assert isinstance(hinting, dict)
    hinting.update(next_id=2**32 - 1, unstopped=unstopped)
    machine.balloon.check_state(state, "balloon")
    machine.balloon.restore_state(state)


def test_d7_ids_begin_again_when_a_stop_has_come_between(balloon: BalloonMachine) -> None:
    at_the_last_id(balloon, 5)
    assert start(balloon) == 2**32 - 1
    balloon.driver.hint_round([])
    assert start(balloon) == 2, "0 and 1 are no ids"


def test_d7_no_id_is_used_again_before_the_driver_has_sent_stop(balloon: BalloonMachine) -> None:
    at_the_last_id(balloon, 2**32 - 3)
    last = start(balloon)
    balloon.driver.take_interrupts()
    assert start(balloon) == last
    assert kinds(balloon)[-1] == "hinting-refused"
    assert balloon.driver.take_interrupts().config == 0
    balloon.driver.send_id(STOP)
    assert start(balloon) == 2


@pytest.mark.parametrize("offset", [1, -1])
def test_d8_pages_under_another_id_are_ignored(balloon: BalloonMachine, offset: int) -> None:
    start(balloon)
    cmd_id = start(balloon)  # a newer one
    pfns = balloon.filled_pfns(2)
    balloon.driver.send_id(cmd_id + offset)
    balloon.driver.hint(ranges(pfns))
    assert balloon.are_filled(pfns)
    assert (balloon.balloon.hinted_pages, balloon.balloon.stale_hint_pages) == (0, 2)
    assert kinds(balloon).count("stale-hints") == 1


@needs_tracking
def test_d8_a_stop_meant_for_an_older_id_does_not_end_the_new_round(balloon: BalloonMachine) -> None:
    """Linux answers a new id in the middle of a round with STOP for the old one, then with the new id."""
    pfns = balloon.filled_pfns(2)
    balloon.driver.send_id(start(balloon))
    newer = start(balloon)
    balloon.driver.send_id(STOP)
    assert balloon.driver.hint_cmd_id == newer
    balloon.driver.send_id(newer)
    balloon.driver.hint(ranges(pfns))
    assert balloon.are_zero(pfns)


@pytest.mark.parametrize("before", ["nothing", "stop"])
def test_d8_pages_without_an_id_or_after_stop_are_ignored(balloon: BalloonMachine, before: str) -> None:
    pfns = balloon.filled_pfns(2)
    cmd_id = start(balloon, acknowledge=False)
    if before == "stop":
        balloon.driver.send_id(cmd_id)
        balloon.driver.send_id(STOP)
    balloon.driver.hint(ranges(pfns))
    assert balloon.are_filled(pfns)
    assert balloon.balloon.stale_hint_pages == 2


def test_d8_ids_of_0_and_1_never_make_pages_hints(balloon: BalloonMachine) -> None:
    pfns = balloon.filled_pfns(4)
    balloon.driver.send_id(STOP)
    balloon.driver.hint(ranges(pfns[:2]))
    start(balloon)
    balloon.host(balloon.balloon.done_hinting(balloon.now_ns))
    balloon.driver.send_id(DONE)
    balloon.driver.hint(ranges(pfns[2:]))
    assert balloon.are_filled(pfns)


@needs_tracking
def test_a_batch_may_hold_a_whole_round(balloon: BalloonMachine) -> None:
    """Id, pages, STOP and further pages in one kick count in their order."""
    pfns, late = balloon.filled_pfns(4), balloon.filled_pfns(2)
    driver, queue = balloon.driver, balloon.driver.free_page_vq
    cmd_id = start(balloon)
    driver.offer(queue, readable=[cmd_id.to_bytes(4, "little")])
    for pfn in pfns:
        driver.offer(queue, writable=[(pfn * PAGE, PAGE)])
    driver.offer(queue, readable=[bytes(4)])
    for pfn in late:
        driver.offer(queue, writable=[(pfn * PAGE, PAGE)])
    driver.kick(queue)
    assert len(driver.collect(queue)) == 8
    assert balloon.are_zero(pfns) and balloon.are_filled(late)
    assert driver.hint_cmd_id == DONE


# -- D10, D11: done ----------------------------------------------------------------------------------------------------


def test_d11_done_is_reported_when_the_driver_has_ended_the_round(balloon: BalloonMachine) -> None:
    start(balloon)
    balloon.driver.hint_round(ranges(balloon.filled_pfns(2)))
    assert balloon.driver.hint_cmd_id == DONE
    assert kinds(balloon)[-1] == "hinted"
    assert "hinted 2 free pages" in balloon.events[-1].text


def test_d11_the_host_may_keep_the_pages_and_say_done_later(balloon: BalloonMachine) -> None:
    cmd_id = start(balloon, acknowledge=False)
    balloon.driver.hint_round([])
    assert balloon.driver.hint_cmd_id == cmd_id
    balloon.driver.take_interrupts()
    balloon.host(balloon.balloon.done_hinting(balloon.now_ns))
    assert balloon.driver.hint_cmd_id == DONE
    assert balloon.driver.take_interrupts().config == 1


def test_d10_a_hinted_page_is_left_alone_after_done(balloon: BalloonMachine) -> None:
    pfns = balloon.filled_pfns(4)
    start(balloon)
    balloon.driver.hint_round(ranges(pfns))
    for pfn in pfns:
        balloon.memory.write(pfn * PAGE, b"\x33" * PAGE)
    balloon.driver.hint(ranges(pfns))
    balloon.driver.report([])
    balloon.set_target(50)
    balloon.bench.advance(10**9)
    balloon.host(balloon.balloon.done_hinting(balloon.now_ns))
    balloon.driver.transport.notify(balloon.driver.free_page_vq)
    assert balloon.are_filled(pfns, 0x33)
    balloon.driver.start()
    assert balloon.are_filled(pfns, 0x33)


# -- who may ask -------------------------------------------------------------------------------------------------------


def test_a_round_needs_a_driver_that_accepted_hinting(balloon: BalloonMachine) -> None:
    features = balloon.driver.features
    balloon.driver.start(features & ~FREE_PAGE_HINT)
    balloon.driver.take_interrupts()
    assert balloon.balloon.hinting_obstacle == "the guest's driver has not accepted free page hinting"
    assert start(balloon) == STOP
    balloon.driver.reset()
    assert balloon.balloon.hinting_obstacle == "the guest's driver is not ready"
    assert start(balloon) == STOP
    assert kinds(balloon).count("hinting-refused") == 2
    assert balloon.driver.take_interrupts().config == 0


def test_a_balloon_without_hinting_says_so(started: BalloonMachine) -> None:
    assert started.balloon.hinting_obstacle == "the balloon does not offer free page hinting"
    for command in (started.balloon.start_hinting, started.balloon.stop_hinting, started.balloon.done_hinting):
        started.host(command(started.now_ns))
    assert started.driver.take_interrupts().config == 0


@needs_tracking
def test_hints_that_came_too_early_are_looked_at_when_the_device_may(balloon: BalloonMachine) -> None:
    """With bus mastering off nothing is touched, and nothing is forgotten; a page written meanwhile is kept."""
    pfns = balloon.filled_pfns(2)
    balloon.driver.send_id(start(balloon))
    balloon.host(balloon.balloon.set_dma_enabled(False, balloon.now_ns))
    balloon.driver.hint(ranges(pfns))
    assert balloon.are_filled(pfns)
    balloon.memory.write(pfns[0] * PAGE, b"\x5a")
    balloon.host(balloon.balloon.set_dma_enabled(True, balloon.now_ns))
    assert balloon.are_filled(pfns[:1]) and balloon.are_zero(pfns[1:])


# -- saved, and reset --------------------------------------------------------------------------------------------------


@needs_tracking
def test_a_round_goes_on_from_a_saved_state(make_machine: MakeMachine) -> None:
    """What was written before the state was saved is still known, and what is written afterwards too."""
    machine = make_machine("direct", build=build_hinting)
    machine.driver.start()
    pfns = machine.filled_pfns(4)
    machine.driver.send_id(start(machine))
    machine.memory.write(pfns[0] * PAGE, b"\x5a")
    state = machine.balloon.save_state()
    machine.balloon.stop_hinting(0)
    machine.balloon.check_state(state, "balloon")
    machine.balloon.restore_state(state)
    assert machine.balloon.save_state() == state
    machine.memory.write(pfns[1] * PAGE, b"\x5a")
    machine.driver.hint(ranges(pfns))
    assert machine.are_filled(pfns[:2]) and machine.are_zero(pfns[2:])


def test_a_reset_device_equals_one_that_was_never_driven(balloon: BalloonMachine) -> None:
    fresh = Balloon(balloon.memory, features=balloon.balloon.device_features)
    fresh._hinting._next_id = 3  # ids are the host's, and go on
    fresh._hinting._unstopped = 1
    balloon.driver.send_id(start(balloon))
    assert balloon.balloon != fresh
    balloon.balloon.reset()
    assert balloon.balloon == fresh


def test_the_other_queues_are_untouched_by_it(balloon: BalloonMachine) -> None:
    pfns = balloon.filled_pfns(4)
    start(balloon)
    balloon.driver.inflate(pfns[:2])
    balloon.driver.hint_round(ranges(pfns[2:]))
    balloon.driver.deflate(pfns[:2])
    assert balloon.driver.features & STATS_VQ and STATSQ in balloon.driver.queues
    assert balloon.balloon.inflated_pages == balloon.balloon.deflated_pages == 2
    assert balloon.balloon.queues[INFLATEQ].requests == 1


@pytest.mark.ways("direct", "pci", "packed-pci")
def test_after_its_queue_was_reset_hints_need_the_id_again(balloon: BalloonMachine) -> None:
    """Nobody knows what was on its way over the old one (RING_RESET)."""
    pfns = balloon.filled_pfns(2)
    cmd_id = start(balloon)
    driver, queue = balloon.driver, balloon.driver.free_page_vq
    driver.send_id(cmd_id)
    size = driver.queues[queue].size
    driver.reset_queue(queue)
    driver.set_up_queue(queue, size)
    driver.hint(ranges(pfns[:1]))
    assert balloon.balloon.stale_hint_pages == 1
    driver.send_id(cmd_id)
    driver.hint(ranges(pfns[1:]))
    assert balloon.balloon.hinted_pages == 1
    assert balloon.are_filled(pfns[:1])

"""Profiles: what a driver sees of each mistake when the balloon takes it as another monitor does.

The table here is written from what those monitors do, not from the rows of `devices.virtio.profiles`."""

from __future__ import annotations

import pytest

from devices.errors import Fault
from devices.virtio.profiles import PROFILES
from tests.fixtures import MakeMachine
from tests.hostile.guest_errors import JUMPS, NO_HEADS, Requests, start
from vmm.testing import RawQueue
from vmm.testing.balloon import DEFLATEQ, pfn_bytes
from vmm.testing.mistakes import HEAD, RING_MISTAKES, Mistake
from vmm.testing.packed_mistakes import PACKED_MISTAKES
from vmm.testing.raw import NEXT

KINDS = {
    "index jumps": JUMPS,
    "no such head": NO_HEADS,
    "next": ("next_out_of_range", "next_out_of_table"),
    "loop": ("chain_of_one_that_loops", "chain_that_loops", "table_that_loops", "chain_longer_than_the_queue"),
    "order": ("readable_after_writable", "readable_after_writable_in_table", "readable_table_after_writable"),
    "empty": ("zero_length_descriptor",),
    "outside": (
        *("buffer_outside_ram", "buffer_half_outside_ram", "buffer_wraps_around_64_bits", "buffer_of_4_gib"),
        *("writable_buffer_outside_ram", "second_descriptor_outside_ram"),
    ),
    "table outside": ("table_outside_ram", "table_of_4_gib"),
    "twice": ("same_head_twice",),
    "not negotiated": ("indirect_not_negotiated",),
    "nested": ("table_in_table", "table_in_itself"),
    "and next": ("indirect_and_next",),
    "no bytes": ("table_of_no_bytes",),
    "odd table": ("table_of_one_and_a_half",),
}
EFFECTS = """
                qemu     firecracker  crosvm   cloud-hypervisor  kvmtool
index jumps     reset    waits        dropped  waits             dropped
no such head    reset    waits        waits    waits             dropped
next            reset    waits        waits    done              dropped
loop            reset    done         waits    done              waits
order           reset    done         waits    done              done
empty           reset    skipped      skipped  skipped           skipped
outside         skipped  dropped      waits    waits             waits
table outside   reset    dropped      waits    waits             waits
twice           skipped  skipped      skipped  skipped           skipped
not negotiated  done     done         waits    done              done
nested          done     done         waits    waits             done
and next        done     done         waits    done              done
no bytes        reset    skipped      waits    waits             dropped
odd table       reset    done         waits    waits             dropped
"""
COLUMNS = EFFECTS.split("\n")[1].split()
EXPECTED = {
    (profile, kind.strip()): effect
    for line in EFFECTS.strip("\n").split("\n")[1:]
    for kind, cells in [(line[:16], line[16:].split())]
    for profile, effect in zip(COLUMNS, cells, strict=True)
}
CASES = [
    pytest.param(profile, mistake, EXPECTED[profile, kind], id=f"{profile}-{mistake.name}")
    for profile in PROFILES
    for kind, names in KINDS.items()
    for mistake in RING_MISTAKES
    if mistake.name in names
]


def test_the_table_is_complete() -> None:
    assert list(PROFILES) == COLUMNS
    assert {mistake.name for mistake in RING_MISTAKES} == {name for names in KINDS.values() for name in names}


@pytest.mark.parametrize(("profile", "mistake", "effect"), CASES)
def test_a_mistake_has_the_effect_that_it_has_there(
    make_machine: MakeMachine, profile: str, mistake: Mistake, effect: str
) -> None:
    requests = start(make_machine, "pci", PROFILES[profile].policy, mistake)
    machine, raw = requests.machine, requests.raw
    assert isinstance(raw, RawQueue)
    before = requests.make(20)
    raw.kick()
    requests.mistake(mistake)
    raw.kick()
    assert machine.driver.needs_reset == (effect == "reset")
    if effect == "reset":
        assert machine.driver.take_interrupts().config == 1
        return
    after = requests.make(30)
    raw.kick()
    assert machine.are_zero(before)
    assert machine.are_filled(after) if effect == "waits" else machine.are_zero(after)
    of_the_mistake = [HEAD] * ((effect in ("skipped", "done")) + (mistake.name == "same_head_twice"))
    assert raw.heads_returned() == [20, *of_the_mistake, *[30] * (effect != "waits")]
    assert (requests.skipped, requests.dropped) == (effect == "skipped", effect == "dropped")
    told = [event for event in machine.events if event.kind == "guest-error"]
    assert bool(told) == (effect != "done")
    machine.driver.post_stats({4: 17})
    assert machine.statistics().values == {"stat-free-memory": 17}, "other queues go on"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("mistake", PACKED_MISTAKES, ids=lambda mistake: mistake.name)
def test_a_profile_over_a_packed_ring_touches_nothing_it_must_not(
    make_machine: MakeMachine, profile: str, mistake: object
) -> None:
    """Whatever is tolerated, only the page that the requests' zero bytes name may go, and a reset brings all back."""
    found = next(each for each in PACKED_MISTAKES if each is mistake)
    requests = start(make_machine, "packed-pci", PROFILES[profile].policy, found)
    machine = requests.machine
    requests.mistake(found)
    before = machine.snapshot()
    requests.raw.kick()
    layout = machine.driver.queues[0].layout
    used = (layout.descriptor(0), 16 * requests.raw.size), (layout.device_gpa, 4)
    named = [(page << 12, 4096) for page in range(16)]  # a table that is read as an array names small numbers
    assert before.changed(outside=[*used, *named]) == []
    machine.driver.start()
    assert len(machine.driver.inflate(machine.filled_pfns(2))) == 1


# -- payloads ----------------------------------------------------------------------------------------------------------


def payload(requests: Requests, head: int, data: bytes) -> None:
    assert isinstance(requests.raw, RawQueue)
    requests.raw.descriptor(head, requests.raw.buffer(data), len(data))
    requests.raw.available(head)


@pytest.mark.parametrize(
    ("profile", "effect"),
    [
        ("qemu", "entries"),
        ("firecracker", "unread"),
        ("crosvm", "entries"),
        ("cloud-hypervisor", "lost"),
        ("kvmtool", "entries"),
    ],
)
@pytest.mark.parametrize("queue", [0, DEFLATEQ], ids=["inflateq", "deflateq"])
def test_an_array_that_ends_within_an_entry(make_machine: MakeMachine, profile: str, effect: str, queue: int) -> None:
    """Between two good ones of the same kick, whose heads are not lost."""
    requests = start(make_machine, "pci", PROFILES[profile].policy)
    machine = requests.machine
    raw = RawQueue(machine.driver, queue)
    requests = Requests(machine, raw)
    pfns = machine.filled_pfns(3)
    payload(requests, 20, pfn_bytes(pfns[:1]))
    payload(requests, 21, pfn_bytes(pfns[1:2]) + b"\xff\xff")
    payload(requests, 22, pfn_bytes(pfns[2:]))
    raw.kick()
    balloon = machine.balloon
    assert balloon.inflated_pages + balloon.stray_pages == 2 + (effect == "entries")
    if queue != DEFLATEQ:
        assert machine.are_zero(pfns[1:2]) == (effect == "entries")
    assert sorted(raw.heads_returned()) == ([20, 22] if effect == "lost" else [20, 21, 22])
    assert (requests.skipped, requests.dropped) == (effect == "unread", effect == "lost")
    assert machine.are_zero([pfns[0], pfns[2]]) or queue == DEFLATEQ


@pytest.mark.parametrize("profile", PROFILES)
def test_a_request_of_two_descriptors(make_machine: MakeMachine, profile: str) -> None:
    requests = start(make_machine, "pci", PROFILES[profile].policy)
    machine, raw = requests.machine, requests.raw
    assert isinstance(raw, RawQueue)
    pfns = machine.filled_pfns(2)
    raw.descriptor(20, raw.buffer(pfn_bytes(pfns[:1])), 4, NEXT, 21)
    raw.descriptor(21, raw.buffer(pfn_bytes(pfns[1:])), 4)
    raw.available(20)
    raw.kick()
    head_only = profile in ("firecracker", "cloud-hypervisor", "kvmtool")
    assert machine.are_zero(pfns[:1])
    assert machine.are_filled(pfns[1:]) if head_only else machine.are_zero(pfns[1:])
    assert raw.heads_returned() == [20]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_deflate_request_of_more_than_256_entries_comes_back(make_machine: MakeMachine, profile: str) -> None:
    machine = start(make_machine, "pci", PROFILES[profile].policy).machine
    raw = RawQueue(machine.driver, DEFLATEQ)
    payload(Requests(machine, raw), 20, pfn_bytes([5] * 257))
    raw.kick()
    assert raw.heads_returned() == [20]


@pytest.mark.parametrize("profile", PROFILES)
def test_an_array_of_more_than_256_entries(make_machine: MakeMachine, profile: str) -> None:
    requests = start(make_machine, "pci", PROFILES[profile].policy)
    machine, raw = requests.machine, requests.raw
    assert isinstance(raw, RawQueue)
    (pfn, other) = machine.filled_pfns(2)
    payload(requests, 20, pfn_bytes([pfn] * 256))
    payload(requests, 21, pfn_bytes([other] * 257))
    raw.kick()
    leaked = profile == "firecracker"
    assert machine.are_zero([pfn])
    assert machine.are_filled([other]) if leaked else machine.are_zero([other])
    assert raw.heads_returned() == ([20] if leaked else [20, 21])
    assert requests.dropped == leaked


@pytest.mark.parametrize("profile", PROFILES)
def test_a_statistics_buffer_of_eleven_entries(make_machine: MakeMachine, profile: str) -> None:
    machine = start(make_machine, "pci", PROFILES[profile].policy).machine
    machine.driver.post_stats(b"".join(tag.to_bytes(2, "little") + bytes(8) for tag in range(11)))
    assert len(machine.statistics().raw) == (10 if profile == "kvmtool" else 11)
    machine.request_stats()
    assert machine.driver.stats_wanted()


# -- the data ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_a_profile_is_a_policy_that_can_be_made(profile: object) -> None:
    found = PROFILES[profile.name]  # type: ignore[attr-defined]
    rows = [row.fault for row in found.rows]
    assert len(set(rows)) == len(rows) and Fault.PLACEMENT not in rows
    assert all(found.policy.of(row.fault) is row.treatment for row in found.rows)

"""What the host gets back of a Linux guest's memory, counted in blocks of the memory file by another process."""

from __future__ import annotations

import os
from pathlib import Path

from tests.boot import debian
from tests.boot.balloon import (
    INSERT,
    MEMORY,
    MIB,
    PAGE_BYTES,
    RAM_BYTES,
    SETUPS,
    Guests,
    archive,
    backed_bytes,
    digest,
    fill,
    meminfo,
    reach,
    write_file,
)
from tests.boot.guest import SHELL_IS_UP, Linux
from vmm.inspect import GuestRam

pytestmark = debian.needs_debian

BALLOON = 80 * MIB
BOUND = (RAM_BYTES - BALLOON) * 105 // 100
FILL_MIB = 88  # nearly all that is free after the boot


def test_host_memory_falls_by_the_balloon(guests: Guests, setup: str) -> None:
    guest = guests.loaded(cmdline=SETUPS[setup])
    fill(guest, FILL_MIB)
    before = backed_bytes(guest)
    assert before > BOUND + 50 * MIB, "the guest has had nearly all of its RAM"

    reach(guest, BALLOON)
    after = backed_bytes(guest)
    assert after <= BOUND
    assert before - after >= BALLOON * 95 // 100
    assert guest.machine.memory.backed_bytes() == after


def test_it_falls_by_three_quarters_of_a_gibibyte(tmp_path: Path) -> None:
    """A guest that clears all memory that becomes free has filled its RAM when it is up."""
    ram, balloon = 1024 * MIB, 768 * MIB
    with Linux(tmp_path, archive(), "init_on_free=1", memory="1G") as guest:
        guest.wait_for(SHELL_IS_UP)
        guest.ask(INSERT)
        before = backed_bytes(guest)
        assert before > ram * 99 // 100
        reach(guest, balloon)
        after = backed_bytes(guest)
        assert guest.machine.balloon.inflated_pages * PAGE_BYTES == balloon
        assert after <= (ram - balloon) * 105 // 100
        assert before - after >= balloon * 99 // 100
        for region in guest.machine.memory.regions:
            guest.machine.memory.peek(region.gpa, region.size)
        assert backed_bytes(guest) == after, "looking at it brings nothing back"


def test_looking_at_the_guest_s_memory_brings_nothing_back(guests: Guests) -> None:
    guest = guests.loaded()
    fill(guest, FILL_MIB)
    reach(guest, BALLOON)
    before, memory = backed_bytes(guest), guest.machine.memory
    assert before <= BOUND and memory.fd is not None

    looked = 0
    inode = os.fstat(memory.fd).st_ino
    with GuestRam.attach(os.getpid(), inode=inode) as ram:
        for region in memory.regions:
            for gpa in range(region.gpa, region.end, MIB):
                length = min(MIB, region.end - gpa)
                assert memory.peek(gpa, length) == ram.peek(gpa, length) == os.pread(memory.fd, length, gpa)
                looked += length
    assert looked == memory.size_bytes
    assert backed_bytes(guest) == before

    guest.machine.save()
    guest.machine.report()
    assert backed_bytes(guest) == before
    guest.machine.run("5s")
    assert backed_bytes(guest) <= BOUND, "nor does a guest that does nothing"


def test_the_balloon_may_come_and_go_as_often_as_one_likes(guests: Guests) -> None:
    guest = guests.loaded()
    after = []
    for _ in range(3):
        fill(guest, FILL_MIB)
        assert backed_bytes(guest) > BOUND + 50 * MIB, "what was given back is there again when it is used"
        reach(guest, BALLOON)
        after.append(backed_bytes(guest))
        reach(guest, 0)
    assert max(after) <= BOUND
    assert max(after) - min(after) < 4 * MIB, "nothing stays behind"


def test_half_the_balloon_back_is_half_of_it_when_the_guest_uses_it(guests: Guests) -> None:
    guest = guests.loaded()
    fill(guest, FILL_MIB)
    reach(guest, BALLOON)
    reach(guest, BALLOON // 2)
    assert backed_bytes(guest) <= BOUND, "deflating alone costs nothing"
    fill(guest, FILL_MIB - BALLOON // MIB // 2)
    bound = (RAM_BYTES - BALLOON // 2) * 105 // 100
    assert bound - 30 * MIB < backed_bytes(guest) <= bound


def test_what_the_guest_keeps_in_memory_is_left_alone(guests: Guests) -> None:
    guest = guests.loaded()
    kept = write_file(guest, "/files/kept", 8)
    free_mib = meminfo(guest)["MemFree"] // MIB
    for mib in (free_mib - 4, 0, free_mib - 4, 10):
        reach(guest, mib * MIB)
        assert digest(guest, "/files/kept") == kept
    assert guest.complaints == []


# -- the way these tests begin -----------------------------------------------------------------------------------------


def story(guest: Linux) -> tuple[str, list[object], list[int]]:
    """All that can be seen of a guest that uses its memory and has some of it taken."""
    seen = []
    for size in (60 * MIB, 3 * PAGE_BYTES, 0):
        fill(guest, 30)
        reach(guest, size)
        guest.machine.balloon.request_stats()
        guest.machine.run("10ms")
        seen += [guest.machine.now_ns, backed_bytes(guest), *guest.machine.stats.values.values()]
    return guest.console, list(guest.events), seen


def test_a_guest_that_went_back_in_time_is_the_guest_it_was(guests: Guests, tmp_path: Path) -> None:
    """The tests of the balloon boot once and go back: to the byte the same as a boot of its own for each."""
    with Linux(tmp_path, archive(), memory=MEMORY) as straight:
        straight.wait_for(SHELL_IS_UP)
        straight.ask(INSERT)
        expected = story(straight)
    assert story(guests.loaded()) == expected
    assert story(guests.loaded()) == expected

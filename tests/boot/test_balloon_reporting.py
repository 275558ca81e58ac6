"""Free page reporting (virtio 1.3 §5.5.6.7) under Debian's kernel: host memory falls although nobody inflates.

The kernel reports blocks of 2 MiB and more, two seconds after memory became free, and again whenever more has.  With
`page_reporting_order` 0 it reports single pages too.  In each interrupt set-up it is reported, beside a balloon and
while the driver is removed; what else there is to say of it has nothing to do with interrupts and is tried with MSI-X.
"""

from __future__ import annotations

import pytest

from tests.boot.balloon import (
    INSERT,
    MIB,
    PAGE_BYTES,
    RAM_BYTES,
    REMOVE,
    REPORTING_AND_OOM,
    SETUPS,
    Guests,
    backed_bytes,
    balloon_pages,
    digest,
    event_texts,
    fill,
    meminfo,
    reach,
    stuck,
    write_file,
)
from tests.boot.debian import needs_debian
from tests.boot.guest import SHELL_IS_UP, Linux

pytestmark = needs_debian

WITHOUT_STATS = "free-page-reporting=on,stats-vq=off"  # the queue has another number then
FILL_MIB = 85
SINGLE_PAGES = "echo 0 >/sys/module/page_reporting/parameters/page_reporting_order"
LONG = "60s"  # a pass reports a sixteenth of what is free, and the next follows two seconds later


def bound(guest: Linux, balloon_bytes: int = 0) -> int:
    """What may be backed when all that is free was reported: what is used, 5 %, and a block of 4 MiB in each of the two
    zones, the last one, which the kernel does not take out of its hands for a report."""
    return (RAM_BYTES - balloon_bytes - meminfo(guest)["MemFree"]) * 105 // 100 + 2 * 4 * MIB


@pytest.mark.parametrize(
    ("properties", "setup"), [*((REPORTING_AND_OOM, setup) for setup in SETUPS), (WITHOUT_STATS, "msi-x")]
)
def test_memory_that_is_free_goes_back_to_the_host_without_a_balloon(
    guests: Guests, setup: str, properties: str
) -> None:
    guest = guests.loaded(properties, SETUPS[setup])
    balloon = guest.machine.balloon
    assert "VIRTIO_BALLOON_F_PAGE_REPORTING" in balloon.negotiated
    fill(guest, FILL_MIB)
    figures, before, reported, discarded = (
        meminfo(guest), backed_bytes(guest), balloon.reported_pages, balloon.discarded_bytes
    )  # fmt: skip
    assert before > RAM_BYTES * 90 // 100
    guest.machine.run("10s")
    after = backed_bytes(guest)

    reported_bytes = (balloon.reported_pages - reported) * PAGE_BYTES
    assert before - after > 50 * MIB
    assert before - after <= reported_bytes == balloon.discarded_bytes - discarded
    assert reported_bytes % (2 * MIB) == 0
    assert event_texts(guest, "reported")
    assert (balloon.inflated_pages, balloon.actual_pages, balloon_pages(guest)) == (0, 0, 0)
    assert meminfo(guest)["MemTotal"] == figures["MemTotal"]
    assert meminfo(guest)["MemFree"] == pytest.approx(figures["MemFree"], abs=2 * MIB), "it is still the guest's"


def test_without_the_feature_free_memory_stays_backed(guests: Guests) -> None:
    guest = guests.loaded()
    fill(guest, FILL_MIB)
    before = backed_bytes(guest)
    guest.machine.run("10s")
    assert backed_bytes(guest) == before > RAM_BYTES * 90 // 100
    assert guest.machine.balloon.reported_pages == 0


def test_with_single_pages_nearly_all_that_is_free_goes(guests: Guests) -> None:
    guest = guests.loaded(REPORTING_AND_OOM)
    guest.ask(SINGLE_PAGES)
    fill(guest, FILL_MIB)
    guest.machine.run(LONG)
    assert backed_bytes(guest) <= bound(guest)
    known = guest.machine.balloon.reported_pages
    guest.machine.run(LONG)
    assert guest.machine.balloon.reported_pages - known < 2 * MIB // PAGE_BYTES, "what is reported is not told again"


def test_reported_memory_is_used_again_and_nothing_kept_is_lost(guests: Guests) -> None:
    guest = guests.loaded(REPORTING_AND_OOM)
    guest.ask(SINGLE_PAGES)
    kept = write_file(guest, "/files/kept", 8)
    fill(guest, FILL_MIB - 8)
    guest.machine.run(LONG)
    low = backed_bytes(guest)
    assert low <= bound(guest)

    again = write_file(guest, "/files/again", 40)
    assert backed_bytes(guest) > low + 35 * MIB
    guest.machine.run(LONG)
    assert digest(guest, "/files/again") == again
    assert digest(guest, "/files/kept") == kept

    reported = guest.machine.balloon.reported_pages
    guest.ask("rm /files/again")
    guest.machine.run(LONG)
    assert guest.machine.balloon.reported_pages - reported >= 35 * MIB // PAGE_BYTES, "free again, told again"
    assert backed_bytes(guest) < low + 8 * MIB
    assert digest(guest, "/files/kept") == kept
    assert guest.complaints == []


def test_reports_and_the_balloon_get_on_with_each_other(guests: Guests, setup: str) -> None:
    guest = guests.loaded(REPORTING_AND_OOM, SETUPS[setup])
    before = meminfo(guest)
    guest.ask(SINGLE_PAGES)
    fill(guest, FILL_MIB)
    reach(guest, "40M")
    guest.machine.run(LONG)
    during = meminfo(guest)
    assert before["MemFree"] - during["MemFree"] == pytest.approx(40 * MIB, abs=2 * MIB)
    assert backed_bytes(guest) <= bound(guest, 40 * MIB)
    reach(guest, "60M")
    reach(guest, 0)
    guest.machine.run(LONG)
    after = meminfo(guest)
    assert balloon_pages(guest) == 0
    assert after["MemFree"] == pytest.approx(before["MemFree"], abs=2 * MIB)
    assert backed_bytes(guest) <= bound(guest)


@pytest.mark.parametrize(
    ("setup", "leave", "come_back"),
    [
        pytest.param("msi-x", "rmmod virtio_balloon", "insmod /lib/virtio_balloon.ko", id="msi-x-driver"),
        *(pytest.param(setup, REMOVE, INSERT, id=f"{setup}-all-modules") for setup in SETUPS),
    ],
)
def test_a_driver_that_is_removed_in_the_middle_of_reporting(
    guests: Guests, setup: str, leave: str, come_back: str
) -> None:
    guest = guests.loaded(REPORTING_AND_OOM, SETUPS[setup])
    balloon = guest.machine.balloon
    guest.ask(SINGLE_PAGES)
    fill(guest, FILL_MIB)
    guest.type(leave)
    reported, printed = balloon.reported_pages, len(guest.console)
    guest.run_until(lambda machine: machine.balloon.reported_pages > reported)
    guest.machine.send_console(b"\n")
    guest.wait_for(SHELL_IS_UP, printed)
    known, backed = balloon.reported_pages, backed_bytes(guest)
    assert balloon.negotiated == []
    fill(guest, 60)
    guest.machine.run(LONG)
    assert balloon.reported_pages == known, "nobody is there to report"
    assert backed_bytes(guest) > backed
    check_alive(guest)

    guest.ask(f"{come_back}; {SINGLE_PAGES}")  # the kernel's own size is set again with each driver
    guest.machine.run(LONG)
    assert balloon.reported_pages > known
    assert backed_bytes(guest) <= bound(guest)
    check_alive(guest)


def check_alive(guest: Linux) -> None:
    assert stuck(guest) == set()
    assert guest.complaints == []
    assert not guest.machine.board.need_balloon()[1].needs_reset

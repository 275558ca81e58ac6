"""A Linux guest that runs out of memory while the host has some of it: with DEFLATE_ON_OOM the driver takes it back,
without it the kernel ends a process (virtio 1.3 §5.5.3, §5.5.6.1)."""

from __future__ import annotations

import pytest

from tests.boot.balloon import (
    MIB,
    PAGE_BYTES,
    REPORTING_AND_OOM,
    SETUPS,
    Guests,
    balloon_pages,
    event_texts,
    meminfo,
    reach,
    sizes,
    stuck,
    vmstat,
)
from tests.boot.debian import needs_debian
from tests.boot.guest import Linux

pytestmark = needs_debian

BALLOON = 64 * MIB
# A process that really uses 60 MiB, where about 32 are free.  The kernel may not refuse them beforehand.
USE_60_MIB = "echo 1 >/proc/sys/vm/overcommit_memory; dd if=/dev/zero of=/dev/null bs=60M count=1; echo status $?"


@pytest.fixture
def squeezed(guests: Guests, request: pytest.FixtureRequest) -> Linux:
    properties, setup = request.param
    guest = guests.loaded(properties, SETUPS[setup])
    reach(guest, BALLOON)
    assert meminfo(guest)["MemFree"] < 40 * MIB
    return guest


def squeezed_with(properties: str, *setups: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("squeezed", [(properties, setup) for setup in setups], ids=setups, indirect=True)


with_deflate_on_oom = squeezed_with(REPORTING_AND_OOM, *SETUPS)
with_deflate_on_oom_and_msi_x = squeezed_with(REPORTING_AND_OOM, "msi-x")
without_it = squeezed_with("", *SETUPS)


@with_deflate_on_oom
def test_the_driver_takes_back_what_a_process_needs_and_nothing_is_killed(squeezed: Linux) -> None:
    balloon, since = squeezed.machine.balloon, len(squeezed.events)
    total = meminfo(squeezed)["MemTotal"]
    assert "status 0" in squeezed.ask(USE_60_MIB)

    assert vmstat(squeezed)["oom_kill"] == 0
    assert "Killed process" not in squeezed.console
    assert balloon.target_pages == BALLOON // PAGE_BYTES, "the target stays"
    taken = balloon.target_pages - balloon.actual_pages
    assert 25 * MIB // PAGE_BYTES < taken < 60 * MIB // PAGE_BYTES, "what it needed, not everything"
    assert balloon_pages(squeezed) == balloon.actual_pages == min(sizes(squeezed, since))
    assert balloon.oom_deflated_pages == balloon.deflated_pages == taken
    assert meminfo(squeezed)["MemTotal"] == total
    assert stuck(squeezed) == set()


@with_deflate_on_oom_and_msi_x
def test_each_time_the_driver_does_it_the_host_hears_of_it(squeezed: Linux) -> None:
    since = len(squeezed.events)
    squeezed.ask(USE_60_MIB)
    told = [int(text.split()[4]) for text in event_texts(squeezed, "deflate-on-oom", since)]
    assert len(told) > 10
    assert sum(told) == squeezed.machine.balloon.oom_deflated_pages
    assert max(told) <= 256, "the driver's own measure"


@with_deflate_on_oom_and_msi_x
def test_a_new_target_is_followed_again_afterwards(squeezed: Linux) -> None:
    squeezed.ask(USE_60_MIB)
    balloon = squeezed.machine.balloon
    taken = balloon.oom_deflated_pages
    reach(squeezed, BALLOON - PAGE_BYTES)
    assert balloon_pages(squeezed) == BALLOON // PAGE_BYTES - 1
    reach(squeezed, 0)
    assert (balloon_pages(squeezed), balloon.oom_deflated_pages) == (0, taken), "what the host asks for is no emergency"


@with_deflate_on_oom_and_msi_x
def test_files_that_grow_push_the_balloon_away_too(squeezed: Linux) -> None:
    squeezed.ask("dd if=/dev/zero of=/files/grown bs=1M count=60")
    assert 0 < squeezed.machine.balloon.actual_pages < BALLOON // PAGE_BYTES - 5000
    assert squeezed.ask("wc -c </files/grown") == f"{60 * MIB}\n"
    assert vmstat(squeezed)["oom_kill"] == 0


@without_it
def test_without_the_feature_the_kernel_ends_the_process_and_the_balloon_stays(squeezed: Linux) -> None:
    balloon, since = squeezed.machine.balloon, len(squeezed.events)
    assert "VIRTIO_BALLOON_F_DEFLATE_ON_OOM" not in balloon.negotiated
    assert f"status {128 + 9}" in squeezed.ask(USE_60_MIB)

    assert "Out of memory: Killed process" in squeezed.console
    assert vmstat(squeezed)["oom_kill"] == 1
    assert balloon_pages(squeezed) == balloon.actual_pages == BALLOON // PAGE_BYTES
    assert (sizes(squeezed, since), event_texts(squeezed, "deflate-on-oom")) == ([], [])
    assert (balloon.oom_deflated_pages, balloon.deflated_pages) == (0, 0)

    reach(squeezed, 0)
    assert "status 0" in squeezed.ask(USE_60_MIB), "the memory was all that it lacked"

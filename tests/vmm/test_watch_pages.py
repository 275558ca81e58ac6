"""The watcher of the driver's side: the rules about pages, each with a driver that breaks it (virtio 1.3 §5.5.6)."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from devices import hostcalls
from devices.errors import ConfigError
from devices.memory import PAGE_BYTES, GuestMemory
from devices.virtio import spec
from tests.vmm.watching import SECOND_NS, Bench, MakeBench
from vmm.boards.pc import BalloonUnderWatch
from vmm.testing.balloon import (
    DEFLATE_ON_OOM,
    INFLATEQ,
    MUST_TELL_HOST,
    PAGE_POISON,
    pfn_bytes,
)
from vmm.watch.breaches import Breaches
from vmm.watch.pages import PageRules

SIGHT = PageRules(GuestMemory([(0, PAGE_BYTES)]), Breaches()).obstacle
needs_sight = pytest.mark.skipif(bool(SIGHT), reason=f"the use of pages cannot be seen: {SIGHT}")


def test_r7_pages_leave_the_balloon_that_the_target_asks_for(bench: MakeBench) -> None:
    made = bench().start()
    made.machine.set_target(20)
    made.driver.follow_target()
    made.driver.deflate(made.driver.held_pfns[:5])
    made.driver.actual = 15
    made.wait()
    made.expect_only("R7", count=5)


def test_r7_says_nothing_of_a_target_that_the_driver_has_not_read(bench: MakeBench) -> None:
    made = bench().start()
    made.machine.set_target(20)
    made.driver.follow_target()
    made.machine.set_target(5)
    assert made.driver.num_pages == 5
    made.machine.set_target(20)
    made.driver.deflate(made.driver.held_pfns[5:])
    made.driver.actual = 5
    made.wait()
    assert made.breaches == []


def test_r8_says_nothing_with_deflate_on_oom(bench: MakeBench) -> None:
    made = bench(spec.VIRTIO_BALLOON_F_DEFLATE_ON_OOM).start()
    assert made.driver.features & DEFLATE_ON_OOM
    made.machine.set_target(20)
    made.driver.follow_target()
    made.driver.deflate_on_oom(5)
    made.wait()
    assert made.breaches == []


def test_r9_a_page_is_deflated_that_never_was_in_the_balloon(bench: MakeBench) -> None:
    made = bench().start()
    strays = made.machine.filled_pfns(3)
    made.driver.deflate(strays)
    made.driver.deflate(strays[:1])
    made.wait()
    breach = made.expect_only("R9", count=4)
    assert f"{strays[0] * PAGE_BYTES:#x}" in breach.detail


@needs_sight
@pytest.mark.parametrize("scattered", [False, True])
def test_r10_a_page_is_used_before_its_deflation_is_acknowledged(bench: MakeBench, scattered: bool) -> None:
    made = bench().start()
    pages = made.machine.filled_pfns(64)
    chosen = pages[::2] if scattered else pages
    made.driver.inflate(chosen)
    made.machine.memory.write(chosen[3] * PAGE_BYTES + 17, b"mine")
    made.machine.memory.write(chosen[9] * PAGE_BYTES, b"\0")  # what is written counts for nothing
    before = made.machine.memory.backed_bytes()
    made.driver.deflate(chosen)
    made.driver.actual = 0
    made.wait()
    breach = made.expect_only("R10", count=2)
    assert f"{chosen[3] * PAGE_BYTES:#x}" in breach.detail
    assert made.machine.memory.backed_bytes() == before, "looking brings nothing back"


@needs_sight
def test_r10_a_page_is_used_and_never_deflated(bench: MakeBench) -> None:
    """It is found when the driver says something again, and counted once however often somebody looks."""
    made = bench().start()
    pages = made.machine.filled_pfns(8)
    made.driver.inflate(pages)
    made.driver.actual = 8
    made.wait()
    made.machine.memory.write(pages[5] * PAGE_BYTES, b"mine")
    for _ in range(3):
        made.refresh_stats()
        made.wait()
    made.driver.deflate(pages)
    made.driver.actual = 0
    made.end()
    made.expect_only("R10")


@needs_sight
def test_r10_is_found_at_the_end(bench: MakeBench) -> None:
    made = bench().start()
    pages = made.machine.filled_pfns(8)
    made.driver.inflate(pages)
    made.driver.actual = 8
    made.machine.memory.write(pages[5] * PAGE_BYTES, b"mine")
    made.end()
    made.expect_only("R10")


def test_r11_a_page_may_be_used_before_that_without_must_tell_host(bench: MakeBench) -> None:
    made = bench(without=MUST_TELL_HOST).start()
    pages = made.machine.filled_pfns(8)
    made.driver.inflate(pages)
    made.machine.memory.write(pages[0] * PAGE_BYTES, b"mine")
    made.driver.deflate(pages)
    made.driver.actual = 0
    made.end()
    assert made.breaches == []


@needs_sight
def test_r9_a_page_is_used_and_the_deflateq_never_told_without_must_tell_host(bench: MakeBench) -> None:
    made = bench(without=MUST_TELL_HOST).start()
    pages = made.machine.filled_pfns(8)
    made.driver.inflate(pages)
    made.driver.actual = 8
    made.machine.memory.write(pages[0] * PAGE_BYTES, b"mine")
    for _ in range(4):
        made.refresh_stats()
        made.wait()
    made.expect_only("R9")


LARGE_BASE = 16 << 20  # behind what the driver takes for its rings


def large_memory() -> GuestMemory:
    return GuestMemory([(0, 0xA0000), (0x100000, 127 << 20)])


def test_what_cannot_be_seen_is_said_and_nobody_is_blamed(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """RAM that is no file: it cannot be asked which of its pages exist."""
    monkeypatch.setattr(hostcalls, "create_memory_file", lambda name, size: None)
    made = bench().start()
    use_and_deflate(made)
    assert made.breaches == []
    (line,) = [event.text for event in made.machine.events if event.kind == "watch"]
    assert line == "the use of pages cannot be seen: guest RAM is no memory file"


def test_pages_that_the_host_did_not_take_back_are_no_sign_of_use(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    made = bench().start()
    for name in ("discard_file", "discard_file_runs"):
        monkeypatch.setattr(hostcalls, name, refuse)
    use_and_deflate(made)
    assert made.device.failed_discards
    assert made.breaches == []


def test_a_host_that_fills_memory_files_in_huge_pages_is_no_sign_of_use(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    setting = tmp_path / "shmem_enabled"
    setting.write_text("[always] within_size advise never deny force\n")
    monkeypatch.setattr("vmm.watch.pages._HUGE_PAGES", setting)
    made = bench().start()
    use_and_deflate(made)
    assert made.breaches == []


def use_and_deflate(made: Bench) -> None:
    pages = made.machine.filled_pfns(8)
    made.driver.inflate(pages)
    made.machine.memory.write(pages[2] * PAGE_BYTES, b"mine")
    made.driver.deflate(pages)
    made.driver.actual = 0
    made.end()


SLICED_PAGES = 600  # of RAM; the entries of a batch repeat them, so that it is worked off in slices
SLICED_ENTRIES = 40_000


def send_in_slices(made: Bench, pages: list[int]) -> None:
    """An inflate request that is not acknowledged at once: the driver goes on meanwhile."""
    pfns = (pages * (SLICED_ENTRIES // len(pages) + 1))[:SLICED_ENTRIES]
    area = made.machine.pages.take(-(-4 * SLICED_ENTRIES // PAGE_BYTES))
    payload = pfn_bytes(pfns, made.driver.order)
    made.machine.memory.write(area, payload)
    made.driver.offer(INFLATEQ, readable=[(area, len(payload))])
    made.driver.kick(INFLATEQ)
    assert made.driver.collect(INFLATEQ) == []


@needs_sight
def test_r12_a_page_is_used_before_its_inflation_is_acknowledged(bench: MakeBench) -> None:
    made = bench(memory=large_memory()).start()
    pages = list(range(LARGE_BASE >> 12, (LARGE_BASE >> 12) + 6000))
    made.machine.memory.write(LARGE_BASE, b"x")
    send_in_slices(made, pages)
    while not made.machine.are_zero(pages[:1]):
        assert made.driver.collect(INFLATEQ) == []
        made.machine.bench.advance(1)
    assert made.driver.collect(INFLATEQ) == []
    made.machine.memory.write(pages[0] * PAGE_BYTES, b"mine")
    made.machine.bench.advance(SECOND_NS // 2)
    assert len(made.driver.collect(INFLATEQ)) == 1
    made.driver.actual = len(pages)
    made.expect_only("R12")


def test_r13_a_page_is_deflated_before_its_inflation_is_acknowledged(bench: MakeBench) -> None:
    made = bench().start()
    pages = made.machine.filled_pfns(SLICED_PAGES)
    send_in_slices(made, pages)
    made.driver.deflate(pages[:2])
    made.machine.bench.advance(SECOND_NS // 2)
    assert len(made.driver.collect(INFLATEQ)) == 1
    made.expect_only("R13", count=2)


@pytest.mark.parametrize("said", [None, 5, 100])
def test_r14_actual_does_not_follow(bench: MakeBench, said: int | None) -> None:
    made = bench().start()
    made.driver.inflate(made.machine.filled_pfns(7))
    if said is not None:
        made.driver.actual = said
    made.wait(SECOND_NS // 2)
    assert made.breaches == [], "a driver has its time"
    made.wait()
    assert "7 pages in the balloon" in made.expect_only("R14").detail


def test_r14_is_dated_by_when_the_time_was_over(bench: MakeBench) -> None:
    """Whoever looks, and however late."""
    made = bench().start()
    made.driver.inflate(made.machine.filled_pfns(7))
    began = made.machine.now_ns
    made.wait(100 * SECOND_NS)
    assert made.expect_only("R14").time_ns == began + SECOND_NS


def test_r15_actual_may_be_updated_once_after_several_requests(bench: MakeBench) -> None:
    made = bench().start()
    for pfn in made.machine.filled_pfns(5):
        made.driver.inflate([pfn])
        made.wait(SECOND_NS // 2)
    made.driver.actual = 5
    made.wait()
    assert made.breaches == []


# -- reports -----------------------------------------------------------------------------------------------------------


@needs_sight
def test_r39_a_reported_page_is_used_before_the_report_is_acknowledged() -> None:
    """It takes a report so large that it is worked off in slices."""
    made = Bench("pci", spec.VIRTIO_BALLOON_F_PAGE_REPORTING, memory=large_memory()).start(without=PAGE_POISON)
    machine, driver, memory, gpa = made.machine, made.driver, made.machine.memory, LARGE_BASE
    memory.write(gpa, b"x" * PAGE_BYTES)
    driver.offer(driver.reporting_vq, writable=[(gpa, 100 << 20)])
    driver.kick(driver.reporting_vq)
    while not machine.are_zero([gpa // PAGE_BYTES]):
        machine.bench.advance(1)
    assert driver.collect(driver.reporting_vq) == []
    memory.write(gpa, b"mine")
    machine.bench.advance(SECOND_NS // 2)
    assert len(driver.collect(driver.reporting_vq)) == 1
    made.expect_only("R39")
    machine.close()


def test_pages_on_their_way_are_in_the_state() -> None:
    made = Bench("pci", memory=large_memory()).start()
    send_in_slices(made, list(range(LARGE_BASE >> 12, (LARGE_BASE >> 12) + 6000)))
    saved: Any = made.device.save_state()
    assert saved["watch"]["pages"]["pending"] == [["inflateq", [[LARGE_BASE >> 12, 6000]]]]
    copy = BalloonUnderWatch(large_memory())
    copy.check_state(saved, "balloon")
    copy.restore_state(saved)
    assert copy.save_state() == saved
    for wrong in ([[5, 0]], [[9, 1], [5, 1]], [[1 << 40, 1]], [["5", 1]], "5", [5]):
        saved["watch"]["pages"]["pending"] = [["inflateq", wrong]]
        with pytest.raises(ConfigError, match="pending"):
            copy.check_state(saved, "balloon")
    made.machine.close()
    copy.memory.close()


def test_ranges_that_overlap_are_looked_at_once() -> None:
    """What a driver may repeat in a report as often as it likes must not be read as often."""
    made = Bench("pci", spec.VIRTIO_BALLOON_F_PAGE_REPORTING, memory=large_memory()).start(poison_val=7)
    made.driver.report([(LARGE_BASE, 64 << 20)] * 32)
    made.expect_only("R38", count=(64 << 20) // PAGE_BYTES)
    made.machine.close()

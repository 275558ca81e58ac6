"""The watcher of the driver's side: the rules about hints, page poison and what is reported with it, each with a driver
that breaks it (virtio 1.3 §5.5.6.5.1, §5.5.6.6.1, §5.5.6.7.1)."""

from __future__ import annotations

import pytest

from devices.memory import PAGE_BYTES
from devices.virtio import spec
from tests.vmm.watching import SECOND_NS, Bench, MakeBench
from vmm.testing.balloon import DONE, PAGE_POISON, POISON_VAL, STOP

HINT, REPORTING = spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT, spec.VIRTIO_BALLOON_F_PAGE_REPORTING
POISON = 0xAAAAAAAA


def asked(made: Bench, *, acknowledge: bool = True) -> int:
    """The host begins a round; the driver reads its id."""
    device = made.device
    made.machine.host(device.start_hinting(made.machine.now_ns, acknowledge=acknowledge))
    assert made.driver.hint_cmd_id >= 2
    return made.driver.hint_cmd_id


def some_ranges(made: Bench, count: int = 3) -> list[tuple[int, int]]:
    return [(pfn * PAGE_BYTES, PAGE_BYTES) for pfn in made.machine.filled_pfns(count)]


# -- hints -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processor", ["<", ">"])
def test_a_driver_that_hints_by_the_rules_is_told_nothing_of(bench: MakeBench, processor: spec.ByteOrder) -> None:
    made = bench(HINT, processor=processor).start()
    for acknowledge in (True, False, False):
        asked(made, acknowledge=acknowledge)
        made.driver.hint_round(some_ranges(made))
        made.wait()
        assert made.driver.hint_cmd_id == DONE or not acknowledge
    made.machine.host(made.device.stop_hinting(made.machine.now_ns))
    assert made.driver.hint_cmd_id == STOP
    made.wait()
    assert made.breaches == []


def test_hints_may_still_come_for_an_id_that_the_driver_cannot_know_to_be_old(bench: MakeBench) -> None:
    made = bench(HINT).start()
    made.driver.send_id(asked(made, acknowledge=False))
    made.machine.host(made.device.stop_hinting(made.machine.now_ns))
    made.driver.hint(some_ranges(made))
    assert made.driver.hint_cmd_id == STOP
    made.driver.send_id(STOP)
    made.wait()
    assert made.breaches == []


@pytest.mark.parametrize("payload", [b"\2", b"\2\0\0\0\0\0\0\0"])
def test_r24_an_id_that_is_not_four_bytes_long(bench: MakeBench, payload: bytes) -> None:
    made = bench(HINT).start()
    asked(made)
    made.driver.send_id(payload)
    made.wait()
    assert f"{len(payload)} bytes" in made.expect_only("R24").detail


def test_r25_hints_without_an_id(bench: MakeBench) -> None:
    made = bench(HINT).start()
    asked(made)
    made.driver.hint(some_ranges(made))
    made.driver.send_id(STOP)
    made.wait()
    made.expect_only("R25", count=3)


def test_r25_hints_under_the_id_of_an_older_round(bench: MakeBench) -> None:
    made = bench(HINT).start()
    made.driver.send_id(asked(made))
    asked(made)
    made.driver.hint(some_ranges(made))
    made.driver.send_id(STOP)
    made.expect_only("R25", count=3)


def test_r26_the_id_is_sent_twice(bench: MakeBench) -> None:
    made = bench(HINT).start()
    cmd_id = asked(made)
    for _ in range(2):
        made.driver.send_id(cmd_id)
        made.driver.hint(some_ranges(made))
    made.driver.send_id(STOP)
    made.wait()
    made.expect_only("R26")


def test_r28_hints_after_done(bench: MakeBench) -> None:
    made = bench(HINT).start()
    asked(made)
    made.driver.hint_round(some_ranges(made))
    assert made.driver.hint_cmd_id == DONE
    made.driver.hint(some_ranges(made, 2))
    made.wait()
    assert "DONE" in made.expect_only("R28", count=2).detail


def test_r29_hints_that_never_end(bench: MakeBench) -> None:
    made = bench(HINT).start()
    made.driver.send_id(asked(made))
    made.wait(SECOND_NS // 2)
    made.driver.hint(some_ranges(made))
    last = made.machine.now_ns
    made.wait(SECOND_NS // 2)
    assert made.breaches == []
    made.wait()
    assert made.expect_only("R29").time_ns == last + SECOND_NS


def test_r29_says_nothing_when_the_host_has_ended_the_round(bench: MakeBench) -> None:
    made = bench(HINT).start()
    made.driver.send_id(asked(made))
    made.machine.host(made.device.done_hinting(made.machine.now_ns))
    made.wait()
    assert made.breaches == []


# -- poison ------------------------------------------------------------------------------------------------------------


def test_r35_poison_val_is_not_written(bench: MakeBench) -> None:
    made = bench().start(poison_val=None)
    made.wait()
    made.expect_only("R35")


def test_r35_r36_say_nothing_without_the_feature(bench: MakeBench) -> None:
    made = bench().start(without=PAGE_POISON)
    made.wait()
    assert made.breaches == []


def test_r36_poison_val_is_changed_at_work(bench: MakeBench) -> None:
    made = bench().start(poison_val=POISON)
    made.driver.poison_val = POISON
    assert made.breaches == [], "the same value is no modification"
    made.driver.write_config(POISON_VAL, 4, 5)
    assert "0x5 instead of 0xaaaaaaaa" in made.expect_only("R36").detail


@pytest.mark.parametrize("poison_val", [0, POISON])
def test_r38_a_reported_page_does_not_hold_poison_val(bench: MakeBench, poison_val: int) -> None:
    made = bench(REPORTING).start(poison_val=poison_val)
    pages = made.machine.filled_pfns(300, byte=poison_val & 0xFF)
    made.driver.report([(pfn * PAGE_BYTES, PAGE_BYTES) for pfn in pages])
    assert made.breaches == []
    pages = made.machine.filled_pfns(4, byte=poison_val & 0xFF)
    for pfn in pages[1:3]:
        made.machine.memory.write(pfn * PAGE_BYTES + 4095, b"\x55")
    before = made.machine.memory.backed_bytes()
    made.driver.report([(pages[0] * PAGE_BYTES, 4 * PAGE_BYTES)])
    breach = made.expect_only("R38", count=2)
    assert f"{pages[1] * PAGE_BYTES:#x}" in breach.detail
    assert made.machine.memory.backed_bytes() <= before


def test_r38_says_nothing_without_the_feature(bench: MakeBench) -> None:
    made = bench(REPORTING).start(without=PAGE_POISON)
    made.driver.report(some_ranges(made))
    made.end()
    assert made.breaches == []

"""A machine that comes out of a file is the machine that went in: what it does from there on is what that one does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import firmware
import vmm
from devices import hostcalls
from devices.virtio.balloon.sliced import SLICED_FROM
from tests.guests.test_hints import needs_tracking
from tests.vmm.test_machine_devices import SLEEP, GuestsBus
from tests.vmm.test_machine_transports import DRIVER_RAM, WAYS, boot
from tests.vmm.test_state import Heard, ram
from vmm.config import parse_targets
from vmm.machine import Machine
from vmm.snapshots import read_snapshot, write_snapshot
from vmm.testing import BalloonDriver, PageAllocator, PciTransport

PAGE_BYTES = 4096
MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "machine.snap"


@contextmanager
def through_a_file(machine: Machine, file: Path) -> Iterator[Machine]:
    """Another machine, made of nothing but the snapshot; both ways of reading it are the state that was saved."""
    state = machine.save()
    write_snapshot(machine, file)
    assert machine.save() == state, "taking a snapshot changes nothing"
    with read_snapshot(file) as snapshot:
        assert snapshot.state() == state
        other = snapshot.boot()
    file.unlink()
    with other:
        assert other.save() == state
        assert other.memory.backed_bytes() == machine.memory.backed_bytes()
        yield other


def check_going_on(machine: Machine, file: Path, until: Callable[[Machine], object]) -> None:
    """Both go on by `until`, and everything that can be seen of them is the same."""
    with through_a_file(machine, file) as other:
        heard, heard_of_other = Heard(machine), Heard(other)
        until(machine)
        until(other)
        assert other.report() == machine.report()
        assert other.registers() == machine.registers()
        assert ram(other) == ram(machine)
        assert other.save() == machine.save()
        assert (heard_of_other.told, heard_of_other.console) == (heard.told, heard.console)


def to_the_end(machine: Machine) -> None:
    assert machine.run() is not None


MOMENTS: dict[str, tuple[dict[str, Any], Callable[[Machine], bool]]] = {
    "in the firmware": ({"guest": "stats", "duration": "0.3s"}, lambda m: b"entering" not in m.console),
    "in the middle of an inflate": (
        {"guest": "balloon", "memory": "24M", "targets": "8M@0.1", "duration": "0.3s"},
        lambda m: m.balloon.inflated_pages >= 2000,
    ),
    "in the middle of a deflate": (
        {"guest": "balloon", "memory": "24M", "targets": "8M@0.1,24M@0.2", "duration": "0.4s"},
        lambda m: m.balloon.deflated_pages >= 2000,
    ),
    "with a held statistics buffer": (
        {"guest": "stats", "memory": "16M", "poll": 0.05, "duration": "0.5s"},
        lambda m: m.now_ns > 220_000_000 and m.stats.reason == "ok",
    ),
}
RINGS = {"split": "", "packed": ",packed=on", "in order": ",in_order=on,packed=on"}


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_it_goes_on_from_every_kind_of_moment(moment: str, ring: str, file: Path) -> None:
    options, reached = MOMENTS[moment]
    devices = (f"virtio-balloon-pci,id=mine{RINGS[ring]}", "virtio-rng-pci")
    with vmm.boot(**options, devices=devices) as machine:
        assert machine.run(until=reached) is None
        check_going_on(machine, file, to_the_end)


@needs_tracking
@pytest.mark.parametrize("ring", RINGS)
def test_it_goes_on_in_the_middle_of_a_round_of_hints(ring: str, file: Path) -> None:
    """Which pages were written since the driver was asked goes with it: those must not be given back."""
    devices = (f"virtio-balloon-pci,free-page-hint=on{RINGS[ring]}",)
    with vmm.boot(
        "balloon", memory="24M", hints="0.1", devices=devices, duration="0.4s", parameter="hint=2"
    ) as machine:
        assert machine.run(until=lambda m: m.balloon.hinted_pages > 1000) is None
        assert machine.balloon.hint_command_id >= 2, "the round is going on"
        check_going_on(machine, file, to_the_end)
        assert 0 < machine.balloon.hint_discarded_pages < machine.balloon.hinted_pages


@pytest.mark.parametrize("ring", RINGS)
def test_it_goes_on_in_the_middle_of_a_batch_that_is_worked_off_in_slices(ring: str, file: Path) -> None:
    flat = file.with_name("guest.bin")
    flat.write_bytes(SLEEP)
    with vmm.boot(flat, memory="96M", devices=(f"virtio-balloon-pci{RINGS[ring]}",), duration="1s") as machine:
        machine.run("10ms")
        driver = BalloonDriver(PciTransport.find(GuestsBus(machine), 5, PageAllocator(*DRIVER_RAM)))
        driver.start()
        first, count = 0x300000 // PAGE_BYTES, SLICED_FROM + 3000
        for pfn in range(first, first + count, 7):
            machine.memory.write(pfn * PAGE_BYTES, b"in use")
        pfns = list(range(first, first + count))
        driver.inflate(pfns, per_buffer=count)
        assert 0 <= machine.balloon.inflated_pages < count, "there is more to do"
        check_going_on(machine, file, to_the_end)
        assert machine.balloon.inflated_pages == count


@pytest.mark.parametrize("way", WAYS)
def test_a_balloon_on_any_transport_comes_back_with_all_that_it_holds(way: str, file: Path) -> None:
    device, reach = WAYS[way]
    with boot(file.with_name("guest"), device) as machine:
        machine.run("10ms")
        driver = BalloonDriver(reach(GuestsBus(machine), PageAllocator(*DRIVER_RAM)))
        driver.start()
        driver.post_stats({0: 5})
        machine.balloon.set_target("7M")
        assert driver.follow_target() == 256

        def ask(machine: Machine) -> None:
            machine.balloon.request_stats()
            machine.run("50ms")

        check_going_on(machine, file, ask)


@pytest.mark.parametrize("device", ["virtio-balloon-device", "virtio-balloon-device,force-legacy=on,packed=off"])
def test_the_big_endian_machine_goes_on_too(device: str, file: Path) -> None:
    with vmm.boot(
        "stats", arch="ppc", memory="8M", targets="6M@0.1", poll=0.05, duration="0.4s", devices=(device,)
    ) as machine:
        assert machine.run(until=lambda m: m.balloon.actual_pages > 100) is None
        check_going_on(machine, file, to_the_end)


def test_it_goes_on_over_and_over_in_files(file: Path) -> None:
    """Twenty cuts one after the other, each machine made of the file of the one before."""
    options: dict[str, Any] = {"memory": "8M", "targets": "4M@0.2,8M@0.4", "poll": 0.07, "duration": "0.6s"}
    with vmm.boot("stats", **options) as straight:
        straight.run()
        expected = straight.save(), straight.report()
    machine = vmm.boot("stats", **options)
    for _ in range(20):
        assert machine.run("25ms") is None
        write_snapshot(machine, file)
        machine.close()
        with read_snapshot(file) as snapshot:
            machine = snapshot.boot()
    with machine:
        machine.run()
        assert (machine.save(), machine.report()) == expected


# -- what is in the file -----------------------------------------------------------------------------------------------


def test_no_file_but_the_snapshot_is_needed(file: Path) -> None:
    """Neither the guest, nor the firmware of the user's own."""
    guest, rom = file.with_name("guest"), file.with_name("rom.bin")
    guest.write_bytes(SLEEP)
    rom.write_bytes(bytes(65536) + firmware.image())
    with vmm.boot(guest, memory="2M", bios=rom, parameter="some words", duration="1s") as machine:
        machine.run("10ms")
        guest.unlink()
        rom.unlink()
        check_going_on(machine, file, to_the_end)


def test_a_machine_that_is_over_is_over_in_the_file(file: Path) -> None:
    with vmm.boot("hello", memory="2M") as machine:
        machine.run()
        with through_a_file(machine, file) as other:
            assert other.outcome == machine.outcome
            assert other.run() == machine.outcome


def test_real_time_goes_on_where_it_stood(file: Path) -> None:
    with vmm.boot("stats", memory="4M", clock="realtime", duration="10s") as machine:
        machine.run("100ms")
        before_ns = machine.now_ns
        write_snapshot(machine, file, lambda done, total: time.sleep(1))
        after_ns = machine.now_ns
        assert before_ns < after_ns < before_ns + 1_000_000_000, "the guest does not notice how long it took"
    with read_snapshot(file) as snapshot:
        assert before_ns < snapshot.clock_ns < after_ns
        with snapshot.boot() as other:
            assert snapshot.clock_ns < other.now_ns
            assert other.run("100ms") is None
            state: Any = snapshot.state().data
            assert state["run"]["clock"]["elapsed_ns"] == snapshot.clock_ns


def test_the_pages_that_the_balloon_has_cost_nothing(file: Path) -> None:
    """Nor those of zeros; and looking at them brings none back."""
    with vmm.boot("balloon", memory="64M", targets="8M@0.1") as machine:
        machine.run("80ms")
        full = write_snapshot(machine, file)
        machine.run(until=lambda m: m.balloon.actual_pages == m.balloon.target_pages)
        machine.run("100ms")
        backed = machine.memory.backed_bytes()
        assert backed < 9 * MIB
        small = write_snapshot(machine, file)
        assert machine.memory.backed_bytes() == backed
        assert small < full / 4
        transport, _ = machine.board.need_balloon()
        assert transport is not None
        for gpa in range(16 * MIB, 48 * MIB, PAGE_BYTES):
            machine.memory.write(gpa, bytes(PAGE_BYTES))
        assert machine.memory.backed_bytes() > backed + 20 * MIB
        assert write_snapshot(machine, file) < small + 64 * 1024, "zeros are told, not stored"
        with through_a_file(machine, file):
            pass


def test_anonymous_ram_goes_into_a_file_and_comes_back(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(hostcalls, "create_memory_file", lambda name, size: None)
    with vmm.boot("balloon", memory="8M", targets="4M@0.1", duration="0.3s") as machine:
        assert machine.run(until=lambda m: m.balloon.inflated_pages > 100) is None
        state = machine.save()
        write_snapshot(machine, file)
        with read_snapshot(file) as snapshot, snapshot.boot() as other:
            assert other.memory.fd is None
            assert other.save() == state
            machine.run()
            other.run()
            assert ram(other) == ram(machine)


def test_a_file_may_be_put_into_a_machine_that_is_there(file: Path) -> None:
    with vmm.boot("stats", memory="8M", duration="1s") as machine:
        machine.run("200ms")
        write_snapshot(machine, file)
        state = machine.save()
        machine.run()
        with read_snapshot(file) as snapshot:
            machine.restore(snapshot.state())
        assert machine.save() == state


def test_progress_is_told_up_to_the_end(file: Path) -> None:
    told: list[tuple[int, int]] = []
    with vmm.boot("balloon", memory="32M") as machine:
        machine.run("100ms")
        write_snapshot(machine, file, lambda done, total: told.append((done, total)))
        backed = sum(length for _, length in _extents(machine))
    assert len(told) > 4
    assert told == sorted(told)
    assert {total for _, total in told} == {backed}
    assert told[-1] == (backed, backed)


def _extents(machine: Machine) -> list[tuple[int, int]]:
    memory: Any = machine.save().data["memory"]
    return [(gpa, len(data)) for gpa, data in memory["extents"]]


def test_what_is_still_to_come_may_be_changed_and_counts_from_the_snapshot(file: Path) -> None:
    with vmm.boot("stats", memory="16M", targets="12M@3s", duration="4s") as machine:
        machine.run("1s")
        write_snapshot(machine, file)
    with read_snapshot(file) as snapshot, snapshot.boot() as other:
        other.plan(targets=parse_targets("8M@0.5s"), for_ns=1_500_000_000)
        other.run("0.4s")
        assert other.balloon.target_pages == 0
        other.run("0.2s")
        assert other.balloon.target_pages == 8 * MIB // PAGE_BYTES
        outcome = other.run()
        assert outcome is not None and outcome.kind == "deadline"
        assert other.now_ns == pytest.approx(2_500_000_000, abs=1000)

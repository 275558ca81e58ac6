"""The machine as the Python interface shows it: runs, outcomes, time, repeatability, and what a watcher sees.

Small guests are given as machine code with the assembly beside it; flat images are entered in long mode at 1 MiB.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import vmm
from devices.effects import Effects, Event
from devices.errors import ConfigError
from vmm.machine import Machine

HALT = bytes.fromhex("fa f4")  # cli; hlt
SPIN = bytes.fromhex("eb fe")  # jmp .
EXIT_7 = bytes.fromhex("66 ba f4 05 b8 07 00 00 00 ef")  # mov dx, 5f4h; mov eax, 7; out dx, eax
POWER_OFF = bytes.fromhex("66 ba 04 06 66 b8 00 20 66 ef")  # mov dx, 604h; mov ax, 2000h; out dx, ax
RESET = bytes.fromhex("66 ba f9 0c b0 06 ee")  # mov dx, cf9h; mov al, 6; out dx, al
PANIC = bytes.fromhex("66 ba 05 05 b0 01 ee")  # mov dx, 505h; mov al, 1; out dx, al
NO_IDT = bytes.fromhex("31 c0 50 50 0f 01 1c 24 0f 0b")  # an IDT with limit 0 (lidt [rsp]); ud2
SLEEP = bytes.fromhex("fb f4 eb fc")  # sti; again: hlt; jmp again


@pytest.fixture
def flat(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "guest.bin"


def boot(path: Path, code: bytes, **options: object) -> Machine:
    path.write_bytes(code)
    return vmm.boot(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "kind", "exit_code"),
    [
        (HALT, "halted", 0),
        (SLEEP, "halted", 0),
        (EXIT_7 + SPIN, "quit", 7),
        (POWER_OFF + SPIN, "powered-off", 0),
        (RESET + SPIN, "reset", 0),
        (PANIC + SPIN, "guest-panicked", 3),
        (NO_IDT, "triple-fault", 4),
    ],
)
def test_each_way_to_end_has_its_word_and_its_exit_status(flat: Path, code: bytes, kind: str, exit_code: int) -> None:
    with boot(flat, code) as m:
        outcome = m.run()
        assert outcome is not None
        assert (outcome.kind, outcome.exit_code) == (kind, exit_code)
        assert (m.outcome, m.exit_code) == (outcome, exit_code)


def test_a_triple_fault_names_the_vector_the_place_and_the_registers(flat: Path) -> None:
    with boot(flat, NO_IDT) as m:
        outcome = m.run()
        assert outcome is not None
        # ud2 is 8 bytes into the image, which lies at 1 MiB
        assert re.match("exception 6 at [0-9a-f]{4}:0000000000100008 could not be delivered; ", outcome.detail)
        assert " rax=0 " in outcome.detail + " "


def test_a_deadline_ends_a_guest_that_does_not_end_by_itself(flat: Path) -> None:
    with boot(flat, SPIN, duration="50ms") as m:
        outcome = m.run()
        assert outcome is not None and (outcome.kind, outcome.exit_code) == ("deadline", 0)
        assert 50_000_000 <= m.now_ns < 50_001_000


def test_an_idle_guest_jumps_to_the_deadline(flat: Path) -> None:
    with boot(flat, SLEEP, duration="1h") as m:
        outcome = m.run()
        assert outcome is not None and outcome.kind == "deadline"
        assert m.now_ns == 3600 * 10**9
        assert m.blocks < 1_000_000


def test_a_run_goes_on_where_until_left_it(flat: Path) -> None:
    with boot(flat, SPIN) as m:
        assert m.run(until="10ms") is None
        first = m.now_ns
        assert m.run(until="10ms") is None
        assert 10_000_000 <= first < 10_001_000
        assert 20_000_000 <= m.now_ns < 20_001_000
        assert m.outcome is None


def test_an_interrupted_run_has_the_shells_exit_status(flat: Path) -> None:
    def interrupt_soon(now_ns: int) -> None:
        if now_ns > 20_000_000:
            m.interrupt()

    with boot(flat, SPIN) as m:
        outcome = m.run(pace=interrupt_soon)
        assert outcome is not None and (outcome.kind, outcome.exit_code) == ("interrupted", 130)


def test_a_run_that_is_over_stays_over(flat: Path) -> None:
    with boot(flat, EXIT_7 + SPIN) as m:
        first = m.run()
        blocks = m.blocks
        assert m.run() is first
        assert m.blocks == blocks


@pytest.mark.parametrize("stop", [0.0003, 0.0011, 0.017])
def test_stopping_often_changes_nothing(stop: float) -> None:
    with vmm.boot("stats", duration="0.3s", poll=0.05, targets="32M@0.1") as whole:
        whole.run()
        expected = whole.report()
    with vmm.boot("stats", duration="0.3s", poll=0.05, targets="32M@0.1") as cut:
        while cut.run(until=f"{stop}s") is None:
            cut.balloon.actual_pages  # noqa: B018  looking must not matter
            cut.stats.snapshot()
            cut.memory.peek(0, 4096)
        assert cut.report() == expected


def test_two_runs_are_equal_to_the_byte() -> None:
    reports, images = [], []
    for _ in range(2):
        with vmm.boot("balloon", memory="16M", duration="0.4s", targets="8M@0.1,16M@0.2") as m:
            m.run()
            reports.append(m.report())
            images.append([m.memory.peek(region.gpa, region.size) for region in m.memory.regions])
    assert reports[0] == reports[1]
    assert images[0] == images[1]


def test_the_host_sets_a_target_and_waits_until_it_is_reached() -> None:
    with vmm.boot("balloon", memory="16M") as m:
        m.run(until="100ms")
        backed_before = m.memory.backed_bytes()

        m.balloon.set_target("8M")
        m.run(until=lambda m: m.balloon.actual_pages == m.balloon.target_pages)

        assert m.balloon.actual_pages == 8 * 256
        assert m.balloon.guest_ram_bytes == m.balloon.target_ram_bytes == 8 << 20
        assert m.balloon.inflated_pages == 8 * 256
        assert m.balloon.discarded_bytes == 8 << 20
        # What the guest wrote to meanwhile may add a little.
        assert backed_before - m.memory.backed_bytes() > 7 << 20


def test_statistics_come_on_demand_with_an_age() -> None:
    with vmm.boot("stats", memory="16M") as m:
        assert m.stats.reason == "not negotiated"
        m.run(until=lambda m: m.stats.reason == "ok")
        first = m.stats.values
        m.run(until="300ms")
        assert m.stats.age_ns is not None and m.stats.age_ns >= 290_000_000

        m.balloon.request_stats()
        m.run(until="20ms")

        assert m.stats.age_ns < 20_000_000
        assert m.stats.values["stat-minor-faults"] > first["stat-minor-faults"]
        assert m.stats.values["stat-total-memory"] <= 16 << 20


class Notes:
    """Remembers everything it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[int, Event]] = []
        self.console = b""
        self.reports = 0
        self.targets: list[int] = []

    def on_event(self, now_ns: int, event: Event) -> None:
        self.events.append((now_ns, event))

    def on_console(self, data: bytes) -> None:
        self.console += data

    def on_stats(self, now_ns: int) -> None:
        self.reports += 1

    def on_target(self, now_ns: int) -> None:
        self.targets.append(now_ns)


def test_an_observer_hears_of_everything_in_order() -> None:
    notes = Notes()
    with vmm.boot("stats", memory="16M", duration="1s", poll=0.25, targets="8M@0.5") as m:
        m.observers.append(notes)
        m.run()
        assert notes.console == m.console
    kinds = [event.kind for _, event in notes.events]
    for earlier, later in (("features", "queue-enabled"), ("queue-enabled", "driver-ok"), ("driver-ok", "stats")):
        assert kinds.index(earlier) < kinds.index(later)
    assert [now_ns for now_ns, _ in notes.events] == sorted(now_ns for now_ns, _ in notes.events)
    assert notes.targets == [500_000_000]
    assert notes.reports >= 4


def test_every_report_of_statistics_is_announced_once() -> None:
    notes = Notes()
    with vmm.boot("stats", memory="16M", duration="1s", poll=0.01) as m:
        m.observers.append(notes)
        m.run()
        assert notes.reports == m.board.need_balloon()[1].stats_reports > 50


def test_a_machine_without_a_balloon_says_so(flat: Path) -> None:
    with boot(flat, HALT, devices=("virtio-rng-pci",)) as m:
        m.run()
        report = m.report()
        assert report["balloon"] is None and report["stats"] is None and report["features"] is None
        assert [queue["name"] for queue in report["queues"]] == ["requestq"]
        with pytest.raises(ConfigError, match=r"^This machine has no balloon"):
            m.balloon.set_target("8M")


def test_the_report_has_every_documented_key() -> None:
    with vmm.boot("stats", memory="16M", duration="0.2s") as m:
        m.run()
        report = m.report()
    assert {"guest", "outcome", "exit_code", "clock_ns", "blocks", "features", "balloon", "memory", "stats"} <= set(
        report
    )
    assert set(report["features"]) == {"offered", "negotiated"}
    assert set(report["balloon"]) == {
        "target_pages",
        "actual_pages",
        "inflated_pages",
        "deflated_pages",
        "oom_deflated_pages",
        "reported_pages",
        "reported_bytes",
        "poisoned_pages",
        "hinted_pages",
        "hint_discarded_pages",
        "stale_hint_pages",
        "held_pages",
        "discarded_bytes",
        "bad_pfns",
    }
    assert set(report["memory"]) == {
        *("ram_bytes", "backing", "host_page_bytes"),
        *("backed_bytes_peak", "backed_bytes_end"),
    }
    assert report["memory"]["ram_bytes"] == 16 << 20
    assert 0 < report["memory"]["backed_bytes_end"] <= report["memory"]["backed_bytes_peak"] <= 16 << 20
    assert set(report["stats"]) == {"reason", "age_ns", "values", "raw"}
    assert [set(queue) for queue in report["queues"]] == [{"name", "size", "requests", "skipped", "dropped"}] * 3
    assert "balloon-vmm firmware" in report["console"]


@pytest.mark.parametrize("target", ["17M", "1G", 0, -1])
def test_an_impossible_target_gets_one_sentence_and_changes_nothing(target: str | int) -> None:
    with vmm.boot("hello", memory="16M") as m:
        with pytest.raises(ConfigError, match=r"^A target must be more than 0 and at most"):
            m.balloon.set_target(target)
        assert m.balloon.target_pages == 0


def test_an_unaligned_target_leaves_the_guest_at_least_what_it_says() -> None:
    with vmm.boot("hello", memory="16M") as m:
        m.balloon.set_target((8 << 20) + 1)
        assert m.balloon.target_pages == 8 * 256 - 1
        assert m.balloon.target_ram_bytes >= (8 << 20) + 1


def test_a_real_time_run_follows_the_hosts_clock(flat: Path) -> None:
    started = time.monotonic()
    with boot(flat, SLEEP, clock="realtime", duration="0.2s") as m:
        outcome = m.run()
        assert outcome is not None and outcome.kind == "deadline"
        assert 200_000_000 <= m.now_ns <= (time.monotonic() - started) * 1e9


def test_statistics_are_polled_in_real_time_too() -> None:
    with vmm.boot("stats", memory="16M", clock="realtime", poll=0.05) as m:
        assert m.run(until=lambda m: m.board.need_balloon()[1].stats_reports >= 3) is None
        assert m.stats.reason == "ok"


@pytest.mark.parametrize("memory", ["1M", "1028K", "1044K", "1048K", "2M", "3G", "3073M", "5G"])
def test_hello_runs_in_every_size_of_memory(memory: str) -> None:
    with vmm.boot("hello", memory=memory) as m:
        outcome = m.run()
        assert outcome is not None and (outcome.kind, outcome.exit_code) == ("quit", 0), m.console.decode()


def test_a_closed_machine_says_so_and_can_still_be_read() -> None:
    m = vmm.boot("hello", memory="16M")
    m.run()
    blocks = m.blocks
    m.close()
    m.close()
    assert (m.blocks, m.exit_code) == (blocks, 0)
    assert m.console.startswith(b"balloon-vmm firmware")
    for use in (m.registers, m.save, lambda: m.balloon.set_target("8M")):
        with pytest.raises(ConfigError, match=r"^The machine is closed\.$"):
            use()


def test_an_unfinished_machine_cannot_run_once_closed() -> None:
    m = vmm.boot("stats", memory="16M")
    m.run(until=0.01)
    m.close()
    with pytest.raises(ConfigError, match=r"^The machine is closed\.$"):
        m.run(until="1s")


def test_a_number_of_seconds_is_a_guest_time_too(flat: Path) -> None:
    with boot(flat, SPIN) as m:
        assert m.run(until=0.01) is None
        assert 10_000_000 <= m.now_ns < 10_001_000


def test_what_is_printed_of_a_machine_says_what_it_is() -> None:
    with vmm.boot("stats", memory="16M") as m:
        m.run(until=0.5)
        assert repr(m) == f"<Machine stats, 16 MiB of RAM, {m.now_ns / 1e9:g} s, running>"
        assert repr(m.balloon) == "<Balloon 0 B, target 0 B, 16 MiB left to the guest>"
        assert re.fullmatch(r"<Statistics ok, [0-9.]+ s old, 8 values>", repr(m.stats))


def test_ctrl_c_is_raised_between_two_steps_and_the_run_can_go_on() -> None:
    with vmm.boot("hello", memory="16M") as whole:
        whole.run()
    with vmm.boot("hello", memory="16M") as m:
        # Inside a callback of the CPU, where an access of the guest is half done.
        whole_write = m.board.serial.write
        pressed: list[int] = []

        def write(offset: int, size: int, value: int, now_ns: int) -> Effects:
            if not pressed:
                pressed.append(now_ns)
                signal.raise_signal(signal.SIGINT)
            return whole_write(offset, size, value, now_ns)

        m.board.serial.write = write  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            m.run()
        assert pressed
        assert m.run() == whole.outcome
        assert m.console == whole.console
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_a_run_that_is_stuck_in_its_callers_code(flat: Path) -> None:
    def stuck(machine: Machine) -> bool:
        while True:
            signal.raise_signal(signal.SIGINT)

    with boot(flat, SPIN) as m, pytest.raises(KeyboardInterrupt):
        m.run(until=stuck)

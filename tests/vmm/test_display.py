"""What a person sees, against a machine that only has gauges."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import vmm
from devices.effects import Event
from tests.vmm.fake_machine import MIB, FakeMachine, fake_report
from vmm.display import (
    LONGEST_LINE,
    ConsoleLines,
    PlainDisplay,
    format_span,
    format_stat,
    format_time,
    image_note,
    read_gauges,
    summary,
)
from vmm.live import LiveDisplay, view
from vmm.loader import Payload


def plain(machine: FakeMachine, **options: Any) -> tuple[PlainDisplay, io.StringIO]:
    out = io.StringIO()
    return PlainDisplay(machine.as_machine(), out, **options), out


# -- numbers and words -----------------------------------------------------------------------------------------------


def test_the_gauges_give_both_directions_of_the_balloon() -> None:
    gauges = read_gauges(FakeMachine().as_machine())
    assert (gauges.target_bytes, gauges.target_ram_bytes) == (32 * MIB, 32 * MIB)
    assert (gauges.balloon_bytes, gauges.ram_bytes) == (24 * MIB, 40 * MIB)
    assert gauges.backed_bytes == 12 * MIB
    assert gauges.unknown == ((4660, 99),)


def test_a_machine_without_a_balloon_has_gauges_too() -> None:
    gauges = read_gauges(FakeMachine(has_balloon=False).as_machine())
    assert (gauges.ram_bytes, gauges.balloon_bytes, gauges.reason) == (64 * MIB, 0, "no balloon")


def test_a_balloon_larger_than_the_ram_leaves_no_negative_ram() -> None:
    # `actual` is written by the driver, which may write anything.
    machine = FakeMachine()
    machine.actual_pages = 1 << 32
    assert read_gauges(machine.as_machine()).ram_bytes == 0


def test_statistics_are_shown_in_their_units() -> None:
    assert format_stat("stat-free-memory", 20 * MIB) == "20 MiB"
    assert format_stat("stat-minor-faults", 1234567) == "1,234,567"
    assert format_stat("stat-oom-kills", 2048) == "2,048"


def test_guest_time_is_shown_to_the_microsecond_without_rounding() -> None:
    assert format_time(1_500_000_999) == "1.500000 s"
    assert format_time(0) == "0.000000 s"


def test_the_summary_tells_both_sizes_and_the_exit_status() -> None:
    rows = dict(summary(fake_report()))
    assert rows["target"] == "32 MiB left to the guest (balloon 32 MiB)"
    assert rows["reached"] == "40 MiB left to the guest (balloon 24 MiB)"
    assert rows["host memory"] == "12 MiB behind the guest's 64 MiB at the end, 40 MiB at most"
    assert rows["features"] == "STATS_VQ, VERSION_1"
    assert rows["exit status"] == "0"
    assert rows["time"] == "1.5 s of guest time in 0.25 s, 1,234,567 blocks"
    assert rows["statistics"] == "ok, 250 ms old, 1 values"
    assert len(rows) < 20


def test_the_summary_names_bad_page_numbers_only_when_there_are_some() -> None:
    assert "bad" not in dict(summary(fake_report()))["moved"]
    balloon = fake_report()["balloon"] | {"bad_pfns": 7}
    assert dict(summary(fake_report(balloon=balloon)))["moved"].endswith("7 bad page numbers skipped")


def test_the_summary_tells_of_pages_taken_back_and_reported_only_when_there_are_some() -> None:
    assert dict(summary(fake_report()))["moved"].startswith("9,000 pages in, 2,856 pages out, ")
    balloon = fake_report()["balloon"] | {"oom_deflated_pages": 512, "reported_pages": 16384}
    moved = dict(summary(fake_report(balloon=balloon)))["moved"]
    assert moved.startswith("9,000 pages in, 2,856 pages out (512 below the target), 16,384 reported free, ")
    balloon |= {"hinted_pages": 4096, "hint_discarded_pages": 1024}
    moved = dict(summary(fake_report(balloon=balloon)))["moved"]
    assert "16,384 reported free, 1,024 of 4,096 hinted ones given back, " in moved


def test_reported_memory_is_a_number_in_both_displays_and_no_line_of_its_own() -> None:
    machine = FakeMachine()
    assert "reported" not in "\n".join(drawn(machine, 120))
    machine.reported_bytes = 48 * MIB
    assert re.search(r"^reported free +48 MiB +in all", "\n".join(drawn(machine, 120)), re.MULTILINE)
    display, out = plain(machine)
    display.on_event(0, Event("balloon0", "reported", "the driver reported 16384 free pages"))
    assert out.getvalue() == ""
    display.on_stats(0)
    assert "reported free 48 MiB" in out.getvalue()


def test_the_summary_of_a_machine_without_a_balloon_has_no_balloon_in_it() -> None:
    rows = dict(summary(fake_report(balloon=None, stats=None, features=None, queues=[])))
    assert rows.keys() == {"outcome", "time", "host memory", "exit status"}


def test_the_summary_tells_which_rules_a_watched_driver_broke() -> None:
    assert "driver" not in dict(summary(fake_report()))
    assert dict(summary(fake_report(breaches=[])))["driver"] == "broke none of the rules that are watched"
    breaches = [{"id": "G1", "section": "3.1.1", "count": 1}, {"id": "R9", "section": "5.5.6.1", "count": 41}]
    rows = dict(summary(fake_report(breaches=breaches)))
    assert rows["driver"] == "broke G1 (§3.1.1), R9 (§5.5.6.1, 41 times)"


UNUSED: dict[str, Any] = {
    "features": {"offered": ["VIRTIO_F_VERSION_1"], "negotiated": []},
    "balloon": dict.fromkeys(fake_report()["balloon"], 0),
    "stats": {"reason": "not negotiated", "age_ns": None, "values": {}, "raw": []},
    "queues": [{"name": "inflateq", "size": 128, "requests": 0}],
}


def test_a_balloon_that_no_driver_ever_used_is_one_line_of_the_summary() -> None:
    rows = dict(summary(fake_report(**UNUSED)))
    assert rows.keys() == {"outcome", "time", "balloon", "host memory", "exit status"}
    assert rows["balloon"] == "not used by the guest"


def test_a_target_that_nobody_followed_is_told_in_that_line() -> None:
    balloon = UNUSED["balloon"] | {"target_pages": 8192}
    rows = dict(summary(fake_report(**UNUSED | {"balloon": balloon})))
    assert rows["balloon"] == "not used by the guest; the target was 32 MiB left to the guest (balloon 32 MiB)"


@pytest.mark.parametrize(
    "change",
    [
        {"features": {"offered": [], "negotiated": ["VIRTIO_F_VERSION_1"]}},
        {"queues": [{"name": "deflateq", "size": 128, "requests": 1}]},  # counted across resets: it was used once
        {"balloon": UNUSED["balloon"] | {"actual_pages": 1}},
    ],
)
def test_a_balloon_that_was_used_in_any_way_has_all_its_lines(change: dict[str, Any]) -> None:
    assert dict(summary(fake_report(**UNUSED | change))).keys() >= {"target", "reached", "moved", "features"}


def test_features_of_a_driver_that_has_gone_are_not_said_to_have_been_none() -> None:
    rows = dict(summary(fake_report(features={"offered": ["VIRTIO_F_VERSION_1"], "negotiated": []})))
    assert rows["features"] == "none negotiated at the end"


def test_statistics_that_there_are_none_of_are_not_counted() -> None:
    none: dict[str, Any] = {"reason": "not negotiated", "age_ns": None, "values": {}, "raw": []}
    assert dict(summary(fake_report(stats=none)))["statistics"] == "not negotiated"


def test_the_requests_of_other_devices_stay_beside_a_balloon_that_was_not_used() -> None:
    queues = [*UNUSED["queues"], {"name": "requestq", "size": 64, "requests": 3}]
    assert dict(summary(fake_report(**UNUSED | {"queues": queues})))["requests"] == "requestq 3"


TRIPLE_FAULT = {
    "outcome": "triple-fault",
    "exit_code": 4,
    "detail": "exception 6 at 0018:0000000000100008 could not be delivered; "
    + " ".join(f"{name}=fedcba9876543210" for name in ("rbx", "rax", "es_base", *(f"r{n}" for n in range(8, 16))))
    + " tsc_aux=0 cr0=80010033 cr8=0 rflags=46",
}


def test_the_summary_of_a_triple_fault_has_the_registers_that_matter() -> None:
    rows = dict(summary(fake_report(**TRIPLE_FAULT)))
    assert rows["outcome"] == "triple-fault: exception 6 at 0018:0000000000100008 could not be delivered"
    names = re.findall(r"(\w+)=", rows["registers"])
    assert names == ["rax", "rbx", *(f"r{n}" for n in range(8, 16)), "rflags", "cr0"]
    assert "cr0=80010033" in rows["registers"]


def test_the_summary_of_a_triple_fault_is_wrapped_to_its_width() -> None:
    display, out = plain(FakeMachine())
    display.end(fake_report(**TRIPLE_FAULT))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    (first,) = [index for index, line in enumerate(lines) if line.startswith("registers    rax=fedcba9876543210 ")]
    assert lines[first + 1].startswith(" " * 13 + "r")


def test_a_span_is_told_in_the_unit_that_suits_it_and_never_rounded_up() -> None:
    times = (0, 389_999, 1_000_000, 478_144_999, 8_000_000_000, 8_020_999_999)
    assert [format_span(ns) for ns in times] == ["0 us", "389 us", "1 ms", "478 ms", "8 s", "8.02 s"]


# -- the guest's console ---------------------------------------------------------------------------------------------


def test_console_output_is_cut_into_lines_wherever_it_was_cut_before() -> None:
    lines = ConsoleLines()
    assert lines.feed(b"hel") == []
    assert lines.feed(b"lo\r\nwor") == ["hello"]
    assert lines.flush() == ["wor"]
    assert lines.flush() == []


def test_control_characters_never_reach_a_terminal() -> None:
    (line,) = ConsoleLines().feed(b"a\x1b]0;title\x07\x9b31m\x00\n")
    assert line == r"a\x1b]0;title\x07\x9b31m\x00"


def test_utf_8_is_kept_even_when_it_came_in_pieces() -> None:
    lines = ConsoleLines()
    assert lines.feed("grü".encode()[:-1]) == []
    assert lines.feed("grü".encode()[-1:] + b"n\n") == ["grün"]


def test_an_endless_line_is_cut() -> None:
    lines = ConsoleLines()
    assert lines.feed(b"x" * (2 * LONGEST_LINE + 1)) == ["x" * LONGEST_LINE] * 2
    assert lines.flush() == ["x"]


# -- plain lines -----------------------------------------------------------------------------------------------------


def test_plain_output_is_one_line_per_happening() -> None:
    display, out = plain(FakeMachine())
    display.begin()
    display.on_console(b"hello\n")
    display.on_event(2_000_000, Event("balloon0", "features", "features negotiated"))
    display.on_target(1_000_000_000)
    display.on_stats(1_500_000_000)
    assert out.getvalue().splitlines() == [
        "fake: 64 MiB of RAM, virtual clock, balloon0 at 00:03.0",
        "1.500000 s  | hello",
        "0.002000 s  balloon0: features negotiated",
        "1.000000 s  the host's new target: 32 MiB left to the guest (balloon 32 MiB)",
        "1.500000 s  statistics: target 32 MiB, guest RAM 40 MiB, balloon 24 MiB, host memory 12 MiB",
        "              free-memory 20 MiB, minor-faults 1,234, tag 4660 99",
    ]


def test_of_several_steps_told_at_once_only_the_one_that_reached_the_target_is_shown() -> None:
    machine = FakeMachine()
    machine.actual_pages = 8192  # the target
    display, out = plain(machine)
    for pages in (4096, 819, 8192):
        display.on_event(2_000_000_000, Event("balloon0", "actual", f"the driver has {pages} pages in the balloon"))
    assert out.getvalue() == "2.000000 s  balloon0: the driver has 8192 pages in the balloon\n"


def test_the_times_of_a_run_never_go_backwards() -> None:
    out = io.StringIO()
    with vmm.boot("stats", memory="8M", duration="0.5s", poll=0.1, targets="4M@0.1,6M@0.2,8M@0.3") as m:
        m.observers.append(PlainDisplay(m, out))
        m.run()
    times = [float(line.split(" s  ")[0]) for line in out.getvalue().splitlines() if not line.startswith(" ")]
    assert len(times) > 30
    assert times == sorted(times)


def test_many_statistics_are_lines_of_a_readable_length_with_no_value_lost_or_broken() -> None:
    machine = FakeMachine()
    machine.statistics.values = {f"stat-some-long-name-{n}": (1 << 40) + n for n in range(40)}
    display, out = plain(machine)
    display.on_stats(0)
    _, *lines = out.getvalue().splitlines()
    assert 90 < max(map(len, lines)) <= 120
    assert all(line.startswith(" " * 14) for line in lines)
    found = " ".join(line.strip() for line in lines).split(", ")
    assert found == [f"some-long-name-{n} {(1 << 40) + n:,}" for n in range(40)] + ["tag 4660 99"]


def test_the_same_statistics_again_within_a_millisecond_are_not_shown_again() -> None:
    display, out = plain(FakeMachine())
    for now_ns in (5_000_000, 5_000_001, 5_999_999):
        display.on_stats(now_ns)
    assert re.findall(r"^\S+ s", out.getvalue(), re.MULTILINE) == ["0.005000 s"]
    display.on_stats(6_000_000)  # a millisecond after those shown last, although not after the last that came
    assert re.findall(r"^\S+ s", out.getvalue(), re.MULTILINE) == ["0.005000 s", "0.006000 s"]


@pytest.mark.parametrize("what", ["value", "unknown tag", "balloon", "host memory"])
def test_statistics_that_differ_are_shown_however_soon_they_come(what: str) -> None:
    machine = FakeMachine()
    display, out = plain(machine)
    display.on_stats(5_000_000)
    match what:
        case "value":
            machine.statistics.values["stat-free-memory"] += 1  # too little to be seen in MiB
        case "unknown tag":
            machine.statistics.raw = ((4660, 100),)
        case "balloon":
            machine.actual_pages += 1
        case _:
            machine.backed = 13 * MIB
    display.on_stats(5_000_001)
    assert out.getvalue().count("statistics: ") == 2


FLAT_NOTE = "notes.txt is no kernel or ELF file: run as a flat image at 100000h"


def flat_machine() -> FakeMachine:
    machine = FakeMachine()
    machine.board.payload = SimpleNamespace(name="notes.txt", kind="flat", entry=0x100000)
    return machine


def test_a_file_that_is_taken_for_machine_code_is_told_at_the_start_and_in_the_summary() -> None:
    display, out = plain(flat_machine())
    display.begin()
    assert out.getvalue().splitlines()[1:] == [FLAT_NOTE]
    display.end(fake_report())
    assert f"guest        {FLAT_NOTE}" in out.getvalue().splitlines()


def test_the_live_view_tells_it_too() -> None:
    out = Terminal("utf-8")
    display = LiveDisplay(flat_machine().as_machine(), out)
    display.begin()
    assert FLAT_NOTE in out.text()
    display.end(fake_report())
    assert out.text().count(FLAT_NOTE.split(":")[0]) == 2


def test_a_machine_without_a_guest_of_its_own_has_nothing_to_tell_about_it() -> None:
    assert image_note(None) == ""


@pytest.mark.parametrize("kind", ["Linux bzImage", "Linux vmlinux", "PVH"])
@pytest.mark.parametrize(
    ("parameter", "is_told"),
    [
        ("", True),
        ("quiet root=/dev/null", True),
        ("noconsole=1", True),
        ("console=ttyS0", False),
        ("quiet earlyprintk=ttyS0", False),
    ],
)
def test_a_kernel_that_will_be_silent_is_told_so(kind: str, parameter: str, is_told: bool) -> None:
    told = image_note(Payload("vmlinuz", kind, 0x1000000, ()), parameter)
    assert told == is_told * (
        f"no console in the kernel's command line {parameter!r}: Linux says nothing without console=ttyS0"
    )


def test_what_speaks_against_a_kernel_s_file_is_said_at_once() -> None:
    payload = Payload("vmlinuz", "Linux bzImage", 0x1000000, (), doubt="the file may be damaged")
    assert image_note(payload, "console=ttyS0") == "the file may be damaged"
    assert image_note(payload).startswith("the file may be damaged; no console in ")


def test_other_guests_need_no_console_on_their_command_line() -> None:
    assert image_note(Payload("mine", "ELF64", 0x10000, ())) == ""


def test_plain_output_ends_with_the_rest_of_the_console_and_the_summary() -> None:
    display, out = plain(FakeMachine())
    display.on_console(b"no end of line")
    display.end(fake_report(exit_code=3, outcome="guest-panicked", detail="the guest reported a panic"))
    first, second, *rest = out.getvalue().splitlines()
    assert first == "1.500000 s  | no end of line"
    assert second == "outcome      guest-panicked: the guest reported a panic"
    assert rest[-1] == "exit status  3"


def test_a_console_that_goes_elsewhere_is_not_shown() -> None:
    display, out = plain(FakeMachine(), show_console=False)
    display.on_console(b"secret\n")
    display.on_console(b"rest")
    display.end(fake_report())
    assert "secret" not in out.getvalue()
    assert "rest" not in out.getvalue()


def test_a_host_that_cannot_tell_its_memory_is_no_error() -> None:
    display, out = plain(FakeMachine(backed_bytes=None))
    display.on_stats(0)
    assert "host memory unknown" in out.getvalue()


# -- the live view ---------------------------------------------------------------------------------------------------


class Terminal(io.TextIOWrapper):
    """A terminal of one encoding that keeps what was written."""

    def __init__(self, encoding: str) -> None:
        self.bytes_written = io.BytesIO()
        super().__init__(self.bytes_written, encoding=encoding, errors="strict", write_through=True)

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.bytes_written.getvalue().decode(self.encoding))


def drawn(gauges_of: FakeMachine, width: int, encoding: str = "utf-8") -> list[str]:
    out = Terminal(encoding)
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    console.print(view(read_gauges(gauges_of.as_machine()), 1_500_000_000, console))
    return out.text().splitlines()


def test_the_live_table_shows_every_number_by_name_and_unit() -> None:
    text = "\n".join(drawn(FakeMachine(), 120))
    for row in (
        r"guest time 1\.5 s",
        r"target: RAM left +32 MiB",
        r"target: balloon +32 MiB",
        r"guest RAM +40 MiB",
        r"balloon +24 MiB",
        r"host memory +12 MiB",
        r"statistics: ok, 0\.2 s old",
        r"stat-free-memory +20 MiB",
        r"stat-minor-faults +1,234",
        r"tag 4660 +99",
    ):
        assert re.search(row, text), row


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_live_table_fits_any_width(width: int) -> None:
    assert all(len(line.rstrip()) <= width for line in drawn(FakeMachine(), width))


@pytest.mark.parametrize("width", [36, 40, 50, 60, 80])
def test_no_name_of_the_live_table_is_broken_on_a_narrow_terminal(width: int) -> None:
    lines = drawn(FakeMachine(), width)
    for name in ("target: RAM left", "target: balloon", "guest RAM", "balloon", "host memory"):
        (line,) = [line for line in lines if re.match(rf"{name} +[0-9]", line)]
        assert re.search(r"iB  [█░]{4,24}$", line.rstrip())


def test_a_terminal_without_utf_8_gets_ascii_bars() -> None:
    lines = drawn(FakeMachine(), 100, "ascii")
    assert any("############------------" in line for line in lines)


def test_the_bars_are_on_the_scale_of_the_whole_ram() -> None:
    lines = drawn(FakeMachine(), 100)
    (ram,) = [line for line in lines if line.startswith("guest RAM")]
    assert ram.count("█") == 15  # 40 of 64 MiB, of 24 columns
    assert ram.count("░") == 9


def test_a_live_run_scrolls_its_lines_and_ends_with_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal("utf-8")
    display = LiveDisplay(FakeMachine().as_machine(), out)
    display.begin()
    display.on_console(b"[bold]not markup[/bold]\n")
    display.on_event(5_000, Event("balloon0", "x", "something happened"))
    display.on_stats(1_000_000_000)
    display.on_target(1_000_000_000)
    display.waiting(1_200_000_000)
    display.tell("2.0 MiB have come")
    display.end(fake_report())
    text = out.text()
    assert "1.500000 s  2.0 MiB have come" in text
    assert "| [bold]not markup[/bold]" in text
    assert "0.000005 s  balloon0: something happened" in text
    assert "the host's new target: 32 MiB left to the guest (balloon 32 MiB)" in text
    assert re.search(r"exit status +0", text)


def test_closing_the_live_view_shows_the_cursor_again() -> None:
    out = Terminal("utf-8")
    display = LiveDisplay(FakeMachine().as_machine(), out)
    display.begin()
    display.close()
    written = out.bytes_written.getvalue()
    assert written.count(b"\x1b[?25l") == written.count(b"\x1b[?25h")


def test_no_color_means_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal("utf-8")
    display = LiveDisplay(FakeMachine().as_machine(), out)
    display.begin()
    display.on_target(0)
    display.end(fake_report())
    assert not re.search(rb"\x1b\[[0-9;]*3[0-9][;m]", out.bytes_written.getvalue())

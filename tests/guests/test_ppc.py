"""The guests of the PowerPC board: what they print, the same numbers as on the PC, and runs that repeat."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

import vmm
from devices.errors import ConfigError
from guests import GUESTS, GuestRow
from guests.table import PPC, X86_64
from tests.layers import ROOT
from vmm.cli import main
from vmm.config import make_config
from vmm.loader import load, read_image
from vmm.machine import Machine

ROWS = [row for row in GUESTS.values() if PPC in row.architectures]
EVERY_GUEST = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
BOTH = pytest.mark.parametrize("arch", [X86_64, PPC])
VERSION_2, VERSION_1 = "virtio-balloon-device", "virtio-balloon-device,force-legacy=on"
BOTH_VERSIONS = pytest.mark.parametrize("device", [VERSION_2, VERSION_1], ids=["little-endian", "big-endian"])
SMALL = {"memory": "8M", "targets": "6M@0.3s,4M@0.6s,8M@0.9s", "poll": 0.1, "duration": "1.3s"}


def boot(name: str, arch: str, **options: Any) -> Machine:
    return vmm.boot(name, arch=arch, **options)


def finish(machine: Machine) -> dict[str, Any]:
    with machine:
        machine.run()
        return machine.report()


# -- what they do ----------------------------------------------------------------------------------------------------


@EVERY_GUEST
def test_the_demonstration_prints_what_the_row_says_in_that_order(row: GuestRow) -> None:
    options: dict[str, Any] = {"targets": row.demo_target, "poll": row.demo_poll, "duration": row.demo_for}
    report = finish(boot(row.name, PPC, memory=row.memory, **options))
    assert (report["outcome"], report["exit_code"]) == ("deadline", 0)
    rest = iter(report["console"].splitlines())
    for expected in row.prints:
        assert any(re.search(expected, line) for line in rest), f"{expected} in\n{report['console']}"


@EVERY_GUEST
def test_every_guest_runs_in_the_memory_its_row_calls_the_least(row: GuestRow) -> None:
    report = finish(boot(row.name, PPC, memory=row.minimum_memory, duration="0.5s"))
    assert (report["outcome"], report["exit_code"]) == ("deadline", 0)
    assert f"{row.name}: " in report["console"]


@pytest.mark.parametrize("memory", ["1028K", "5000K", "33M", "300M"])
def test_it_runs_in_memory_of_any_size(memory: str) -> None:
    """Its page table has the next power of two, and lies where that is aligned."""
    report = finish(boot("stats", PPC, memory=memory, parameter="ticks=2", poll=0.1))
    assert (report["outcome"], report["exit_code"]) == ("quit", 0)
    assert report["stats"]["values"]["stat-total-memory"] > report["memory"]["ram_bytes"] * 3 // 4


def test_a_guest_ends_with_its_own_code() -> None:
    report = finish(boot("stats", PPC, memory="4M", parameter="ticks=5"))
    assert (report["outcome"], report["exit_code"]) == ("quit", 0)
    assert re.search(r"stats: \d+ minor and \d+ major faults, \d+ pages swapped in, \d+ out", report["console"])


@BOTH_VERSIONS
def test_the_numbers_are_the_same_as_on_the_pc(device: str) -> None:
    ours = finish(boot("stats", PPC, devices=[device], **SMALL))
    theirs = finish(boot("stats", X86_64, **SMALL))
    assert (ours["arch"], theirs["arch"]) == (PPC, X86_64)
    for key in ("target_pages", "actual_pages", "inflated_pages", "deflated_pages", "discarded_bytes", "bad_pfns"):
        assert ours["balloon"][key] == theirs["balloon"][key], key
    assert ours["memory"]["ram_bytes"] == theirs["memory"]["ram_bytes"] == 8 << 20
    assert [tag for tag, _ in ours["stats"]["raw"]] == [tag for tag, _ in theirs["stats"]["raw"]]
    assert list(ours["stats"]["values"]) == list(theirs["stats"]["values"])
    modern = {"VIRTIO_F_VERSION_1"}
    assert {*ours["features"]["negotiated"]} | modern == {*theirs["features"]["negotiated"]}
    assert (modern <= {*ours["features"]["negotiated"]}) == (device == VERSION_2)
    for key, value in theirs["stats"]["values"].items():
        assert (value == 0) == (ours["stats"]["values"][key] == 0), key
    totals = [report["stats"]["values"]["stat-total-memory"] for report in (ours, theirs)]
    assert abs(totals[0] - totals[1]) < 1 << 20, "but for what firmware and image take"
    assert [(q["name"], q["requests"]) for q in ours["queues"][:2]] == [
        (q["name"], q["requests"]) for q in theirs["queues"][:2]
    ]


@BOTH_VERSIONS
def test_the_statistics_of_the_patch_say_the_same_from_a_big_endian_guest(device: str) -> None:
    """Over both versions: by name what the PC's guest says, and the very numbers of the final format."""
    v2, theirs = (
        finish(boot("stats", arch, parameter="v2=1", devices=[f"{each},stats-format=v2"], **SMALL))["stats"]
        for arch, each in ((PPC, device), (X86_64, "virtio-balloon-pci"))
    )
    final = finish(boot("stats", PPC, devices=[device], **SMALL))["stats"]["values"]
    assert (v2["reason"], theirs["reason"]) == ("ok", "ok")
    assert [tag for tag, _ in v2["raw"]] == [tag for tag, _ in theirs["raw"]] == [0, 1, 2, 3, 4, 5, 6]
    assert list(v2["values"]) == list(theirs["values"]) and len(v2["values"]) == 7
    for name in ("stat-major-faults", "stat-minor-faults", "stat-free-memory", "stat-total-memory"):
        assert v2["values"][name] == final[name] > 0, name
    for name in ("stat-swap-in", "stat-swap-out"):
        assert v2["values"][f"{name}-pages"] * 4096 == final[name] > 0, name
    for name, value in theirs["values"].items():
        assert 0.5 < v2["values"][name] / value < 2, f"{name}: the boards differ by what firmware and image take"


@pytest.mark.parametrize(
    ("arch", "device"), [(X86_64, "virtio-balloon-pci"), (PPC, VERSION_2), (PPC, VERSION_1)], ids=str
)
def test_a_guest_and_a_device_that_disagree_on_statistics_give_no_numbers(arch: str, device: str) -> None:
    for parameter, stats_format in (("v2=1", "final"), ("", "v2")):
        options = {"parameter": parameter, "devices": [f"{device},stats-format={stats_format}"], **SMALL}
        stats = finish(boot("stats", arch, **options))["stats"]
        assert (stats["reason"], stats["values"]) == ("malformed", {}), stats_format


@BOTH_VERSIONS
def test_the_guests_totals_are_whole_pages_of_its_memory(device: str) -> None:
    """A number whose bytes were turned round wrongly would be far from all of these."""
    values = finish(boot("stats", PPC, devices=[device], **SMALL))["stats"]["values"]
    for name in ("stat-total-memory", "stat-free-memory", "stat-available-memory"):
        assert 0 < values[name] <= 8 << 20
        assert values[name] % 4096 == 0
    assert values["stat-free-memory"] <= values["stat-available-memory"] <= values["stat-total-memory"]
    assert 0 < values["stat-minor-faults"] < 100_000


@BOTH_VERSIONS
def test_what_lies_in_memory_has_the_order_of_its_version(device: str) -> None:
    """The driver's PFNs as they lie in RAM: the legacy driver's highest byte first."""
    with boot("balloon", PPC, memory="8M", devices=[device]) as machine:
        machine.run("50ms")
        machine.balloon.set_size(4096)
        machine.run(until=lambda m: m.balloon.actual_pages == 1)
        queue = machine.board.virtio_devices[0].queues[0]
        order: Literal["big", "little"] = "big" if device == VERSION_1 else "little"

        def number(gpa: int, size: int) -> int:
            return int.from_bytes(machine.memory.peek(gpa, size), order)

        assert number(queue.driver_gpa + 2, 2) == number(queue.device_gpa + 2, 2) == 1
        assert number(queue.desc_gpa + 8, 4) == 4
        assert machine.balloon.inflated_pages == 1


@BOTH_VERSIONS
def test_pages_in_the_balloon_go_back_to_the_host_and_no_contents_are_lost(device: str) -> None:
    with boot("balloon", PPC, memory="16M", devices=[device]) as machine:
        machine.run("0.2s")
        before = machine.memory.backed_bytes()
        machine.balloon.set_target("6M")
        machine.run(until=lambda m: m.balloon.actual_pages == m.balloon.target_pages)
        assert machine.balloon.actual_pages == 2560
        assert before - machine.memory.backed_bytes() == 2560 * 4096
        machine.run("50ms")
        machine.balloon.set_target("16M")
        machine.run("0.1s")
        assert "returned: 2560 zeroed, 0 unchanged" in machine.console.decode()


@BOTH_VERSIONS
def test_free_pages_are_reported(device: str) -> None:
    device += ",free-page-reporting=on"
    report = finish(boot("balloon", PPC, memory="8M", parameter="report=1", duration="0.2s", devices=[device]))
    assert report["balloon"]["reported_pages"] > 1000
    assert "free pages" in report["console"]


# -- runs that repeat ------------------------------------------------------------------------------------------------


@EVERY_GUEST
def test_two_runs_are_the_same_to_the_byte(row: GuestRow) -> None:
    first, second = (finish(boot(row.name, PPC, **SMALL)) for _ in range(2))
    assert first == second


@BOTH_VERSIONS
@EVERY_GUEST
def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(row: GuestRow, device: str) -> None:
    options = {**SMALL, "devices": [device]}
    whole = finish(boot(row.name, PPC, **options))
    for cut in ("1ms", "0.3s", "0.601s"):
        with boot(row.name, PPC, **options) as first, boot(row.name, PPC, **options) as second:
            first.run(cut)
            state = first.save()
            second.restore(state)
            assert second.save() == state
            second.run()
            assert second.report() | {"memory": None} == whole | {"memory": None}
            assert second.memory.backed_bytes() == whole["memory"]["backed_bytes_end"]


def test_a_state_of_another_processor_is_refused() -> None:
    with boot("stats", X86_64, memory="8M") as theirs:
        state = theirs.save()
    sentence = r"a machine with other processor: 'x86_64', not 'ppc'"
    with boot("stats", PPC, memory="8M") as ours, pytest.raises(ConfigError, match=sentence):
        ours.restore(state)


# -- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("stats --arch arm", "The processor must be x86_64 or ppc, not 'arm'."),
        ("stats --arch pcc", "The processor must be x86_64 or ppc, not 'pcc'; did you mean 'ppc'?"),
        ("hello --arch ppc", "The guest 'hello' is not made for 'ppc'; stats and balloon are."),
        ("stats --arch ppc --bios none", "The PowerPC board has no firmware: it cannot run 'none', or do without."),
        ("--arch ppc --bios bios.bin", "The PowerPC board has no firmware: it cannot run 'bios.bin', or do without."),
        ("stats --arch ppc --initrd x", "The guests of the PowerPC board take no modules and no initrd."),
        ("stats --arch ppc --powerdown 1s", "The PowerPC board has no power button."),
        ("stats --arch ppc -m 2049M", "The memory of the PowerPC board must be at most 2 GiB, not 2.001 GiB."),
        (
            "stats --arch ppc -device virtio-balloon-pci",
            "The PowerPC board has no PCI for virtio-balloon-pci; virtio-balloon-device is the same device for it.",
        ),
        ("debian --arch ppc", "The guest 'debian' is for x86_64 only, not for 'ppc'."),
        ("stats --arch ppc --debugcon stdio", "There is no debug port on the board of 'ppc'."),
    ],
)
def test_what_the_board_cannot_do_is_told_in_one_sentence(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["boot", *words.split()]) == 2
    assert capsys.readouterr().err == f"vmm: {sentence}\n"


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (b"MZ" + bytes(0x200) + b"HdrS" + bytes(4096), "is no ELF file, and the board of 'ppc' takes nothing else."),
        (b"", "is empty."),
        (GUESTS["stats"].image(X86_64), "is a 64-bit ELF file; a guest must be ELF32."),
        (GUESTS["stats"].image(PPC)[:4096], "is truncated"),
    ],
    ids=["linux", "empty", "x86", "cut"],
)
def test_a_file_for_another_board_is_refused(tmp_path: Path, contents: bytes, sentence: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(contents)
    with pytest.raises(ConfigError, match=re.escape(sentence).removesuffix(r"\.")):
        vmm.boot(path, arch=PPC)


def test_the_pc_refuses_the_powerpcs_image(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(GUESTS["stats"].image(PPC))
    with pytest.raises(ConfigError, match="is a 32-bit ELF file"):
        vmm.boot(path)


def test_there_is_no_power_button_to_press() -> None:
    with boot("stats", PPC, memory="4M") as machine, pytest.raises(ConfigError, match="has no power button"):
        machine.press_power_button()


def test_without_a_balloon_the_sentence_names_the_boards_own() -> None:
    with boot("stats", PPC, memory="4M", devices=()) as machine:
        with pytest.raises(ConfigError, match="add one with -device virtio-balloon-device"):
            machine.balloon.set_target("2M")
        machine.run("1s")
        assert machine.outcome is not None
        assert (machine.outcome.kind, machine.outcome.exit_code) == ("guest-panicked", 3)
        assert "panic: there is no balloon" in machine.console.decode()


# -- the command line ------------------------------------------------------------------------------------------------


def test_the_command_prints_one_object() -> None:
    words = "boot stats --arch ppc -m 8M --target 4M@0.1s --for 0.3s --json"
    command = [sys.executable, "-m", "vmm", *words.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["guest"], report["arch"], report["balloon"]["actual_pages"]) == ("stats", "ppc", 1024)


def test_the_guests_are_listed_with_their_processors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guests"]) == 0
    text = capsys.readouterr().out
    assert text.count("also for --arch ppc") == len(ROWS)


def test_a_guest_of_ones_own_reads_what_it_is_told(tmp_path: Path) -> None:
    """The boot information: as documented, in the processor's order."""
    with boot("stats", PPC, memory="4M", parameter="ticks=3 x") as machine:
        block = machine.memory.peek(0x4000, 64)
        assert block[:16] == bytes.fromhex("544f4f424d4d5642") + (1).to_bytes(4, "big") + (64).to_bytes(4, "big")
        assert machine.memory.peek(int.from_bytes(block[32:40], "big"), 10) == b"ticks=3 x\0"
        count, where = int.from_bytes(block[24:28], "big"), int.from_bytes(block[16:24], "big")
        ranges = [machine.memory.peek(where + 24 * n, 24) for n in range(count)]
        ends = [(int.from_bytes(r[:8], "big"), int.from_bytes(r[8:16], "big")) for r in ranges]
        assert ends[0][0] == 0 and ends[-1][0] + ends[-1][1] == 4 << 20
        assert all(a[0] + a[1] == b[0] for a, b in itertools.pairwise(ends))
        assert machine.registers()["r3"] == 0x4000
        assert machine.registers()["msr"] == 0x1000


@BOTH
def test_an_image_is_loaded_where_it_says(arch: str) -> None:
    config = make_config("stats", arch=arch)
    with vmm.boot("stats", arch=arch) as machine:
        assert machine.board.payload is not None
        assert machine.board.payload.kind == ("ELF32" if arch == PPC else "ELF64")
        again = load(read_image("stats", arch), machine.memory, arch=config.arch)
        assert again == machine.board.payload


OWN_GUEST = r"""
    .globl  _start
_start:
    lwz     4, 36(3)                /* the low half of the parameter's address */
    lis     5, 0xf000
1:  lbz     6, 0(4)
    cmpwi   6, 0
    beq     2f
    stb     6, 0(5)
    addi    4, 4, 1
    b       1b
2:  lis     5, 0xf000
    ori     5, 5, 0x1000
    li      6, 7
    stwbrx  6, 0, 5
3:  b       3b
"""


def test_a_program_of_ones_own_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Built as documented: a static ELF file above FFFFh, with what the board's table says."""
    source, linked = tmp_path / "own.S", tmp_path / "own.elf"
    source.write_text(OWN_GUEST)
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "powerpc-freestanding-eabi", "-nostdlib", "-static"]
    subprocess.run([*compiler, "-Wl,--image-base=0x20000", str(source), "-o", str(linked)], check=True)
    with boot(str(linked), PPC, memory="4M") as machine:
        ranges = [machine.memory.peek(0x4100 + 24 * n, 24) for n in range(4)]
        starts = [(int.from_bytes(r[:8], "big"), int.from_bytes(r[16:20], "big")) for r in ranges]
        assert starts[:3] == [(0, 2), (0x10000, 1), (0x20000, 3)], "reserved, usable, the image"
        assert starts[3][1] == 1
    words = ["boot", str(linked), "--arch", "ppc", "--param", "from a program of my own", "--json"]
    assert main(words) == 7
    report = json.loads(capfd.readouterr().out)
    assert report["console"] == "from a program of my own"
    assert (report["outcome"], report["exit_code"]) == ("quit", 7)

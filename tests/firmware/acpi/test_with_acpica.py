"""The tables as the reference implementation reads them: ACPICA's compiler and interpreter, Debian's acpica-tools."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.firmware.acpi.board import Placed

ROOT = Path(__file__).resolve().parents[3]
UNPACKED = ROOT / ".venv/packages/acpica-tools/usr/bin"


def tool(name: str) -> str:
    """The program, as `make test` unpacked it or as installed."""
    found = shutil.which(name, path=str(UNPACKED)) or shutil.which(name)
    if found is None:
        pytest.skip(
            f"{name} is missing: run tools/debian-package acpica-tools, or install Debian's package acpica-tools"
        )
    return found


def run(folder: Path, *words: str, typed: str = "") -> str:
    done = subprocess.run(words, cwd=folder, input=typed, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("signature", ["APIC", "DSDT", "FACP", "FACS", "MCFG"])
def test_every_table_can_be_disassembled(signature: str, tmp_path: Path) -> None:
    (tmp_path / "table.dat").write_bytes(Placed().find(signature.encode()))
    said = run(tmp_path, tool("iasl"), "-d", "table.dat")
    assert not re.search(r"error|warning|invalid|unknown", said, re.IGNORECASE), said
    text = (tmp_path / "table.dsl").read_text()
    assert f'"{signature}"' in text
    assert not re.search(r"error|warning|invalid|unknown", text, re.IGNORECASE)


def test_the_dsdt_compiled_again_from_its_disassembly_is_the_same_to_the_byte(tmp_path: Path) -> None:
    """`-oa` keeps names as they were written; the header names another compiler."""
    dsdt = Placed().find(b"DSDT")
    (tmp_path / "dsdt.dat").write_bytes(dsdt)
    run(tmp_path, tool("iasl"), "-d", "dsdt.dat")
    said = run(tmp_path, tool("iasl"), "-oa", "-p", "again", "dsdt.dsl")
    assert "0 Errors, 0 Warnings" in said
    assert (tmp_path / "again.aml").read_bytes()[36:] == dsdt[36:]


@pytest.fixture
def interpreter(tmp_path: Path) -> str:
    """What ACPICA's interpreter says to a fixed set of questions, all of them asked of a simulated board."""
    (tmp_path / "dsdt.aml").write_bytes(Placed().find(b"DSDT"))
    commands = [
        "evaluate \\_SB.PCI0._PRT",
        "execute \\_PIC 1",
        "evaluate \\_SB.PCI0._PRT",
        "evaluate \\_SB.LNKC._CRS",
        "execute \\_SB.LNKC._DIS",
        "evaluate \\_SB.LNKC._STA",
        "evaluate \\_S5",
        "evaluate \\_SB.VM02._HID",
        "evaluate \\_SB.VM02._CRS",
        "quit",
    ]
    return run(tmp_path, tool("acpiexec"), "dsdt.aml", typed="\n".join(commands) + "\n")


def answers(said: str, name: str) -> list[str]:
    """Everything that was said after an evaluation of `name`, up to the next command."""
    return [part.split("\n- ")[0] for part in said.split(f"Evaluation of {name} returned object")[1:]]


def test_interrupt_pins_lead_to_links_and_with_the_io_apic_to_its_pins(interpreter: str) -> None:
    with_links, with_io_apic = answers(interpreter, "\\_SB.PCI0._PRT")
    assert re.findall(r"Name (LNK.) Device", with_links) == ["LNKC", "LNKA"]  # slots 3 and 9: PIRQ 2 and 0
    numbers = [int(digits, 16) for digits in re.findall(r"\[Integer\] = ([0-9A-F]+)", with_io_apic)]
    assert numbers == [0x3FFFF, 0, 0, 18, 0x9FFFF, 0, 0, 16]


def test_a_link_reads_and_writes_the_bridge_s_register(interpreter: str) -> None:
    (current,) = answers(interpreter, "\\_SB.LNKC._CRS")
    assert "89 06 00 09 01" in current  # one interrupt: level, active high, shared
    (status,) = answers(interpreter, "\\_SB.LNKC._STA")
    assert re.search(r"\[Integer\] = 0+9$", status, re.MULTILINE), "disabled"


def test_s5_is_sleep_type_0(interpreter: str) -> None:
    (package,) = answers(interpreter, "\\_S5")
    assert re.findall(r"\[Integer\] = ([0-9A-F]+)", package) == ["0" * 16] * 4


def test_a_virtio_mmio_device_has_its_name_its_registers_and_its_line(interpreter: str) -> None:
    """LNRO0005, by which Linux's virtio_mmio finds it; the board's third place is at FEC12000h with line 15."""
    (identifier,) = answers(interpreter, "\\_SB.VM02._HID")
    assert '"LNRO0005"' in identifier
    (resources,) = answers(interpreter, "\\_SB.VM02._CRS")
    data = bytes.fromhex("".join(re.findall(r"^ *[0-9A-F]{4}: ((?:[0-9A-F]{2} )+)", resources, re.MULTILINE)))
    assert data[:12] == bytes.fromhex("86 0900 01 0020c1fe 00020000"), "read and write, base, length"
    assert data[12:21] == bytes.fromhex("89 0600 09 01 0f000000"), "one interrupt: level, active high, shared"


def test_it_finds_no_fault(interpreter: str) -> None:
    assert not re.search(r"ACPI (Error|BIOS Error|BIOS Warning)", interpreter), interpreter

"""`bios`: a firmware image of the user's instead of ours, small ones assembled here and Debian's SeaBIOS."""

from __future__ import annotations

from pathlib import Path

import pytest

import vmm
from devices.errors import ConfigError
from tests.cpu.lab import assemble
from vmm.machine import Machine

UNIT = 0x10000
ROOT = Path(__file__).resolve().parents[2]
SEABIOS = (ROOT / ".venv/packages/seabios/usr/share/seabios", Path("/usr/share/seabios"))

ENTRY = """
    .code16
    .org 0xff00
start:
    {body}
    cli; hlt
    .org 0xfff0
    jmp start
    .org 0x10000
"""


def image(body: str, units: int = 1) -> bytes:
    """A ROM of `units` times 64 KiB that runs `body` in real mode; the units before the last are filled with 11h, …"""
    code = assemble(ENTRY.format(body=body), 0xFFFF0000).code
    return b"".join(bytes([0x11 * (n + 1)]) * UNIT for n in range(units - 1)) + code


def say(text: str) -> str:
    return "movw $0x402, %dx;" + "".join(f"movb ${ord(letter)}, %al; outb %al, %dx;" for letter in text)


def boot(folder: Path, data: bytes, **options: object) -> Machine:
    path = folder / "bios.bin"
    path.write_bytes(data)
    return vmm.boot(bios=path, **options)  # type: ignore[arg-type]


def test_it_runs_from_the_reset_vector_and_its_debug_output_is_collected(tmp_path: Path) -> None:
    heard: list[bytes] = []
    with boot(tmp_path, image(say("hello"))) as m:
        m.debug_sinks.append(heard.append)
        outcome = m.run()
        assert outcome is not None and outcome.kind == "halted"
        assert m.debug_output == b"".join(heard) == b"hello"
        assert m.report()["guest"] == str(tmp_path / "bios.bin")


@pytest.mark.parametrize(
    ("body", "kind", "exit_code"),
    [
        ("movb $0x10, %al; outb %al, $0xf4", "quit", 0x21),
        ("movb $0xfe, %al; outb %al, $0x64", "reset", 0),
        ("movb $3, %al; outb %al, $0x92", "reset", 0),
        ("movw $0xcf9, %dx; movb $6, %al; outb %al, %dx", "reset", 0),
        ("movw $0x604, %dx; movw $0x2000, %ax; outw %ax, %dx", "powered-off", 0),
    ],
)
def test_the_ways_out_of_a_pc(tmp_path: Path, body: str, kind: str, exit_code: int) -> None:
    with boot(tmp_path, image(body)) as m:
        outcome = m.run()
        assert outcome is not None
        assert (outcome.kind, outcome.exit_code) == (kind, exit_code)


def test_a_reset_wins_over_a_crash_right_behind_it(tmp_path: Path) -> None:
    """Firmware that resets does not care what comes next."""
    body = "movb $0xfe, %al; lidtl %cs:nothing - 0xffff0000; outb %al, $0x64; int3; nothing: .long 0, 0;"
    with boot(tmp_path, image(body)) as m:
        outcome = m.run()
        assert outcome is not None and outcome.kind == "reset"


@pytest.mark.parametrize(("units", "segment", "found"), [(1, 0xE000, 0xFF), (2, 0xE000, 0x11), (4, 0xE000, 0x33)])
def test_the_last_128_kib_are_seen_below_1_mib(tmp_path: Path, units: int, segment: int, found: int) -> None:
    body = f"movw ${segment}, %ax; movw %ax, %ds; movb 0, %al; movw $0x402, %dx; outb %al, %dx;"
    with boot(tmp_path, image(body, units)) as m:
        m.run()
        assert m.debug_output == bytes([found])


def test_shadowing_by_the_host_bridge_lets_code_be_written(tmp_path: Path) -> None:
    """What PC firmware does first: PAM0 to RAM, and a byte of the F segment changes."""
    body = """
        movl $0x80000058, %eax; movw $0xcf8, %dx; outl %eax, %dx
        movw $0xf000, %ax; movw %ax, %ds; movw $0x402, %dx
        movb $0x5a, 0x1000; movb 0x1000, %al; outb %al, %dx
        movb $0x30, %al; movw $0xcfd, %dx; outb %al, %dx
        movb $0x5a, 0x1000; movb 0x1000, %al; movw $0x402, %dx; outb %al, %dx
    """
    with boot(tmp_path, image(body)) as m:
        m.run()
        assert m.debug_output == b"\x00\x5a"


def test_a_guest_can_go_with_it(tmp_path: Path) -> None:
    """The firmware may be a changed copy of ours."""
    import firmware

    path = tmp_path / "mine.rom"
    path.write_bytes(firmware.image())
    with vmm.boot("hello", bios=path) as m:
        outcome = m.run()
        assert outcome is not None and outcome.exit_code == 0
        assert b"hello: hello from a guest in long mode" in m.console


@pytest.mark.parametrize("size", [0, 1, UNIT - 1, UNIT + 16])
def test_a_file_that_is_no_rom_image_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ConfigError, match=rf"must have a multiple of 64 KiB, not {size} bytes[.]$"):
        boot(tmp_path, bytes(size))


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^The firmware '.*' is larger than 16 MiB[.]$"):
        boot(tmp_path, bytes(UNIT * 257))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^There is no file '.*none.bin'[.]$"):
        vmm.boot(bios=tmp_path / "none.bin")
    with pytest.raises(ConfigError, match=r"^The firmware '.*' cannot be read: Is a directory[.]$"):
        vmm.boot(bios=tmp_path)


# -- SeaBIOS -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def seabios() -> Path:
    """The folder with Debian's images: as `make test` unpacked them, or as installed."""
    for folder in SEABIOS:
        if (folder / "bios-256k.bin").exists():
            return folder
    pytest.skip("SeaBIOS is missing: run tools/debian-package seabios, or install Debian's package seabios")


@pytest.mark.parametrize("name", ["bios-256k.bin", "bios.bin"])
def test_seabios_comes_as_far_as_looking_for_something_to_boot(seabios: Path, name: str) -> None:
    with vmm.boot(bios=seabios / name, duration="70s") as m:
        outcome = m.run()
        assert outcome is not None and outcome.kind == "reset"  # it tries again after a minute
        for words in (b"Running on QEMU (i440fx)", b"Found QEMU fw_cfg", b"id=1af4:1045", b"Found 1 cpu(s)"):
            assert words in m.debug_output
        assert b"Using pmtimer" in m.debug_output
        if name == "bios-256k.bin":  # the smaller one knows no table-loader and brings tables of its own
            assert b"(via xsdt)" in m.debug_output and b"ACPI: parse DSDT at" in m.debug_output
        assert b"No bootable device." in m.console


@pytest.mark.parametrize("cut", ["1ms", "8ms", "24ms", "1s"])
def test_a_cut_run_of_seabios_goes_on_as_if_it_had_not_been_cut(seabios: Path, cut: str) -> None:
    """Its tables and its code are in shadow RAM, its time comes from the 8254 through the 8259."""

    def end(machine: Machine) -> tuple[object, ...]:
        return machine.run(), machine.blocks, machine.now_ns, machine.console, machine.debug_output, machine.registers()

    bios = seabios / "bios-256k.bin"
    with vmm.boot(bios=bios, duration="70s") as whole, vmm.boot(bios=bios, duration="70s") as first:
        expected = end(whole)
        first.run(until=cut)
        state = first.save()
        with vmm.boot(bios=bios, duration="70s") as second:
            second.restore(state)
            assert second.save() == state
            assert end(second) == expected

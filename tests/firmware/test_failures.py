"""What the firmware says and does when it cannot start a guest, and when a guest leaves it alone with an exception."""

from __future__ import annotations

import struct

import pytest

import firmware
from devices.effects import Stop, StopKind
from tests.firmware.lab import EXECUTABLE, HLT, KIB, MIB, READABLE, Lab, Segment, describe, e820

PAYLOAD = "opt/balloon-vmm/payload"
NOT_TOLD = "what the firmware tells a kernel must lie in its segments"
GOOD = Segment(MIB, 4096, READABLE | EXECUTABLE, HLT)
NOT_IN_RAM = "the guest's segments must lie in RAM above the first 64 KiB"
NO_ENTRY = "the guest's entry point must lie in an executable segment"
LOW_END = 16 * MIB


def code(base: int, length: int = 4096) -> Segment:
    return Segment(base, length, READABLE | EXECUTABLE)


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (None, "there is no guest, since the fw_cfg file opt/balloon-vmm/payload is missing"),
        (b"", "the description of the guest is too short"),
        (describe(MIB, [GOOD])[:23], "the description of the guest is too short"),
        (describe(MIB, [GOOD], magic=b"BVMMPAY2"), "the description of the guest has an unknown format"),
        (describe(MIB, [GOOD], flags=8), "the description of the guest has an unknown format"),
        (describe(MIB, [GOOD], flags=3), "the description of the guest has an unknown format"),
        *((describe(MIB, [GOOD], flags=way), "the description of the guest is cut off") for way in (1, 2, 4)),
        *((describe(MIB, [GOOD], flags=way) + bytes(8), NOT_TOLD) for way in (2, 4)),
        (describe(MIB, []), "the guest must have 1 to 16 segments"),
        (describe(MIB, [GOOD] * 17), "the guest must have 1 to 16 segments"),
        (struct.pack("<8sQII", b"BVMMPAY1", MIB, 1 << 31, 0), "the guest must have 1 to 16 segments"),
        (describe(MIB, [GOOD, GOOD])[:-1], "the description of the guest is cut off"),
        (describe(MIB, [code(0x8000)]), NOT_IN_RAM),
        (describe(MIB, [code(0xFFFF, 2)]), NOT_IN_RAM),
        (describe(MIB, [code(0x9F000, 0x2000)]), NOT_IN_RAM),
        (describe(MIB, [code(LOW_END)]), NOT_IN_RAM),
        (describe(MIB, [code(LOW_END - 4096, 4097)]), NOT_IN_RAM),
        (describe(MIB, [code(MIB, (1 << 64) - 1)]), NOT_IN_RAM),
        (describe(MIB, [code((1 << 64) - 4096)]), NOT_IN_RAM),
        (describe(MIB + 4096, [GOOD]), NO_ENTRY),
        (describe(MIB - 1, [GOOD]), NO_ENTRY),
        (describe(MIB, [Segment(MIB, 4096, READABLE)]), NO_ENTRY),
        (
            describe(MIB, [code(0x10000, 0x90000), code(MIB, LOW_END - MIB - 4096)]),
            "the guest leaves no room for page tables below 4 GiB",
        ),
    ],
)
def test_a_bad_payload_is_one_sentence_and_an_exit_code(contents: bytes | None, sentence: str) -> None:
    with Lab(files={PAYLOAD: contents}) as lab:
        lab.run()
    assert lab.lines[-1] == f"firmware: {sentence}"
    assert lab.stop == Stop(StopKind.QUIT, firmware.EXIT_BAD_PAYLOAD)


def test_a_guest_at_the_very_end_of_ram_is_no_failure() -> None:
    with Lab(segments=(Segment(LOW_END - 4096, 4096, READABLE | EXECUTABLE, HLT),), entry=LOW_END - 4096) as lab:
        lab.run()
        assert lab.page(LOW_END - 4096) == (LOW_END - 4096, False, True)
        assert lab.boot_info().memory_map[-1] == (LOW_END - 4096, 4096, 3)


def test_sixteen_segments_are_not_too_many() -> None:
    segments = tuple(Segment(MIB + n * 8192, 4096, READABLE | EXECUTABLE, HLT) for n in range(16))
    with Lab(segments=segments) as lab:
        lab.run()
        assert lab.boot_info().image == (MIB, MIB + 15 * 8192 + 4096)


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (None, "the host must describe RAM in the fw_cfg file etc/e820"),
        (b"\0" * 19, "the host must describe RAM in the fw_cfg file etc/e820"),
        (e820((0, 16 * MIB, 2)), "the fw_cfg file etc/e820 must name usable RAM"),
        (e820((0xA0000, 384 * KIB, 1)), "the fw_cfg file etc/e820 must name usable RAM"),
        (e820(*((MIB + n * 8192, 4096, 1) for n in range(65))), "the memory map must not have more than 64 ranges"),
    ],
)
def test_a_bad_memory_map_is_one_sentence_and_an_exit_code(contents: bytes | None, sentence: str) -> None:
    with Lab(files={"etc/e820": contents}) as lab:
        lab.run()
    assert lab.lines[-1] == f"firmware: {sentence}"
    assert lab.stop == Stop(StopKind.QUIT, firmware.EXIT_BAD_BOARD)


def test_a_board_without_fw_cfg_is_named() -> None:
    with Lab() as lab:
        lab.ports.remove(next(r for r in lab.ports.ranges if r.owner == "fw_cfg"))
        lab.run()
    assert lab.lines[-1] == "firmware: there is no fw_cfg device at port 510h"
    assert lab.stop == Stop(StopKind.QUIT, firmware.EXIT_BAD_BOARD)


@pytest.mark.parametrize("length", [2047, 2048])
def test_a_parameter_is_taken_whole_or_not_at_all(length: int) -> None:
    with Lab(cmdline=b"x" * (length - 1) + b"\0") as lab:
        lab.run()
        if length == 2047:
            assert lab.boot_info().cmdline == b"x" * 2046
        else:
            assert lab.lines[-1] == "firmware: the guest's parameter must be shorter than 2048 bytes"


def test_no_parameter_is_an_empty_one() -> None:
    with Lab(files={"opt/balloon-vmm/cmdline": None}) as lab:
        lab.run()
        assert lab.boot_info().cmdline == b""


def test_a_guest_that_returns_gives_its_exit_code() -> None:
    return_42 = b"\xb8\x2a\x00\x00\x00\xc3"  # mov eax, 42; ret
    with Lab(segments=(Segment(MIB, 4096, READABLE | EXECUTABLE, return_42),)) as lab:
        lab.run()
    assert lab.lines[-1] == "the guest returned 42"
    assert lab.stop == Stop(StopKind.QUIT, 42)


@pytest.mark.parametrize(
    ("instructions", "line"),
    [
        (b"\x0f\x0b", "firmware: exception 6, error code 0h, at 100000h, CR2 0h"),  # ud2
        (
            b"\xa3" + struct.pack("<Q", 0x8000000000),
            "firmware: exception 14, error code 2h, at 100000h, CR2 8000000000h",
        ),
        (b"\xa3" + struct.pack("<Q", MIB), "firmware: exception 14, error code 3h, at 100000h, CR2 100000h"),
        (b"\xb8\xff\xff\x00\x00\x8e\xd8", "firmware: exception 13, error code fffch, at 100005h, CR2 0h"),  # mov ds
    ],
    ids=["invalid opcode", "store to nowhere", "store to its own code", "segment beyond the table"],
)
def test_an_exception_nobody_handles_is_one_line_and_a_panic(instructions: bytes, line: str) -> None:
    with Lab(segments=(Segment(MIB, 4096, READABLE | EXECUTABLE, instructions),)) as lab:
        lab.run()
    assert lab.lines[-1] == line
    assert lab.stop == Stop(StopKind.PANICKED)


def test_data_cannot_be_executed() -> None:
    jump_to_2_mib = b"\xb8\x00\x00\x20\x00\xff\xe0"  # mov eax, 200000h; jmp rax
    with Lab(segments=(Segment(MIB, 4096, READABLE | EXECUTABLE, jump_to_2_mib),)) as lab:
        lab.run()
    assert lab.lines[-1] == "firmware: exception 14, error code 11h, at 200000h, CR2 200000h"
    assert lab.stop == Stop(StopKind.PANICKED)

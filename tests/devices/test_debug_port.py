"""The debug port 402h, and QEMU's isa-debug-exit at F4h."""

from __future__ import annotations

import pytest

from devices.debug_port import DebugPort
from devices.effects import NOTHING, Stop, StopKind
from devices.power import IsaDebugExit


def test_it_says_that_somebody_listens() -> None:
    assert DebugPort().read(0, 1, 0) == (0xE9, NOTHING)


def test_what_is_written_is_output_in_its_order() -> None:
    port = DebugPort()
    for byte in b"hello":
        assert port.write(0, 1, byte, 0) == NOTHING
    assert port.take_output() == b"hello"
    assert port.take_output() == b""


def test_what_is_collected_is_output_as_if_it_had_been_written() -> None:
    port = DebugPort()
    port.write(0, 1, 0x61, 0)
    port.collect(b"bc")
    port.write(0, 1, 0x64, 0)
    assert port.take_output() == b"abcd"


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_port_is_a_byte_wide(size: int) -> None:
    port = DebugPort()
    port.write(0, size, 0x6162, 0)
    port.write(1, size, 0x63, 0)
    assert port.take_output() == b"b"
    assert port.read(0, size, 0)[0] == (1 << 8 * size) - 1 & ~0xFF | 0xE9
    assert port.read(1, size, 0)[0] == (1 << 8 * size) - 1


def test_a_reset_port_equals_a_new_one() -> None:
    port = DebugPort()
    port.write(0, 1, 0x41, 0)
    port.reset()
    assert port == DebugPort()


@pytest.mark.parametrize(("value", "code"), [(0, 1), (0x10, 0x21), (0x7F, 0xFF), (0x80, 1), (0x1234_5601, 3)])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_isa_debug_exit_gives_twice_the_value_and_one(value: int, code: int, offset: int) -> None:
    assert IsaDebugExit().write(offset, 4, value, 0).stop == Stop(StopKind.QUIT, code)
    assert IsaDebugExit().read(offset, 4, 0) == (0, NOTHING)

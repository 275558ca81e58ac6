"""A function's command register at work: what it decodes, what its interrupt pin does (PCI 3.0 §6.2)."""

from __future__ import annotations

from devices.effects import NOTHING, Effects, Line, Message
from devices.pci.config import Bar, BarKind, Identity
from devices.pci.function import PciFunction
from devices.pci.msix import MsixTable

COMMAND, STATUS, MSIX_CONTROL = 0x04, 0x06, 0x42
IO, MEMORY, MASTER, INTX_DISABLE = 0x001, 0x002, 0x004, 0x400
INTERRUPT_STATUS = 0x08
RISE = Effects(lines=(Line("00:05.0 INTA", True),))
FALL = Effects(lines=(Line("00:05.0 INTA", False),))


class Recorder(PciFunction):
    """A function whose ranges remember what was done to them."""

    def __init__(self) -> None:
        super().__init__(
            5,
            "thing",
            Identity(0x1234, 0x5678, 0, 0xFF0000),
            bars=[Bar(0, 0x100, BarKind.IO), Bar(2, 0x4000, BarKind.MEMORY64)],
            msix=MsixTable(2, 1),
            interrupt_pin=1,
        )
        self.seen: list[tuple[object, ...]] = []

    def read_bar(self, bar: int, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        self.seen.append(("read", bar, offset, size, now_ns))
        return 0x5A, NOTHING

    def write_bar(self, bar: int, offset: int, size: int, value: int, now_ns: int) -> Effects:
        self.seen.append(("write", bar, offset, size, value, now_ns))
        return NOTHING

    def command_changed(self, now_ns: int) -> Effects:
        self.seen.append(("command", self.config["command"], now_ns))
        return NOTHING


def placed() -> Recorder:
    f = Recorder()
    f.write_config(0x10, 4, 0xC000, 0)
    f.write_config(0x14, 4, 0xE0004000, 0)
    f.write_config(0x18, 4, 0xE0000000, 0)
    f.write_config(0x1C, 4, 0x1, 0)
    return f


def test_6_2_2_io_and_memory_are_decoded_only_where_the_command_register_says_so() -> None:
    f = placed()
    decoded = {}
    for command in (0, IO, MEMORY, IO | MEMORY):
        f.write_config(COMMAND, 2, command, 0)
        decoded[command] = {(r.space, r.base, r.length, r.owner) for r in f.bar_regions()}
    ports = ("port", 0xC000, 0x100, "thing BAR0")
    msix = ("memory", 0xE0004000, 0x1000, "thing BAR1")
    memory = ("memory", 0x1_E0000000, 0x4000, "thing BAR2")
    assert decoded == {0: set(), IO: {ports}, MEMORY: {msix, memory}, IO | MEMORY: {ports, msix, memory}}


def test_6_2_5_1_the_sizing_pattern_is_no_address() -> None:
    f = placed()
    f.write_config(COMMAND, 2, IO | MEMORY, 0)
    for offset in range(0x10, 0x20, 4):
        f.write_config(offset, 4, 0xFFFFFFFF, 0)
    assert f.bar_regions() == ()


def test_a_range_leads_to_its_own_register() -> None:
    f = placed()
    f.write_config(COMMAND, 2, IO | MEMORY, 0)
    f.seen.clear()
    for region in f.bar_regions():
        region.handler.write(0x10, 2, 0x1234, 7)
        region.handler.read(0x20, 4, 8)
    assert f.seen == [
        ("write", 0, 0x10, 2, 0x1234, 7),
        ("read", 0, 0x20, 4, 8),
        ("write", 2, 0x10, 2, 0x1234, 7),
        ("read", 2, 0x20, 4, 8),
    ]


def test_a_function_without_registers_of_its_own_reads_as_zero() -> None:
    f = PciFunction(1, "bare", Identity(1, 2, 0, 0), bars=[Bar(0, 0x1000, BarKind.MEMORY32)])
    assert f.access_write(0, 0, 4, 0xFFFFFFFF, 0) == NOTHING
    assert f.access_read(0, 0, 4, 0) == (0, NOTHING)


def test_the_hook_hears_of_the_command_register_only_when_it_changes() -> None:
    f = Recorder()
    f.write_config(COMMAND, 2, MASTER, 10)
    f.write_config(COMMAND, 2, MASTER, 11)
    f.write_config(0x3C, 1, 5, 12)
    f.write_config(COMMAND + 1, 1, 0x04, 13)
    assert f.seen == [("command", MASTER, 10), ("command", MASTER | INTX_DISABLE, 13)]


def test_6_2_3_the_pin_follows_the_request_and_says_so_once() -> None:
    f = Recorder()
    assert f.request_interrupt(True) == RISE
    assert f.read_config(STATUS, 2, 0)[0] & INTERRUPT_STATUS
    assert f.request_interrupt(True) == NOTHING
    assert f.request_interrupt(False) == FALL
    assert not f.read_config(STATUS, 2, 0)[0] & INTERRUPT_STATUS


def test_6_2_2_intx_disable_holds_the_pin_low_but_not_the_status_bit() -> None:
    f = Recorder()
    f.request_interrupt(True)
    assert f.write_config(COMMAND, 2, INTX_DISABLE, 0) == FALL
    assert f.read_config(STATUS, 2, 0)[0] & INTERRUPT_STATUS
    assert f.write_config(COMMAND, 2, 0, 0) == RISE
    f.write_config(COMMAND, 2, INTX_DISABLE, 0)
    f.request_interrupt(False)
    assert f.request_interrupt(True) == NOTHING


def test_6_8_2_3_msix_takes_the_pin_away_while_it_is_enabled() -> None:
    f = Recorder()
    f.request_interrupt(True)
    assert f.write_config(MSIX_CONTROL, 2, 0x8000, 0) == FALL
    assert not f.read_config(STATUS, 2, 0)[0] & INTERRUPT_STATUS
    assert f.write_config(MSIX_CONTROL, 2, 0, 0) == RISE


def test_reset_lowers_the_pin() -> None:
    f = Recorder()
    f.request_interrupt(True)
    assert f.reset() == FALL
    assert f == Recorder()


def test_6_2_2_no_message_leaves_before_bus_mastering_is_on_and_then_it_leaves_at_once() -> None:
    f = Recorder()
    assert f.msix is not None
    f.access_write(1, 0, 8, 0xFEE00000, 0)
    f.access_write(1, 8, 8, 0x41, 0)
    f.write_config(MSIX_CONTROL, 2, 0x8000, 0)
    assert f.msix.notify(0) == NOTHING
    assert f.write_config(COMMAND, 2, MASTER, 0) == Effects(messages=(Message(0xFEE00000, 0x41),))


def test_6_8_2_3_lifting_the_function_mask_sends_what_waited() -> None:
    f = Recorder()
    assert f.msix is not None
    f.write_config(COMMAND, 2, MASTER, 0)
    f.write_config(MSIX_CONTROL, 2, 0xC000, 0)
    for vector in (0, 1):
        f.access_write(1, 16 * vector, 8, 0xFEE01000, 0)
        f.access_write(1, 16 * vector + 8, 8, 0x50 + vector, 0)
        assert f.msix.notify(vector) == NOTHING
    assert f.write_config(MSIX_CONTROL + 1, 1, 0x80, 0).messages == ((0xFEE01000, 0x50), (0xFEE01000, 0x51))


def test_6_8_2_3_the_table_size_is_read_only() -> None:
    f = Recorder()
    f.write_config(MSIX_CONTROL, 2, 0xFFFF, 0)
    assert f.read_config(MSIX_CONTROL, 2, 0)[0] == 0xC001

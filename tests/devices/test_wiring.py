"""From a line to the processor: 8259 pair, I/O APIC and local APIC wired as docs/architecture.md says."""

from __future__ import annotations

import pytest

from devices.effects import NOTHING, Effects
from devices.irq.lapic import LocalApic
from devices.irq.wiring import InterruptWiring

ISA = {"isa0": 0, "isa4": 4, "isa8": 8}
PIRQ = {"00:03.0 INTA": 2, "00:04.0 INTA": 3, "00:07.0 INTA": 2}
SVR, EOI, LINT0, TPR = 0xF0, 0xB0, 0x350, 0x80
EXTINT, LVT_MASKED = 0x700, 1 << 16
LEVEL = 1 << 15


class Router:
    """An ISA bridge's routing registers."""

    def __init__(self) -> None:
        self.pirq_routes: tuple[int | None, ...] = (None, None, None, None)


class Board:
    """The wiring with a local APIC, its messages delivered, and everything set up as a virtual wire."""

    def __init__(self) -> None:
        self.router, self.lapic = Router(), LocalApic()
        self.wiring = InterruptWiring(ISA, PIRQ, self.router, self.lapic)
        self.apic(SVR, 0x1FF)
        self.apic(LINT0, EXTINT)
        for chip, base in ((0, 0x20), (1, 0x28)):
            handler = self.wiring.pic.handler(chip)
            handler.write(0, 1, 0x11, 0)
            for word in (base, 4 if chip == 0 else 2, 1):
                handler.write(1, 1, word, 0)

    def carry_out(self, effects: Effects) -> None:
        for message in effects.messages:
            self.carry_out(self.lapic.message(message.address, message.data))
        for vector in effects.ended_vectors:
            self.carry_out(self.wiring.end_of_interrupt(vector))

    def apic(self, register: int, value: int) -> None:
        self.carry_out(self.lapic.write(register, 4, value, 0))

    def line(self, name: str, level: bool) -> None:
        self.carry_out(self.wiring.set_line(name, level))

    def route(self, *routes: int | None) -> None:
        self.router.pirq_routes = routes
        self.carry_out(self.wiring.rewire())

    def pin(self, pin: int, entry: int) -> None:
        self.wiring.ioapic.write(0, 4, 0x10 + 2 * pin, 0)
        self.carry_out(self.wiring.ioapic.write(0x10, 4, entry, 0))


@pytest.mark.parametrize(("name", "vector"), [("isa0", 0x20), ("isa4", 0x24), ("isa8", 0x28)])
def test_an_isa_line_reaches_the_processor_through_the_virtual_wire(name: str, vector: int) -> None:
    board = Board()
    assert not board.wiring.is_pending()
    board.line(name, True)
    assert board.wiring.is_pending()
    assert board.wiring.acknowledge() == vector
    assert not board.wiring.is_pending()


@pytest.mark.parametrize("lint0", [LVT_MASKED | EXTINT, 0x400, 0x030])
def test_the_8259_is_not_heard_unless_lint0_is_an_open_extint(lint0: int) -> None:
    board = Board()
    board.apic(LINT0, lint0)
    board.apic(TPR, 0xFF)
    board.line("isa4", True)
    assert not board.wiring.is_pending()


def test_lint0_in_fixed_mode_requests_its_own_vector() -> None:
    board = Board()
    board.apic(LINT0, 0x31)
    board.line("isa0", True)
    assert board.wiring.acknowledge() == 0x31


def test_a_local_apic_s_vector_goes_first() -> None:
    board = Board()
    board.line("isa4", True)
    board.carry_out(board.lapic.message(0xFEE00000, 0x50))
    assert [board.wiring.acknowledge() for _ in range(2)] == [0x50, 0x24]


def test_an_acknowledge_with_nothing_pending_is_the_local_apic_s_spurious_vector() -> None:
    assert Board().wiring.acknowledge() == 0xFF


@pytest.mark.parametrize(("name", "pin"), [("isa0", 2), ("isa4", 4), ("isa8", 8), ("00:03.0 INTA", 18)])
def test_every_line_has_its_pin_of_the_io_apic(name: str, pin: int) -> None:
    board = Board()
    board.apic(LINT0, LVT_MASKED)
    board.pin(pin, 0x60)
    board.line(name, True)
    assert board.wiring.acknowledge() == 0x60


def test_a_level_comes_back_until_the_device_is_quiet() -> None:
    board = Board()
    board.pin(18, LEVEL | 0x60)
    board.line("00:03.0 INTA", True)
    for _ in range(3):
        assert board.wiring.acknowledge() == 0x60
        board.apic(EOI, 0)
        assert board.wiring.is_pending()
    board.wiring.acknowledge()
    board.line("00:03.0 INTA", False)
    board.apic(EOI, 0)
    assert not board.wiring.is_pending()


def test_two_functions_on_one_pirq_are_one_level() -> None:
    board = Board()
    board.pin(18, LEVEL | 0x60)
    board.line("00:03.0 INTA", True)
    board.line("00:07.0 INTA", True)
    board.wiring.acknowledge()
    board.line("00:03.0 INTA", False)
    board.apic(EOI, 0)
    assert board.wiring.is_pending()


def test_a_pirq_reaches_the_8259_where_the_isa_bridge_routes_it() -> None:
    board = Board()
    board.wiring.pic.elcr.write(0, 2, 0x0C00, 0)
    board.route(None, None, 11, None)
    board.line("00:03.0 INTA", True)
    assert board.wiring.acknowledge() == 0x2B


def test_a_new_route_takes_the_level_along() -> None:
    board = Board()
    board.wiring.pic.elcr.write(0, 2, 0x0C00, 0)
    board.line("00:03.0 INTA", True)
    assert not board.wiring.is_pending()
    board.route(None, None, 10, None)
    assert board.wiring.is_pending()
    board.route(None, None, None, None)
    assert not board.wiring.is_pending()


def test_pirqs_and_an_isa_line_can_share_an_input() -> None:
    board = Board()
    board.wiring.pic.elcr.write(0, 2, 0x0010 | 0x0C00, 0)
    board.route(None, None, 10, 10)
    board.line("00:03.0 INTA", True)
    board.line("00:04.0 INTA", True)
    board.line("00:03.0 INTA", False)
    assert board.wiring.acknowledge() == 0x2A


def test_a_line_that_nobody_wired_leads_nowhere() -> None:
    board = Board()
    assert board.wiring.set_line("isa13", True) == NOTHING
    assert not board.wiring.is_pending()


def test_a_reset_leaves_the_lines_and_masks_everything() -> None:
    board = Board()
    board.pin(4, 0x60)
    board.line("isa4", True)
    board.wiring.reset()
    assert not board.wiring.is_pending()
    board.line("isa4", False)
    fresh = InterruptWiring(ISA, PIRQ, board.router, LocalApic())
    assert (board.wiring.pic, board.wiring.ioapic) == (fresh.pic, fresh.ioapic)
    assert board.lapic == fresh.lapic

"""The serial port against the PC16550D data sheet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.effects import NOTHING, Effects, Line
from devices.serial import OUTPUT_LIMIT_BYTES, Serial

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7

NO_INTERRUPT, MODEM_STATUS, THRE, RECEIVED, LINE_STATUS, TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
OUT2, LOOP = 0x08, 0x10
RISE, FALL = (Line("isa4", True),), (Line("isa4", False),)


def get(port: Serial, register: int) -> int:
    return port.read(register, 1, 0)[0]


def put(port: Serial, register: int, value: int) -> Effects:
    return port.write(register, 1, value, 0)


def source(port: Serial) -> int:
    return get(port, IIR) & 0x0F


@pytest.fixture
def port() -> Serial:
    """A port whose interrupt reaches the board."""
    port = Serial()
    put(port, MCR, OUT2)
    return port


class TestAfterReset:
    @pytest.mark.parametrize(
        ("register", "value"),
        [(RBR, 0), (IER, 0), (IIR, 0x01), (LCR, 0), (MCR, 0), (LSR, 0x60), (MSR, 0xB0), (SCR, 0)],
    )
    def test_registers_have_the_values_of_the_data_sheet(self, register: int, value: int) -> None:
        assert get(Serial(), register) == value

    def test_reset_equals_freshly_built_and_lets_the_line_go(self, port: Serial) -> None:
        put(port, FCR, 0xC1)
        put(port, IER, 0x0F)
        put(port, THR, 0x41)
        port.receive(b"abc", 0)
        assert port != Serial()
        assert port.reset().lines == FALL
        assert port == Serial()

    def test_reset_of_a_quiet_port_moves_no_line(self) -> None:
        assert Serial().reset() == NOTHING


class TestRegisters:
    @pytest.mark.parametrize(("register", "kept"), [(IER, 0x0F), (LCR, 0x7F), (MCR, 0x1F), (SCR, 0xFF)])
    def test_only_the_bits_that_exist_are_kept(self, register: int, kept: int) -> None:
        port = Serial()
        put(port, register, 0xFF if register != LCR else 0x7F)
        assert get(port, register) == kept

    def test_the_divisor_latch_hides_the_data_and_interrupt_enable_registers(self) -> None:
        port = Serial()
        put(port, IER, 0x05)
        put(port, LCR, 0x83)
        put(port, DLL, 0x35)
        put(port, DLL, 0x34)
        put(port, DLM, 0x12)
        assert (get(port, DLL), get(port, DLM)) == (0x34, 0x12)
        put(port, LCR, 0x03)
        assert get(port, IER) == 0x05
        assert port.take_output() == b""
        put(port, LCR, 0x83)
        assert port.read(DLL, 2, 0)[0] == 0x1234

    def test_the_status_registers_ignore_writes(self) -> None:
        port = Serial()
        put(port, LSR, 0)
        put(port, MSR, 0)
        assert (get(port, LSR), get(port, MSR)) == (0x60, 0xB0)

    def test_wide_accesses_are_bytes_in_ascending_order(self) -> None:
        port = Serial()
        port.write(LCR, 4, 0x5A00_0003, 0)
        assert (get(port, LCR), get(port, MCR)) == (0x03, 0x00)
        port.write(SCR, 4, 0x1234_56A5, 0)
        assert port.read(SCR, 4, 0)[0] == 0xA5
        assert port.read(RBR, 8, 0)[0] == 0xA5_B0_60_00_03_01_00_00


class TestTransmitting:
    def test_bytes_come_out_in_order_and_once(self) -> None:
        port = Serial()
        for byte in b"hello":
            put(port, THR, byte)
        assert port.take_output() == b"hello"
        assert port.take_output() == b""

    def test_the_transmitter_is_always_empty(self) -> None:
        port = Serial()
        put(port, FCR, 0x01)
        for _ in range(40):
            put(port, THR, 0x55)
            assert get(port, LSR) & 0x60 == 0x60

    def test_output_that_nobody_takes_is_bounded_and_counted(self) -> None:
        port = Serial()
        port.output += bytes(OUTPUT_LIMIT_BYTES - 1)
        put(port, THR, 0x41)
        put(port, THR, 0x42)
        put(port, THR, 0x43)
        assert port.lost_output_bytes == 2
        assert port.take_output() == bytes(OUTPUT_LIMIT_BYTES - 1) + b"A"
        put(port, THR, 0x44)
        assert port.take_output() == b"D"


class TestReceiving:
    def test_without_fifos_one_byte_fits(self) -> None:
        port = Serial()
        assert port.receive(b"ab", 0)[0] == 1
        assert port.receive(b"b", 0)[0] == 0
        assert get(port, LSR) & 0x01
        assert get(port, RBR) == ord("a")
        assert not get(port, LSR) & 0x01
        assert port.receive(b"b", 0)[0] == 1

    def test_with_fifos_sixteen_bytes_fit_in_order(self) -> None:
        port = Serial()
        put(port, FCR, 0x01)
        assert port.receive(bytes(range(20)), 0)[0] == 16
        assert [get(port, RBR) for _ in range(16)] == list(range(16))
        assert not get(port, LSR) & 0x01

    def test_an_empty_receiver_reads_as_zero(self) -> None:
        assert get(Serial(), RBR) == 0

    def test_the_fifo_can_be_cleared(self) -> None:
        port = Serial()
        put(port, FCR, 0x01)
        port.receive(b"abc", 0)
        put(port, FCR, 0x03)
        assert not get(port, LSR) & 0x01

    @pytest.mark.parametrize(("before", "after"), [(0x00, 0x01), (0x01, 0x00)])
    def test_switching_the_fifos_clears_them(self, before: int, after: int) -> None:
        port = Serial()
        put(port, FCR, before)
        port.receive(b"a", 0)
        put(port, FCR, after)
        assert not get(port, LSR) & 0x01

    def test_the_clear_bit_counts_only_with_the_enable_bit(self) -> None:
        port = Serial()
        port.receive(b"a", 0)
        put(port, FCR, 0x02)
        assert get(port, RBR) == ord("a")

    @pytest.mark.parametrize("control", [0x00, 0x03], ids=["off", "cleared"])
    def test_the_host_can_have_back_what_is_cleared_and_was_not_read(self, control: int) -> None:
        port = Serial()
        put(port, FCR, 0x01)
        port.receive(b"abcd", 0)
        get(port, RBR)
        assert port.take_unread() == b""
        put(port, FCR, control)
        put(port, FCR, 0x01)
        assert (port.take_unread(), port.take_unread()) == (b"bcd", b"")

    def test_what_was_not_taken_back_is_gone_with_the_next_bytes(self) -> None:
        port = Serial()
        put(port, FCR, 0x01)
        for _ in range(3):
            port.receive(b"0123456789abcdef", 0)
            put(port, FCR, 0x03)
        assert port.take_unread() == b"0123456789abcdef"
        put(port, FCR, 0x03)
        port.receive(b"x", 0)
        assert port.take_unread() == b""

    def test_a_looped_byte_that_was_read_says_nothing_of_the_next(self) -> None:
        port = Serial()
        put(port, FCR, 0x01)
        put(port, MCR, LOOP)
        put(port, THR, ord("l"))
        get(port, RBR)
        put(port, MCR, 0)
        port.receive(b"a", 0)
        put(port, FCR, 0x03)
        assert port.take_unread() == b"a"

    @pytest.mark.parametrize("fifos", [0x00, 0x01])
    def test_only_what_came_over_the_line_goes_back(self, fifos: int) -> None:
        port = Serial()
        put(port, FCR, fifos)
        port.receive(b"a", 0)
        put(port, MCR, LOOP)
        put(port, THR, ord("l"))
        put(port, MCR, 0)
        port.receive(b"b", 0)
        put(port, FCR, fifos ^ 1)
        assert port.take_unread() == (b"ab" if fifos else b"")


class TestInterrupts:
    def test_nothing_enabled_nothing_pending(self, port: Serial) -> None:
        assert port.receive(b"a", 0) == (1, NOTHING)
        assert source(port) == NO_INTERRUPT

    def test_each_source_needs_its_own_enable_bit(self) -> None:
        for enable, expected in ((0, NO_INTERRUPT), (1, RECEIVED), (2, THRE), (4, LINE_STATUS), (8, MODEM_STATUS)):
            port = Serial()
            put(port, MCR, LOOP)  # changes the modem inputs
            put(port, THR, 1)
            put(port, THR, 2)  # an overrun
            put(port, IER, enable)
            assert source(port) == expected

    def test_received_data_interrupts_until_it_is_read(self, port: Serial) -> None:
        put(port, IER, 0x01)
        assert port.receive(b"a", 0)[1].lines == RISE
        assert source(port) == RECEIVED
        assert port.read(RBR, 1, 0) == (ord("a"), Effects(lines=FALL))
        assert source(port) == NO_INTERRUPT

    @pytest.mark.parametrize(("trigger_bits", "level"), [(0, 1), (1, 4), (2, 8), (3, 14)])
    def test_the_trigger_level_tells_received_data_from_a_timeout(
        self, port: Serial, trigger_bits: int, level: int
    ) -> None:
        put(port, FCR, trigger_bits << 6 | 0x01)
        put(port, IER, 0x01)
        port.receive(bytes(level), 0)
        assert get(port, IIR) == 0xC0 | RECEIVED
        get(port, RBR)
        assert source(port) == (TIMEOUT if level > 1 else NO_INTERRUPT)

    def test_enabling_the_transmitter_interrupt_raises_it_at_once(self, port: Serial) -> None:
        assert put(port, IER, 0x02).lines == RISE
        assert port.read(IIR, 1, 0) == (THRE, Effects(lines=FALL))
        assert source(port) == NO_INTERRUPT

    def test_enabling_it_again_does_not(self, port: Serial) -> None:
        put(port, IER, 0x02)
        source(port)
        assert put(port, IER, 0x03) == NOTHING
        assert source(port) == NO_INTERRUPT

    def test_each_byte_sent_raises_it_again(self, port: Serial) -> None:
        put(port, IER, 0x02)
        source(port)
        assert put(port, THR, 0x41).lines == RISE
        assert source(port) == THRE

    def test_a_byte_sent_while_it_is_pending_gives_an_edge(self, port: Serial) -> None:
        put(port, IER, 0x02)
        assert put(port, THR, 0x41).lines == FALL + RISE

    def test_reading_the_iir_acknowledges_only_what_it_reported(self, port: Serial) -> None:
        put(port, IER, 0x03)
        port.receive(b"a", 0)
        assert source(port) == RECEIVED
        get(port, RBR)
        assert source(port) == THRE

    def test_the_priorities_of_the_data_sheet(self, port: Serial) -> None:
        put(port, MCR, LOOP)
        get(port, MSR)
        put(port, IER, 0x0F)
        put(port, THR, 0x41)
        put(port, THR, 0x42)  # an overrun
        put(port, MCR, LOOP | 0x02)  # RTS, so a change of CTS
        assert source(port) == LINE_STATUS
        assert get(port, LSR) & 0x02
        assert source(port) == RECEIVED
        get(port, RBR)
        assert source(port) == THRE
        assert source(port) == MODEM_STATUS
        assert get(port, MSR) == 0x11
        assert source(port) == NO_INTERRUPT

    def test_out2_gates_the_line(self) -> None:
        port = Serial()
        put(port, IER, 0x02)
        assert not port.level
        assert put(port, MCR, OUT2).lines == RISE
        assert put(port, MCR, 0).lines == FALL

    def test_the_line_keeps_the_boards_name(self) -> None:
        port = Serial("isa3")
        put(port, MCR, OUT2)
        assert put(port, IER, 0x02).lines == (Line("isa3", True),)


class TestLoopback:
    def test_what_is_sent_comes_back_and_not_out(self) -> None:
        port = Serial()
        put(port, MCR, LOOP)
        put(port, THR, 0x5A)
        assert get(port, LSR) & 0x01
        assert get(port, RBR) == 0x5A
        assert port.take_output() == b""

    def test_without_the_loop_bit_it_goes_out(self) -> None:
        port = Serial()
        put(port, MCR, 0x0F)
        put(port, THR, 0x5A)
        assert port.take_output() == b"\x5a"

    def test_the_outside_line_is_cut_off(self) -> None:
        port = Serial()
        put(port, MCR, LOOP)
        assert port.receive(b"a", 0) == (0, NOTHING)

    @pytest.mark.parametrize(("control", "status"), [(0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80)])
    def test_the_modem_outputs_are_the_inputs(self, control: int, status: int) -> None:
        port = Serial()
        put(port, MCR, LOOP | control)
        assert get(port, MSR) & 0xF0 == status

    def test_changes_are_reported_once_and_ring_only_on_its_trailing_edge(self) -> None:
        port = Serial()
        put(port, MCR, LOOP)
        get(port, MSR)
        put(port, MCR, LOOP | 0x0F)
        assert get(port, MSR) == 0xF0 | 0x0B
        assert get(port, MSR) == 0xF0
        put(port, MCR, LOOP)
        assert get(port, MSR) == 0x0F

    def test_an_overrun_loses_the_old_byte_without_fifos(self) -> None:
        port = Serial()
        put(port, MCR, LOOP)
        put(port, THR, 1)
        put(port, THR, 2)
        assert get(port, LSR) == 0x63
        assert get(port, LSR) == 0x61
        assert get(port, RBR) == 2

    def test_an_overrun_loses_the_new_byte_with_fifos(self) -> None:
        port = Serial()
        put(port, FCR, 0x01)
        put(port, MCR, LOOP)
        for byte in range(17):
            put(port, THR, byte)
        assert get(port, LSR) & 0x02
        assert [get(port, RBR) for _ in range(16)] == list(range(16))

    def test_interrupts_are_identified_but_the_out2_pin_is_inactive(self) -> None:
        port = Serial()
        put(port, IER, 0x01)
        put(port, MCR, LOOP | OUT2)
        assert put(port, THR, 1) == NOTHING
        assert source(port) == RECEIVED


accesses = st.tuples(
    st.sampled_from(["read", "write", "receive", "take"]),
    st.integers(0, 7),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 2**64 - 1),
)


@given(st.lists(accesses, max_size=60))
def test_no_sequence_of_accesses_breaks_it(sequence: list[tuple[str, int, int, int]]) -> None:
    port, level = Serial(), False
    for kind, offset, size, value in sequence:
        effects = NOTHING
        if kind == "read":
            read, effects = port.read(offset, size, 0)
            assert 0 <= read < 1 << 8 * size
        elif kind == "write":
            effects = port.write(offset, size, value & (1 << 8 * size) - 1, 0)
        elif kind == "receive":
            accepted, effects = port.receive(value.to_bytes(8, "little") * 3, 0)
            assert 0 <= accepted <= 16
        else:
            port.take_output()
        for line in effects.lines:
            assert line.level != level, "a line is reported only when it changes"
            level = line.level
        assert level == port.level
        assert len(port.received) <= 16
    port.reset()
    assert port == Serial()

"""The 16550 serial port: registers, FIFOs, interrupts and loopback (National Semiconductor PC16550D data sheet).

The wire is infinitely fast.  A byte written to the transmitter has left at once, so the transmitter is always empty and
its FIFO never fills; the divisor and the line format are registers without effect on time.  Received bytes wait in the
FIFO, and since the pause after them takes no time either, a FIFO below its trigger level reports the character timeout
at once.

The host's side passes bytes by value: `take_output()` gives what the guest has sent since the last call, `receive()`
offers bytes and tells how many fitted.  What does not fit stays with the host, so the line is never overrun from
outside, and what a guest throws away by clearing its FIFO, as drivers do when they start, the host can have back:
`take_unread()`.  The output is bounded too: if nobody takes it, what exceeds `OUTPUT_LIMIT_BYTES` is counted and lost.

The port knows no file and no terminal.  It reports its interrupt as a `Line`, and only when the level changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from devices.effects import NOTHING, Effects, Line
from devices.registers import Register, RegisterMap
from devices.state import COUNTER, FLAG, Bytes, Int, Stateful, Table, uint

FIFO_BYTES = 16
OUTPUT_LIMIT_BYTES = 1 << 20
TRIGGER_LEVELS = (1, 4, 8, 14)  # received bytes, selected by FCR bits 7:6

IER_RECEIVED, IER_THRE, IER_LINE_STATUS, IER_MODEM_STATUS = 1, 2, 4, 8

IIR_NONE = 0x01
IIR_MODEM_STATUS, IIR_THRE, IIR_RECEIVED, IIR_LINE_STATUS, IIR_TIMEOUT = 0x00, 0x02, 0x04, 0x06, 0x0C
IIR_FIFOS_ENABLED = 0xC0

FCR_ENABLE, FCR_CLEAR_RECEIVER = 1, 2
LCR_DIVISOR_LATCH = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 1, 2, 4, 8, 16
LSR_DATA_READY, LSR_OVERRUN, LSR_THRE, LSR_TRANSMITTER_EMPTY = 0x01, 0x02, 0x20, 0x40
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80

REGISTERS = RegisterMap(
    "16550",
    8,
    [
        Register(0, 1, "data", "rw"),  # receiver buffer, transmitter holding; or the divisor's low byte
        Register(1, 1, "interrupt_enable", "rw"),  # or the divisor's high byte
        Register(2, 1, "interrupt_id", "rw"),  # written, it is the FIFO control register
        Register(3, 1, "lcr", "rw"),
        Register(4, 1, "mcr", "rw"),
        Register(5, 1, "lsr", "ro"),
        Register(6, 1, "msr", "ro"),
        Register(7, 1, "scr", "rw"),
    ],
)


@dataclass
class Serial(Stateful):
    """One port; `line` is the board's name of its interrupt.  A bus handler for 8 one-byte ports; resettable.

    Wider accesses are taken as bytes in ascending order, bytes beyond the eighth port read as zero.
    """

    line: str = "isa4"
    ier: int = 0
    lcr: int = 0
    mcr: int = 0
    scr: int = 0
    divisor: int = 12  # the data sheet leaves it undefined; 9600 baud
    fifos_enabled: bool = False
    trigger_bytes: int = 1
    line_errors: int = 0  # the error bits of the LSR; an overrun is the only one this line knows
    modem_deltas: int = 0  # bits 3:0 of the MSR
    thre_pending: bool = False  # the transmitter ran empty, and nobody has been told yet
    level: bool = False
    received: bytearray = field(default_factory=bytearray)
    looped: int = 0  # bit n: received byte n came by loopback and not over the line
    unread: bytearray = field(default_factory=bytearray)  # came over the line, and was cleared before it was read
    output: bytearray = field(default_factory=bytearray)
    lost_output_bytes: int = 0

    STATE: ClassVar[Table] = {
        **dict.fromkeys(("ier", "lcr", "mcr", "scr", "line_errors", "modem_deltas"), uint(8)),
        "divisor": uint(16),
        "trigger_bytes": Int(1, TRIGGER_LEVELS[-1]),
        **dict.fromkeys(("fifos_enabled", "thre_pending", "level"), FLAG),
        "received": Bytes(FIFO_BYTES),
        "looped": uint(FIFO_BYTES),
        "unread": Bytes(FIFO_BYTES),
        "output": Bytes(OUTPUT_LIMIT_BYTES),
        "lost_output_bytes": COUNTER,
    }

    def reset(self) -> Effects:
        """Back to the state after power-on.  Output that was not taken is gone: take it first."""
        lines = (Line(self.line, False),) if self.level else ()
        vars(self).update(vars(Serial(self.line)))
        return Effects(lines=lines)

    # -- the host's side -----------------------------------------------------------------------------------------------

    def take_output(self) -> bytes:
        """Everything the guest has sent since the last call, in order."""
        output = bytes(self.output)
        self.output.clear()
        return output

    def receive(self, data: bytes, now_ns: int) -> tuple[int, Effects]:
        """Offer bytes to the receiver.  Returns how many were accepted, from the first one on.

        In loopback the line is cut off from the receiver and nothing is accepted.  Whoever wants what was thrown away
        of earlier bytes takes it first: afterwards it is gone."""
        self.unread.clear()
        accepted = 0 if self.mcr & MCR_LOOP else min(len(data), self._capacity - len(self.received))
        self.received += data[:accepted]
        return accepted, self._update_line()

    def take_unread(self) -> bytes:
        """What came with the last `receive` or before, and was cleared since then without having been read, in order.

        At most FIFO_BYTES: nothing else can come in between."""
        unread = bytes(self.unread)
        self.unread.clear()
        return unread

    @property
    def is_ready(self) -> bool:
        """Whether the guest raises RTS on the line, and so wants to be sent to; `receive` does not insist on it."""
        return self.mcr & (MCR_RTS | MCR_LOOP) == MCR_RTS

    @property
    def _capacity(self) -> int:
        return FIFO_BYTES if self.fifos_enabled else 1

    # -- the guest's side ----------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return REGISTERS.read(self, offset, size, now_ns)

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        return REGISTERS.write(self, offset, size, value, now_ns)

    def read_data(self, now_ns: int) -> tuple[int, Effects]:
        """The oldest received byte, 0 when there is none; or the divisor's low byte."""
        if self.lcr & LCR_DIVISOR_LATCH:
            return self.divisor & 0xFF, NOTHING
        value = self.received.pop(0) if self.received else 0
        self.looped >>= 1
        return value, self._update_line()

    def write_data(self, value: int, now_ns: int) -> Effects:
        """Send a byte; or write the divisor's low byte."""
        if self.lcr & LCR_DIVISOR_LATCH:
            self.divisor = self.divisor & 0xFF00 | value
            return NOTHING
        # The transmitter is full for an instant and empty again: its interrupt goes away and comes back, and an
        # edge-triggered interrupt controller must see that.
        self.thre_pending = False
        effects = self._update_line()
        if self.mcr & MCR_LOOP:
            self._receive_looped(value)
        elif len(self.output) < OUTPUT_LIMIT_BYTES:
            self.output.append(value)
        else:
            self.lost_output_bytes += 1
        self.thre_pending = True
        return effects | self._update_line()

    def _receive_looped(self, value: int) -> None:
        if len(self.received) < self._capacity:
            self.looped |= 1 << len(self.received)
            self.received.append(value)
            return
        self.line_errors |= LSR_OVERRUN
        if not self.fifos_enabled:
            self.received[0], self.looped = value, 1  # a full FIFO loses the new byte, the single buffer the old one

    def read_interrupt_enable(self, now_ns: int) -> int:
        return self.divisor >> 8 if self.lcr & LCR_DIVISOR_LATCH else self.ier

    def write_interrupt_enable(self, value: int, now_ns: int) -> Effects:
        if self.lcr & LCR_DIVISOR_LATCH:
            self.divisor = value << 8 | self.divisor & 0xFF
            return NOTHING
        if value & ~self.ier & IER_THRE:
            self.thre_pending = True  # enabling it while the transmitter is empty interrupts
        self.ier = value & 0x0F
        return self._update_line()

    def read_interrupt_id(self, now_ns: int) -> tuple[int, Effects]:
        """The pending interrupt of highest priority; reading it acknowledges "transmitter empty" if that is it."""
        source = self._interrupt()
        if source == IIR_THRE:
            self.thre_pending = False
        return source | (IIR_FIFOS_ENABLED if self.fifos_enabled else 0), self._update_line()

    def write_interrupt_id(self, value: int, now_ns: int) -> Effects:
        """FIFO control.  Without its enable bit the other bits are not looked at."""
        enable = bool(value & FCR_ENABLE)
        if enable != self.fifos_enabled or (enable and value & FCR_CLEAR_RECEIVER):
            self._clear_receiver()
        self.fifos_enabled = enable
        self.trigger_bytes = TRIGGER_LEVELS[value >> 6] if enable else 1
        return self._update_line()

    def _clear_receiver(self) -> None:
        self.unread += bytes(byte for place, byte in enumerate(self.received) if not self.looped >> place & 1)
        self.received.clear()
        self.looped = 0

    def write_mcr(self, value: int, now_ns: int) -> Effects:
        before = self._modem_inputs
        self.mcr = value & 0x1F
        after = self._modem_inputs
        changed = (before ^ after) & (MSR_CTS | MSR_DSR | MSR_DCD) | before & ~after & MSR_RI  # RI: trailing edge
        self.modem_deltas |= changed >> 4
        return self._update_line()

    def read_lsr(self, now_ns: int) -> tuple[int, Effects]:
        """The line status; reading it clears the errors."""
        value = LSR_THRE | LSR_TRANSMITTER_EMPTY | self.line_errors | (LSR_DATA_READY if self.received else 0)
        self.line_errors = 0
        return value, self._update_line()

    def read_msr(self, now_ns: int) -> tuple[int, Effects]:
        """The modem status; reading it clears the deltas."""
        value = self._modem_inputs | self.modem_deltas
        self.modem_deltas = 0
        return value, self._update_line()

    @property
    def _modem_inputs(self) -> int:
        """CTS, DSR and DCD as from a terminal that is always there; in loopback the port's own outputs."""
        if not self.mcr & MCR_LOOP:
            return MSR_CTS | MSR_DSR | MSR_DCD
        wired = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))
        return sum(status for control, status in wired if self.mcr & control)

    # -- the interrupt -------------------------------------------------------------------------------------------------

    def _pending(self) -> Iterator[int]:
        """The enabled sources that are pending, the highest priority first."""
        if self.ier & IER_LINE_STATUS and self.line_errors:
            yield IIR_LINE_STATUS
        if self.ier & IER_RECEIVED and self.received:
            yield IIR_RECEIVED if len(self.received) >= self.trigger_bytes else IIR_TIMEOUT
        if self.ier & IER_THRE and self.thre_pending:
            yield IIR_THRE
        if self.ier & IER_MODEM_STATUS and self.modem_deltas:
            yield IIR_MODEM_STATUS

    def _interrupt(self) -> int:
        return next(self._pending(), IIR_NONE)

    def _update_line(self) -> Effects:
        """The PC wires the interrupt through OUT2, and loopback holds the OUT2 pin inactive."""
        open_gate = self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
        level = open_gate and self._interrupt() != IIR_NONE
        if level == self.level:
            return NOTHING
        self.level = level
        return Effects(lines=(Line(self.line, level),))

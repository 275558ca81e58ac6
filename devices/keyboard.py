"""The 8042 keyboard controller without a keyboard (ports 60h and 64h), and port 92h of the PS/2.

What is left of a keyboard controller that nothing is plugged into: its self-test, its command byte, its output port
with the A20 gate, and the reset line, which kernels pull to restart a PC.  The A20 line is always on: the bit can be
written and reads back, and no address changes.

Its tests of the two lines fail, since a line without a device stays high: firmware then does not wait for a keyboard.
A command with an operand waits for one write to port 60h.  A byte for the keyboard or the mouse finds nobody: it is
swallowed, and no answer comes.  Commands D2h and D3h loop their operand back as if the keyboard or the mouse had sent
it, which is the controller's own doing: kernels try it, and wait half a second for an answer that does not come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from devices.effects import NOTHING, Effects, Stop, StopKind
from devices.state import FLAG, Maybe, Stateful, Table, uint

STATUS_OUTPUT_FULL, STATUS_SYSTEM, STATUS_COMMAND, STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
STATUS_MOUSE_OUTPUT = 0x20
READ_COMMAND_BYTE, WRITE_COMMAND_BYTE = 0x20, 0x60
DISABLE_MOUSE, ENABLE_MOUSE, TEST_MOUSE = 0xA7, 0xA8, 0xA9
SELF_TEST, TEST_KEYBOARD, DISABLE_KEYBOARD, ENABLE_KEYBOARD = 0xAA, 0xAB, 0xAD, 0xAE
READ_OUTPUT_PORT, WRITE_OUTPUT_PORT = 0xD0, 0xD1
LOOP_KEYBOARD, LOOP_MOUSE, TO_MOUSE = 0xD2, 0xD3, 0xD4
WRITES_WITH_OPERAND = frozenset({WRITE_COMMAND_BYTE, WRITE_OUTPUT_PORT, LOOP_KEYBOARD, LOOP_MOUSE, TO_MOUSE})
FIRST_PULSE = 0xF0  # F0h to FFh pulse the output port's low four bits that are zero in the command

SELF_TEST_PASSED, CLOCK_STUCK_HIGH = 0x55, 0x02
OUTPUT_NOT_RESET, OUTPUT_A20 = 0x01, 0x02
COMMAND_KEYBOARD_OFF, COMMAND_MOUSE_OFF = 0x10, 0x20

_RESET = Effects(stop=Stop(StopKind.RESET))


@dataclass
class KeyboardController(Stateful):
    """One controller; `data` and `command` are the bus handlers of its ports 60h and 64h.  Resettable.

    Both ports are a byte wide: what an access covers beyond its port reads as FFh and ignores writes.
    """

    command_byte: int = COMMAND_KEYBOARD_OFF | COMMAND_MOUSE_OFF
    output_port: int = OUTPUT_NOT_RESET | OUTPUT_A20
    output: int | None = None  # what port 60h gives, None when nothing waits
    output_is_mouse: bool = False  # where the byte that waits is said to come from
    last_output: int = 0
    waiting_command: int = 0  # takes the next byte written to port 60h
    last_was_command: bool = False

    STATE: ClassVar[Table] = {
        **dict.fromkeys(("command_byte", "output_port", "last_output", "waiting_command"), uint(8)),
        "output": Maybe(uint(8)),
        **dict.fromkeys(("output_is_mouse", "last_was_command"), FLAG),
    }

    def reset(self) -> Effects:
        """Back to the state after power-on."""
        vars(self).update(vars(KeyboardController()))
        return NOTHING

    @property
    def status(self) -> int:
        """The status register, port 64h: the input is always taken at once."""
        full = 0
        if self.output is not None:
            full = STATUS_OUTPUT_FULL | (STATUS_MOUSE_OUTPUT if self.output_is_mouse else 0)
        return full | STATUS_SYSTEM | STATUS_UNLOCKED | (STATUS_COMMAND if self.last_was_command else 0)

    def take_output(self) -> int:
        """Port 60h: the byte that waits, or the last one again."""
        if self.output is not None:
            self.last_output, self.output = self.output, None
        return self.last_output

    def write_data(self, value: int) -> Effects:
        """Port 60h: the operand of a command, or a byte for a keyboard that is not there."""
        command, self.waiting_command, self.last_was_command = self.waiting_command, 0, False
        if command == WRITE_COMMAND_BYTE:
            self.command_byte = value
        elif command == WRITE_OUTPUT_PORT:
            return self._write_output_port(value)
        elif command in (LOOP_KEYBOARD, LOOP_MOUSE):
            self._put(value, is_mouse=command == LOOP_MOUSE)
        return NOTHING

    def _put(self, value: int, *, is_mouse: bool = False) -> None:
        """A byte for whoever reads port 60h."""
        self.output, self.output_is_mouse = value, is_mouse

    def write_command(self, value: int) -> Effects:
        """Port 64h."""
        self.last_was_command = True
        self.waiting_command = value if value in WRITES_WITH_OPERAND else 0
        if value >= FIRST_PULSE:
            return NOTHING if value & OUTPUT_NOT_RESET else _RESET
        answers = {
            READ_COMMAND_BYTE: self.command_byte,
            TEST_MOUSE: CLOCK_STUCK_HIGH,
            SELF_TEST: SELF_TEST_PASSED,
            TEST_KEYBOARD: CLOCK_STUCK_HIGH,
            READ_OUTPUT_PORT: self.output_port,
        }
        if value in answers:
            self._put(answers[value])
        self._switch(value)
        return NOTHING

    def _switch(self, command: int) -> None:
        for off, on, bit in (
            (DISABLE_KEYBOARD, ENABLE_KEYBOARD, COMMAND_KEYBOARD_OFF),
            (DISABLE_MOUSE, ENABLE_MOUSE, COMMAND_MOUSE_OFF),
        ):
            if command == off:
                self.command_byte |= bit
            elif command == on:
                self.command_byte &= ~bit

    def _write_output_port(self, value: int) -> Effects:
        self.output_port = value
        return NOTHING if value & OUTPUT_NOT_RESET else _RESET

    @property
    def data(self) -> KeyboardPort:
        """The bus handler of port 60h."""
        return KeyboardPort(self, is_command=False)

    @property
    def command(self) -> KeyboardPort:
        """The bus handler of port 64h."""
        return KeyboardPort(self, is_command=True)


@dataclass(frozen=True, slots=True)
class KeyboardPort:
    """One of the controller's two ports."""

    controller: KeyboardController
    is_command: bool

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        if offset:
            return (1 << 8 * size) - 1, NOTHING
        value = self.controller.status if self.is_command else self.controller.take_output()
        return value | ((1 << 8 * size) - 1) & ~0xFF, NOTHING

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        if offset:
            return NOTHING
        return (self.controller.write_command if self.is_command else self.controller.write_data)(value & 0xFF)


@dataclass
class SystemControlA(Stateful):
    """Port 92h: bit 0 rising resets, bit 1 is the A20 gate, all read back.  Bytes beyond the port read as FFh."""

    value: int = OUTPUT_A20

    STATE: ClassVar[Table] = {"value": uint(8)}

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return (self.value if offset == 0 else 0xFF) | ((1 << 8 * size) - 1) & ~0xFF, NOTHING

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        if offset:
            return NOTHING
        rises = value & ~self.value & 1
        self.value = value & 0xFF
        return _RESET if rises else NOTHING

    def reset(self) -> Effects:
        self.value = OUTPUT_A20
        return NOTHING

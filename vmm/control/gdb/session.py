"""What gdb says over one connection, and what it is answered (gdb's manual, appendix E).

All of it happens between two runs of the CPU.  While gdb has let the machine run it hears nothing until the machine is
paused again, by whomever: a breakpoint, gdb's own 03h, or QMP's `stop`; or until the run is over.

Numbers in errors are those of errno: 14 (EFAULT) for memory and registers that cannot be reached, 22 (EINVAL) for a
packet that says nothing.  A packet that is not known is answered with an empty one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from vmm.control.gdb.packets import LONGEST_PACKET_BYTES, Mark, PacketReader, escape, packet
from vmm.control.gdb.registers import REGISTERS, NotWritableError, read, read_all, target_xml, written
from vmm.control.sockets import Connection
from vmm.cpu.debug import Access, CpuDebugger, DebugStop, StopKind, Watchpoint

if TYPE_CHECKING:
    from vmm.machine import Machine

OK, EMPTY, BAD_ADDRESS, BAD_PACKET, TOO_MANY = b"OK", b"", b"E0e", b"E16", b"E1c"
MOST_BREAKPOINTS, MOST_WATCHPOINTS = 1000, 64
LONGEST_WATCHPOINT_BYTES = 0x1000
_READ_BYTES = LONGEST_PACKET_BYTES // 2 - 16
_SIGINT, _SIGTRAP = 2, 5
_THREAD = b"1"
_ADDRESS_END = 1 << 64
_WATCHPOINTS = {2: (Access.WRITE, b"watch"), 3: (Access.READ, b"rwatch"), 4: (Access.ANY, b"awatch")}
_WATCH_WORDS = dict(_WATCHPOINTS.values())
_STEP_BITS, _STEP_ENABLE, _STEP_WITHOUT_INTERRUPTS, _STEP_WITHOUT_TIMERS = b"ENABLE=1,NOIRQ=2,NOTIMER=4", 1, 2, 4
_TARGET_XML = target_xml()


class Monitor(Protocol):
    """Whoever carries out the command lines of the monitor."""

    def execute(self, line: str) -> str:
        """Do what `line` says; what is to be shown for it."""
        ...


class GdbSession:
    """One gdb that debugs `machine`.  `finished` is called once, when it is not there any more."""

    def __init__(
        self,
        connection: Connection,
        machine: Machine,
        debugger: CpuDebugger,
        monitor: Monitor | None,
        finished: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._machine = machine
        self._debugger = debugger
        self._monitor = monitor
        self._finished = finished
        self._reader = PacketReader()
        self._acknowledges = True
        self._last_sent = b""
        self._points: dict[tuple[int, int, int], None] = {}  # (kind, address, length) as gdb has set them
        self._is_waiting = False  # gdb has let the machine run, and hears next why it stopped
        self._is_attached = True
        self._has_paused = not machine.is_paused  # or has let it go on since: then a gdb that is lost leaves it running
        machine.pause()

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        for item in self._reader.feed(data):
            if not self._is_attached:
                return
            if isinstance(item, Mark):
                self._take_mark(item)
            else:
                self._take_packet(item)

    def ended(self) -> None:
        """gdb is gone: as if it had detached, but what was paused before it came stays so."""
        self._leave(goes_on=self._has_paused)

    def _take_mark(self, mark: Mark) -> None:
        if mark is Mark.INTERRUPT and self._is_waiting:
            self._machine.pause()
        elif mark is Mark.DAMAGED and self._acknowledges:
            self._connection.send(b"-")
        elif mark is Mark.REFUSED and self._acknowledges and self._last_sent:
            self._connection.send(self._last_sent)

    def _take_packet(self, data: bytes) -> None:
        if self._acknowledges:
            self._connection.send(b"+")
        try:
            answer = self._answer(data)
        except NotWritableError:
            answer = BAD_ADDRESS
        except ValueError:  # a number that is none, or too few of them
            answer = BAD_PACKET
        if answer is not None:
            self._send(answer)

    def _send(self, data: bytes) -> None:
        self._last_sent = packet(data)
        self._connection.send(self._last_sent)

    # -- what the machine does -----------------------------------------------------------------------------------------

    def paused(self) -> None:
        """The machine stands still: tell why, if gdb waits for it."""
        if self._is_waiting:
            self._is_waiting = False
            self._send(self._stop_reply())

    def over(self, exit_code: int) -> None:
        """The run is over."""
        if self._is_waiting:
            self._is_waiting = False
            self._send(b"W%02x" % exit_code)

    def _stop_reply(self) -> bytes:
        stop = self._machine.debug_stop
        signal = _SIGINT if stop is None else _SIGTRAP
        return b"T%02x%sthread:%s;" % (signal, _watch_words(stop), _THREAD)

    def _run(self) -> None:
        self._is_waiting = self._has_paused = True
        self._machine.resume()

    def _leave(self, *, goes_on: bool = True) -> None:
        """The machine is without gdb again."""
        if self._is_attached:
            self._is_attached = self._is_waiting = False
            self._debugger.detach()
            self._finished()
            if goes_on:
                self._machine.resume()

    # -- packets -------------------------------------------------------------------------------------------------------

    def _answer(self, data: bytes) -> bytes | None:
        """The answer to a packet; None if there is none, or not yet.  ValueError when it makes no sense."""
        handler = _HANDLERS.get(data[:1])
        return EMPTY if handler is None else handler(self, data)

    def _why(self, _data: bytes) -> bytes:
        return self._stop_reply() if self._machine.debug_stop is not None else b"T05thread:%s;" % _THREAD

    def _continue(self, data: bytes) -> None:
        self._go_to(data[1:])
        self._debugger.go_on()
        self._run()

    def _step(self, data: bytes) -> None:
        self._go_to(data[1:])
        self._debugger.step()
        self._run()

    def _continue_with_signal(self, data: bytes) -> None:
        """Guests take no signals: the number is read and forgotten."""
        self._continue(b"c" + data.partition(b";")[2])

    def _step_with_signal(self, data: bytes) -> None:
        self._step(b"s" + data.partition(b";")[2])

    def _go_to(self, address: bytes) -> None:
        if address:
            self._debugger.set_registers({"rip": _number(address)})

    def _verbose(self, data: bytes) -> bytes | None:
        if data == b"vCont?":
            return b"vCont;c;C;s;S"
        if data.startswith(b"vCont;"):
            action = data[len(b"vCont;") :].partition(b";")[0].partition(b":")[0][:1]  # the first that fits the thread
            if action.lower() not in (b"c", b"s"):
                return BAD_PACKET
            (self._continue if action.lower() == b"c" else self._step)(action.lower())
            return None
        if data.startswith(b"vKill"):
            self._machine.interrupt()
            return OK
        return EMPTY

    def _kill(self, _data: bytes) -> None:
        self._machine.interrupt()
        self._leave()
        self._connection.finish()

    def _detach(self, _data: bytes) -> None:
        self._send(OK)
        self._leave()
        self._connection.finish()

    def _thread_is_alive(self, data: bytes) -> bytes:
        return OK if _number(data[1:]) == int(_THREAD, 16) else BAD_PACKET

    # -- registers and memory ------------------------------------------------------------------------------------------

    def _read_registers(self, _data: bytes) -> bytes:
        return read_all(self._debugger.registers()).hex().encode()

    def _write_registers(self, data: bytes) -> bytes:
        values, rest = self._debugger.registers(), _bytes(data[1:])
        changes: dict[str, int] = {}
        for register in REGISTERS:
            size = register.bits // 8
            changes |= written(values, register, rest[:size])
            rest = rest[size:]
        self._debugger.set_registers(changes)
        return OK

    def _read_register(self, data: bytes) -> bytes:
        number = _number(data[1:])
        if number >= len(REGISTERS):
            return BAD_PACKET
        return read(self._debugger.registers(), REGISTERS[number]).hex().encode()

    def _write_register(self, data: bytes) -> bytes:
        number, _, value = data[1:].partition(b"=")
        register = REGISTERS[_number(number)] if _number(number) < len(REGISTERS) else None
        if register is None:
            return BAD_PACKET
        self._debugger.set_registers(written(self._debugger.registers(), register, _bytes(value)))
        return OK

    def _read_memory(self, data: bytes) -> bytes:
        address, length = _two_numbers(data[1:])
        found = self._debugger.read_memory(address, min(length, _READ_BYTES))
        return found.hex().encode() if found or not length else BAD_ADDRESS

    def _write_memory(self, data: bytes) -> bytes:
        where, colon, content = data[1:].partition(b":")
        return self._store(where, colon, _bytes(content) if data[:1] == b"M" else content)

    def _store(self, where: bytes, colon: bytes, content: bytes) -> bytes:
        address, length = _two_numbers(where)
        if not colon or length != len(content):
            return BAD_PACKET
        return OK if self._debugger.write_memory(address, content) else BAD_ADDRESS

    # -- breakpoints and watchpoints -----------------------------------------------------------------------------------

    def _set_point(self, data: bytes) -> bytes:
        """0 and 1 are breakpoints, of which neither is written into memory; 2, 3 and 4 watchpoints."""
        point = _point(data)
        if point[0] > max(_WATCHPOINTS):
            return EMPTY
        is_watchpoint = point[0] in _WATCHPOINTS
        if is_watchpoint and not 0 < point[2] <= LONGEST_WATCHPOINT_BYTES:
            return BAD_PACKET
        most = MOST_WATCHPOINTS if is_watchpoint else MOST_BREAKPOINTS
        if sum((kind in _WATCHPOINTS) == is_watchpoint for kind, _, _ in self._points) >= most:
            return TOO_MANY
        self._points[point] = None
        self._settle_points()
        return OK

    def _remove_point(self, data: bytes) -> bytes:
        point = _point(data)
        if point[0] > max(_WATCHPOINTS):
            return EMPTY
        self._points.pop(point, None)
        self._settle_points()
        return OK

    def _settle_points(self) -> None:
        points = list(self._points)
        self._debugger.breakpoints = {address for kind, address, _ in points if kind not in _WATCHPOINTS}
        self._debugger.watchpoints = {
            Watchpoint(address, length, _WATCHPOINTS[kind][0])
            for kind, address, length in points
            if kind in _WATCHPOINTS
        }

    # -- queries -------------------------------------------------------------------------------------------------------

    def _query(self, data: bytes) -> bytes | None:
        name, _, words = data[1:].partition(b":")
        if name == b"Supported":
            return b"PacketSize=%x;qXfer:features:read+;vContSupported+;QStartNoAckMode+" % LONGEST_PACKET_BYTES
        if name == b"Xfer":
            return _transfer(words)
        if name.startswith(b"Rcmd,"):
            return self._carry_out(_bytes(data[len(b"qRcmd,") :]))
        if name == b"qemu.sstep":
            return b"0x%x" % self._step_mode()
        return _FIXED_ANSWERS.get(name, EMPTY)

    def _set(self, data: bytes) -> bytes | None:
        if data == b"QStartNoAckMode":
            self._send(OK)
            self._acknowledges = self._reader.checks = False
            return None
        if data.startswith(b"Qqemu.sstep="):
            mode = _number(data.partition(b"=")[2])
            if not mode & _STEP_ENABLE or mode > (_STEP_ENABLE | _STEP_WITHOUT_INTERRUPTS | _STEP_WITHOUT_TIMERS):
                return BAD_PACKET
            self._debugger.steps_take_interrupts = not mode & _STEP_WITHOUT_INTERRUPTS
            return OK
        return EMPTY

    def _step_mode(self) -> int:
        """QEMU's way to say whether interrupts are held back while gdb steps.  Time goes on with the guest's blocks."""
        return _STEP_ENABLE | (0 if self._debugger.steps_take_interrupts else _STEP_WITHOUT_INTERRUPTS)

    def _carry_out(self, line: bytes) -> bytes:
        """`monitor LINE`: what it shows comes in packets of its own before the answer."""
        if self._monitor is None:
            text = "This machine has no monitor.\n"
        else:
            text = self._monitor.execute(line.decode("utf-8", "replace"))
        if text and not text.endswith("\n"):
            text += "\n"
        shown = text.encode()
        for at in range(0, len(shown), _READ_BYTES):
            self._send(b"O" + shown[at : at + _READ_BYTES].hex().encode())
        return OK


_HANDLERS: dict[bytes, Callable[[GdbSession, bytes], bytes | None]] = {
    b"?": GdbSession._why,
    b"c": GdbSession._continue,
    b"s": GdbSession._step,
    b"C": GdbSession._continue_with_signal,
    b"S": GdbSession._step_with_signal,
    b"v": GdbSession._verbose,
    b"k": GdbSession._kill,
    b"D": GdbSession._detach,
    b"H": lambda _session, _data: OK,
    b"T": GdbSession._thread_is_alive,
    b"g": GdbSession._read_registers,
    b"G": GdbSession._write_registers,
    b"p": GdbSession._read_register,
    b"P": GdbSession._write_register,
    b"m": GdbSession._read_memory,
    b"M": GdbSession._write_memory,
    b"X": GdbSession._write_memory,
    b"Z": GdbSession._set_point,
    b"z": GdbSession._remove_point,
    b"q": GdbSession._query,
    b"Q": GdbSession._set,
}
_FIXED_ANSWERS = {
    b"fThreadInfo": b"m" + _THREAD,
    b"sThreadInfo": b"l",
    b"C": b"QC" + _THREAD,
    b"Attached": b"1",
    b"ThreadExtraInfo,1": b"the processor".hex().encode(),
    b"qemu.sstepbits": _STEP_BITS,
}


def _watch_words(stop: DebugStop | None) -> bytes:
    if stop is None or stop.kind is not StopKind.WATCHPOINT or stop.watchpoint is None:
        return b""
    return b"%s:%x;" % (_WATCH_WORDS[stop.watchpoint.access], stop.address)


def _transfer(words: bytes) -> bytes:
    """A piece of the target description: qXfer:features:read:target.xml:OFFSET,LENGTH."""
    kind, _, rest = words.partition(b":")
    if kind != b"features" or not rest.startswith(b"read:"):
        return EMPTY
    _, name, where = (*rest.split(b":"), b"", b"")[:3]
    if name != b"target.xml":
        return b"E00"
    offset, length = _two_numbers(where)
    piece = _TARGET_XML[offset : offset + min(length, _READ_BYTES)]
    return (b"m" if offset + len(piece) < len(_TARGET_XML) else b"l") + escape(piece)


def _point(data: bytes) -> tuple[int, int, int]:
    kind, address, length = data[1:].partition(b";")[0].split(b",")
    return _number(kind), _number(address), _number(length)


def _two_numbers(text: bytes) -> tuple[int, int]:
    address, length = text.split(b",")
    return _number(address), _number(length)


_DIGITS = frozenset(b"0123456789abcdefABCDEF")


def _number(text: bytes) -> int:
    """A hexadecimal number below 2^64.  ValueError for anything else, also for what only Python takes for a number."""
    if not text or not _DIGITS.issuperset(text) or (value := int(text, 16)) >= _ADDRESS_END:
        raise ValueError(text)
    return value


def _bytes(text: bytes) -> bytes:
    """The bytes behind pairs of hexadecimal digits.  ValueError for anything else."""
    if len(text) % 2 or not _DIGITS.issuperset(text):
        raise ValueError(text)
    return bytes.fromhex(text.decode("ascii"))

"""One run for the command line: build the machine, show it, hold it to a watchable pace, and say how it ended.

The machine knows nothing of terminals, signals or wall time; this module does, and does nothing else.  Ctrl-C,
SIGTERM, SIGHUP and SIGQUIT end the run at the next opportunity and not in the middle of something, so the report is
still written and the terminal put back.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from devices.effects import Event
from devices.errors import ConfigError
from vmm.config import format_size
from vmm.control.attendants import Attendant, Attendants
from vmm.control.options import NOT_DRIVEN, ControlOptions
from vmm.control.serving import attended
from vmm.display import PlainDisplay, Silent
from vmm.outputs import LineSink, SerialSink, serial_file, serial_path
from vmm.report_file import ReportFile
from vmm.streams import OUTPUT, GuardedText, OutputGone, forget_stdout
from vmm.terminal import ConsoleInput, ShellDisplay, console_input, is_interactive, raw_mode

if TYPE_CHECKING:
    from vmm.config import MachineConfig
    from vmm.control.monitor.sessions import ConsoleMonitor
    from vmm.machine import Machine

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
LONGEST_WAIT_S = 0.05  # between two looks at the terminal and at Ctrl-C


@dataclass(frozen=True, slots=True)
class PlannedSnapshot:
    """A snapshot to be written to `path` when the run has gone on for `time_ns` of guest time."""

    time_ns: int
    path: str


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for besides the machine itself, which is made by `make` where that is given.

    `serial` and `debugcon` (the output of the debug port) are "", "stdio" or "file:PATH"; with "stdio" the serial
    console has the standard input too.  `shell_ready` makes this terminal the guest's: it is what the guest sends to
    the debug port when it wants input, nothing if it wants it already.  `debug_sinks` get that port's output as well.
    With `shares_console` the serial console's standard input is the monitor's too.
    `snapshots` are in the order of their times.  `on_display` gets the way to tell the user a line
    while the run is shown."""

    config: MachineConfig
    serial: str = ""
    report: str = ""
    json: bool = False
    debugcon: str = ""
    shell_ready: bytes | None = None
    shares_console: bool = False
    debug_sinks: tuple[Callable[[bytes], None], ...] = ()
    control: ControlOptions = NOT_DRIVEN
    snapshots: tuple[PlannedSnapshot, ...] = ()
    make: Callable[[], Machine] | None = None
    on_display: Callable[[Callable[[str], None]], None] | None = None


def run(request: Request) -> int:
    """Carry out `request` on this process's terminal and signals; returns the exit status."""
    start_s = time.perf_counter()
    _check_stdio(request)
    with ExitStack() as stack:
        report_file = ReportFile(Path(request.report)) if request.report else None
        if report_file is not None:
            stack.callback(report_file.discard)
        sink = _sink(request, request.serial, "serial", stack)
        debug_sink = _debug_sink(request, sink, stack)
        _check_places(request.snapshots)
        machine = stack.enter_context(_make_machine(request))
        display = _display(request, machine)
        stack.callback(display.close)
        if request.on_display is not None:
            request.on_display(display.tell)
        machine.observers += [display] if sink is None else [sink, display]
        if debug_sink is not None:
            machine.debug_sinks.append(debug_sink.on_console)
        machine.debug_sinks += request.debug_sinks
        others: list[Attendant] = []
        if request.serial == "stdio":
            others.append(stack.enter_context(_console(request, machine)))
        elif _edits_lines(request):
            stack.enter_context(raw_mode(sys.stdin.fileno(), signals=True))  # the monitor edits its lines itself
        with attended(machine, request.control, *others) as attendants:
            _run_to_the_end(machine, display, debug_sink, attendants, request.snapshots)
        report = _with_wall_time(machine.report(), time.perf_counter() - start_s)
        text = json.dumps(report) + "\n"
        if report_file is not None:
            report_file.write(text)
        try:
            display.end(report)
            if request.json:
                GuardedText(sys.stdout).write(text)
        except OutputGone:
            forget_stdout()
        return int(report["exit_code"])


def _console(request: Request, machine: Machine) -> AbstractContextManager[ConsoleInput]:
    """The guest's console with the standard input, and behind Ctrl-A C the monitor."""
    shown = GuardedText(sys.stderr if request.json else sys.stdout)

    def make_monitor() -> ConsoleMonitor:
        from vmm.control.monitor import Monitor
        from vmm.control.monitor.sessions import ConsoleMonitor

        monitor = Monitor(machine, request.control.name or machine.config.name)
        return ConsoleMonitor(monitor, shown.write, echoes=is_interactive())

    return console_input(machine, request.shell_ready, make_monitor, is_shared=request.shares_console)


def _edits_lines(request: Request) -> bool:
    """Whether this terminal is the monitor's."""
    return any(address.kind == "stdio" for address in request.control.monitor) and is_interactive()


def _check_stdio(request: Request) -> None:
    """ConfigError when two want the standard input and output."""
    wanted = request.control.on_stdio + ("stdio" in (request.serial, request.debugcon)) + request.json
    if request.control.on_stdio and wanted > 1:
        raise ConfigError("The standard input and output can serve one only: a protocol, the console, or --json.")


def _make_machine(request: Request) -> Machine:
    if request.make is not None:
        return request.make()

    from vmm.machine import Machine  # numpy and the CPU emulator: not before everything cheap was checked

    return Machine(request.config)


def _check_places(snapshots: Sequence[PlannedSnapshot]) -> None:
    """A name that cannot be written to is told before the run, not when its time has come."""
    if snapshots:
        from vmm.snapshots import check_place

        for each in snapshots:
            check_place(each.path)


def _run_to_the_end(
    machine: Machine,
    display: Silent,
    debug_sink: SerialSink | None,
    attendants: Attendants,
    snapshots: Sequence[PlannedSnapshot],
) -> None:
    """Until there is an outcome; a reader that went away interrupts the run as Ctrl-C does."""

    def sleep(seconds: float) -> bool:
        attendants.wait(seconds)
        attendants.serve()
        return machine.is_paused

    hold = machine.config.clock == "virtual"
    is_watched = sys.stdout.isatty() or attendants.can_wake
    pacer = Pacer(display.waiting, hold=hold, sleep=sleep, paused_s=lambda: machine.paused_s) if is_watched else None
    with _interrupting(machine, pacer):
        try:
            display.begin()
            _take_snapshots(machine, display, snapshots, pacer)
            machine.run(pace=pacer)
            if isinstance(debug_sink, LineSink):
                debug_sink.finish()
        except OutputGone:
            forget_stdout()
            machine.observers.clear()
            machine.debug_sinks.clear()
            machine.interrupt()
            machine.run()


def _take_snapshots(
    machine: Machine, display: Silent, snapshots: Sequence[PlannedSnapshot], pacer: Pacer | None
) -> None:
    """Run until the last of them is written, or to the end."""
    start_ns = machine.now_ns
    for index, each in enumerate(snapshots):
        if machine.run(until=f"{max(start_ns + each.time_ns - machine.now_ns, 0)}ns", pace=pacer) is not None:
            for left in snapshots[index:]:
                _say_to(display, machine, f"{left.path} was not written: the run ended before its time")
            return
        from vmm.snapshots import write_snapshot

        size = write_snapshot(machine, each.path)
        _say_to(display, machine, f"{each.path} is written, {format_size(size)}")


def _say_to(display: Silent, machine: Machine, text: str) -> None:
    display.on_event(machine.now_ns, Event("snapshot", "snapshot", text))


def _sink(request: Request, text: str, kind: str, stack: ExitStack) -> SerialSink | None:
    """Where one of the guest's two consoles goes as raw bytes, if anywhere."""
    if not text:
        return None
    path = serial_path(text, f"{kind} console")
    if path is not None:
        return stack.enter_context(serial_file(path, kind))
    return SerialSink(_raw_stdio(request), OUTPUT)


def _debug_sink(request: Request, serial: SerialSink | None, stack: ExitStack) -> SerialSink | None:
    """The same for the debug port.  On this process's own output its lines stand beside those of the display or of the
    serial console, and no line is to begin within another."""
    if request.debugcon != "stdio":
        return _sink(request, request.debugcon, "debug", stack)
    return LineSink(_raw_stdio(request), OUTPUT, serial if request.serial == "stdio" else None)


def _raw_stdio(request: Request) -> BinaryIO:
    """With --json nothing but the object may reach the standard output."""
    return (sys.stderr if request.json else sys.stdout).buffer


def _display(request: Request, machine: Machine) -> Silent:
    """The display that fits where the output goes.  Raw console bytes and a display never share a stream."""
    if request.json:
        return Silent()
    if request.shell_ready is not None or request.shares_console or _edits_lines(request):
        return ShellDisplay()  # lines of ours would stand in the middle of what is typed
    if request.control.on_stdio or "stdio" in (request.serial, request.debugcon):
        return PlainDisplay(machine, GuardedText(sys.stderr), show_console=not request.serial)
    show_console = not request.serial
    if can_draw(sys.stdout):
        from vmm.live import LiveDisplay  # a drawing library, only where it is used

        return LiveDisplay(machine, sys.stdout, show_console=show_console)
    return PlainDisplay(machine, GuardedText(sys.stdout), show_console=show_console)


def can_draw(out: TextIO) -> bool:
    """Whether `out` is a terminal that can move its cursor."""
    return out.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def _with_wall_time(report: dict[str, Any], wall_s: float) -> dict[str, Any]:
    """The report with the one figure that differs from run to run, beside the guest's time."""
    result: dict[str, Any] = {}
    for key, value in report.items():
        result[key] = value
        if key == "clock_ns":
            result["wall_s"] = round(wall_s, 3)
    return result


@contextmanager
def _interrupting(machine: Machine, pacer: Pacer | None) -> Iterator[None]:
    """The first of ENDING asks the machine to end, a second of the same is what it was before.

    A hang-up comes more than once, from the kernel and from the shell whose window was closed: after the first the
    others mean nothing, until the report is written too.  One that is ignored stays so: nohup wants that, and a shell
    for its jobs in the background."""
    # All of them are known before the first is changed: from then on `interrupt` may be called.
    asked = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in asked.items() if handler is not signal.SIG_IGN}

    def interrupt(number: int, frame: FrameType | None) -> None:
        machine.interrupt()
        if pacer is not None:
            pacer.stop()
        after = signal.SIG_IGN if number == signal.SIGHUP else before[signal.Signals(number)]
        signal.signal(number, after)

    for number in before:
        signal.signal(number, interrupt)
    unraisable, sys.unraisablehook = sys.unraisablehook, _unless_interrupted
    try:
        yield
    finally:
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)


def _unless_interrupted(unraisable: sys.UnraisableHookArgs) -> None:
    """A second Ctrl-C may hit a callback of the CPU, where nothing can be raised; the run is ending without it."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


class Pacer:
    """Holds a run back to one guest second per second, and lets a display draw meanwhile.

    `waiting(now_ns)` is called with the guest time to show: it grows smoothly while the guest sleeps, although the
    machine jumps.  With `hold` false only that is done.  A `sleep` that returns true ends the hold.
    """

    def __init__(
        self,
        waiting: Callable[[int], None],
        *,
        hold: bool = True,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], bool | None] = time.sleep,
        paused_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._waiting = waiting
        self._hold = hold
        self._clock = clock
        self._sleep = sleep
        self._paused_s = paused_s
        self._start_s: float | None = None

    def __call__(self, now_ns: int) -> None:
        if self._start_s is None:
            self._start_s = self._now_s() - now_ns / 1e9
        while self._hold and (ahead_s := now_ns / 1e9 - (self._now_s() - self._start_s)) > 0:
            self._waiting(now_ns - int(ahead_s * 1e9))
            if self._sleep(min(ahead_s, LONGEST_WAIT_S)):
                break
        self._waiting(now_ns)

    def _now_s(self) -> float:
        """The host's time without the pauses: what was not run then is not to be caught up with."""
        return self._clock() - self._paused_s()

    def stop(self) -> None:
        """Hold no more; may be called from a signal handler."""
        self._hold = False

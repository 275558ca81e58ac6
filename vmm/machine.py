"""The machine: a board, a CPU and a clock, and the loop that keeps them together.

The machine owns order.  While the CPU runs, `vmm.platform` answers it and carries out what devices ask for.  Between
two runs of the CPU the machine does everything else: host commands and deadlines whose time has come, events for the
observers, and the end.  Nothing here changes the count of blocks, so watching a run does not change it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from devices.effects import Effects, Event, Stop, StopKind
from devices.memory import GuestMemory
from devices.memory_state import MemoryState
from devices.state import COUNTER, PART, TEXT, TIME_NS, HasState, Int, Maybe, Record, Stateful, Table
from vmm.boards import Saved, make_board
from vmm.boards.pc import PcBoard
from vmm.clock import Clock, RealtimeClock, VirtualClock
from vmm.config import NO_FIRMWARE, MachineConfig, TargetStep, format_size, parse_duration
from vmm.controls import BalloonControl, StatsView
from vmm.cpu import Exit, ExitReason
from vmm.cpu.debug import DebugStop
from vmm.keyboard import KeyboardGuard
from vmm.outcome import Outcome, describe_triple_fault, panic_before_reset, panic_that_stays, with_doubt
from vmm.pc_platform import PcPlatform
from vmm.platform import BoardPlatform
from vmm.ppc_platform import PpcPlatform
from vmm.shortage import ShortageGuard
from vmm.state import TARGET_STEPS, TIMES, MachineState, restore, save
from vmm.transcript import Transcript
from vmm.watch import Breach

if TYPE_CHECKING:
    from types import TracebackType


class Observer(Protocol):
    """Somebody who watches.  All calls come between two runs of the CPU, `now_ns` is guest time."""

    def on_event(self, now_ns: int, event: Event) -> None: ...

    def on_console(self, data: bytes) -> None: ...

    def on_stats(self, now_ns: int) -> None: ...

    def on_target(self, now_ns: int) -> None: ...


class Attending(Protocol):
    """Whoever types on the serial console or gives commands: `vmm.control.Attendants`.  A guest that sleeps is slept
    with, and woken."""

    @property
    def can_wake(self) -> bool: ...

    def serve(self) -> None: ...

    def wait(self, seconds: float) -> None: ...


LONGEST_PAUSE_S = 1.0  # between two looks at what ends a pause
SOURCE = "machine"  # of the events that are the machine's own
Condition = Callable[["Machine"], bool]


class Machine(Stateful):
    """A machine made after `config`, at its reset vector, with the guest's image in RAM.

    Use it as a context manager, or call `close()`.  ConfigError when the guest cannot be loaded or the host cannot
    give the RAM.  With `saved` no file is read: a state is to be put into it.  After `run` has
    returned an `Outcome` the machine is over; it can still be looked at.

    `attendants` are called between two runs of the CPU and waited with while nothing runs; `paused_s` is how many
    seconds of the host's time the machine has spent paused, `stats_unix_s` when the last statistics came, in the host's
    seconds of the epoch (None: none came here), `debug_stop` why the processor's debugger has
    paused it.
    """

    STATE: ClassVar[Table] = {
        "_clock": PART,
        "platform": PART,
        "_steps": TARGET_STEPS,
        "_hints_ns": TIMES,
        "_powerdown_ns": Maybe(TIME_NS),
        "outcome": Maybe(Record(Outcome, kind=TEXT, exit_code=Int(0, 255), detail=TEXT)),
        "_console": PART,
        "_debug_output": PART,
        "_stats_seen": COUNTER,
    }

    def __init__(self, config: MachineConfig, saved: Saved | None = None) -> None:
        self.config = config
        self.observers: list[Observer] = []
        self.debug_sinks: list[Callable[[bytes], None]] = []
        self.attendants: Attending | None = None
        self.is_paused = False
        self.debug_stop: DebugStop | None = None
        self.paused_s = 0.0
        self.stats_unix_s: float | None = None
        self._console, self._debug_output = Transcript(), Transcript()
        self.outcome: Outcome | None = None
        self._clock: Clock = VirtualClock() if config.clock == "virtual" else RealtimeClock()
        self._steps = sorted(config.targets, key=lambda step: step.time_ns)
        self._hints_ns = sorted(config.hints_ns)
        self._powerdown_ns = config.powerdown_ns
        self._interrupted = self._quitting = False
        self._stats_seen = 0
        self.board = make_board(config, saved)
        self.memory: GuestMemory = self.board.memory
        self._shortage = ShortageGuard(self.memory)
        try:
            self.platform = self._make_platform(started=saved is not None)
        except BaseException:
            self._shortage.close()
            self.memory.close()
            raise
        if config.poll_ns and self.board.balloon is not None:
            self.balloon.set_polling_interval(config.poll_ns)

    def _make_platform(self, *, started: bool) -> BoardPlatform:
        """What answers the CPU, with the CPU where it begins; a machine that has `started` before gets its state."""
        if not isinstance(self.board, PcBoard):
            return PpcPlatform(self.board, self._clock)
        platform = PcPlatform(self.board, self._clock)
        if self.config.bios == NO_FIRMWARE and not started:
            from vmm import direct  # few start so, and it takes a tenth of the time that everybody's start takes

            direct.start(self.board, platform)
        return platform

    # -- looking at it -------------------------------------------------------------------------------------------------

    @property
    def now_ns(self) -> int:
        """Guest time since power-on."""
        return self.platform.now_ns

    @property
    def blocks(self) -> int:
        """Basic blocks that the CPU executed so far."""
        return self.platform.cpu.blocks

    @property
    def backed_bytes_peak(self) -> int:
        """The most bytes of RAM that the host was seen to back."""
        return self.platform.backed_bytes_peak

    @property
    def console(self) -> bytes:
        """What the guest wrote to its serial console so far, the newest MiB of it."""
        return bytes(self._console)

    @property
    def console_dropped_bytes(self) -> int:
        """What it wrote before that."""
        return self._console.dropped_bytes

    @property
    def debug_output(self) -> bytes:
        """What the guest wrote to the debug port 402h so far, the newest MiB of it."""
        return bytes(self._debug_output)

    @property
    def exit_code(self) -> int | None:
        """The exit status of the run, None while it goes on."""
        return None if self.outcome is None else self.outcome.exit_code

    @property
    def balloon(self) -> BalloonControl:
        """The balloon.  ConfigError when the machine has none."""
        transport, device = self.board.need_balloon()
        return BalloonControl(
            device,
            self.config.memory_bytes,
            lambda: self.now_ns,
            lambda notes: self.platform.carry_out(transport.signal(notes)),
        )

    @property
    def stats(self) -> StatsView:
        """The guest's statistics.  ConfigError when the machine has no balloon."""
        return StatsView(self.board.need_balloon()[1], lambda: self.now_ns)

    @property
    def breaches(self) -> tuple[Breach, ...]:
        """The rules that the balloon's driver has broken so far, in that order; none where it is not watched."""
        watched = self.board.watched
        return () if watched is None else tuple(watched[1].breaches)

    def registers(self) -> dict[str, int]:
        """The CPU's registers by name."""
        return self.platform.cpu.registers()

    def report(self) -> dict[str, Any]:
        """Everything about the run so far as JSON's types; see `vmm.report`."""
        from vmm.report import report

        return report(self)

    # -- its state ---------------------------------------------------------------------------------------------------

    def save(self) -> MachineState:
        """Everything that decides how the run goes on, as one value; nothing is changed.

        Not from an observer or a callback, but between two calls of `run` or in its `until`."""
        return save(self)

    def restore(self, state: MachineState) -> None:
        """Go on from `state`, which this machine or another one made after the same configuration has saved.

        With the virtual clock the run is then the same to the byte as if it had never been cut.  ConfigError, and
        nothing changed, if the state does not fit this machine."""
        restore(self, state)
        self.platform.table.update()
        self._interrupted = self._quitting = False

    def standing_still(self) -> AbstractContextManager[None]:
        """Guest time stands still meanwhile, real time too: for what takes the host time between two steps."""
        return self._clock.standing_still()

    def plan(
        self,
        *,
        targets: Sequence[TargetStep] | None = None,
        hints_ns: Sequence[int] | None = None,
        powerdown_ns: int | None = None,
        for_ns: int | None = None,
        poll_ns: int | None = None,
    ) -> None:
        """Change what is still to come; None leaves it as it is.  Times count from now.

        ConfigError, and nothing changed, for what this machine's configuration could not have."""
        now_ns = self.now_ns
        steps = [replace(step, time_ns=step.time_ns + now_ns) for step in targets or ()]
        self.config = replace(
            self.config,
            targets=tuple(steps),
            hints_ns=tuple(hints_ns or ()),
            powerdown_ns=powerdown_ns,
            for_ns=now_ns + for_ns if for_ns else self.config.for_ns if for_ns is None else for_ns,
            poll_ns=poll_ns or 0,
        )
        if targets is not None:
            self._steps = sorted(steps, key=lambda step: step.time_ns)
        if hints_ns is not None:
            self._hints_ns = sorted(time_ns + now_ns for time_ns in hints_ns)
        if powerdown_ns is not None:
            self._powerdown_ns = powerdown_ns + now_ns
        if poll_ns is not None and self.config.has_balloon:
            self.balloon.set_polling_interval(poll_ns)

    def parts(self) -> dict[str, HasState]:
        """What `save` saves, in the order in which it is put back."""
        return {"memory": MemoryState(self.memory), "cpu": self.platform.cpu, "board": self.board, "run": self}

    # -- running it ----------------------------------------------------------------------------------------------------

    def run(
        self, until: Condition | str | float | None = None, *, pace: Callable[[int], None] | None = None
    ) -> Outcome | None:
        """Run until the guest ends, or `until` holds: a predicate of the machine, or a guest time from now ("2s", 0.5).

        Returns the `Outcome` when the run is over, None when `until` was met first, or when the machine is paused and
        has no attendants who could let it go on.  `pace` is called with the guest
        time every few milliseconds; what it does with the time does not change the run.  Ctrl-C raises
        KeyboardInterrupt between two steps of the machine, and the run can go on afterwards.
        """
        met = until if callable(until) else None
        stop_ns = None if until is None or callable(until) else self.now_ns + parse_duration(until)
        self.platform.attentive = met is not None
        with KeyboardGuard() as keyboard:
            while self.outcome is None:
                keyboard.check()
                if pace is not None and not self.is_paused:
                    pace(self.now_ns)  # first, so that nothing is shown before its time has come
                self._settle()
                if self._is_over():
                    break
                if self.is_paused:
                    if self.attendants is None:
                        return None  # nobody is there who could end it
                    self._stay_paused(self.attendants)
                    continue
                if (stop_ns is not None and self.now_ns >= stop_ns) or (met is not None and met(self)):
                    return None
                self._step(self._next_deadline_ns(stop_ns))
        return self.outcome

    def _step(self, deadline_ns: int | None) -> None:
        """Let the CPU run once, and see why it came back."""
        exit_ = self.platform.cpu.run(self._clock.budget(self.platform.cpu.blocks, deadline_ns))
        if self._shortage.lost_pages:
            return  # whatever came after that means nothing
        if exit_.reason is ExitReason.HALTED:
            self._sleep(exit_, deadline_ns)
        elif exit_.reason is ExitReason.TRIPLE_FAULT and self.platform.stop is None:  # else a reset came first
            self._finish("triple-fault", 4, describe_triple_fault(exit_, self._doubt))
        elif exit_.reason is ExitReason.DEBUGGER:
            self.debug_stop = exit_.stop
            self.pause()

    def _stay_paused(self, attendants: Attending) -> None:
        """Wait for whoever ends the pause, or the run."""
        start_s = time.monotonic()
        attendants.wait(LONGEST_PAUSE_S)
        self.paused_s += time.monotonic() - start_s

    def pause(self) -> None:
        """Let the guest stand still, and its time with it; also from inside a callback of the CPU, which then leaves
        before its next block."""
        if not self.is_paused and self.outcome is None:
            self.is_paused = True
            self._clock.pause()
            self._tell("paused", "the machine is paused")

    def resume(self) -> None:
        """Let it go on."""
        if self.is_paused:
            self.is_paused = False
            self.debug_stop = None
            self._clock.resume()
            self._tell("resumed", "the machine goes on")

    def reset(self) -> None:
        """What the reset button of a PC does: every device and the processor begin anew, and the guest's image is in
        RAM as at the start.  Its time goes on, the balloon keeps its target, and what was counted stays counted.

        Between two runs of the CPU.  ConfigError, and nothing done, when the image cannot be read again."""
        self.platform.carry_out(self.board.reset())
        self.platform.stop = None
        self.platform.cpu.reset()
        if self.config.bios == NO_FIRMWARE and isinstance(self.board, PcBoard):
            from vmm import direct

            direct.start(self.board, cast(PcPlatform, self.platform))
        self.platform.table.update()
        self._tell("reset", "the machine was reset")

    def _tell(self, kind: str, text: str) -> None:
        """One event of the machine's own."""
        self.platform.carry_out(Effects(events=(Event(SOURCE, kind, text),)))

    def interrupt(self) -> None:
        """End the run at the next opportunity, as interrupted; may be called from a signal handler."""
        self._interrupted = True

    def quit(self) -> None:
        """End the run at the next opportunity, as somebody who drives it wishes: nothing has gone wrong."""
        self._quitting = True

    def _is_over(self) -> bool:
        """Turn a reason to stop into the outcome."""
        if self.outcome is not None:
            return True
        if self._shortage.lost_pages:
            size = format_size(self._shortage.page_bytes)
            detail = f"no huge page of {size} was free on the host when the guest used one again that it had given back"
            self._finish("host-memory", 6, detail)
        elif self.platform.stop is not None:
            self._finish_stopped(self.platform.stop)
        elif self._interrupted:
            self._finish("interrupted", 130, "the run was interrupted from outside")
        elif self._quitting:
            self._finish("host-quit", 0, "the run was ended from outside by quit")
        elif self.config.for_ns is not None and self.now_ns >= self.config.for_ns:
            self._finish_unless_broken("deadline", f"{self.config.for_ns / 1e9:g} s of guest time are over")
        return self.outcome is not None

    def _sleep(self, exit_: Exit, deadline_ns: int | None) -> None:
        """HLT: wait for an interrupt, or see that none can come."""
        if self.platform.irq_pending() and exit_.interrupts_enabled:
            return
        if not exit_.interrupts_enabled:
            self._finish_unless_broken("halted", "the guest halted with interrupts off")
        elif deadline_ns is None and (self.attendants is None or not self.attendants.can_wake):
            self._finish_unless_broken("halted", "the guest halted and nothing is left that could wake it")
        else:
            self._settle_output()  # what happened until now is told with the time before the jump
            wait = time.sleep if self.attendants is None else self.attendants.wait
            self._clock.idle_until(self.platform.cpu.blocks, deadline_ns, wait)

    def _finish_stopped(self, stop: Stop) -> None:
        if stop.kind is StopKind.PANICKED:
            self._finish_panicked("the guest reported a panic")
        elif stop.kind is StopKind.QUIT:
            self._finish(stop.kind.value, stop.code, f"the guest ended with exit code {stop.code}")
        elif stop.kind is StopKind.POWERED_OFF:
            self._finish(stop.kind.value, 0, "the guest powered off")
        elif panic := panic_before_reset(self.console):
            self._finish_panicked(f"the guest's kernel panicked and reset the machine: {panic}")
        else:
            status = self.config.reset_status
            detail = "the guest reset the machine"
            self._finish(stop.kind.value, status, f"{detail} before its program had ended" if status else detail)

    def _finish_panicked(self, detail: str) -> None:
        """A damaged kernel may have come far before it met the damage, so its file is doubted whenever that was."""
        self._finish(StopKind.PANICKED.value, 3, with_doubt(detail, self._doubt))

    @property
    def _doubt(self) -> str:
        """What speaks against the guest's file, should it have died of that."""
        return "" if self.board.payload is None else self.board.payload.doubt

    def _finish_unless_broken(self, kind: str, detail: str) -> None:
        """The guest did not say how it went: a device that still needs a reset makes this a failure."""
        self._settle_output()
        broken = [device.name for device in self.board.virtio_devices if device.needs_reset]
        if panic := panic_that_stays(self.console):
            self._finish_panicked(f"the guest's kernel panicked: {panic}; {detail}")
        elif broken:
            self._finish("device-error", 5, f"{', '.join(broken)} still needs a reset; {detail}")
        else:
            self._finish(kind, 0, detail)

    def _finish(self, kind: str, exit_code: int, detail: str) -> None:
        self.outcome = Outcome(kind, exit_code, detail)
        self.platform.sample_backing()
        self._look_at_driver(at_the_end=True)
        for transport in self.board.transports:
            self.platform.carry_out(transport.signal(transport.device.run_over()))
        self._settle_output()

    # -- time ----------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Everything that happens between two runs of the CPU."""
        now_ns = self.now_ns
        while self._steps and self._steps[0].time_ns <= now_ns:
            self._take_step(self._steps.pop(0), now_ns)
        while self._hints_ns and self._hints_ns[0] <= now_ns:
            self._hints_ns.pop(0)
            self.balloon.ask_for_hints()
        if self._powerdown_ns is not None and self._powerdown_ns <= now_ns:
            self._powerdown_ns = None
            self.press_power_button()
        self.platform.advance(now_ns)
        if self.attendants is not None:
            self.attendants.serve()
        self.platform.drop_overwritten_code()
        self.platform.refresh_irq()
        self._look_at_driver()
        self._settle_output()

    def _look_at_driver(self, *, at_the_end: bool = False) -> None:
        """See whether a driver that is watched has failed to do something in time."""
        watched = self.board.watched if self.config.watch_driver else None
        if watched is not None:
            transport, device = watched
            self.platform.carry_out(transport.signal(device.look(self.now_ns, at_the_end=at_the_end)))

    def tell(self) -> None:
        """Hand what has happened to the observers now; between two runs of the CPU they hear of it by themselves."""
        self._settle_output()

    def _settle_output(self) -> None:
        """Hand events and console output to the observers.

        An event bears its own time and console output is told with the present one, so events come first: told the
        other way round, times would go backwards.
        """
        data = self.board.serial.take_output()
        self._console.add(data)
        self._settle_debug_output()
        events = self.platform.take_events()
        for observer in self.observers:
            for now_ns, event in events:
                observer.on_event(now_ns, event)
            if data:
                observer.on_console(data)
        if self.board.balloon is not None:
            reports = self.board.balloon[1].stats_reports
            if reports != self._stats_seen:
                self._stats_seen = reports
                self.stats_unix_s = time.time()
                for observer in self.observers:
                    observer.on_stats(self.now_ns)

    def _settle_debug_output(self) -> None:
        """Hand on what came out of the debug port."""
        data = self.board.take_debug_output()
        if data:
            self._debug_output.add(data)
            for sink in self.debug_sinks:
                sink(data)

    def _take_step(self, step: TargetStep, now_ns: int) -> None:
        self.platform.sample_backing()
        self.balloon.set_step(step)
        for observer in self.observers:
            observer.on_target(now_ns)

    def _next_deadline_ns(self, stop_ns: int | None) -> int | None:
        candidates = [stop_ns, self.config.for_ns, self._powerdown_ns, *self._hints_ns[:1]]
        candidates += [step.time_ns for step in self._steps[:1]]
        known = [time_ns for time_ns in candidates if time_ns is not None]
        return min(known + self.platform.deadlines(), default=None)

    # -- what a person at the machine does -----------------------------------------------------------------------------

    def send_console(self, data: bytes) -> int:
        """Type `data` on the serial console; returns how many bytes the 16550 took."""
        accepted, effects = self.board.serial.receive(data, self.now_ns)
        self.platform.carry_out(effects)
        return accepted

    def press_power_button(self) -> None:
        """Ask the guest to power off, as QEMU's system_powerdown does: only a guest with ACPI that listens does it."""
        self.platform.carry_out(self.board.press_power_button(self.now_ns))

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give RAM and CPU back to the host.  What was counted can still be read; everything else is a ConfigError."""
        self.platform.close()
        self._shortage.close()
        self.memory.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "running" if self.outcome is None else self.outcome.kind
        ram = format_size(self.config.memory_bytes)
        return f"<Machine {self.config.name}, {ram} of RAM, {self.now_ns / 1e9:g} s, {state}>"

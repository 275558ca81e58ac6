"""What the CPU asks while it runs, and what the board asks for: `Effects` carried out in the order of their meaning.

`BoardPlatform` stands between a CPU and a board.  The CPU calls it in the middle of an instruction, for every access to
MMIO; it passes the access to the bus and carries out what comes back: lines to the interrupt controller, a request to
stop and events to whoever asks for them later.  What only an x86 board has besides is in `pc_platform.py`.
Whoever gives the board a command between two runs of the CPU (a new target, a key, a power button) hands the resulting
effects to `carry_out` as well, so that there is one way for all of them.

It knows nothing of targets, observers, outcomes or wall time, and it never runs the CPU.  What it does depends on the
guest and the commands alone.
"""

from __future__ import annotations

from typing import ClassVar

from devices.effects import NOTHING, Effects, Event, Stop
from devices.state import COUNTER, Stateful, Table
from vmm.boards.board import Board
from vmm.clock import Clock
from vmm.cpu import ClosedCpu, Cpu
from vmm.device_table import DeviceTable
from vmm.state import EVENTS, STOP

SAMPLE_INTERVAL_NS = 1_000_000


class BoardPlatform(Stateful):
    """The `vmm.cpu.Platform` of `board`, with its CPU at the reset vector; `clock` turns executed blocks into time.

    `stop` is the first request to end the run, `events` are (guest ns, event) not fetched yet, `backed_bytes_peak` the
    most bytes of RAM that the host was seen to back, `sampled_ns` when that was last looked at, `table` what somebody
    outside this process can read of the devices.  While `attentive` the CPU leaves after any effect: somebody waits for
    a condition."""

    STATE: ClassVar[Table] = {
        "stop": STOP,
        "events": EVENTS,
        **dict.fromkeys(("backed_bytes_peak", "sampled_ns"), COUNTER),
    }

    def __init__(self, board: Board, clock: Clock) -> None:
        self.attentive = False
        self.stop: Stop | None = None
        self.events: list[tuple[int, Event]] = []
        self._board = board
        self._clock = clock
        self._memory = board.memory
        self.backed_bytes_peak, self.sampled_ns = self._memory.backed_bytes(), 0
        self.table = DeviceTable(board.virtio_devices, board.memory)
        self.cpu: Cpu | ClosedCpu = board.make_cpu(self)

    @property
    def now_ns(self) -> int:
        """Guest time since power-on; exact in the middle of a run, too."""
        return self._clock.now_ns(self.cpu.blocks)

    # -- for the CPU, while it runs ------------------------------------------------------------------------------------

    def mmio_read(self, gpa: int, size: int) -> int:
        value, effects = self._board.mmio.read(gpa, size, self.now_ns)
        self._after_access(effects)
        if effects is not NOTHING:
            self.refresh_irq()
        return value

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        self._after_access(self._board.mmio.write(gpa, size, value, self.now_ns))
        self.refresh_irq()  # an end of interrupt or a lower task priority lets the next one through

    def _leave_for_a_line(self) -> None:
        """After a write to the console: observers hear of a line when it is written, not when the slice ends."""
        if self._board.serial.output.endswith(b"\n"):
            self.cpu.request_exit()

    def _after_access(self, effects: Effects) -> None:
        self._carry_out(effects)
        self.drop_overwritten_code()

    # -- effects -------------------------------------------------------------------------------------------------------

    def carry_out(self, effects: Effects) -> None:
        """Do what a device asked for, and tell the CPU if an interrupt waits now.

        The CPU takes an interrupt without leaving.  It leaves, before its next block, for a deadline and for the end of
        the run, and for anything at all if somebody waits for a condition: leaving costs as much as a small request."""
        self._carry_out(effects)
        self.refresh_irq()

    def _carry_out(self, effects: Effects) -> None:
        if effects is NOTHING:
            return
        for line in effects.lines:
            self._carry_out(self._board.interrupts.set_line(line.name, line.level))
        self._note(effects.deadline, effects.stop, effects.events)

    def _note(self, deadline: bool, stop: Stop | None, events: tuple[Event, ...]) -> None:
        """What is nobody's business but the machine's."""
        if stop is not None and self.stop is None:
            self.stop = stop
        if events:
            now_ns = self.now_ns
            self.table.note(events)
            self.events += [(now_ns, event) for event in events]
        if self.attentive or deadline or stop is not None:
            self.cpu.request_exit()

    # -- between two runs of the CPU -----------------------------------------------------------------------------------

    def advance(self, now_ns: int) -> None:
        """Let the devices do what was due by `now_ns`, the present guest time."""
        for device in self._board.timed:
            deadline_ns = device.next_deadline_ns()
            if deadline_ns is not None and deadline_ns <= now_ns:
                self.carry_out(device.advance(now_ns))

    def deadlines(self) -> list[int]:
        """The guest times at which devices have something to do, in no order."""
        deadlines = (device.next_deadline_ns() for device in self._board.timed)
        return [deadline_ns for deadline_ns in deadlines if deadline_ns is not None]

    def take_events(self) -> list[tuple[int, Event]]:
        """The events since the last call, each with its guest time."""
        events, self.events = self.events, []
        return events

    def irq_pending(self) -> bool:
        """Whether an interrupt waits for the CPU."""
        return self._board.interrupts.is_pending()

    def refresh_irq(self) -> None:
        """Tell the CPU whether an interrupt waits."""
        self.cpu.set_irq(self._board.interrupts.is_pending())

    def drop_overwritten_code(self) -> None:
        """What the host's side wrote may have been code; it is also when host memory is worth measuring.

        Asking a memory file how large it is costs half as much as a request where much is discarded, so it is asked at
        most once in a millisecond of guest time.  Anonymous RAM must be looked through, which a request cannot wait
        for: it is measured when a target changes, and at the end."""
        writes = self._memory.take_writes()
        if writes:
            self.cpu.drop_translations(writes)
            if self._memory.fd is not None and self.now_ns >= self.sampled_ns + SAMPLE_INTERVAL_NS:
                self.sample_backing()

    def sample_backing(self) -> None:
        """Look how much RAM the host backs now."""
        self.sampled_ns = self.now_ns
        self.backed_bytes_peak = max(self.backed_bytes_peak, self._memory.backed_bytes())

    def close(self) -> None:
        """Give the CPU back.  Its count of blocks can still be read."""
        self.table.close()
        if not isinstance(self.cpu, ClosedCpu):
            self.cpu.close()
            self.cpu = ClosedCpu(self.cpu.blocks)

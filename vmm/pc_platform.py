"""What an x86 CPU and its board ask beyond `vmm.platform`: ports, time-stamp counter, vectors, interrupt messages."""

from __future__ import annotations

from devices.effects import NOTHING, Effects, Message
from vmm.boards.pc import SILENT_PORTS, PcBoard
from vmm.clock import Clock
from vmm.cpu import ClosedCpu
from vmm.cpu.x86 import X86Cpu
from vmm.platform import BoardPlatform


class PcPlatform(BoardPlatform):
    """The `vmm.cpu.x86.X86Platform` of `board`, with its CPU at the reset vector."""

    cpu: X86Cpu | ClosedCpu

    def __init__(self, board: PcBoard, clock: Clock) -> None:
        self._pc = board
        self.collectors = board.collectors
        super().__init__(board, clock)

    # -- for the CPU, while it runs ------------------------------------------------------------------------------------

    def port_read(self, port: int, size: int) -> int:
        value, effects = self._pc.ports.read(port, size, self.now_ns)
        self._after_port_access(port, effects)  # a poll of the 8259 pair acknowledges
        return value

    def port_write(self, port: int, size: int, value: int) -> None:
        self._after_port_access(port, self._pc.ports.write(port, size, value, self.now_ns))
        self._leave_for_a_line()

    def _after_port_access(self, port: int, effects: Effects) -> None:
        """Most ports change no interrupt: a console writes one character with two accesses."""
        self._after_access(effects)
        if effects is not NOTHING or port in SILENT_PORTS:
            self.refresh_irq()

    def tsc(self) -> int:
        """The time-stamp counter: 1 GHz."""
        return self.now_ns

    def tsc_of_blocks(self) -> tuple[int, int] | None:
        """The same as a function of the block count, while nobody sets the clock."""
        return self._clock.ns_of_blocks()

    def acknowledge_irq(self) -> int:
        """The vector that the CPU delivers now."""
        vector = self._pc.interrupts.acknowledge()
        self.refresh_irq()
        return vector

    # -- effects -------------------------------------------------------------------------------------------------------

    def _carry_out(self, effects: Effects) -> None:
        if effects is NOTHING:
            return
        messages, lines, deadline, stop, events, ended_vectors, rewired, shadows = effects
        for message in messages:
            self._deliver(message)
        for line in lines:
            self._carry_out(self._pc.interrupts.set_line(line.name, line.level))
        for vector in ended_vectors:
            self._carry_out(self._pc.interrupts.end_of_interrupt(vector))
        if rewired:
            self._carry_out(self._pc.interrupts.rewire())
        if shadows:
            self.cpu.map_shadow(shadows)
        self._note(deadline, stop, events)

    def _deliver(self, message: Message) -> None:
        """An MSI-X message is a bus write: to the interrupt controllers, to RAM, or to a device."""
        if self._pc.is_interrupt_address(message.address):
            self._carry_out(self._pc.lapic.message(message.address, message.data))
        elif self._memory.contains(message.address, 4):
            self._memory.write_int(message.address, 4, message.data)
        else:
            self._carry_out(self._pc.mmio.write(message.address, 4, message.data, self.now_ns))

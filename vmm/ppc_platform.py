"""What the PowerPC's board asks beyond `vmm.platform`: its console is in memory, among the other devices."""

from __future__ import annotations

from vmm.platform import BoardPlatform


class PpcPlatform(BoardPlatform):
    """The `vmm.cpu.Platform` of the PowerPC board, with its CPU at the guest's entry."""

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        super().mmio_write(gpa, size, value)
        self._leave_for_a_line()

"""The boards: which device sits at which address and on which line, as tables; one module for each board.

`make_board` builds the one that a configuration asks for.  Only modules of this package, and `vmm.machine`, name
concrete devices.
"""

from __future__ import annotations

from vmm.boards.board import Board, Saved
from vmm.config import PPC, MachineConfig

__all__ = ["Board", "Saved", "make_board"]


def make_board(config: MachineConfig, saved: Saved | None = None) -> Board:
    """Everything that `config` asks for, wired and at power-on; with `saved` no file is read.

    ConfigError when the guest cannot be loaded, a device is unknown, or the host cannot give the RAM."""
    if config.arch == PPC:
        from vmm.boards.ppc import PpcBoard

        return PpcBoard(config, saved)
    from vmm.boards.pc import PcBoard

    return PcBoard(config, saved)

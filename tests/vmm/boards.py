"""Reaching into a machine's board where a test is about one kind of board."""

from __future__ import annotations

from vmm.boards.pc import PcBoard
from vmm.machine import Machine


def pc_board(machine: Machine) -> PcBoard:
    """The board of a machine that is a PC."""
    assert isinstance(machine.board, PcBoard)
    return machine.board

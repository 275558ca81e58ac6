"""The monitor's commands, and what they say; lines and complaints are those of QEMU 7.2."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vmm.config import TargetStep
from vmm.control.status import run_state

if TYPE_CHECKING:
    from vmm.machine import Machine

MIB = 1 << 20


class Monitor:
    """The monitor of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._commands: dict[str, tuple[str, str, Callable[[str], str]]] = {
            "balloon": ("target", "request VM to change its memory allocation (in MB)", self._balloon),
            "help": ("[cmd]", "show the help", self._help),
            "info": ("[subcommand]", "show various information about the system state", self._info),
        }
        self._infos: dict[str, tuple[str, Callable[[], str]]] = {
            "balloon": ("show balloon information", self._info_balloon),
            "status": ("show the current VM status (running|paused)", self._info_status),
        }

    def execute(self, line: str) -> str:
        """What `line` answers, in lines that end with a newline."""
        name, _, rest = line.strip().partition(" ")
        if not name:
            return ""
        if name not in self._commands:
            return f"unknown command: '{name}'\n"
        return self._commands[name][2](rest.strip())

    def _help(self, name: str) -> str:
        if name == "info":
            return self._info("")
        if name and name not in self._commands:
            return f"unknown command: '{name}'\n"
        chosen = [name] if name else list(self._commands)
        return "".join(f"{each} {self._commands[each][0]} -- {self._commands[each][1]}\n" for each in chosen)

    def _info(self, name: str) -> str:
        if not name:
            return "".join(f"info {each}  -- {text}\n" for each, (text, _) in self._infos.items())
        return self._infos[name][1]() if name in self._infos else f"unknown command: 'info {name}'\n"

    def _info_status(self) -> str:
        state = run_state(self._machine)
        return f"VM status: {state if state in ('running', 'paused') else f'paused ({state})'}\n"

    def _info_balloon(self) -> str:
        if self._machine.board.balloon is None:
            return "Error: No balloon device has been activated\n"
        return f"balloon: actual={self._machine.balloon.guest_ram_bytes // MIB}\n"

    def _balloon(self, text: str) -> str:
        if not text:
            return 'unexpected end of expression\nTry "help balloon" for more information\n'
        if not text.isdecimal():
            return f"invalid char '{text[0]}' in expression\nTry \"help balloon\" for more information\n"
        if self._machine.board.balloon is None:
            return "Error: No balloon device has been activated\n"
        if not int(text):
            return "Error: Parameter 'target' expects a size\n"
        size = min(int(text) * MIB, self._machine.config.memory_bytes)
        self._machine.balloon.set_step(TargetStep(0, ram_bytes=size))
        return ""

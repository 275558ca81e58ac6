"""What a command works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vmm.control.qmp.events import Events
    from vmm.machine import Machine


class LineMonitor(Protocol):
    """QEMU's other monitor, for people: `vmm.control.monitor.Monitor`."""

    def execute(self, line: str) -> str:
        """What `line` answers, in lines that end with a newline."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """One run, called `name`, and those who hear of it; `monitor` has its own commands, `write_snapshot` writes the
    whole machine to the file that it is given and returns its bytes (ConfigError where it cannot)."""

    machine: Machine
    name: str
    events: Events
    monitor: LineMonitor
    write_snapshot: Callable[[str], int]

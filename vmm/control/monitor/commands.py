"""The monitor: tables of what can be said, and how a line is carried out by them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from vmm.control.monitor import machine as whole
from vmm.control.monitor import memory, mtree, pci, qtree, registers, virtio
from vmm.control.monitor.arguments import Argument, Reader
from vmm.control.monitor.complaints import Complaint, Failure
from vmm.control.qmp import qom
from vmm.control.qmp.context import Context
from vmm.control.qmp.errors import QmpError
from vmm.control.qmp.events import Events

if TYPE_CHECKING:
    from vmm.machine import Machine


@dataclass(frozen=True, slots=True)
class Command:
    """`run(context, **arguments)` gives the answer, in lines that end with a newline.  `shown` are the arguments as
    the help has them."""

    help: str
    run: Callable[..., str]
    arguments: tuple[Argument, ...] = ()
    shown: str = ""


def _of_machine(run: Callable[..., str]) -> Callable[..., str]:
    """For what needs the machine alone."""
    return lambda context, **arguments: run(context.machine, **arguments)


def _help(context: Context, name: str = "") -> str:
    words = name.split()
    if not words:
        return "".join(_help_line(names, each) for names, each in COMMANDS.items())
    if words[0] == "info":
        return _help_info(" ".join(words[1:2]))
    found = find(COMMANDS, words[0])
    return f"unknown command: '{words[0]}'\n" if found is None else _help_line(*found)


def _help_info(name: str) -> str:
    if not name:
        return "".join(f"info {_help_line(names, each)}" for names, each in INFOS.items())
    found = find(INFOS, name)
    return f"unknown command: 'info {name}'\n" if found is None else f"info {_help_line(*found)}"


def _help_line(names: str, command: Command) -> str:
    return f"{names} {command.shown} -- {command.help}\n"


def _info(context: Context, item: str = "") -> str:
    """Without an item; with one it is looked up before this is called."""
    return _help_info("")


_FORMAT: Final = Argument("fmt", "format")
_ADDRESS: Final = (_FORMAT, Argument("addr", "number"))
_PATH: Final = Argument("path", "word")
_QUEUE: Final = Argument("queue", "integer")

COMMANDS: Final = {
    "balloon": Command(
        "request VM to change its memory allocation (in MB)",
        whole.balloon,
        (Argument("target", "mebibytes"),),
        "target",
    ),
    "cont|c": Command("resume emulation", whole.cont),
    "gva2gpa": Command(
        "print the guest physical address corresponding to a guest virtual address",
        _of_machine(memory.gva2gpa),
        (Argument("addr", "number"),),
        "addr",
    ),
    "help|?": Command("show the help", _help, (Argument("name", "words", optional=True),), "[cmd]"),
    "info": Command("show various information about the system state", _info, (), "[subcommand]"),
    "print|p": Command(
        "print expression value (use $reg for CPU register access)",
        _of_machine(memory.print_),
        (_FORMAT, Argument("value", "number")),
        "/fmt expr",
    ),
    "quit|q": Command("quit the emulator", whole.quit_),
    "stop|s": Command("stop emulation", whole.stop),
    "system_powerdown": Command("send system power down event", whole.system_powerdown),
    "system_reset": Command("reset the system", whole.system_reset),
    "x": Command("virtual memory dump starting at 'addr'", _of_machine(memory.x), _ADDRESS, "/fmt addr"),
    "xp": Command("physical memory dump starting at 'addr'", _of_machine(memory.xp), _ADDRESS, "/fmt addr"),
}
"""By their names, the first of which is the whole one, with "|" between them."""

INFOS: Final = {
    "balloon": Command("show balloon information", whole.info_balloon),
    "cpus": Command("show infos for each CPU", whole.info_cpus),
    "mtree": Command(
        "show memory tree (-f: dump flat view for address spaces)",
        _of_machine(mtree.info_mtree),
        (Argument("flags", "flags", letters="f"),),
        "[-f]",
    ),
    "name": Command("show the current VM name", whole.info_name),
    "pci": Command("show PCI info", pci.info_pci),
    "qtree": Command("show device tree", qtree.info_qtree),
    "registers": Command(
        "show the cpu registers (-a: show register info for all cpus; vcpu: specific vCPU to query)",
        _of_machine(registers.info_registers),
        (Argument("all", "flags", letters="a"), Argument("vcpu", "integer", optional=True)),
        "[-a|vcpu]",
    ),
    "stats": Command("show the statistics that the balloon's driver sent last", whole.info_stats),
    "status": Command("show the current VM status (running|paused)", whole.info_status),
    "uuid": Command("show the current VM UUID", whole.info_uuid),
    "version": Command("show the version of this program", whole.info_version),
    "virtio": Command("List all available virtio devices", virtio.info_virtio),
    "virtio-queue": Command("List the queues of all virtio devices, and where they stand", virtio.info_virtio_queue),
    "virtio-queue-element": Command(
        "Display element of a given virtio queue",
        virtio.info_virtio_queue_element,
        (_PATH, _QUEUE, Argument("index", "integer", optional=True)),
        "path queue [index]",
    ),
    "virtio-queue-status": Command(
        "Display status of a given virtio queue", virtio.info_virtio_queue_status, (_PATH, _QUEUE), "path queue"
    ),
    "virtio-status": Command("Display status of a given virtio device", virtio.info_virtio_status, (_PATH,), "path"),
}

_NAME = re.compile(r"[^\s/]*")


def _write_snapshot(machine: Machine, path: str) -> int:
    from vmm.snapshots import write_snapshot  # with its decoders, only where one is wanted

    return write_snapshot(machine, path)


def find(table: Mapping[str, Command], name: str) -> tuple[str, Command] | None:
    """The row that has `name` among its names."""
    return next(((names, each) for names, each in table.items() if name in names.split("|")), None)


class Monitor:
    """The monitor of one machine; `name` is what the run is called, `events` what its clients of QMP hear.

    `has_quit` says that the run was asked to end here."""

    def __init__(self, machine: Machine, name: str = "", events: Events | None = None) -> None:
        self.context = Context(machine, name, events or Events(machine), self, partial(_write_snapshot, machine))
        self.has_quit = False
        self._reader = Reader(lambda: registers.named(machine))

    def execute(self, line: str) -> str:
        """What `line` answers, in lines that end with a newline."""
        name, rest = _cut(line)
        if not name:
            return ""
        found = find(COMMANDS, name)
        whole_name = name
        if name == "info":
            item, more = _cut(rest)
            if item:
                whole_name, rest, found = f"info {item}", more, find(INFOS, item)
        if found is None:
            return f"unknown command: '{whole_name}'\n"
        return self._carry_out(whole_name, *found, rest)

    def _carry_out(self, given: str, names: str, command: Command, text: str) -> str:
        try:
            arguments: dict[str, Any] = self._reader.read(text, command.arguments, names)
            answer = command.run(self.context, **arguments)
        except Complaint as complaint:
            return f'{complaint}\nTry "help {given}" for more information\n'
        except Failure as failure:
            return str(failure)
        except QmpError as error:
            return f"Error: {error.desc}\n"
        self.has_quit = self.has_quit or command.run is whole.quit_
        self.context.machine.tell()  # what a command brought about is told before its answer, as in QEMU
        return answer

    def complete(self, line: str) -> tuple[int, list[str]]:
        """For the last word of `line`: how much of it there is, and by what whole words it may be meant."""
        *before, last = re.split(r"\s+", line.lstrip())
        return len(last), sorted(word for word in self._words(before) if word.startswith(last))

    def _words(self, before: list[str]) -> Iterator[str]:
        if not before or before in (["help"], ["?"]):
            yield from (name for names in COMMANDS for name in names.split("|"))
        elif before in (["info"], ["help", "info"], ["?", "info"]):
            yield from INFOS
        elif len(before) == 2 and before[0] == "info" and before[1].startswith("virtio-"):
            yield from (path for path, _ in qom.virtio_nodes(self.context.machine))


def _cut(text: str) -> tuple[str, str]:
    """The first word, which a format may follow at once, and the rest."""
    text = text.strip()
    found = _NAME.match(text)
    name = found.group() if found is not None else ""
    return name, text[len(name) :]

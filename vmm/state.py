"""The state of a whole machine as one value.

A `MachineState` is plain data (None, bool, int, str, bytes, lists and dicts): registers by name, a table of fields for
each device with its rings and the chains it holds, RAM by extents, and what the machine itself remembers, down to
events that no observer has heard yet.  It holds no object of this process and nothing of one build of Unicorn, so that
a file or a socket can carry it.  `schema` and `version` name its form; a new field or meaning is a new version.

It says what it was taken from (`machine`): it can only be put into a machine of the same RAM, clock, devices and
firmware, whose driver is watched or not as it was there.  The guest's name and how long to run are the configuration's;
its parameter, the description of its payload and the targets that are still to come are in the state.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from devices.effects import Event, Stop, StopKind
from devices.errors import ConfigError
from devices.state import (
    COUNTER,
    TEXT,
    TIME_NS,
    HasState,
    Int,
    Many,
    Maybe,
    Record,
    State,
    Tuple,
    Word,
    require_fields,
)
from vmm.config import TargetStep

if TYPE_CHECKING:
    from vmm.machine import Machine

SCHEMA = "balloon-vmm machine"
VERSION = 8
UNBOUNDED = 1 << 40
_SIZE = Maybe(COUNTER)
TIMES = Many(TIME_NS, longest=UNBOUNDED)
TARGET_STEPS = Many(Record(TargetStep, time_ns=TIME_NS, ram_bytes=_SIZE, balloon_bytes=_SIZE), longest=UNBOUNDED)
STOP = Maybe(Record(Stop, kind=Word(StopKind), code=Int(0, 255)))
EVENTS = Many(Tuple(TIME_NS, Record(Event, source=TEXT, kind=TEXT, text=TEXT)), longest=UNBOUNDED)

_PARTS = ("cpu", "memory", "board", "run")
_WORDS = {
    "arch": "processor",
    "memory_bytes": "bytes of RAM",
    "clock": "clock",
    "devices": "devices",
    "firmware_sha256": "firmware",
    "watch_driver": "settings for watching the driver",
}


@dataclass(frozen=True, slots=True)
class MachineState:
    """`data` is all of it.  Two are equal when nothing differs.  ConfigError unless schema and version are known."""

    data: State = field(repr=False)

    def __post_init__(self) -> None:
        data = self.data
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ConfigError("This is not the state of a machine of balloon-vmm.")
        if data.get("version") != VERSION:
            raise ConfigError(f"The saved state must be of version {VERSION}, not {data.get('version')!r}.")


def save(machine: Machine, ram: HasState | None = None) -> MachineState:
    """The state of `machine`, which does not run now; it is not changed.  `ram` may stand for its memory, and keeps the
    contents elsewhere."""
    parts: State = {name: part.save_state() for name, part in _parts(machine, ram).items()}
    return MachineState({"schema": SCHEMA, "version": VERSION, "machine": identity(machine), **parts})


def restore(machine: Machine, state: MachineState, ram: HasState | None = None) -> None:
    """Put `state` into `machine`, which does not run now.  ConfigError, and nothing changed, where it does not fit.

    A state that was saved with `ram` in place of the memory needs such a one again."""
    data: Any = require_fields("the state", state.data, ["schema", "version", "machine", *_PARTS])
    own = identity(machine)
    theirs = require_fields("machine", data["machine"], list(own))
    for name, value in own.items():
        if theirs[name] != value:
            raise ConfigError(
                f"The saved state is of a machine with other {_WORDS[name]}: {theirs[name]!r}, not {value!r}."
            )
    parts = _parts(machine, ram)
    for name, part in parts.items():
        part.check_state(data[name], name)
    for step in data["run"]["steps"]:
        TargetStep(**step).check(machine.config.memory_bytes)
    for name, part in parts.items():
        part.restore_state(data[name])


def _parts(machine: Machine, ram: HasState | None) -> dict[str, HasState]:
    return machine.parts() if ram is None else machine.parts() | {"memory": ram}


def identity(machine: Machine) -> State:
    """What a machine must have in common with the one whose state it takes over."""
    config = machine.config
    return {
        "arch": config.arch,
        "memory_bytes": config.memory_bytes,
        "clock": config.clock,
        "devices": [device.words for device in config.devices],
        "firmware_sha256": hashlib.sha256(machine.board.rom).hexdigest(),
        "watch_driver": "on" if config.watch_driver else "off",
    }

"""What the user has a machine do, as values, and how it is done over QMP."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from devices.errors import ConfigError
from vmm.config import MIB, PAGE_BYTES, TargetStep, format_size
from vmm.control.client import Client

LARGEST_STEP = 16 * MIB
PART_OF_RAM = 16
POLL_S = 1
_INTERVAL = "guest-stats-polling-interval"


@dataclass(frozen=True, slots=True)
class Step:
    """Make the balloon larger by so many steps, or smaller."""

    count: int


@dataclass(frozen=True, slots=True)
class Target:
    """A new target."""

    step: TargetStep


@dataclass(frozen=True, slots=True)
class PauseOrContinue:
    """Pause a machine that runs, and let another go on."""


@dataclass(frozen=True, slots=True)
class PollOrNot:
    """Have statistics asked for every `POLL_S` of guest time, or no more."""


Order = Step | Target | PauseOrContinue | PollOrNot


def joined(orders: Iterable[Order]) -> list[Order]:
    """The same, with one step for several in a row."""
    found: list[Order] = []
    for order in orders:
        if isinstance(order, Step) and found and isinstance(found[-1], Step):
            found[-1] = Step(found[-1].count + order.count)
        else:
            found.append(order)
    return found


def step_bytes(ram: int) -> int:
    """What one step is: 16 MiB, or a sixteenth of the RAM where that is less, in whole pages."""
    return max(min(LARGEST_STEP, ram // PART_OF_RAM) // PAGE_BYTES * PAGE_BYTES, PAGE_BYTES)


def stepped(ram: int, target_ram: int, count: int) -> int:
    """The RAM that shall be left after `count` steps from a target of `target_ram`: never less than one step, nor more
    than there is.  A target that is smaller already is not raised by making it smaller."""
    step = step_bytes(ram)
    wanted = target_ram - count * step
    return max(wanted, min(target_ram, step)) if count > 0 else min(wanted, ram)


def carry_out(client: Client, order: Order) -> str:
    """Do it, and return what was done in a few words.  Refused, or ConfigError, when it cannot be done."""
    status = client.ask("x-vmm-status")
    match order:
        case Step(count=count):
            ram, balloon = status["ram"], _balloon(client.name, status)
            return _set_target(client, stepped(ram, balloon["target-guest-ram"], count), balloon)
        case Target(step=step):
            balloon = _balloon(client.name, status)
            step.check(status["ram"])
            left = status["ram"] - step.balloon_bytes if step.balloon_bytes is not None else step.ram_bytes or 0
            return _set_target(client, left, balloon)
        case PauseOrContinue():
            command = "stop" if status["status"] == "running" else "cont"
            client.ask(command)
            return "paused" if command == "stop" else "goes on"
        case PollOrNot():
            return _poll_or_not(client, _balloon(client.name, status))


def _balloon(name: str, status: dict[str, Any]) -> dict[str, Any]:
    if "balloon" not in status:
        raise ConfigError(f"{name} has no balloon.")
    balloon: dict[str, Any] = status["balloon"]
    return balloon


def _set_target(client: Client, ram_left: int, balloon: dict[str, Any]) -> str:
    client.ask("balloon", value=ram_left)
    nobody = "" if balloon["driver-ready"] else "; the guest has no driver at work that could follow it"
    return f"target: {format_size(ram_left)} left to the guest{nobody}"


def _poll_or_not(client: Client, balloon: dict[str, Any]) -> str:
    paths = [each["path"] for each in client.ask("x-query-virtio") if each["name"] == "virtio-balloon"]
    if not paths:
        raise ConfigError(f"{client.name} has no balloon.")
    seconds = 0 if balloon["polling-interval-ns"] else POLL_S
    client.ask("qom-set", path=paths[0], property=_INTERVAL, value=seconds)
    return f"statistics every {seconds} s of guest time" if seconds else "statistics are no longer asked for"

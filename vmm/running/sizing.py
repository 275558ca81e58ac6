"""`vmm balloon`: a new target for a running machine, and waiting until its driver has followed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Protocol

import typer

from devices.errors import ConfigError
from vmm.config import TargetStep, format_size, parse_duration, parse_targets
from vmm.control.client import ANSWER_S, Client, Refused, choose
from vmm.running.output import fail, say

BALLOON_HELP = """Set how much RAM a running machine leaves to its guest.

    SIZE is the RAM left to the guest, as everywhere; balloon=SIZE is the balloon's own size. NAME may be left out while
    only one machine runs. With --wait the command ends when the driver has followed.
    """
BALLOON_EPILOG = """\b
Examples:
  vmm balloon stats 40M
  vmm balloon balloon=16M --wait --timeout 5s

\b
Exit status: 0 if the target is set (and, with --wait, reached), 1 if it is not,
2 for a wrong word or where no such machine runs.
"""
DEFAULT_TIMEOUT = "30s"
LOOK_S = 0.05


def balloon_command(
    words: Annotated[list[str], typer.Argument(metavar="[NAME] SIZE", help="Which machine, and the new target.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the driver has followed.")] = False,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="Wait no longer than that (30s).")] = DEFAULT_TIMEOUT,
) -> None:
    """See BALLOON_HELP."""
    if len(words) > 2:
        raise ConfigError(f"NAME and SIZE are all there is to say, not {' '.join(words[2:])!r}.")
    steps = parse_targets(words[-1])
    if len(steps) != 1 or "@" in words[-1]:
        raise ConfigError(f"A target for now is one SIZE or balloon=SIZE, not {words[-1]!r}.")
    step = steps[0]
    timeout_s = parse_duration(timeout) / 1e9
    with Client(*choose(words[0] if len(words) == 2 else ""), answer_s=min(timeout_s, ANSWER_S)) as client:
        before = client.ask("x-vmm-status")
        if "balloon" not in before:
            raise fail(f"{client.name} has no balloon.")
        ram_bytes: int = before["ram"]
        step.check(ram_bytes)
        try:
            client.ask("balloon", value=_ram_left(step, ram_bytes))
        except Refused as error:
            raise fail(f"{client.name}: {error.desc}.") from error
        status = client.ask("x-vmm-status")
        if _reached(status):
            say(f"{_sizes(client.name, status)}.")
            return
        if obstacle := _obstacle(status):
            sentence = f"{client.name}: the target is {_target(status)}; {obstacle}."
            if wait:
                raise fail(sentence)
            say(sentence)
        elif wait:
            _wait(client, status, timeout_s)
        else:
            say(f"{client.name}: the target is {_target(status)}; now it is {_actual(status)}.")


def _ram_left(step: TargetStep, ram_bytes: int) -> int:
    return ram_bytes - step.balloon_bytes if step.balloon_bytes is not None else step.ram_bytes or 0


def _wait(client: Client, status: dict[str, Any], timeout_s: float) -> None:
    end_s = time.monotonic() + timeout_s
    start = status["balloon"]["actual"]
    obstacle = ""
    with _progress(start, status["balloon"]["target"]) as progress:
        while not _reached(status) and not (obstacle := _obstacle(status)) and time.monotonic() < end_s:
            time.sleep(LOOK_S)
            status = client.ask("x-vmm-status")
            progress.show(status["balloon"]["actual"])
    if _reached(status):
        say(f"{_sizes(client.name, status)}.")
        return
    why = obstacle or f"it was not reached in {timeout_s:g} s"
    raise fail(f"{client.name}: the target is {_target(status)}; {why}; now it is {_actual(status)}.")


def _reached(status: Mapping[str, Any]) -> bool:
    balloon = status["balloon"]
    return bool(balloon["driver-ready"] and balloon["actual"] == balloon["target"])


def _obstacle(status: Mapping[str, Any]) -> str:
    """Why nobody will follow the target as things are; "" where somebody may."""
    if not status["balloon"]["driver-ready"]:
        return "the guest has no driver at work that could follow it"
    return "" if status["status"] == "running" else f"the machine is {status['status']}"


def _both(ram_bytes: int, balloon_bytes: int) -> str:
    return f"{format_size(ram_bytes)} left to the guest (balloon {format_size(balloon_bytes)})"


def _target(status: Mapping[str, Any]) -> str:
    return _both(status["balloon"]["target-guest-ram"], status["balloon"]["target"])


def _actual(status: Mapping[str, Any]) -> str:
    return _both(status["balloon"]["guest-ram"], status["balloon"]["actual"])


def _sizes(name: str, status: Mapping[str, Any]) -> str:
    return f"{name}: {_actual(status)} of {format_size(status['ram'])} of RAM"


class _Shows(Protocol):
    def show(self, actual: int) -> None: ...


class _Silent:
    def show(self, actual: int) -> None:
        """Nobody looks."""


@contextmanager
def _progress(start: int, target: int) -> Iterator[_Shows]:
    """A bar on a terminal, from where the balloon was to where it shall be."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[size]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("inflating" if target > start else "deflating", total=abs(target - start), size="")

        class Bar:
            def show(self, actual: int) -> None:
                bar.update(task, completed=abs(actual - start), size=f"balloon {format_size(actual)}")

        yield Bar()

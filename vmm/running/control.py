"""`vmm ctl`: any command of QMP, or else a line of the monitor, to a running machine."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from devices.errors import ConfigError
from vmm.control.client import Client, Refused, choose, living
from vmm.running.output import fail, say

CTL_HELP = """Give a running machine a command, and print its answer as JSON.

    COMMAND is one of QMP's, its arguments NAME=VALUE; a value that is JSON is taken as such, any other as text. What is
    no command of QMP's is a line for the monitor, whose answer is printed as it is. NAME may be left out while only one
    machine runs.
    """
CTL_EPILOG = """\b
Examples:
  vmm ctl stats query-status
  vmm ctl stats qom-get path=balloon0 property=guest-stats
  vmm ctl stats info balloon
  vmm ctl query-commands

\b
Exit status: 0, 1 where the command was refused, 2 for a wrong word or where no
such machine runs.
"""


def ctl_command(
    words: Annotated[
        list[str], typer.Argument(metavar="[NAME] COMMAND [ARGUMENT]…", help="Which machine, and what to do.")
    ],
) -> None:
    """See CTL_HELP."""
    found = living()
    name, command = (words[0], words[1:]) if words[0] in found else ("", words)
    if not command:
        raise ConfigError(f"What shall {name} do? Try 'vmm ctl {name} query-commands'.")
    if not name and len(found) != 1 and len(command) > 1:
        name = command.pop(0)  # it was meant to be one, and the sentence about it says which there are
    with Client(*choose(name, found)) as client:
        commands = {each["name"] for each in client.ask("query-commands")}
        try:
            if command[0] in commands and takes(command[1:]):
                say(json.dumps(client.ask_with(command[0], parse_arguments(command[1:])), indent=2))
            else:
                text: str = client.ask("human-monitor-command", command_line=" ".join(command))
                if text.startswith("unknown command:"):
                    if command[0] in commands:
                        parse_arguments(command[1:])
                    raise ConfigError(
                        f"{client.name} has neither a QMP command {command[0]!r} nor that line of the monitor."
                    )
                say(text.replace("\r\n", "\n").rstrip("\n"))
        except Refused as error:
            raise fail(f"{client.name}: {error.desc} ({error.class_}).") from error


def takes(words: list[str]) -> bool:
    """Whether the words are arguments of a command of QMP's; "balloon 40" is a line of the monitor."""
    return all("=" in word for word in words) or (len(words) == 1 and words[0].startswith("{"))


def parse_arguments(words: list[str]) -> dict[str, Any]:
    """The arguments of a command, from NAME=VALUE or one JSON object.  ConfigError for another word."""
    if len(words) == 1 and words[0].startswith("{"):
        given = _json_or_text(words[0])
        if isinstance(given, dict):
            return given
    arguments: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"An argument must be NAME=VALUE, not {word!r}.")
        arguments[name] = _json_or_text(value)
    return arguments


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text

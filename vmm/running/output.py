"""What the commands print, and how they end when something of it is not as it was wanted."""

from __future__ import annotations

import sys

import typer

from vmm.streams import GuardedText

NOT_DONE = 1
"""The exit status of a command that the machine refused, or whose aim was not reached in time."""


def say(text: str) -> None:
    """One or more lines on the standard output."""
    GuardedText(sys.stdout).write(text + "\n")


def fail(sentence: str) -> typer.Exit:
    """Why it was not done, on the standard error."""
    print(f"vmm: {sentence}", file=sys.stderr)
    return typer.Exit(NOT_DONE)

"""`vmm top`: the words, and what must be there before the terminal is taken."""

from __future__ import annotations

import os
import shlex
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from devices.errors import ConfigError

TOP_HELP = """Watch your running machines, and inflate and deflate their balloons by keys.

    Without a NAME all machines are shown, also those that come later; a machine that is named may come later too. The
    key ? explains the others.
    """
TOP_EPILOG = """\b
Exit status: 0, 2 for a wrong word, where there is no terminal, or where the
extra 'top' is not installed, 130 if interrupted.
"""
TEXTUAL = "textual>=8,<9"


def top_command(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]…", help="Which machines (all).")] = None,
) -> int:
    """See TOP_HELP."""
    if not _is_terminal():
        raise ConfigError("vmm top needs a terminal; 'vmm ps' and 'vmm stats' print the same figures anywhere.")
    if find_spec("textual") is None:
        install = f"{shlex.quote(sys.executable)} -m pip install '{TEXTUAL}'"
        raise ConfigError(f"vmm top needs textual, the extra 'top' of balloon-vmm; this installs it: {install}")

    from vmm.top.data import Fleet
    from vmm.top.feed import Feeds
    from vmm.top.view import TopApp

    app = TopApp(Fleet(names or ()), Feeds(names or ()))
    app.run()
    return app.return_code or 0


def _is_terminal() -> bool:
    has_name = os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    return has_name and sys.stdin.isatty() and sys.stdout.isatty()

"""`vmm` and `python -m vmm`: sees that the four packages belong together, then starts the command line.

It imports next to nothing before it answers for Ctrl-C and SIGTERM: what the interpreter does until then is not in its
hands.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # typing's own costs time before anybody answers for Ctrl-C

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

EXIT_INTERRUPTED = 130


def _leave(_number: int = 0, _frame: object = None) -> None:
    """Where nothing was begun, or everything is done, there is nothing to clean up."""
    os._exit(EXIT_INTERRUPTED)


def _answer(handler: Callable[[int, Any], None]) -> None:
    """SIGTERM and SIGHUP are what Ctrl-C is: `handler` gets them, unless whoever started us has one ignored, as a shell
    has Ctrl-C for a job in the background, and nohup a hang-up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


if __name__ == "__main__":
    _answer(_leave)


def shadowed() -> str | None:
    """What is wrong with where the packages are found, as one sentence, or None.

    Their names are ordinary words: another `devices` in the current folder or on PYTHONPATH would be taken instead.
    """
    from importlib.util import find_spec
    from pathlib import Path

    home = Path(__file__).resolve().parent.parent
    for name in ("devices", "firmware", "guests"):
        spec = find_spec(name)
        if spec is None:
            return f"The package {name!r} is missing beside {home / 'vmm'}; install balloon-vmm again."
        found = Path(spec.origin).parent if spec.origin else Path(next(iter(spec.submodule_search_locations or [""])))
        if found.resolve() != home / name:
            return (
                f"The package {name!r} of balloon-vmm at {home} is shadowed by {found}; "
                "start vmm from another folder, or without that one on PYTHONPATH."
            )
    return None


def main() -> int:
    """The console script's entry; returns the exit status.

    Who was interrupted leaves at once, with everything cleaned up and written: while the interpreter takes itself apart
    a second signal would be told with a traceback, or make another status of it."""
    status = EXIT_INTERRUPTED
    try:
        # From here on what was begun is cleaned up, and the status says why.
        _answer(signal.default_int_handler)
        _replace_closed_streams()
        status = _start(sys.argv[1:])
    except KeyboardInterrupt:
        pass
    finally:
        _answer(_leave)
        _drop_what_cannot_be_written()
    if status == EXIT_INTERRUPTED:
        _leave()
    return status


def _drop_what_cannot_be_written() -> None:
    """What failed was said already: without this the interpreter's last flush would fail again, with a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        from vmm.streams import forget_stdout

        forget_stdout()


def _replace_closed_streams() -> None:
    """A process may be started with streams closed: then its input is at an end and nobody wants its output, and that
    is no mistake.  In this order each gets its own number, and no file of ours is taken for one of them."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (as long as the process)


def _start(words: list[str]) -> int:
    problem = shadowed()
    if problem is not None:
        print(f"vmm: {problem}", file=sys.stderr)
        return 2
    from vmm.cli import main as run_command_line

    return run_command_line(words)


if __name__ == "__main__":
    sys.exit(main())

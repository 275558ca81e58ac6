"""`vmm conformance`: the words of the command, and what it prints.

Owns no knowledge of statements; a client of `runner`, `report` and `mutations`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from devices.errors import ConfigError

CONFORMANCE_HELP = """Try every obligation that virtio 1.3 puts on a device.

    STATEMENTS are ids (G1, C24) or the letters of parts: G general, S split ring, P packed ring, C PCI, M MMIO, D
    balloon, L legacy. Without one all are tried, each over every transport it applies to.
    """
CONFORMANCE_EPILOG = """\b
Exit status: 0 if no statement failed (and every mutation was caught),
1 if one did, 2 for a wrong word.
"""
FAILED = 1


def conformance_command(
    statements: Annotated[list[str] | None, typer.Argument(metavar="STATEMENTS", help="Ids or letters.")] = None,
    transport: Annotated[list[str] | None, typer.Option(help="Only over this transport; can be repeated.")] = None,
    json: Annotated[str, typer.Option(metavar="FILE", help="Write all results as JSON; - for the output.")] = "",
    junit: Annotated[str, typer.Option(metavar="FILE", help="Write all results as JUnit XML.")] = "",
    mutations: Annotated[bool, typer.Option("--mutations", help="Then put mistakes into the device: who notices?")] = (
        False
    ),
) -> None:
    """See CONFORMANCE_HELP."""
    from vmm.conformance import report
    from vmm.conformance.runner import run, select, select_transports

    chosen, rows = select(statements or ()), select_transports(transport or ())
    with _Progress(len(chosen)) as progress:
        results = list(run(chosen, rows, lambda statement: progress.step(statement.id)))
    if not results:
        raise ConfigError("None of these statements applies to that transport.")
    if json == "-":
        sys.stdout.write(report.as_json(results))
    else:
        _show(report.table(results), report.sentences(results))
        _write(json, report.as_json(results))
    _write(junit, report.as_junit(results))
    good = not any(result.verdict == "failed" for result in results)
    if mutations:
        good &= _try_mutations({statement.id for statement in chosen}, {row.name for row in rows})
    if not good:
        raise typer.Exit(FAILED)


def _try_mutations(ids: set[str], transports: set[str]) -> bool:
    from rich.table import Table

    from vmm.conformance.mutations import mutations, try_all

    chosen = [m for m in mutations() if m.statement in ids and m.transport in transports]
    with _Progress(len(chosen)) as progress:
        trials = list(try_all(chosen, lambda trial: progress.step(trial.mutation.statement)))
    trials.sort(key=lambda trial: chosen.index(trial.mutation))
    lines = Table(title="Mistakes put into the device", title_justify="left")
    for name in ("mistake", "statement", "caught", "it said"):
        lines.add_column(name, overflow="fold")
    for trial in trials:
        row = (trial.mutation.name, trial.mutation.statement, "yes" if trial.caught else "NO", trial.detail)
        lines.add_row(*row, style="" if trial.caught else "bold red")
    caught = sum(trial.caught for trial in trials)
    _show(lines, [f"{caught} of {len(trials)} mistakes were caught by the statement that each names"])
    return caught == len(trials)


def _show(table: object, lines: Sequence[str]) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _write(path: str, text: str) -> None:
    if not path:
        return
    try:
        Path(path).write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"{path!r} cannot be written: {error.strerror}.") from error


class _Progress:
    """A line on the terminal that says how far it is; nothing elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._visible = sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._visible:
            sys.stderr.write("\r\x1b[K")

    def step(self, what: str) -> None:
        self._done += 1
        if self._visible:
            sys.stderr.write(f"\r\x1b[K{self._done} of {self._total}: {what}")
            sys.stderr.flush()

"""`vmm conformance`: the words of the command, and what it prints.

Owns no knowledge of statements; a client of `runner`, `report` and `mutations`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO, cast

import typer

from devices.errors import ConfigError
from vmm.report_file import ReportFile
from vmm.streams import GuardedText

if TYPE_CHECKING:
    from vmm.conformance.catalogue import Statement
    from vmm.conformance.mutations import Mutation, Trial
    from vmm.conformance.transports import TransportRow

CONFORMANCE_HELP = """Try every obligation that virtio 1.3 puts on a device.

    STATEMENTS are ids (G1, C24) or the letters of parts: G general, S split ring, P packed ring, C PCI, M MMIO, D
    balloon, L legacy. Without one all are tried, each over every transport it applies to.
    """
CONFORMANCE_EPILOG = """\b
Exit status: 0 if no statement failed (and every mutation was caught),
1 if one did, 2 for a wrong word or a file that cannot be written.
"""
FAILED = 1
OUTPUT = "-"
WIDTH = 160  # of the tables, where no terminal has one


def conformance_command(
    statements: Annotated[list[str] | None, typer.Argument(metavar="STATEMENTS", help="Ids or letters.")] = None,
    transport: Annotated[list[str] | None, typer.Option(help="Only over this transport; can be repeated.")] = None,
    json: Annotated[str, typer.Option(metavar="FILE", help="Write all results as JSON; - for the output.")] = "",
    junit: Annotated[str, typer.Option(metavar="FILE", help="Write all results as JUnit XML; - for the output.")] = "",
    mutations: Annotated[bool, typer.Option("--mutations", help="Then put mistakes into the device: who notices?")] = (
        False
    ),
) -> None:
    """See CONFORMANCE_HELP."""
    from vmm.conformance import report
    from vmm.conformance.runner import run, select, select_transports

    chosen, rows = select(statements or ()), select_transports(transport or ())
    chosen = [statement for statement in chosen if any(row in rows for row in statement.transports())]
    if not chosen:
        raise ConfigError("None of these statements applies to that transport.")
    mistakes = _mistakes_for(chosen, rows) if mutations else []
    if json == junit == OUTPUT:
        raise ConfigError("Only one of --json and --junit can go to the output.")
    with _Files((json, junit)) as files:
        with _Progress(len(chosen)) as progress:
            results = list(run(chosen, rows, lambda statement: progress.step(statement.id)))
        trials = _try(mistakes) if mutations else None
        if OUTPUT not in (json, junit):
            _show(report.table(results), report.sentences(results))
            if trials is not None:
                _show(report.mutation_table(trials), report.mutation_sentences(results, trials))
        if json:
            files.write(json, report.as_json(results, trials))
        if junit:
            files.write(junit, report.as_junit(results, trials))
    if any(result.verdict == "failed" for result in results) or not all(trial.caught for trial in trials or ()):
        raise typer.Exit(FAILED)


def _mistakes_for(chosen: Iterable[Statement], rows: Iterable[TransportRow]) -> list[Mutation]:
    """The mistakes that name one of the statements and one of the transports.  ConfigError if there is none."""
    from vmm.conformance.mutations import mutations

    ids, names = {statement.id for statement in chosen}, {row.name for row in rows}
    found = [mutation for mutation in mutations() if mutation.statement in ids and mutation.transport in names]
    if not found:
        raise ConfigError("No mistake is in the table for any of these statements over that transport.")
    return found


def _try(mistakes: Sequence[Mutation]) -> list[Trial]:
    """All of them, in the order of the table."""
    from vmm.conformance.mutations import try_all

    with _Progress(len(mistakes)) as progress:
        trials = list(try_all(mistakes, lambda trial: progress.step(trial.mutation.statement)))
    return sorted(trials, key=lambda trial: mistakes.index(trial.mutation))


def _show(table: object, lines: Sequence[str]) -> None:
    from rich.console import Console

    out = cast(TextIO, GuardedText(sys.stdout))
    console = Console(file=out, width=None if sys.stdout.isatty() else WIDTH)
    console.print(table)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Files:
    """Where the results go, known to be writable before anything is tried."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._files: dict[str, ReportFile] = {}
        try:
            for path in paths:
                if path not in ("", OUTPUT):
                    self._files[path] = ReportFile(Path(path))
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    def write(self, path: str, text: str) -> None:
        if path == OUTPUT:
            GuardedText(sys.stdout).write(text)
        else:
            self._files[path].write(text)

    def _discard(self) -> None:
        for file in self._files.values():
            file.discard()


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

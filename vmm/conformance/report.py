"""What came out, for people and for programs: tables, JSON and JUnit XML.

Owns the words and the layout; refuses to know how a verdict was reached.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from vmm.conformance.catalogue import PARTS, Statement
from vmm.conformance.mutations import Trial
from vmm.conformance.runner import Result

if TYPE_CHECKING:
    from rich.table import Table

SPECIFICATION = "virtio 1.3"
MISTAKES = "mistakes put into the device"
_MARKS = {"passed": "ok", "failed": "FAILED", "cannot be tested": "-", "does not apply": "n/a"}
_WORST_FIRST = ("failed", "cannot be tested", "passed", "does not apply")


def by_statement(results: Iterable[Result]) -> dict[Statement, list[Result]]:
    """The results of each statement, in the order of the catalogue."""
    found: dict[Statement, list[Result]] = {}
    for result in results:
        found.setdefault(result.statement, []).append(result)
    return found


def verdict_of(results: Sequence[Result]) -> str:
    """One word for a statement over all its transports: the worst."""
    verdicts = {result.verdict for result in results}
    return next(word for word in _WORST_FIRST if word in verdicts)


# -- for people --------------------------------------------------------------------------------------------------------


def table(results: Iterable[Result]) -> Table:
    """A line for each statement: what it asks for, what was done, and the verdict over the transports it applies to."""
    from rich.table import Table

    lines = Table(title=f"{SPECIFICATION}: what a device must do, tried", title_justify="left")
    lines.add_column("id", no_wrap=True)
    lines.add_column("section", no_wrap=True)
    lines.add_column("the device", overflow="fold", ratio=1)
    lines.add_column("what was done", overflow="fold", ratio=1)
    lines.add_column("verdict", overflow="fold")
    for statement, group in by_statement(results).items():
        mark = _MARKS[verdict_of(group)]
        failed = [result.transport for result in group if result.verdict == "failed"]
        where = " over " + ", ".join(failed) if failed and len(failed) < len(group) else ""
        cells = statement.id, "§" + statement.section, statement.sentence, _done(group), mark + where
        lines.add_row(*cells, style="bold red" if failed else "")
    return lines


def _done(group: Sequence[Result]) -> str:
    """What was done, or why nothing was."""
    return group[0].how or group[0].detail


def sentences(results: Iterable[Result]) -> list[str]:
    """What the table has no room for: each failure, what cannot be tested or does not apply and why, and the sums."""
    results = list(results)
    lines = [
        f"{result.statement.id} over {result.transport}: {result.detail}"
        for result in results
        if result.verdict == "failed"
    ]
    for statement, group in by_statement(results).items():
        verdict = verdict_of(group)
        if verdict in ("cannot be tested", "does not apply"):
            lines.append(f"{statement.id} {verdict}: {group[0].detail}")
    return [*lines, summary(results)]


def summary(results: Iterable[Result]) -> str:
    """The sums in one sentence."""
    results = list(results)
    counts = Counter(verdict_of(group) for group in by_statement(results).values())
    parts = [f"{counts['passed']} passed", f"{counts['failed']} failed"]
    if counts["cannot be tested"]:
        parts.append(f"{counts['cannot be tested']} cannot be tested")
    if counts["does not apply"]:
        parts.append(f"{counts['does not apply']} {'does' if counts['does not apply'] == 1 else 'do'} not apply")
    statements = _counted(sum(counts.values()), "statement")
    return (
        f"{statements} over {_counted(len({result.transport for result in results}), 'transport')}: {', '.join(parts)}"
    )


def mutation_table(trials: Iterable[Trial]) -> Table:
    """A line for each mistake: the statement that must notice, whether it did, and what it said."""
    from rich.table import Table

    lines = Table(title=MISTAKES.capitalize(), title_justify="left")
    for name in ("mistake", "statement", "over", "caught", "it said"):
        lines.add_column(name, overflow="fold")
    for trial in trials:
        mutation = trial.mutation
        cells = mutation.name, mutation.statement, mutation.transport, "yes" if trial.caught else "NO", trial.detail
        lines.add_row(*cells, style="" if trial.caught else "bold red")
    return lines


def mutation_sentences(results: Iterable[Result], trials: Sequence[Trial]) -> list[str]:
    """The statements that were tried but that no mistake names, and how many mistakes were caught."""
    named = {trial.mutation.statement for trial in trials}
    tried = [s.id for s, group in by_statement(results).items() if verdict_of(group) in ("passed", "failed")]
    without = [statement for statement in tried if statement not in named]
    caught = sum(trial.caught for trial in trials)
    line = f"{caught} of {len(trials)} mistakes were caught by the statement that each names"
    return [f"No mistake is in the table for {', '.join(without)}", line] if without else [line]


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


# -- for programs ------------------------------------------------------------------------------------------------------


def as_json(results: Iterable[Result], trials: Sequence[Trial] | None = None) -> str:
    """All results: a list of statements, each with what was done and the verdict over each transport; the mistakes, if
    any were tried."""
    entries: list[dict[str, Any]] = []
    for statement, group in by_statement(results).items():
        entries.append(
            {
                "id": statement.id,
                "part": statement.part,
                "section": statement.section,
                "level": statement.level,
                "statement": statement.text,
                "verdict": verdict_of(group),
                "how": _done(group),
                "transports": {result.transport: _outcome(result) for result in group},
            }
        )
    document: dict[str, Any] = {"specification": SPECIFICATION, "statements": entries}
    if trials is not None:
        document["mutations"] = [_trial(trial) for trial in trials]
    return json.dumps(document, indent=1) + "\n"


def _outcome(result: Result) -> dict[str, Any]:
    outcome: dict[str, Any] = {"verdict": result.verdict, "seconds": round(result.seconds, 4)}
    return outcome | ({"detail": result.detail} if result.detail else {})


def _trial(trial: Trial) -> dict[str, Any]:
    mutation = trial.mutation
    names = {"name": mutation.name, "statement": mutation.statement, "transport": mutation.transport}
    return {**names, "module": mutation.module, "caught": trial.caught, "detail": trial.detail}


def as_junit(results: Iterable[Result], trials: Sequence[Trial] | None = None) -> str:
    """All results as JUnit XML: a test suite for each part, a test case for each statement over each transport, with
    what was done as its output; a suite of the mistakes, if any were tried."""
    root = ElementTree.Element("testsuites", name=f"conformance to {SPECIFICATION}")
    results = list(results)
    for letter, part in PARTS.items():
        group = [result for result in results if result.statement.id[0] == letter]
        if group:
            _suite(root, part, group)
    if trials is not None:
        _mistakes(root, trials)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(root: ElementTree.Element, part: str, group: Sequence[Result]) -> None:
    counts = Counter(result.verdict for result in group)
    suite = ElementTree.SubElement(root, "testsuite", name=part, tests=str(len(group)))
    suite.set("failures", str(counts["failed"]))
    suite.set("skipped", str(counts["cannot be tested"] + counts["does not apply"]))
    suite.set("time", f"{sum(result.seconds for result in group):.4f}")
    for result in group:
        name = f"{result.statement.id} {result.statement.sentence}"
        where = f"§{result.statement.section}.{result.transport}"
        case = ElementTree.SubElement(suite, "testcase", classname=where, name=name, time=f"{result.seconds:.4f}")
        if result.verdict == "failed":
            ElementTree.SubElement(case, "failure", message=result.detail)
        elif result.verdict != "passed":
            ElementTree.SubElement(case, "skipped", message=f"{result.verdict}: {result.detail}")
        if result.how:
            ElementTree.SubElement(case, "system-out").text = result.how


def _mistakes(root: ElementTree.Element, trials: Sequence[Trial]) -> None:
    missed = sum(not trial.caught for trial in trials)
    suite = ElementTree.SubElement(root, "testsuite", name=MISTAKES, tests=str(len(trials)), failures=str(missed))
    for trial in trials:
        mutation = trial.mutation
        case = ElementTree.SubElement(suite, "testcase", classname=mutation.statement, name=mutation.name)
        if trial.caught:
            ElementTree.SubElement(case, "system-out").text = trial.detail
        else:
            ElementTree.SubElement(case, "failure", message=trial.detail)

"""What came out, for people and for programs: a table, JSON and JUnit XML.

Owns the words and the layout; refuses to know how a verdict was reached.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from vmm.conformance.catalogue import PARTS, Statement
from vmm.conformance.runner import Result

if TYPE_CHECKING:
    from rich.table import Table

SPECIFICATION = "virtio 1.3"
_MARKS = {"passed": "ok", "failed": "FAILED", "cannot be tested": "-"}


def by_statement(results: Iterable[Result]) -> dict[Statement, list[Result]]:
    """The results of each statement, in the order of the catalogue."""
    found: dict[Statement, list[Result]] = {}
    for result in results:
        found.setdefault(result.statement, []).append(result)
    return found


def verdict_of(results: Sequence[Result]) -> str:
    """One word for a statement over all its transports: the worst."""
    verdicts = {result.verdict for result in results}
    return next(word for word in ("failed", "cannot be tested", "passed") if word in verdicts)


def table(results: Iterable[Result]) -> Table:
    """A line for each statement: what it asks for, and the verdict over the transports it applies to."""
    from rich.table import Table

    lines = Table(title=f"{SPECIFICATION}: what a device must do, tried", title_justify="left")
    lines.add_column("id")
    lines.add_column("section")
    lines.add_column("the device", overflow="fold")
    lines.add_column("verdict")
    for statement, group in by_statement(results).items():
        mark = _MARKS[verdict_of(group)]
        failed = [result.transport for result in group if result.verdict == "failed"]
        where = " over " + ", ".join(failed) if failed and len(failed) < len(group) else ""
        text = f"{statement.level} {statement.text}"
        lines.add_row(statement.id, "§" + statement.section, text, mark + where, style="bold red" if failed else "")
    return lines


def sentences(results: Iterable[Result]) -> list[str]:
    """What the table has no room for: each failure, what cannot be tested and why, and the sums."""
    results = list(results)
    lines = [
        f"{result.statement.id} over {result.transport}: {result.detail}"
        for result in results
        if result.verdict == "failed"
    ]
    groups = by_statement(results)
    lines += [
        f"{statement.id} cannot be tested: {statement.untestable}" for statement in groups if statement.untestable
    ]
    return [*lines, summary(results)]


def summary(results: Iterable[Result]) -> str:
    """The sums in one sentence."""
    results = list(results)
    counts = Counter(verdict_of(group) for group in by_statement(results).values())
    transports = len({result.transport for result in results})
    parts = [f"{counts['passed']} passed", f"{counts['failed']} failed"]
    if counts["cannot be tested"]:
        parts.append(f"{counts['cannot be tested']} cannot be tested")
    plural = "" if transports == 1 else "s"
    return f"{sum(counts.values())} statements over {transports} transport{plural}: {', '.join(parts)}"


def as_json(results: Iterable[Result]) -> str:
    """All results: a list of statements, each with what was done and the verdict over each transport."""
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
                "how": group[0].how,
                "transports": {result.transport: _outcome(result) for result in group},
            }
        )
    return json.dumps({"specification": SPECIFICATION, "statements": entries}, indent=1) + "\n"


def _outcome(result: Result) -> dict[str, Any]:
    outcome: dict[str, Any] = {"verdict": result.verdict, "seconds": round(result.seconds, 4)}
    return outcome | ({"detail": result.detail} if result.detail else {})


def as_junit(results: Iterable[Result]) -> str:
    """All results as JUnit XML: a test suite for each part, a test case for each statement over each transport."""
    root = ElementTree.Element("testsuites", name=f"conformance to {SPECIFICATION}")
    results = list(results)
    for letter, part in PARTS.items():
        group = [result for result in results if result.statement.id[0] == letter]
        if group:
            _suite(root, part, group)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(root: ElementTree.Element, part: str, group: Sequence[Result]) -> None:
    counts = Counter(result.verdict for result in group)
    suite = ElementTree.SubElement(root, "testsuite", name=part, tests=str(len(group)))
    suite.set("failures", str(counts["failed"]))
    suite.set("skipped", str(counts["cannot be tested"]))
    suite.set("time", f"{sum(result.seconds for result in group):.4f}")
    for result in group:
        name = f"{result.statement.id} {result.statement.level} {result.statement.text}"
        where = f"§{result.statement.section}.{result.transport}"
        case = ElementTree.SubElement(suite, "testcase", classname=where, name=name, time=f"{result.seconds:.4f}")
        if result.verdict == "failed":
            ElementTree.SubElement(case, "failure", message=result.detail).text = result.how
        elif result.verdict == "cannot be tested":
            ElementTree.SubElement(case, "skipped", message=result.detail)

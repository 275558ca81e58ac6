"""The catalogue is in order, and the device conforms to it over every transport."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from vmm.conformance import checks
from vmm.conformance.catalogue import PARTS, Statement, statements
from vmm.conformance.rig import Rigs, Violation
from vmm.conformance.runner import run, select, select_transports, try_one
from vmm.conformance.transports import TRANSPORTS
from vmm.models import parse_device

MOST_UNTESTABLE = 12
WORDS = {"MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY"}
TESTABLE = [statement for statement in statements() if not statement.untestable]


def test_every_part_has_all_its_statements() -> None:
    counts = Counter(statement.id[0] for statement in statements())
    assert set(counts) == set(PARTS)
    for letter, count in counts.items():
        assert [s.id for s in statements() if s.id[0] == letter] == [f"{letter}{n}" for n in range(1, count + 1)]
    assert (counts["S"], counts["P"], counts["C"], counts["M"], counts["D"], counts["L"]) == (20, 8, 61, 12, 14, 9)


def test_statements_are_well_formed() -> None:
    for statement in statements():
        assert statement.level in WORDS, statement
        assert re.fullmatch(r"[2-6](\.\d+)+", statement.section), statement
        assert statement.text and not statement.text.endswith("."), statement


def test_every_statement_has_a_check_that_says_what_it_does_or_a_reason_why_not() -> None:
    assert set(checks.CHECKS) == {statement.id for statement in TESTABLE}
    for function in checks.CHECKS.values():
        assert checks.how(function).endswith("."), function
    assert sum(bool(statement.untestable) for statement in statements()) <= MOST_UNTESTABLE


def test_the_transports_are_devices_that_a_user_can_ask_for() -> None:
    for row in TRANSPORTS:
        assert parse_device(row.device).is_balloon


@pytest.mark.parametrize("statement", TESTABLE, ids=lambda statement: statement.id)
def test_the_device_conforms(statement: Statement) -> None:
    results = list(run([statement], TRANSPORTS))
    assert [result.transport for result in results] == [row.name for row in statement.transports()]
    assert [(result.transport, result.detail) for result in results if result.verdict != "passed"] == []


def test_a_violation_is_a_failure_and_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Rigs) -> None:
        raise Violation("the answer is 41, not 42")

    (statement,) = select(["G10"])
    monkeypatch.setitem(checks.CHECKS, "G10", broken)
    result = try_one(statement, TRANSPORTS[0])
    assert (result.verdict, result.detail) == ("failed", "the answer is 41, not 42")


def test_a_mistake_in_the_device_is_a_failure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Rigs) -> None:
        raise KeyError("inflateq")

    (statement,) = select(["G10"])
    monkeypatch.setitem(checks.CHECKS, "G10", broken)
    assert try_one(statement, TRANSPORTS[0]).detail == "KeyError: 'inflateq'"


def test_statements_are_chosen_by_id_or_by_part() -> None:
    assert [s.id for s in select(["g10", "P"])] == ["G10", *(f"P{n}" for n in range(1, 9))]
    assert select([]) == list(statements())


def test_transports_are_chosen_by_name() -> None:
    assert [row.name for row in select_transports(["mmio", "pci"])] == ["pci", "mmio"]

"""The catalogue is in order, and the device conforms to it over every transport."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest

from devices.virtio.device import VirtioDevice
from vmm.conformance import checks
from vmm.conformance.catalogue import PARTS, Statement, statements
from vmm.conformance.rig import Rigs, Violation, applies
from vmm.conformance.runner import run, select, select_transports, try_one
from vmm.conformance.transports import TRANSPORTS, TransportRow
from vmm.models import parse_device
from vmm.testing.driver import RING_PACKED

MOST_UNTESTED = 12
WORDS = {"MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY", "text"}
NOT_OF_A_BALLOON = {"G24", "C26", "C43", "C44", "C45", "C46", "C47"}
"""About ORDER_PLATFORM, administration queues, shared memory regions and vendor data, which it has none of."""
TESTABLE = [statement for statement in statements() if not statement.untestable]


def test_every_part_has_all_its_statements() -> None:
    counts = Counter(statement.id[0] for statement in statements())
    assert set(counts) == set(PARTS)
    for letter, count in counts.items():
        assert [s.id for s in statements() if s.id[0] == letter] == [f"{letter}{n}" for n in range(1, count + 1)]
    assert counts == {"G": 29, "S": 20, "P": 12, "C": 61, "M": 12, "D": 14, "L": 9}


def test_statements_are_well_formed() -> None:
    for statement in statements():
        assert statement.level in WORDS, statement
        assert re.fullmatch(r"[2-6](\.\d+)+", statement.section), statement
        assert statement.text and not statement.text.endswith("."), statement


def test_every_statement_has_a_check_that_says_what_it_does_or_a_reason_why_not() -> None:
    assert set(checks.CHECKS) == {statement.id for statement in TESTABLE}
    for function in checks.CHECKS.values():
        assert checks.how(function).endswith("."), function
    assert sum(bool(statement.untestable) for statement in statements()) + len(NOT_OF_A_BALLOON) <= MOST_UNTESTED


def test_the_transports_are_devices_that_a_user_can_ask_for() -> None:
    for row in TRANSPORTS:
        assert parse_device(row.device).is_balloon


@pytest.mark.parametrize("statement", TESTABLE, ids=lambda statement: statement.id)
def test_the_device_conforms(statement: Statement) -> None:
    results = list(run([statement], TRANSPORTS))
    assert [result.transport for result in results] == [row.name for row in statement.transports()]
    wanted = "does not apply" if statement.id in NOT_OF_A_BALLOON else "passed"
    assert [(result.transport, result.detail) for result in results if result.verdict != wanted] == []


@pytest.mark.parametrize("statement", [s for s in TESTABLE if s.id[0] == "D"], ids=lambda statement: statement.id)
def test_the_balloons_statements_are_tried_over_both_rings(statement: Statement) -> None:
    assert {"pci", "pci-packed", "mmio", "mmio-packed"} <= {row.name for row in statement.transports()}


@pytest.mark.parametrize("row", TRANSPORTS, ids=lambda row: row.name)
def test_the_ring_is_packed_where_the_name_says_so(row: TransportRow) -> None:
    rigs = Rigs(row)
    try:
        assert bool(rigs.started().driver.features & RING_PACKED) is row.name.endswith("-packed")
    finally:
        rigs.close()


def test_a_violation_is_a_failure_and_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Rigs) -> None:
        raise Violation("the answer is 41, not 42")

    (statement,) = select(["G10"])
    monkeypatch.setitem(checks.CHECKS, "G10", broken)
    result = try_one(statement, TRANSPORTS[0])
    assert (result.verdict, result.detail, result.crashed) == ("failed", "the answer is 41, not 42", False)


def test_a_mistake_in_the_device_is_a_failure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Rigs) -> None:
        raise KeyError("inflateq")

    (statement,) = select(["G10"])
    monkeypatch.setitem(checks.CHECKS, "G10", broken)
    assert try_one(statement, TRANSPORTS[0]).detail == "KeyError: 'inflateq'"


def test_a_device_that_breaks_down_is_told_from_one_that_answers_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    (statement,) = select(["G10"])

    def broken(*_: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(VirtioDevice, "write_status", broken)
    result = try_one(statement, TRANSPORTS[0])
    assert (result.verdict, result.detail, result.crashed) == ("failed", "RuntimeError: out of order", True)


def test_a_board_that_cannot_be_built_is_told_from_a_device_that_answers_wrongly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (statement,) = select(["G10"])

    def broken(*_: object) -> None:
        raise ValueError("out of order")

    monkeypatch.setattr(VirtioDevice, "set_dma_enabled", broken)
    result = try_one(statement, TRANSPORTS[0])
    assert (result.verdict, result.crashed) == ("failed", True)
    assert result.detail == "NotBuilt: the board cannot be built: ValueError: out of order"


def test_what_the_driver_complains_of_is_an_answer() -> None:
    (statement,) = select(["G20"])
    legacy = replace(TRANSPORTS[0], device="virtio-balloon-pci,disable-legacy=off,disable-modern=on")
    result = try_one(statement, legacy)
    assert (result.verdict, result.crashed) == ("failed", False)
    assert result.detail == "LookupError: no virtio device of type 5 with a modern interface on bus 0"


def test_a_statement_may_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: Rigs) -> None:
        applies("the balloon has no such thing", False)

    (statement,) = select(["G10"])
    monkeypatch.setitem(checks.CHECKS, "G10", nothing)
    result = try_one(statement, TRANSPORTS[0])
    assert (result.verdict, result.detail) == ("does not apply", "the balloon has no such thing")


def test_statements_are_chosen_by_id_or_by_part() -> None:
    assert [s.id for s in select(["g10", "P"])] == ["G10", *(f"P{n}" for n in range(1, 13))]
    assert select([]) == list(statements())


def test_transports_are_chosen_by_name() -> None:
    assert [row.name for row in select_transports(["mmio", "pci"])] == ["pci", "mmio"]

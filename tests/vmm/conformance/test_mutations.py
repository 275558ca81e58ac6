"""Every mistake in the table is caught by the statement that its row names."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from vmm.conformance import mutations as table
from vmm.conformance.catalogue import statements
from vmm.conformance.mutations import Mutation, mutations, try_one
from vmm.conformance.transports import TRANSPORTS

WITHOUT = {"G24", "C45", "S14"}
"""Two permissions to do what a balloon has no cause for, and what no driver can find out."""


def source_of(mutation: Mutation) -> str:
    spec = importlib.util.find_spec(mutation.module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text("utf-8")


def test_there_are_enough_and_each_is_another() -> None:
    assert {mutation.statement for mutation in mutations()} == {statement.id for statement in statements()} - WITHOUT
    assert len({mutation.name for mutation in mutations()}) == len(mutations())


def test_each_names_a_statement_and_a_transport_that_it_applies_to() -> None:
    known = {statement.id: statement for statement in statements()}
    rows = {row.name: row for row in TRANSPORTS}
    for mutation in mutations():
        assert rows[mutation.transport] in known[mutation.statement].transports(), mutation.name


@pytest.mark.parametrize("mutation", mutations(), ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_it_is_caught(mutation: Mutation) -> None:
    assert source_of(mutation).count(mutation.before) == 1
    trial = try_one(mutation)
    assert trial.caught, trial.detail


def test_a_mutation_that_changes_nothing_is_not_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is the same for all: one that always said yes would be worth nothing."""
    unchanged = replace(mutations()[0], after=mutations()[0].before)
    monkeypatch.setattr(table, "WORDS", ["-c", PROGRAM.format(mutation=unchanged)])
    trial = try_one(unchanged)
    assert not trial.caught
    assert trial.detail.endswith("passes all the same")


@pytest.mark.parametrize(
    ("module", "before", "after", "complaint"),
    [
        ("devices.virtio.negotiation", "        self.status = 0\n", "        self.status &= 1\n", "cannot be built"),
        ("devices.virtio.status", "    if status & Status.FAILED:\n", "    if statos:\n", "NameError"),
        ("devices.virtio.transport.pci_function", "        if value == 0:\n", "        if value[0]:\n", "TypeError"),
    ],
)
def test_a_device_whose_code_breaks_down_is_not_caught(
    module: str, before: str, after: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any statement would fail then: that says nothing about the one that is named."""
    broken = Mutation("broken", "G10", module, before, after)
    monkeypatch.setattr(table, "WORDS", ["-c", PROGRAM.format(mutation=broken)])
    trial = try_one(broken)
    assert not trial.caught
    assert trial.detail.startswith("the device's code breaks down") and complaint in trial.detail


def test_a_mutation_whose_text_is_gone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = replace(mutations()[0], before="there is no such text")
    monkeypatch.setattr(table, "WORDS", ["-c", PROGRAM.format(mutation=gone)])
    trial = try_one(gone)
    assert not trial.caught
    assert "its text stands 0 times" in trial.detail


PROGRAM = """
import sys
from vmm.conformance import mutant
from vmm.conformance.mutations import Mutation
mutant.mutations = lambda: ({mutation!r},)
sys.exit(mutant.main(sys.argv[1]))
"""

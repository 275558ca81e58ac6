"""`vmm conformance` as its users meet it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vmm.cli import main
from vmm.conformance import checks
from vmm.conformance.rig import Rigs, Violation


def broken(_: Rigs) -> None:
    raise Violation("the device status after a reset is 4, not 0")


def test_it_prints_a_table_and_the_sums(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "G10", "S14", "--transport", "pci"]) == 0
    shown = capsys.readouterr().out
    assert "§2.4.1" in shown and "show a device status of 0 after a reset" in shown
    assert "S14 cannot be tested: a driver that shares the processor with the device sees both or neither" in shown
    assert shown.endswith("2 statements over 1 transport: 1 passed, 0 failed, 1 cannot be tested\n")


def test_a_failure_is_named_with_its_transport_and_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(checks.CHECKS, "G10", broken)
    assert main(["conformance", "G10", "G20", "--transport", "pci", "--transport", "mmio"]) == 1
    shown = capsys.readouterr().out
    assert "G10 over mmio: the device status after a reset is 4, not 0" in shown
    assert "1 passed, 1 failed" in shown


def test_json_has_every_statement_with_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "G10", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["specification"] == "virtio 1.3"
    (entry,) = document["statements"]
    assert (entry["id"], entry["section"], entry["level"], entry["verdict"]) == ("G10", "2.4.1", "MUST", "passed")
    assert entry["how"].startswith("Reset at every stage")
    assert {"pci", "pci-intx", "transitional", "legacy", "mmio", "mmio-legacy"} <= set(entry["transports"])


def test_junit_has_a_case_for_each_statement_over_each_transport(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(checks.CHECKS, "G10", broken)
    path = tmp_path / "report.xml"
    words = ["conformance", "G10", "G20", "S14", "--transport", "pci", "--junit", str(path), "--json", "-"]
    assert main(words) == 1
    suites = ElementTree.parse(path).getroot()
    assert [(suite.get("tests"), suite.get("failures"), suite.get("skipped")) for suite in suites] == [
        ("2", "1", "0"),
        ("1", "0", "1"),
    ]
    failure = suites.find("testsuite/testcase/failure")
    assert failure is not None and failure.get("message") == "the device status after a reset is 4, not 0"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["G99"], "There is no statement 'G99'"),
        (["--transport", "pcie"], "There is no transport 'pcie', only pci, pci-intx"),
        (["M1", "--transport", "pci"], "None of these statements applies to that transport."),
        (["G10", "--junit", "/no/such/folder/x"], "'/no/such/folder/x' cannot be written: No such file or directory."),
    ],
)
def test_a_wrong_word_is_one_sentence_and_status_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["conformance", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_mutations_are_tried_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "C41", "--transport", "pci", "--mutations"]) == 0
    assert "1 of 1 mistakes were caught by the statement that each names" in capsys.readouterr().out

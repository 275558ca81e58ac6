"""`vmm conformance` as its users meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vmm.cli import main
from vmm.conformance import checks, mutations
from vmm.conformance.rig import Rigs, Violation


def broken(_: Rigs) -> None:
    raise Violation("the device status after a reset is 4, not 0")


def test_it_prints_a_table_and_the_sums(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "G10", "S14", "--transport", "pci"]) == 0
    shown = capsys.readouterr().out
    assert "§2.4.1" in shown and "show a device status of 0 after a reset" in shown
    assert "S14 cannot be tested: a driver that shares the processor with the device sees both or neither" in shown
    assert "Reset at every stage of the initialisation" in shown  # what was done
    assert shown.endswith("2 statements over 1 transport: 1 passed, 0 failed, 1 cannot be tested\n")


def test_what_the_balloon_has_none_of_is_not_said_to_conform(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "C43", "--transport", "pci"]) == 0
    shown = capsys.readouterr().out
    assert "C43 does not apply: the balloon has no shared memory region" in shown
    assert shown.endswith("1 statement over 1 transport: 0 passed, 0 failed, 1 does not apply\n")


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
    done = [case.findtext("system-out", "") for case in suites.iter("testcase")]
    assert [text[:16] for text in done] == ["", "Read the feature", ""]
    failure = suites.find("testsuite/testcase/failure")
    assert failure is not None and failure.get("message") == "the device status after a reset is 4, not 0"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["G99"], "There is no statement 'G99'"),
        (["--transport", "pcie"], "There is no transport 'pcie', only pci, pci-intx"),
        (["M1", "--transport", "pci"], "None of these statements applies to that transport."),
        (["G10", "--json", "-", "--junit", "-"], "Only one of --json and --junit can go to the output."),
        (["S14", "--mutations"], "No mistake is in the table for any of these statements over that transport."),
    ],
)
def test_a_wrong_word_is_one_sentence_and_status_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["conformance", *words]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--junit"])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_tried(
    option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Rigs] = []
    monkeypatch.setitem(checks.CHECKS, "G10", tried.append)
    assert main(["conformance", "G10", option, "/no/such/folder/x"]) == 2
    sentence = "The report /no/such/folder/x cannot be written: No such file or directory."
    assert sentence in capsys.readouterr().err
    assert tried == []


def test_no_draft_of_a_report_is_left_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--json", str(tmp_path / "a"), "--junit", "/no/such/folder/x"]
    assert main(["conformance", "G10", *words]) == 2
    assert list(tmp_path.iterdir()) == []
    capsys.readouterr()


@pytest.mark.parametrize("words", [[], ["--json", "-"], ["--junit", "-"]], ids=" ".join)
def test_a_full_disk_is_one_sentence_and_status_2(words: list[str]) -> None:
    command = [sys.executable, "-m", "vmm", "conformance", "G10", "--transport", "pci", *words]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "vmm: The output cannot be written: No space left on device.\n")


def test_junit_goes_to_the_output_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["conformance", "G10", "--transport", "pci", "--junit", "-"]) == 0
    (suite,) = ElementTree.fromstring(capsys.readouterr().out)
    assert suite.get("tests") == "1"
    assert list(tmp_path.iterdir()) == []


def test_mutations_are_tried_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "C41", "C45", "S14", "--transport", "pci", "--mutations"]) == 0
    assert "1 of 1 mistakes were caught by the statement that each names" in capsys.readouterr().out


def test_a_statement_that_no_mistake_is_known_for_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tuple(mutation for mutation in mutations.mutations() if mutation.statement != "C40")
    monkeypatch.setattr(mutations, "mutations", lambda: kept)
    assert main(["conformance", "C40", "C41", "--transport", "pci", "--mutations"]) == 0
    assert "No mistake is in the table for C40\n" in capsys.readouterr().out


def test_mutations_are_in_the_json_and_the_junit_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.xml"
    words = ["C41", "--transport", "pci", "--mutations", "--json", "-", "--junit", str(path)]
    assert main(["conformance", *words]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["mutations"]
    assert (entry["statement"], entry["transport"], entry["caught"]) == ("C41", "pci", True)
    assert entry["detail"] == "the ISR status at the second read is 2, not 0"
    suite = ElementTree.parse(path).getroot()[-1]
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("mistakes put into the device", "1", "0")
    assert suite.findtext("testcase/system-out") == entry["detail"]

"""What the documentation says is true: its examples run, its tables are complete, its links lead somewhere."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from guests import GUESTS
from vmm.cli import EXIT_STATUSES
from vmm.options import WORDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_examples_of_the_readme_run() -> None:
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False, encoding="utf-8")
    assert result.attempted >= 10
    assert result.failed == 0


def test_the_readme_names_every_exit_status() -> None:
    for status, meaning in EXIT_STATUSES:
        assert f"| {status} | {meaning} |" in README


def test_the_readme_names_every_guest() -> None:
    for row in GUESTS.values():
        assert f"| `{row.name}` | {row.summary} |" in README


def test_the_readme_names_every_option() -> None:
    options = {word.option for word in WORDS.values() if word.option is not None}
    assert [option for option in options - {"--help", "--memory"} if option not in README] == []


def test_the_readme_shows_its_commands_as_the_makefile_has_them() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z]+)\b", README, re.MULTILINE)) <= set(targets)


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (ROOT / name).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md"])
def test_lines_are_at_most_as_long_as_everywhere_else(name: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")] == []

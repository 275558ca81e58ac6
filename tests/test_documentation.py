"""What the documentation says is true: its examples run, its tables are complete, its links lead somewhere."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from guests import GUESTS
from vmm.boot_options import WORDS
from vmm.cli import EXIT_STATUSES
from vmm.config import make_config
from vmm.conformance.catalogue import statements
from vmm.conformance.mutations import mutations

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_examples_of_the_readme_run() -> None:
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False, encoding="utf-8")
    assert result.attempted >= 10
    assert result.failed == 0


def test_the_readme_counts_the_statements_and_mistakes_that_there_are() -> None:
    assert f"a device, {len(statements())} of them," in README
    assert f"then {len(mutations())} small mistakes" in README
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"each of {len(statements())} statements" in log
    assert f"with `--mutations` {len(mutations())} mistakes" in log


def test_the_guest_of_the_readme_builds_and_runs_as_it_says(tmp_path: Path) -> None:
    """Its source, its command to build it and its command to boot it, word by word."""
    section = README[README.index("## A guest of your own") :]
    source, commands = re.findall(r"^```c?\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[:2]
    (tmp_path / "mine.c").write_text(source)
    build, boot = (line.replace(".venv/bin/python", sys.executable) for line in commands.splitlines())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ZIG_GLOBAL_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run(build.split(), cwd=tmp_path, env=environment, check=True)
    done = subprocess.run(boot.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert "| mine: hello from C\n" in done.stdout
    assert "quit: the guest ended with exit code 7" in done.stdout
    assert done.returncode == 7


def test_what_the_readme_says_of_sizes_is_so() -> None:
    assert '`"64"` and `"64M"` are the same' in README
    sizes = [make_config("hello", memory=memory).memory_bytes for memory in ("64", "64M", 64 << 20)]
    assert sizes == [64 << 20] * 3


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

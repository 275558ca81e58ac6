"""The distribution: exactly four packages, everything they need at run time, and a command that works from anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import vmm

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vmm", "devices", "firmware", "guests")
LEFT_OUT = {"__pycache__", ".venv", ".git", "build", "dist"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        return tomllib.load(file)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `pip install .` builds it, from a copy of this folder, so that nothing is left behind here."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "project"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `pip install` leaves it: the wheel's contents."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def files_in(folder: Path) -> set[str]:
    """Every file of the four packages below `folder`, by its path."""
    return {
        str(path.relative_to(folder))
        for name in PACKAGES
        for path in (folder / name).rglob("*")
        if path.is_file() and not LEFT_OUT & set(path.parts)
    }


def test_the_wheel_holds_exactly_the_four_packages(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == set(PACKAGES)


def test_every_file_of_the_packages_is_in_the_wheel(installed: Path) -> None:
    assert files_in(installed) == files_in(ROOT)


@pytest.mark.parametrize("name", PACKAGES)
def test_each_package_says_that_it_is_typed(name: str, installed: Path) -> None:
    assert (installed / name / "py.typed").is_file()


def test_the_licence_goes_with_the_wheel(installed: Path) -> None:
    (metadata,) = installed.glob("*.dist-info/METADATA")
    assert "License-Expression: GPL-2.0-only" in metadata.read_text()
    (licence,) = installed.glob("*.dist-info/**/LICENSE")
    assert "GNU GENERAL PUBLIC LICENSE" in licence.read_text()
    assert "Version 2, June 1991" in licence.read_text()


def test_the_wheel_runs_from_any_folder(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from vmm.__main__ import main; raise SystemExit(main())", "boot", "hello"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "hello: hello from a guest in long mode" in done.stdout


def test_the_command_is_declared(installed: Path, project: dict[str, Any]) -> None:
    (points,) = installed.glob("*.dist-info/entry_points.txt")
    assert points.read_text().split() == ["[console_scripts]", "vmm", "=", "vmm.__main__:main"]
    assert project["project"]["scripts"] == {"vmm": "vmm.__main__:main"}


def test_the_version_is_written_once_in_effect(project: dict[str, Any]) -> None:
    assert project["project"]["version"] == vmm.__version__
    assert f"## [{vmm.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_what_decides_the_images_is_pinned(project: dict[str, Any]) -> None:
    """The CPU emulator decides the count of blocks, the compiler the bytes of the guests."""
    assert "unicorn==2.1.4" in project["project"]["dependencies"]
    assert "ziglang==0.17.1" in project["project"]["optional-dependencies"]["test"]


def test_running_needs_no_compiler(project: dict[str, Any]) -> None:
    assert not any("ziglang" in dependency for dependency in project["project"]["dependencies"])

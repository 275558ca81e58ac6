"""apt, without its state: lists and cache in a folder of its own, the machine's sources, keys and proxies as they are.

What is installed on this machine does not count, so the newest package that the sources offer is found, and an earlier
`apt-get update` is not needed.  Everything that can go wrong with apt becomes an `AptError` of one sentence.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from shutil import which
from typing import NamedTuple
from urllib.parse import unquote

from devices.errors import ConfigError

PROGRAMS = ("apt-get", "apt-cache", "dpkg-deb")
SECONDS_WITHOUT_AN_ANSWER = 20
ARCHITECTURE = "amd64"


class AptError(ConfigError):
    """apt is not there, cannot reach its sources, or does not have what was asked for."""


class Package(NamedTuple):
    """A downloaded package."""

    name: str
    version: str
    file: Path


class Apt:
    """apt with its lists and cache in `folder`, which exists and is empty.  AptError if this machine has no apt."""

    def __init__(self, folder: Path) -> None:
        missing = [name for name in PROGRAMS if which(name) is None]
        if missing:
            names = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
            raise AptError(f"This system lacks {names}.")
        self._folder = folder
        self._complaint = ""
        for part in ("lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)

    def update(self) -> None:
        """Read what the sources offer.  One that fails is no error yet: what is missing is told when it is needed."""
        self._complaint = self._run("apt-get", "update", may_fail=True).stderr

    def newest_dependency(self, package: str, pattern: str) -> str:
        """The package whose name matches `pattern` among those that the newest `package` depends on."""
        shown = self._run("apt-cache", "show", "--no-all-versions", package, may_fail=True).stdout
        depends = re.search(r"^Depends: (.*)$", shown, re.MULTILINE)
        for name in re.split(r"[,|]", depends[1]) if depends else ():
            found = re.split(r"[ :(]", name.strip())[0]
            if re.fullmatch(pattern, found):
                return found
        raise AptError(f"apt's sources offer no {package}{_because(self._complaint)}.")

    def download(self, names: Sequence[str]) -> list[Package]:
        """The newest files of the packages, into the folder."""
        done = self._run("apt-get", "download", *names, may_fail=True)
        if done.returncode:
            # A package that apt does not know is often one whose list could not be read or kept.
            earlier = _because(self._complaint).removeprefix(": ")
            before = f" (apt-get update had said: {earlier})" if earlier else ""
            raise AptError(f"apt-get download failed{_because(done.stderr)}{before}.")
        found = {package.name: package for package in map(_package, sorted(self._folder.glob("*_*_*.deb")))}
        for name in names:
            if name not in found:
                raise AptError(f"apt-get said that it downloaded {name}, but there is no such file.")
        return [found[name] for name in names]

    def _run(self, program: str, *words: str, may_fail: bool = False) -> subprocess.CompletedProcess[str]:
        options = {
            "Dir::State::Lists": f"{self._folder}/lists",
            "Dir::State::status": os.devnull,
            "Dir::Cache": f"{self._folder}/cache",
            "APT::Architecture": ARCHITECTURE,
            "APT::Sandbox::User": "root",  # root need not step down to write a folder of its own
            "Acquire::http::Timeout": str(SECONDS_WITHOUT_AN_ANSWER),
            "Acquire::https::Timeout": str(SECONDS_WITHOUT_AN_ANSWER),
        }
        settings = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        done = run([program, "-q", *settings, *words], self._folder)
        if done.returncode and not may_fail:
            raise AptError(f"{program} {words[0]} failed{_because(done.stderr)}.")
        return done


def unpack(package: Package, folder: Path) -> None:
    """The files of `package`, below `folder`; nothing of it is run."""
    done = run(["dpkg-deb", "-x", str(package.file), str(folder)], folder)
    if done.returncode:
        raise AptError(f"{package.file.name} cannot be unpacked{_because(done.stderr)}.")


def run(words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program to its end in `folder`, in the C locale and with nothing to read."""
    try:
        return subprocess.run(
            words,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except OSError as error:
        raise AptError(f"{words[0]} cannot be run: {error.strerror}.") from error


def _package(path: Path) -> Package:
    """NAME_VERSION_ARCHITECTURE.deb, where the version's colon is written %3a."""
    name, version, _ = path.stem.split("_", 2)
    return Package(name, unquote(version), path)


def _because(complaint: str) -> str:
    """apt's first error, or else its first warning, as the rest of a sentence."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    for mark in ("E: ", "W: ", ""):
        for line in lines:
            if line.startswith(mark):
                return f": {line.removeprefix(mark).rstrip('.')}"
    return ""

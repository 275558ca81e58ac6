"""apt-get, apt-cache and dpkg-deb as small programs on PATH, with a repository of their own that a test can break."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """#!{python}
import json, os, sys, time
from pathlib import Path

home = Path({home!r})
state = json.loads((home / "state.json").read_text())
name, words = Path(sys.argv[0]).name, sys.argv[1:]
options = dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "-o")
plain = [word for at, word in enumerate(words) if word[:1] != "-" and words[at - 1] != "-o"]
with open(home / "log", "a") as log:
    log.write(json.dumps([name, *plain, os.getcwd(), options]) + "\\n")

def fail(key):
    if key in state["fails"]:
        sys.stderr.write(state["fails"][key] + "\\n")
        sys.exit(100)

if name == "apt-get" and plain[0] == "update":
    if state.get("offline"):
        sys.stderr.write("W: Failed to fetch http://deb.example/dists/InRelease  Could not resolve 'deb.example'\\n")
        sys.exit(0)
    sys.stderr.write(state.get("warns", ""))
    fail("update")
    Path(options["Dir::State::Lists"], "list").write_text("read")
elif name == "apt-cache":
    if not Path(options["Dir::State::Lists"], "list").exists() or state["kernel"] is None:
        sys.stderr.write("E: No packages found\\n")
        sys.exit(100)
    print("Package: " + plain[-1])
    print("Depends: something-else, linux-image-" + state["kernel"] + "-cloud-amd64 (= 1)")
elif name == "apt-get" and plain[0] == "download":
    time.sleep(state.get("seconds", 0))
    fail("download")
    for package in plain[1:]:
        Path(package + "_1%3a" + state["version"] + "_amd64.deb").write_text(package)
elif name == "dpkg-deb":
    fail("dpkg-deb")
    package, target = Path(words[1]), Path(words[2])
    files = ["bin/busybox"]
    if package.read_text().startswith("linux-image"):
        version = state["kernel"] + "-cloud-amd64"
        files = ["boot/vmlinuz-" + version, "lib/modules/" + version + "/kernel/a.ko"]
    for file in files:
        if file.startswith(tuple(state.get("without", ["nothing"]))):
            continue
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        (target / file).write_text(package.name)
"""


class FakeApt:
    """What the programs do; an attribute that is set takes effect at once."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.state: dict[str, object] = {"kernel": "6.1.0-1", "version": "6.1.1-1", "fails": {}}
        self._save()

    def set(self, **changes: object) -> None:
        """Change the repository; `fails` maps a step ("update", "download", "dpkg-deb") to what it complains."""
        self.state.update(changes)
        self._save()

    def _save(self) -> None:
        (self._home / "state.json").write_text(json.dumps(self.state))

    def calls(self) -> list[list[str]]:
        """Each call as the program's name and its words, without options."""
        return [line[:-2] for line in self._log()]

    def folders(self) -> list[str]:
        """The folders that the calls were made in."""
        return [line[-2] for line in self._log()]

    def options(self) -> list[dict[str, str]]:
        """The options of each call that has any."""
        return [line[-1] for line in self._log() if line[-1]]

    def _log(self) -> list[list[Any]]:
        log = self._home / "log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    """The three programs in `folder`, which becomes the whole of PATH."""
    folder.mkdir()
    for name in ("apt-get", "apt-cache", "dpkg-deb"):
        program = folder / name
        program.write_text(PROGRAM.format(python=sys.executable, home=str(folder)))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return FakeApt(folder)

"""`tools/environment`, which makes .venv: in a folder of its own, with a pretended Python and package manager.

The pretended programs write down how they were called.  Nothing is installed and no network is used.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("bash", "basename", "cat", "cksum", "command", "dirname", "mkdir", "mktemp", "readlink", "rm", "tail")

PYTHON = """#!/usr/bin/env bash
echo "python3 $*" >>"$CALLS"
case "$*" in
  *version_info*) exit "${TOO_OLD:-0}" ;;
  *ensurepip*) exit "${NO_VENV:-0}" ;;
  --version) echo "Python 3.11.2" ;;
  "-m venv --clear .venv") mkdir -p .venv/bin; cat "$0" >.venv/bin/python; chmod +x .venv/bin/python ;;
  "-m pip --version") exit "${NO_PIP:-0}" ;;
  "-m pip install"*) exit "${PIP_FAILS:-0}" ;;
esac
"""
APT = """#!/usr/bin/env bash
echo "apt-get $*" >>"$CALLS"
echo "E: something about apt"
exit "${APT_FAILS:-0}"
"""


class Machine:
    """A folder with the script and a PATH that has only what a small system has."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "project"
        self.calls_file = folder / "calls"
        self.bin = folder / "bin"
        (self.project / "tools").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copy(ROOT / "tools" / "environment", self.project / "tools")
        (self.project / "pyproject.toml").write_text("[project]\n")
        for name in (*TOOLS, "chmod", "env"):
            if (found := shutil.which(name)) is not None:
                (self.bin / name).symlink_to(found)
        self.put("python3", PYTHON)
        self.env = {"PATH": str(self.bin), "CALLS": str(self.calls_file)}

    def put(self, name: str, script: str) -> None:
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def be(self, user_id: int) -> None:
        self.put("id", f"#!/usr/bin/env bash\necho {user_id}\n")

    def make(self, what: str = "boot", **env: str) -> subprocess.CompletedProcess[str]:
        self.calls_file.write_text("")
        return subprocess.run(
            ["bash", str(self.project / "tools" / "environment"), what],
            env=self.env | env,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()

    def installed(self) -> list[str]:
        return [call.rpartition("--editable ")[2] for call in self.calls if "pip install" in call]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_an_environment_is_made_once(machine: Machine) -> None:
    first = machine.make()
    assert (first.returncode, first.stderr) == (0, "")
    assert machine.installed() == ["."]
    again = machine.make()
    assert (again.returncode, again.stdout, machine.calls) == (0, "", [])


def test_the_tests_environment_adds_to_it_and_serves_both(machine: Machine) -> None:
    machine.make("boot")
    machine.make("test")
    assert machine.installed() == [".[test]"]
    assert not any("venv --clear" in call for call in machine.calls)
    machine.make("boot")
    assert machine.calls == []
    (machine.project / ".venv" / ".made-boot").unlink()
    machine.make("boot")
    assert machine.calls == []


def test_a_changed_pyproject_is_installed_again(machine: Machine) -> None:
    machine.make()
    (machine.project / "pyproject.toml").write_text("[project]\nname='x'\n")
    machine.make()
    assert machine.installed() == ["."]


def test_a_moved_folder_is_installed_again(machine: Machine) -> None:
    machine.make()
    moved = machine.project.with_name("moved")
    machine.project.rename(moved)
    machine.project = moved
    machine.make()
    assert machine.installed() == ["."]


def test_an_interrupted_installation_goes_on_the_next_time(machine: Machine) -> None:
    failed = machine.make(PIP_FAILS="1")
    assert failed.returncode == 2
    assert failed.stderr.endswith("run make again to go on from here.\n")
    assert machine.make().returncode == 0
    assert machine.installed() == ["."]
    assert not any("venv --clear" in call for call in machine.calls)


def test_an_environment_without_pip_is_made_anew(machine: Machine) -> None:
    machine.make()
    (machine.project / ".venv" / ".made-boot").unlink()
    machine.make(NO_PIP="1")
    assert any("venv --clear" in call for call in machine.calls)


def test_a_failed_change_takes_the_old_stamp_away(machine: Machine) -> None:
    machine.make()
    before = (machine.project / "pyproject.toml").read_text()
    (machine.project / "pyproject.toml").write_text("changed")
    assert machine.make(PIP_FAILS="1").returncode == 2
    (machine.project / "pyproject.toml").write_text(before)
    machine.make()
    assert machine.installed() == ["."]


def test_a_user_without_the_venv_module_gets_the_one_command(machine: Machine) -> None:
    machine.be(1000)
    machine.put("apt-get", APT)
    done = machine.make(NO_VENV="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "Python's venv module is missing here. Run this once, then make again:\n"
        "  su -c 'apt-get update && apt-get install -y python3-venv'\n"
    )
    machine.put("sudo", "#!/usr/bin/env bash\n")
    assert "  sudo sh -c 'apt-get update && apt-get install -y python3-venv'\n" in machine.make(NO_VENV="1").stderr
    assert not any(call.startswith("apt-get") for call in machine.calls)


def test_root_gets_the_venv_module_installed(machine: Machine) -> None:
    machine.be(0)
    machine.put("apt-get", APT)
    done = machine.make(NO_VENV="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert [call for call in machine.calls if call.startswith("apt-get")] == [
        "apt-get update",
        "apt-get install -y --no-install-recommends python3-venv",
    ]


def test_root_is_told_why_apt_failed(machine: Machine) -> None:
    machine.be(0)
    machine.put("apt-get", APT)
    done = machine.make(NO_VENV="1", APT_FAILS="100")
    assert done.returncode == 2
    assert done.stderr == (
        "E: something about apt\n"
        "apt-get could not install python3-venv (its last words are above); install it by hand, then run make again.\n"
    )


def test_another_system_is_told_what_is_missing(machine: Machine) -> None:
    machine.be(0)
    done = machine.make(NO_VENV="1")
    assert done.returncode == 2
    assert "has no venv and ensurepip modules" in done.stderr


def test_an_old_python_is_refused(machine: Machine) -> None:
    done = machine.make(TOO_OLD="1")
    assert done.returncode == 2
    assert done.stderr.startswith("balloon-vmm needs Python 3.11 or newer and found none")


def test_a_newer_python_under_another_name_is_found(machine: Machine) -> None:
    machine.put("python3", "#!/usr/bin/env bash\nexit 1\n")
    machine.put("python3.12", PYTHON)
    assert machine.make().returncode == 0


def test_an_unknown_environment_is_refused(machine: Machine) -> None:
    done = machine.make("lunch")
    assert (done.returncode, done.stderr) == (2, "environment: say boot or test, not 'lunch'\n")

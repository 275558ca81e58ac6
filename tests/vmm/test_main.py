"""The first moments of a start: Ctrl-C at any import ends it quietly."""

from __future__ import annotations

import subprocess
import sys

import pytest

AT_IMPORT = """
import runpy, signal, sys

class Tripwire:
    wanted = sys.argv[1]

    def find_spec(self, name, path=None, target=None):
        if name == self.wanted:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Tripwire())
sys.argv = ["vmm", "boot", "stats", "--json"]
runpy.run_module("vmm", run_name="__main__", alter_sys=True)
"""


def start(module: str, prelude: str = "") -> subprocess.CompletedProcess[str]:
    """`vmm boot stats --json`, and a SIGINT when it begins to import `module`."""
    return subprocess.run([sys.executable, "-c", prelude + AT_IMPORT, module], capture_output=True, text=True)


@pytest.mark.parametrize(
    "module",
    ["devices", "vmm.cli", "typer", "vmm.boot_options", "guests", "vmm.runner", "vmm.machine", "numpy", "unicorn"],
)
def test_ctrl_c_at_an_import_is_no_traceback(module: str) -> None:
    done = start(module)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_before_main_the_process_ends_at_once() -> None:
    """Ctrl-C between the first line of the module and `main`: nothing was begun, so nothing is cleaned up."""
    code = (
        "import signal, sys, types, vmm, vmm.__main__ as entry\n"
        "source = open(entry.__file__, encoding='utf-8').read()\n"
        "first, rest = source.split('def shadowed', 1)\n"
        "exec(compile(first + 'signal.raise_signal(signal.SIGINT)\\ndef shadowed' + rest, 'vmm', 'exec'),"
        " {'__name__': '__main__', '__file__': entry.__file__})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_who_starts_it_with_ctrl_c_ignored_gets_it_ignored() -> None:
    """A shell does so for a job in the background."""
    done = start("vmm.cli", "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n")
    assert done.returncode == 0, done.stderr

"""The first moments of a start: Ctrl-C at any import ends it quietly."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

AT_IMPORT = """
import runpy, signal, sys

class Tripwire:
    wanted, number = sys.argv[1], int(sys.argv[2])

    def find_spec(self, name, path=None, target=None):
        if name == self.wanted:
            signal.raise_signal(self.number)

sys.meta_path.insert(0, Tripwire())
sys.argv = ["vmm", "boot", "stats", "--json"]
runpy.run_module("vmm", run_name="__main__", alter_sys=True)
"""


def start(module: str, prelude: str = "", number: signal.Signals = signal.SIGINT) -> subprocess.CompletedProcess[str]:
    """`vmm boot stats --json`, and a signal when it begins to import `module`."""
    command = [sys.executable, "-c", prelude + AT_IMPORT, module, str(int(number))]
    return subprocess.run(command, capture_output=True, text=True)


SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@SIGNALS
@pytest.mark.parametrize(
    "module",
    ["devices", "vmm.cli", "typer", "vmm.boot_options", "guests", "vmm.runner", "vmm.machine", "numpy", "unicorn"],
)
def test_a_signal_at_an_import_is_no_traceback(module: str, number: signal.Signals) -> None:
    done = start(module, number=number)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@SIGNALS
def test_before_main_the_process_ends_at_once(number: signal.Signals) -> None:
    """A signal between the first line of the module and `main`: nothing was begun, so nothing is cleaned up."""
    code = (
        "import signal, sys, types, vmm, vmm.__main__ as entry\n"
        "source = open(entry.__file__, encoding='utf-8').read()\n"
        "first, rest = source.split('def shadowed', 1)\n"
        f"exec(compile(first + 'signal.raise_signal({int(number)})\\ndef shadowed' + rest, 'vmm', 'exec'),"
        " {'__name__': '__main__', '__file__': entry.__file__})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@SIGNALS
@pytest.mark.parametrize("module", ["vmm.cli", "vmm.machine"])
def test_who_starts_it_with_a_signal_ignored_gets_it_ignored(module: str, number: signal.Signals) -> None:
    """A shell does so with Ctrl-C for a job in the background."""
    done = start(module, f"import signal; signal.signal({int(number)}, signal.SIG_IGN)\n", number)
    assert done.returncode == 0, done.stderr

"""`vmm top` on a real terminal, about a machine that runs: what a person sees and types, and what QMP says of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pexpect
import pytest

from devices.errors import ConfigError
from tests.vmm.top.screen import Terminal
from vmm.control.client import Client

ROOT = Path(__file__).resolve().parents[3]
VMM = [sys.executable, "-m", "vmm"]
WITHOUT_TEXTUAL = "import sys; sys.modules['textual'] = None; from vmm.__main__ import main; sys.exit(main())"
PATIENCE_S = 60
MIB = 1 << 20


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A folder for the sockets of this test's machines; a short one, since their paths may not be long."""
    with tempfile.TemporaryDirectory(prefix="top-") as folder:
        yield Path(folder)


def environment(runtime: Path, **more: str) -> dict[str, str]:
    # a test runner that works in parallel gives its workers a width of its own
    others = ("NO_COLOR", "COLUMNS", "LINES")
    inherited = {name: value for name, value in os.environ.items() if name not in others}
    return inherited | {"XDG_RUNTIME_DIR": str(runtime), "TERM": "xterm-256color"} | more


@contextmanager
def a_machine(runtime: Path, name: str = "vm") -> Iterator[Client]:
    """A running one, and a way to ask it that is not `vmm top`."""
    words = ["boot", "stats", "--name", name, "--clock", "realtime", "--target", "64M", "--poll", "0.2", "--for", "1h"]
    process = subprocess.Popen(
        [*VMM, *words], cwd=ROOT, env=environment(runtime), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        with client(runtime / "balloon-vmm" / f"{name}.sock") as found:
            wait_until(lambda: bool(found.ask("x-vmm-status")["balloon"]["driver-ready"]))
            yield found
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def client(path: Path) -> Client:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return Client(path.stem, path)
        except ConfigError:
            assert time.monotonic() < end, "the machine does not come"
            time.sleep(0.05)


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


class Person:
    """Somebody at a terminal on which `vmm top` runs."""

    def __init__(
        self, runtime: Path, *words: str, size: tuple[int, int] = (80, 24), env: dict[str, str] | None = None
    ) -> None:
        columns, rows = size
        self.child = pexpect.spawn(
            VMM[0],
            [*VMM[1:], "top", *words],
            cwd=str(ROOT),
            env=environment(runtime, **(env or {})),
            dimensions=(rows, columns),
            encoding="utf-8",
            echo=True,
        )
        self.before = termios.tcgetattr(self.child.child_fd)
        self.screen = Terminal(columns, rows)
        self.written = ""

    def types(self, keys: str) -> None:
        self.child.send(keys)

    def reads(self) -> None:
        with suppress(pexpect.TIMEOUT):
            data = self.child.read_nonblocking(1 << 16, timeout=0.1)
            self.written += data
            self.screen.feed(data)

    def sees(self, pattern: str) -> None:
        """Until it is on the screen."""
        end = time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.screen.text, re.MULTILINE):
            assert time.monotonic() < end, f"{pattern!r} is not to be seen:\n{self.screen.text}"
            self.reads()

    def status(self) -> int:
        """The exit status; the terminal must be as it was found, and the screen of before be back."""
        end = time.monotonic() + PATIENCE_S
        with suppress(pexpect.EOF):
            while time.monotonic() < end:
                self.reads()
        self.child.wait()
        assert self.written.rindex("\x1b[?1049l") > self.written.rindex("\x1b[?1049h")
        assert self.written.rindex("\x1b[?25h") > self.written.rindex("\x1b[?25l")
        assert self.child.exitstatus is not None, f"ended by signal {self.child.signalstatus}"
        return int(self.child.exitstatus)


@contextmanager
def a_person(
    runtime: Path, *words: str, size: tuple[int, int] = (80, 24), env: dict[str, str] | None = None
) -> Iterator[Person]:
    found = Person(runtime, *words, size=size, env=env)
    try:
        yield found
    finally:
        found.child.close(force=True)


def balloon_size(machine: Client) -> int:
    return int(machine.ask("x-vmm-status")["balloon"]["actual"])


def test_a_key_inflates_the_balloon_and_another_deflates_it(runtime: Path) -> None:
    with a_machine(runtime) as machine, a_person(runtime) as person:
        person.sees(r"^vm  ▶ running")
        person.sees(r"^balloon +0 B")
        person.sees(r"^statistics: ok.*every 0.2 s")
        assert balloon_size(machine) == 0
        person.types("+")
        person.sees(r"^target: balloon +4 MiB")
        person.sees(r"^balloon +4 MiB +█")
        person.sees(r"BALLOON_CHANGE 60 MiB left to the guest")
        assert balloon_size(machine) == 4 * MIB
        assert machine.ask("query-balloon") == {"actual": 60 * MIB}
        person.types("+++")
        person.sees(r"^balloon +16 MiB")
        person.types("--")
        person.sees(r"^guest RAM +56 MiB")
        assert balloon_size(machine) == 8 * MIB
        person.types("=32M\r")
        person.sees(r"^balloon +32 MiB")
        assert balloon_size(machine) == 32 * MIB
        person.types("q")
        assert person.status() == 0
        assert balloon_size(machine) == 32 * MIB, "it goes on as it was"


def test_figures_follow_what_others_do_and_the_end_is_seen(runtime: Path) -> None:
    with a_person(runtime) as person:
        person.sees(r"No machine of yours is running")
        with a_machine(runtime) as machine:
            person.sees(r"^vm  ▶ running")
            machine.ask("balloon", value=48 * MIB)
            person.sees(r"^target: RAM left +48 MiB")
            person.sees(r"^balloon +16 MiB")
            machine.ask("stop")
            person.sees(r"^vm  ‖ paused")
            person.sees(r"STOP")
            person.types("p")
            person.sees(r"RESUME")
            assert machine.ask("query-status")["running"] is True
            person.types("s")
            person.sees(r"not asked for")
            assert machine.ask("x-vmm-status")["balloon"]["polling-interval-ns"] == 0
        person.sees(r"^vm  ■ ended")
        person.types("\x03")
        assert person.status() == 130


def test_60_columns_are_enough_and_two_machines_take_turns(runtime: Path) -> None:
    with a_machine(runtime, "a"), a_machine(runtime, "b") as b, a_person(runtime, size=(60, 24)) as person:
        person.sees(r"machine 1 of 2")
        person.sees(r"^target: balloon +0 B +░{31}$")
        person.types("\x1b[B")
        person.sees(r"^b  ▶ running")
        person.types("+")
        person.sees(r"^balloon +4 MiB")
        assert balloon_size(b) == 4 * MIB
        person.types("q")
        assert person.status() == 0


def colours(person: Person) -> set[str]:
    """Every colour that was asked for, as parameters of SGR, but the terminal's own default ones."""
    words = {word for style in person.screen.styles for word in style.split(";")}
    return {word for word in words if re.fullmatch(r"[34][0-8]|9[0-7]|10[0-7]", word)}


@pytest.mark.parametrize(
    ("env", "may_be"), [({}, {*map(str, range(30, 38))}), ({"NO_COLOR": "1"}, set())], ids=["colours", "NO_COLOR"]
)
def test_colours_are_the_terminal_s_own_on_its_own_background(
    runtime: Path, env: dict[str, str], may_be: set[str]
) -> None:
    with a_machine(runtime), a_person(runtime, env=env) as person:
        person.sees(r"^balloon +0 B")
        person.types("q")
        assert person.status() == 0
        assert colours(person) <= may_be
        assert bool(colours(person)) == bool(may_be)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_the_terminal_is_as_before(runtime: Path, number: signal.Signals) -> None:
    with a_person(runtime) as person:
        person.sees(r"No machine of yours is running")
        assert termios.tcgetattr(person.child.child_fd) != person.before
        person.child.kill(number)
        assert person.status() == 130


# -- where it cannot be --------------------------------------------------------------------------------------------


def test_without_a_terminal_it_says_what_else_there_is(runtime: Path) -> None:
    done = subprocess.run(
        [*VMM, "top"], cwd=ROOT, env=environment(runtime), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "vmm: vmm top needs a terminal; 'vmm ps' and 'vmm stats' print the same figures anywhere.\n"


def test_a_terminal_that_can_do_nothing_is_none(runtime: Path) -> None:
    with a_person(runtime, env={"TERM": "dumb"}) as person:
        person.sees("vmm: vmm top needs a terminal")
        person.child.expect(pexpect.EOF)
        person.child.wait()
        assert person.child.exitstatus == 2


def test_without_textual_it_says_how_to_get_it(runtime: Path) -> None:
    child = pexpect.spawn(
        sys.executable,
        ["-c", WITHOUT_TEXTUAL, "top"],
        cwd=str(ROOT),
        env=environment(runtime),
        dimensions=(24, 500),
        encoding="utf-8",
        timeout=PATIENCE_S,
    )
    child.expect(pexpect.EOF)
    child.wait()
    sentence = str(child.before).strip()
    assert child.exitstatus == 2
    assert sentence.startswith("vmm: vmm top needs textual, the extra 'top' of balloon-vmm")
    assert sentence.endswith("-m pip install 'textual>=8,<9'")
    assert "\n" not in sentence


def test_nothing_else_needs_textual() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, vmm.cli, vmm.top.feed, vmm.top.panels; print('textual' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"


def test_the_extra_is_what_the_sentence_installs() -> None:
    from vmm.top.command import TEXTUAL

    text = (ROOT / "pyproject.toml").read_text()
    extra = text[text.index("top = [") :]
    assert f'"{TEXTUAL}"' in extra[: extra.index("]")]

"""The program itself, driven by textual's pilot, with machines that are none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from textual.events import Key
from textual.pilot import Pilot
from textual.widgets import Input, Static

from tests.vmm.top.fakes import MIB, fake_vms, sockets_in
from vmm.top.data import Fleet
from vmm.top.feed import Feeds
from vmm.top.view import HelpScreen, TopApp

PATIENCE_S = 20
Drive: TypeAlias = Callable[["User"], Awaitable[None]]


class User:
    """Somebody who reads the screen and presses keys."""

    def __init__(self, app: TopApp, pilot: Pilot[None]) -> None:
        self.app = app
        self.pilot = pilot

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, self.text
            await self.pilot.pause(0.02)

    async def sees(self, *texts: str) -> None:
        await self.until(lambda: all(text in self.text for text in texts))

    @property
    def lines(self) -> list[str]:
        """What the screen shows, row by row."""
        compositor = self.app.screen._compositor
        return ["".join(part.text for part in strip).rstrip() for strip in compositor.render_strips()]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def drive(folder: Path, drive: Drive, *wanted: str, size: tuple[int, int] = (80, 24)) -> int:
    """Run the program on machines in `folder`; returns its exit status."""
    feeds = Feeds(wanted, sockets_in(folder), 0.3)
    app = TopApp(Fleet(wanted), feeds)

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await drive(User(app, pilot))

    try:
        asyncio.run(run())
    finally:
        feeds.close(5)
    return app.return_code or 0


def test_it_waits_for_a_machine_and_shows_it(tmp_path: Path) -> None:
    async def look(user: User) -> None:
        await user.sees("No machine of yours is running.", "vmm boot")
        with fake_vms(tmp_path, "late"):
            await user.sees("late", "▶ running", "guest RAM", "48 MiB", "host memory", "40 MiB", "major faults")
        await user.sees("ended")

    drive(tmp_path, look)


def test_one_that_is_named_is_waited_for(tmp_path: Path) -> None:
    async def look(user: User) -> None:
        await user.sees("No machine called 'b' is running.")
        with fake_vms(tmp_path, "b"):
            await user.sees("▶ running", "48 MiB")
        assert "other" not in user.text

    with fake_vms(tmp_path, "other"):
        drive(tmp_path, look, "b")


@pytest.mark.parametrize("size", [(80, 24), (60, 24), (60, 15), (120, 50), (40, 10)], ids=str)
@pytest.mark.parametrize("names", [("one",), ("one", "two")], ids=len)
def test_it_fits(tmp_path: Path, size: tuple[int, int], names: tuple[str, ...]) -> None:
    async def look(user: User) -> None:
        await user.sees("one", "▶ running", "target: RAM left", "48 MiB", "balloon", "quit" if size[0] >= 60 else "=")
        assert len(user.lines) == size[1]
        assert max(map(len, user.lines)) <= size[0]
        assert user.lines[0].startswith("one")
        assert "target" in user.lines[-1]

    with fake_vms(tmp_path, *names):
        drive(tmp_path, look, size=size)


def test_a_terminal_that_changes_its_size_is_filled_anew(tmp_path: Path) -> None:
    async def look(user: User) -> None:
        await user.sees("▶ first", "▶ second", "target: RAM left")
        await user.pilot.resize_terminal(60, 20)
        await user.sees("machine 1 of 2")
        await user.until(lambda: (len(user.lines), max(map(len, user.lines))) == (20, 60))
        await user.pilot.resize_terminal(110, 30)
        await user.sees("▶ second")
        await user.until(lambda: (len(user.lines), max(map(len, user.lines))) == (30, 110))

    with fake_vms(tmp_path, "first", "second"):
        drive(tmp_path, look, size=(100, 24))


def test_80_by_24_has_room_for_everything(tmp_path: Path) -> None:
    async def look(user: User) -> None:
        await user.sees("target: balloon", "host memory", "statistics: ok", "swap in", "queues", "inflateq", "events")

    with fake_vms(tmp_path, "vm"):
        drive(tmp_path, look)


def test_plus_and_minus_inflate_and_deflate(tmp_path: Path) -> None:
    async def look(user: User) -> None:
        await user.sees("▶ running")
        await user.press("plus")
        await user.sees("target: 44 MiB left to the guest", "BALLOON_CHANGE 44 MiB")
        await user.press("minus", "minus")
        await user.sees("target: RAM left     52 MiB", "BALLOON_CHANGE 52 MiB")

    with fake_vms(tmp_path, "vm") as (vm,):
        drive(tmp_path, look)
        assert vm.status["balloon"]["actual"] == 12 * MIB


def test_a_size_is_typed_corrected_and_taken(tmp_path: Path) -> None:
    async def look(user: User) -> None:
        await user.sees("▶ running")
        await user.press("equals_sign", *"4x", "enter")
        await user.sees("A size must be a number")
        assert user.app.query_one("#target", Input).display
        await user.press("backspace", "0", "enter")
        await user.sees("target: 40 MiB left to the guest", "RAM left     40 MiB")
        assert "A size must be" not in user.text
        await user.press("equals_sign", *"balloon=20M", "enter")
        await user.sees("target: balloon      20 MiB")
        await user.press("equals_sign", *"100", "enter")
        await user.sees("at most the machine's 64 MiB")

    with fake_vms(tmp_path, "vm") as (vm,):
        drive(tmp_path, look)
        assert [arguments["value"] for name, arguments in vm.asked if name == "balloon"] == [40 * MIB, 44 * MIB]


def test_what_is_typed_at_once_is_all_taken(tmp_path: Path) -> None:
    """As a paste, or somebody quick: the keys are there before the first has had its effect."""

    async def look(user: User) -> None:
        await user.sees("▶ running")
        for key, character in (("equals_sign", "="), ("3", "3"), ("2", "2"), ("enter", "\r")):
            user.app.post_message(Key(key, character))
        await user.sees("target: 32 MiB left to the guest")

    with fake_vms(tmp_path, "vm"):
        drive(tmp_path, look)


def test_escape_leaves_the_target_as_it_was(tmp_path: Path) -> None:
    async def look(user: User) -> None:
        await user.sees("▶ running")
        await user.press("equals_sign", *"8M", "escape")
        await user.until(lambda: not user.app.query_one("#target", Input).display)
        await user.press("p")
        await user.sees("paused", "go on")

    with fake_vms(tmp_path, "vm") as (vm,):
        drive(tmp_path, look)
        assert vm.commands() == ["stop"]


def test_p_pauses_and_continues_and_s_has_statistics_asked_for(tmp_path: Path) -> None:
    async def look(user: User) -> None:
        await user.sees("▶ running", "not asked for")
        await user.press("p")
        await user.sees("paused", "STOP")
        await user.press("p")
        await user.sees("RESUME", "▶ running")
        await user.press("s")
        await user.sees("every 1 s")
        await user.press("s")
        await user.sees("not asked for", "no longer asked for")

    with fake_vms(tmp_path, "vm") as (vm,):
        drive(tmp_path, look)
        assert vm.commands() == ["stop", "cont", "qom-set", "qom-set"]


@pytest.mark.parametrize("size", [(100, 24), (60, 24)], ids=str)
def test_keys_go_to_the_machine_that_is_shown(tmp_path: Path, size: tuple[int, int]) -> None:
    async def look(user: User) -> None:
        await user.sees("first", "▶ running")
        await user.until(lambda: list(user.app.fleet.machines) == ["first", "second"])
        await user.sees("▶ second " if size[0] == 100 else "machine 1 of 2")
        await user.press("down", "plus")
        await user.until(lambda: user.lines[0].startswith("second"))
        await user.sees("target: 44 MiB")
        await user.press("down", "up", "p")
        await user.until(lambda: user.lines[0].startswith("first  ‖ paused"))

    with fake_vms(tmp_path, "first", "second") as (first, second):
        drive(tmp_path, look, size=size)
        assert (first.commands(), second.commands()) == (["stop"], ["balloon"])


def test_a_click_chooses_a_machine(tmp_path: Path) -> None:
    async def look(user: User) -> None:
        await user.sees("first", "second", "▶ running")
        await user.pilot.click("#list", offset=(3, 1))
        await user.until(lambda: user.lines[0].startswith("second"))

    with fake_vms(tmp_path, "first", "second"):
        drive(tmp_path, look, size=(100, 24))


def test_one_that_hangs_is_said_to_and_the_others_are_alive(tmp_path: Path) -> None:
    async def look(user: User) -> None:
        await user.sees("works", "hangs", "▶ running")
        hangs.mute.set()
        await user.sees("hangs", "does not answer; it may be stopped.")
        await user.press("down", "plus")
        await user.sees("works", "target: 44 MiB")

    with fake_vms(tmp_path, "hangs", "works") as (hangs, works):
        drive(tmp_path, look, size=(100, 24))
        assert (hangs.commands(), works.commands()) == ([], ["balloon"])


@pytest.mark.parametrize("key", ["question_mark", "f1"])
def test_help_explains_the_keys_and_any_key_ends_it(tmp_path: Path, key: str) -> None:
    async def look(user: User) -> None:
        await user.sees("▶ running")
        await user.press(key)
        await user.sees("make the balloon larger", "quit; the machines go on")
        await user.press("plus")
        await user.until(lambda: not isinstance(user.app.screen, HelpScreen))
        await user.press(key, "escape")
        await user.until(lambda: not isinstance(user.app.screen, HelpScreen))

    with fake_vms(tmp_path, "vm") as (vm,):
        drive(tmp_path, look)
        assert vm.commands() == [], "a key that ends the help does nothing else"


def test_the_help_s_keys_do_not_ask_for_a_target(tmp_path: Path) -> None:
    async def look(user: User) -> None:
        await user.sees("▶ running")
        await user.press("question_mark", "equals_sign")
        await user.until(lambda: not isinstance(user.app.screen, HelpScreen))
        assert not user.app.query_one("#target", Input).display

    with fake_vms(tmp_path, "vm"):
        drive(tmp_path, look)


def test_machines_go_on_being_shown_behind_the_help(tmp_path: Path) -> None:
    async def look(user: User) -> None:
        await user.sees("▶ running")
        await user.press("question_mark")
        vm.status["host-memory"] = 7 * MIB
        figures = user.app.screen_stack[0].query_one("#memory", Static)
        await user.until(lambda: "7 MiB" in str(figures.visual))

    with fake_vms(tmp_path, "vm") as (vm,):
        drive(tmp_path, look)


@pytest.mark.parametrize(("key", "status"), [("q", 0), ("ctrl+c", 130)])
def test_it_is_left(tmp_path: Path, key: str, status: int) -> None:
    async def look(user: User) -> None:
        await user.press(key)
        await user.until(lambda: not user.app.is_running)

    assert drive(tmp_path, look) == status

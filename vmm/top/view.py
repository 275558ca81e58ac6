"""The program on the terminal: it shows what `panels` makes of the machines, and turns keys into orders."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import ClassVar, Final

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from devices.errors import ConfigError
from vmm.config import parse_targets
from vmm.top import panels
from vmm.top.data import Fleet, Watched
from vmm.top.feed import Feeds
from vmm.top.orders import Order, PauseOrContinue, PollOrNot, Step, Target

EXIT_INTERRUPTED = 130
LOOK_EVERY_S, SCAN_EVERY_S = 0.1, 1.0
NARROW = 76
"""With fewer columns there is no list beside the figures."""
TARGET_HINT: Final = "RAM left to the guest (40M), or balloon=SIZE; Enter sets it, Esc does not"


class HelpScreen(ModalScreen[None]):
    """What the keys do, and what the figures mean; any key ends it."""

    def compose(self) -> ComposeResult:
        yield Static(Text(panels.HELP.rstrip("\n")), id="help")

    def on_key(self, event: events.Key) -> None:
        event.stop()
        event.prevent_default()
        self.dismiss()

    def on_click(self) -> None:
        self.dismiss()


class MachineList(Static):
    """The names; a click shows the machine."""

    def on_click(self, event: events.Click) -> None:
        if isinstance(self.app, TopApp):
            self.app.select_at(event.y)


class TopApp(App[None]):
    """Shows the machines of `fleet`, about which `feeds` tells.  Its return code is 130 where it was interrupted."""

    CSS_PATH: ClassVar[Path] = Path(__file__).with_name("view.tcss")
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("plus", "step(1)"),
        Binding("minus", "step(-1)"),
        Binding("equals_sign", "ask_target", priority=True),  # before the next key is looked at
        Binding("p", "pause"),
        Binding("s", "poll"),
        Binding("question_mark,h,f1", "show_help"),
        Binding("q", "quit"),
        Binding("ctrl+c", "interrupt", priority=True),
        Binding("up,k", "other(-1)"),
        Binding("down,j", "other(1)"),
        Binding("pageup", "scroll_figures(-1)"),
        Binding("pagedown", "scroll_figures(1)"),
        Binding("escape", "leave_target", priority=True),
        Binding("ctrl+z", "suspend_process"),
    ]

    def __init__(self, fleet: Fleet, feeds: Feeds) -> None:
        super().__init__(ansi_color=True)
        self.fleet = fleet
        self.feeds = feeds
        self.selected = ""

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        with Horizontal():
            yield MachineList(id="list")
            with VerticalScroll(id="figures", can_focus=False):
                for name in ("waiting", "memory", "statistics", "queues", "events"):
                    yield Static(id=name)
        yield Static(id="wrong")
        yield Input(placeholder=TARGET_HINT, id="target", compact=True)
        yield Static(id="keys")

    # -- the machines ------------------------------------------------------------------------------------------------

    def on_mount(self) -> None:
        self.theme = "ansi-dark"
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self.action_interrupt)
        self.scan()
        self.set_interval(SCAN_EVERY_S, self.scan)
        self.set_interval(LOOK_EVERY_S, self.look)
        self.show()

    def on_unmount(self) -> None:
        self.feeds.close()

    def scan(self) -> None:
        """Look for machines."""
        self.feeds.scan()
        if self.fleet.forget(time.monotonic()):
            self.show()

    def look(self) -> None:
        """Show what there is of news."""
        news = self.feeds.take()
        for each in news:
            self.fleet.apply(each)
        if news:
            self.show()

    @property
    def machine(self) -> Watched | None:
        """The one that is shown."""
        return self.fleet.machines.get(self.selected)

    def _order(self, order: Order) -> None:
        if self.selected:
            self.feeds.order(self.selected, order)

    # -- showing -----------------------------------------------------------------------------------------------------

    def on_resize(self) -> None:
        self.call_after_refresh(self.show)

    def show(self) -> None:
        """Everything anew."""
        if self.selected not in self.fleet.machines:
            self.selected = next(iter(self.fleet.machines), "")
        machine, columns = self.machine, self.size.width
        has_list = len(self.fleet.machines) > 1
        is_wide = has_list and columns >= NARROW
        room = columns - (panels.LIST_COLUMNS + 1 if is_wide else 0)
        self._put("head", panels.head(machine, columns))
        self._put("list", panels.listing(self.fleet, self.selected, panels.LIST_COLUMNS) if is_wide else Text())
        figures = self._figures(machine, room)
        note = Text(panels.waiting(self.fleet, machine), style="bold")
        if has_list and not is_wide:
            choice = panels.strip(self.fleet, self.selected, columns)
            note = Text("\n").join([choice, note] if note.plain else [choice])
        self._put("waiting", note)
        used = sum(text.plain.count("\n") + 1 for text in (note, *figures.values()) if text.plain)
        lines = self.size.height - 2 - used
        figures["events"] = panels.events(machine, room, max(lines, 4)) if figures and machine else Text()
        for name in ("memory", "statistics", "queues", "events"):
            self._put(name, figures.get(name, Text()))
        self._put("keys", panels.keys(machine, columns))

    def _figures(self, machine: Watched | None, room: int) -> dict[str, Text]:
        if machine is None or machine.now is None:
            return {}
        return {
            "memory": panels.memory(machine, room),
            "statistics": panels.statistics(machine, room),
            "queues": panels.queues(machine, room),
        }

    def _put(self, name: str, text: Text) -> None:
        widget = self.screen_stack[0].query_one(f"#{name}", Static)
        widget.display = bool(text.plain)
        widget.update(text)

    # -- keys --------------------------------------------------------------------------------------------------------

    def action_step(self, count: int) -> None:
        self._order(Step(count))

    def action_pause(self) -> None:
        self._order(PauseOrContinue())

    def action_poll(self) -> None:
        self._order(PollOrNot())

    def action_show_help(self) -> None:
        self.push_screen(HelpScreen())

    def action_interrupt(self) -> None:
        self.exit(return_code=EXIT_INTERRUPTED)

    def action_other(self, by: int) -> None:
        names = list(self.fleet.machines)
        if self.selected in names:
            self.select_at(min(max(names.index(self.selected) + by, 0), len(names) - 1))

    def select_at(self, index: int) -> None:
        """Show the machine in that line of the list; nothing where there is none."""
        names = list(self.fleet.machines)
        if 0 <= index < len(names):
            self.selected = names[index]
            self.show()

    def action_scroll_figures(self, by: int) -> None:
        figures = self.query_one("#figures", VerticalScroll)
        if by > 0:
            figures.scroll_page_down(animate=False)
        else:
            figures.scroll_page_up(animate=False)

    # -- a target ----------------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The key "=" is itself while a target is typed, and any key while help is shown."""
        if action == "ask_target":
            return not isinstance(self.screen, HelpScreen) and not self.query_one("#target", Input).display
        return True

    def action_ask_target(self) -> None:
        if self.selected:
            field = self.query_one("#target", Input)
            field.value = ""
            field.display = True
            self.set_focus(field)

    def action_leave_target(self) -> None:
        if isinstance(self.screen, HelpScreen):
            self.screen.dismiss()
            return
        field = self.query_one("#target", Input)
        field.display = False
        self._put("wrong", Text())
        self.set_focus(None)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        try:
            order = parse_target(event.value)
        except ConfigError as error:
            self._put("wrong", Text(str(error), style="bold red"))
            return
        if order is not None:
            self._order(order)
        self.action_leave_target()


def parse_target(text: str) -> Target | None:
    """What was typed as a target; None where nothing was.  ConfigError for what is none."""
    if not text.strip():
        return None
    steps = parse_targets(text)
    if len(steps) != 1 or "@" in text:
        raise ConfigError(f"A target for now is one SIZE or balloon=SIZE, not {text!r}.")
    return Target(steps[0])

"""Where the news comes from: one thread for each machine, which asks it a few times a second and has it do things.

A machine that does not answer holds up its own thread only, and is asked nothing more until it answers.  What the
threads learn is in `Feeds.news`, for whoever takes it.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import Empty, SimpleQueue

from devices.errors import ConfigError
from vmm.control import registry
from vmm.control.client import LOOK_S, Client, NoAnswer, Refused
from vmm.top.data import Answered, Appeared, Gone, Heard, Hung, News, Said, read_sample
from vmm.top.orders import Order, carry_out, joined

ASK_EVERY_S = 0.5
ORDERS_EVERY_S = 0.2
"""What is ordered meanwhile is done together."""
TRY_AGAIN_S = 2.0
"""Until a socket is tried again at which nobody served, and a machine that did not let us in: up to sixteen times so
long, since each try waits in its line."""
LONGEST_WAIT = 16
_NOBODY = (ConnectionRefusedError, FileNotFoundError)


class Feed:
    """The thread of the machine called `name`, which serves at `path`."""

    def __init__(self, name: str, path: Path, tell: Callable[[News], None], answer_s: float = LOOK_S) -> None:
        self.name = name
        self.ended_s = 0.0
        self._path = path
        self._tell = tell
        self._answer_s = answer_s
        self._orders: list[Order] = []
        self._changed = threading.Condition()
        self._closing = False
        self._was_there = False
        self._wait_s = TRY_AGAIN_S
        self._thread = threading.Thread(target=self._run, name=f"feed of {name}", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it still asks."""
        return self._thread.is_alive()

    def order(self, order: Order) -> None:
        """Have the machine do it as soon as may be."""
        with self._changed:
            self._orders.append(order)
            self._changed.notify()

    def close(self, wait_s: float = 0.0) -> None:
        """Ask nothing more; the thread ends when its last answer has come."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(wait_s)

    # -- in the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing and self._try():
            with self._changed:
                self._changed.wait_for(lambda: self._closing, self._wait_s)
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT * TRY_AGAIN_S)
        self.ended_s = time.monotonic()

    def _try(self) -> bool:
        """One conversation, to its end; returns whether it is worth another."""
        try:
            with Client(self.name, self._path, self._answer_s) as client:
                self._was_there = True
                self._tell(Appeared(self.name))
                self._converse(client)
        except NoAnswer as error:  # it did not even let us in
            self._hung(str(error))
            return True
        except ConfigError as error:
            if isinstance(error.__cause__, BlockingIOError):
                self._hung(f"{self.name} lets nobody in; it may be stopped.")
                return True
            if self._was_there or not isinstance(error.__cause__, _NOBODY):
                self._tell(Gone(self.name, time.monotonic()))
        except (Refused, ValueError, KeyError, TypeError, AttributeError):
            self._hung(f"{self.name} answers what is not understood; it may be of another version.")
            return True
        return False

    def _hung(self, why: str) -> None:
        self._was_there = True
        self._tell(Appeared(self.name))
        self._tell(Hung(self.name, why))

    def _converse(self, client: Client) -> None:
        self._refuse_orders()
        orders: list[Order] = []
        while not self._closing:
            try:
                for order in orders:
                    self._do(client, order)
                sample = read_sample(client.ask("x-vmm-status"), time.monotonic())
            except NoAnswer as error:
                orders = []
                self._tell(Hung(self.name, str(error)))
                self._wait_for_answer(client)
                continue
            finally:
                self._tell_events(client)
            self._tell(Answered(self.name, sample))
            orders = self._wait(after_orders=bool(orders))

    def _do(self, client: Client, order: Order) -> None:
        try:
            self._say(carry_out(client, order))
        except Refused as error:
            self._say(f"refused: {error.desc}")
        except NoAnswer:
            self._say("whether it was done is not known")
            raise
        except ConfigError as error:
            self._say(str(error))
            if error.__cause__ is not None:  # it has ended
                raise

    def _say(self, text: str) -> None:
        self._tell(Said(self.name, text, time.time()))

    def _tell_events(self, client: Client) -> None:
        while client.events:
            self._tell(Heard(self.name, client.events.popleft()))

    def _wait(self, *, after_orders: bool) -> list[Order]:
        """Until it is time to ask again, or something is ordered: that."""
        with self._changed:
            if after_orders:
                self._changed.wait_for(lambda: self._closing, ORDERS_EVERY_S)
            self._changed.wait_for(lambda: self._closing or bool(self._orders), ASK_EVERY_S)
            orders, self._orders = self._orders, []
        return joined(orders)

    def _wait_for_answer(self, client: Client) -> None:
        """Until something comes of a machine that hangs; what is ordered meanwhile is not done."""
        while not self._closing and not select.select([client], [], [], ORDERS_EVERY_S)[0]:
            self._refuse_orders()

    def _refuse_orders(self) -> None:
        with self._changed:
            refused, self._orders = self._orders, []
        if refused:
            self._say("not done: it did not answer")


class Feeds:
    """The feeds of all machines: those called `wanted`, or all there are where none is named."""

    def __init__(
        self,
        wanted: Iterable[str] = (),
        find: Callable[[], dict[str, Path]] = registry.sockets,
        answer_s: float = LOOK_S,
    ) -> None:
        self._wanted = frozenset(wanted)
        self._find = find
        self._answer_s = answer_s
        self._feeds: dict[str, Feed] = {}
        self._news: SimpleQueue[News] = SimpleQueue()

    def scan(self) -> None:
        """See who is there, and begin to ask those that are new."""
        now_s = time.monotonic()
        for name, path in self._find().items():
            feed = self._feeds.get(name)
            if self._wanted and name not in self._wanted:
                continue
            if feed is None or (not feed.is_alive and now_s - feed.ended_s >= TRY_AGAIN_S):
                self._feeds[name] = Feed(name, path, self._news.put, self._answer_s)

    def take(self) -> list[News]:
        """What came since the last time, the oldest first."""
        found: list[News] = []
        while True:
            try:
                found.append(self._news.get_nowait())
            except Empty:
                return found

    def order(self, name: str, order: Order) -> None:
        """Have the machine called `name` do it; nothing where there is none."""
        if name in self._feeds:
            self._feeds[name].order(order)

    def close(self, wait_s: float = 0.0) -> None:
        """End them all; each has `wait_s` to do so."""
        for feed in self._feeds.values():
            feed.close()
        for feed in self._feeds.values():
            feed.close(wait_s)

"""Drivers that make requests and mistakes in any order, under `skip` and `ignore`, against a model of what comes back.

The model knows which names are in flight for good (dropped ones), in which order things come back, and which pages are
in the balloon.  Now and then the device is saved and goes on as another object."""

from __future__ import annotations

from typing import Literal, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.virtio import spec
from devices.virtio.policy import IGNORE, SKIP, Policy
from tests.fixtures import MakeMachine
from tests.hostile.guest_errors import JUMPS, NO_HEADS, Requests, start
from tests.support import BalloonMachine
from vmm.testing import DirectTransport, RawPackedQueue, RawQueue
from vmm.testing.driver import INDIRECT_DESC
from vmm.testing.mistakes import HEAD, RING_MISTAKES, Mistake
from vmm.testing.packed_mistakes import PACKED_MISTAKES, PackedMistake

Ring = Literal["direct", "packed"]
SPLIT = [mistake for mistake in RING_MISTAKES if not mistake.without & INDIRECT_DESC]
PACKED = [
    mistake
    for mistake in PACKED_MISTAKES
    if not mistake.without & INDIRECT_DESC
    and mistake.name != "loop_over_the_whole_ring"  # it leaves no ring to go on in
]

UNFINISHED = ("list_that_goes_on_where_nothing_is_available", "list_that_goes_on_in_the_wrong_round")
"""Whatever is written behind them is their end, unless the device looks before."""


class Kick(NamedTuple):
    """What one kick publishes: good requests, perhaps a mistake (by its number), good requests; then perhaps a save."""

    before: int
    mistake: int | None
    after: int
    save: bool


KICKS = st.lists(
    st.builds(Kick, st.integers(0, 4), st.none() | st.integers(0, 99), st.integers(0, 3), st.booleans()),
    min_size=1,
    max_size=14,
)


class Model:
    """The driver's side and what it must find."""

    def __init__(self, requests: Requests, how: Policy) -> None:
        self.requests, self.how = requests, how
        self.machine = requests.machine
        self.names = iter(range(10, 128))
        self.lost: set[int] = set()  # names that stay in flight
        self.returned: list[tuple[int, int]] = []  # (name, places in a packed ring)
        self.pfns: list[int] = []
        self.faults = [0, 0]  # skipped, dropped

    def good(self, count: int) -> None:
        names = [next(self.names) for _ in range(count)]
        self.pfns += self.requests.make(*names)
        self.returned += [(name, 1) for name in names]

    def fault(self, name: int, slots: int, *, has_name: bool = True) -> None:
        """One chain at fault."""
        if has_name and self.how is SKIP and name not in self.lost:
            self.returned.append((name, slots))
            self.faults[0] += 1
            return
        self.faults[1] += 1
        if has_name:
            self.lost.add(name)

    def run(self, kick: Kick) -> None:
        raw = self.requests.raw
        mistakes: list[Mistake] | list[PackedMistake] = PACKED if isinstance(raw, RawPackedQueue) else SPLIT
        mistake = None if kick.mistake is None else mistakes[kick.mistake % len(mistakes)]
        jumps = mistake is not None and mistake.name in JUMPS
        self.good(kick.before)
        if jumps:
            raw.kick()  # what is pending when the index jumps is lost
        if isinstance(mistake, PackedMistake):
            self.packed_mistake(mistake)
        elif mistake is not None:
            assert isinstance(raw, RawQueue)
            index = raw.avail_idx
            self.requests.mistake(mistake)
            if raw.avail_idx != index:  # it may be where the mistake puts it already
                self.split_mistake(mistake)
        if jumps or (mistake is not None and mistake.name in UNFINISHED):
            raw.kick()
        self.good(kick.after)
        raw.kick()
        if kick.save:
            self.save_and_go_on()
        self.check()

    def split_mistake(self, mistake: Mistake) -> None:
        if mistake.name == "same_head_twice":
            if HEAD in self.lost:
                self.faults[1] += 1
            else:
                self.returned.append((HEAD, 1))
        self.fault(HEAD, 1, has_name=mistake.name not in (*JUMPS, *NO_HEADS))

    def packed_mistake(self, mistake: PackedMistake) -> None:
        raw = self.requests.raw
        assert isinstance(raw, RawPackedQueue)
        place = raw.next.index
        self.requests.mistake(mistake)
        slots = (raw.next.index - place) % raw.size
        name = 0
        if mistake.name == "buffer_id_twice":
            name, slots = 1, 1
            if name in self.lost:
                self.faults[1] += 1
            else:
                self.returned.append((name, 1))
        self.fault(name, slots)

    def save_and_go_on(self) -> None:
        """The same device, saved into one that was built the same way."""
        machine = self.machine
        saved = machine.balloon.save_state()
        other = type(machine.balloon)(
            machine.memory, features=machine.balloon.device_features, policy=machine.balloon.policy
        )
        other.check_state(saved, "balloon")
        other.restore_state(saved)
        assert other == machine.balloon and other.save_state() == saved
        machine.balloon = other
        transport = machine.driver.transport
        assert isinstance(transport, DirectTransport)
        transport.device = other

    def check(self) -> None:
        machine = self.machine
        assert not machine.driver.needs_reset
        assert machine.are_zero(self.pfns)
        assert self.found() == self.returned
        assert [self.requests.skipped, self.requests.dropped] == self.faults
        assert machine.balloon.balloon_pages >= len(self.pfns)

    def found(self) -> list[tuple[int, int]]:
        """What came back, in its order; of a packed ring each where the places of those before it end."""
        raw = self.requests.raw
        if isinstance(raw, RawQueue):
            return [(head, 1) for head in raw.heads_returned()]
        found, place = [], type(raw.next)(raw.size, 0, 1)
        for _, slots in [*self.returned, (0, 1)]:
            entry = raw.driver.memory.read(raw.layout.descriptor(place.index), 16)
            if int.from_bytes(entry[14:], "little") & 0x8080 != place.used_flags:
                break
            found.append((int.from_bytes(entry[12:14], "little"), slots))
            place.advance(slots)
        return found


@pytest.mark.parametrize("how", [SKIP, IGNORE], ids=lambda how: how.name)
@pytest.mark.parametrize("ring", ["direct", "packed"])
@settings(max_examples=40, deadline=None)
@given(kicks=KICKS)
def test_what_comes_back_is_what_the_model_says(how: Policy, ring: Ring, kicks: list[Kick]) -> None:
    made: list[BalloonMachine] = []

    def make(way: Ring = "direct", **options: object) -> BalloonMachine:
        made.append(BalloonMachine(way, **options))  # type: ignore[arg-type]
        return made[-1]

    maker: MakeMachine = make  # type: ignore[assignment]
    try:
        model = Model(start(maker, ring, how), how)
        assert (ring == "packed") == bool(model.machine.driver.features >> spec.VIRTIO_F_RING_PACKED & 1)
        for kick in kicks:
            model.run(kick)
    finally:
        for machine in made:
            machine.close()

"""Host, driver and a guest that goes on writing, in any order, against a model of which pages may be lost.

The model knows what was written since the id, which id each hint belongs to, and whether the device may look at its
queue now.  After every step all pages are compared: a page that holds anything but what was written last, or zeros
where that is allowed, has been lost.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from devices import hostcalls
from devices.memory import PAGE_BYTES
from devices.virtio import spec
from tests.support import BalloonMachine, build_with
from vmm.testing.balloon import DONE, STOP

POOL_PAGES = 8
PAGES = st.lists(st.integers(0, POOL_PAGES - 1), min_size=1, max_size=4)
RARELY = st.sampled_from([False] * 4 + [True])
"""What ends a round must not happen so often that nothing else can."""
KICK = st.sampled_from([True, True, False])
build_hinting = build_with(spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT)


def kernel_tracks_writes() -> bool:
    try:
        os.close(hostcalls.open_write_watch())
    except OSError:
        return False
    return True


class HintingModel(RuleBasedStateMachine):
    """Pages of the pool are named by their index in it."""

    @initialize()
    def build(self) -> None:
        self.machine = BalloonMachine("pci", build=build_hinting)
        self.driver, self.balloon = self.machine.driver, self.machine.balloon
        self.driver.start()
        self.pool = self.machine.filled_pfns(POOL_PAGES, 1)
        self.content = [1] * POOL_PAGES
        self.mastering = True
        self.cmd_id, self.issued = STOP, 1
        self.forget()
        self.the_host_starts(acknowledge=False)
        self.the_driver_says("id", kick=True)

    def forget(self) -> None:
        """Nothing is on its way, no id was answered."""
        self.written = [True] * POOL_PAGES  # since the id
        self.answered = False
        self.acknowledge = True
        self.queue: list[int | list[int]] = []  # ids and lists of pages that the device has not seen

    def teardown(self) -> None:
        if hasattr(self, "machine"):
            self.machine.close()

    def carry_out(self) -> None:
        """What a device that may look must have done."""
        if not self.mastering:
            return
        for item in self.queue:
            if isinstance(item, int):
                if item == STOP and self.answered and self.acknowledge:
                    self.cmd_id, self.answered = DONE, False
                else:
                    self.answered = item == self.cmd_id and item > DONE
            elif self.answered:
                for index in item:
                    if not self.written[index]:
                        self.content[index] = 0
        self.queue.clear()
        self.driver.collect(self.driver.free_page_vq)

    def send(self, item: int | list[int]) -> None:
        queue = self.driver.free_page_vq
        if self.driver.queues[queue].free_descriptors < POOL_PAGES:
            return
        if isinstance(item, int):
            self.driver.offer(queue, readable=[item.to_bytes(4, "little")])
        else:
            for index in item:
                self.driver.offer(queue, writable=[(self.pool[index] * PAGE_BYTES, PAGE_BYTES)])
        self.queue.append(item)

    # -- what they do --------------------------------------------------------------------------------------------------

    @rule(acknowledge=st.booleans())
    def the_host_starts(self, acknowledge: bool) -> None:
        self.machine.host(self.balloon.start_hinting(self.machine.now_ns, acknowledge=acknowledge))
        self.issued += 1
        self.cmd_id, self.acknowledge, self.answered = self.issued, acknowledge, False
        self.written = [False] * POOL_PAGES

    @rule(rarely=RARELY, done=st.booleans())
    def the_host_ends(self, rarely: bool, done: bool) -> None:
        if not rarely:
            return
        command = self.balloon.done_hinting if done else self.balloon.stop_hinting
        self.machine.host(command(self.machine.now_ns))
        self.cmd_id, self.answered = DONE if done else STOP, False

    @rule(item=st.sampled_from(["id", "id", "id", "stale", STOP, DONE]), kick=KICK)
    def the_driver_says(self, item: str | int, kick: bool) -> None:
        named = {"id": self.cmd_id, "stale": self.issued - 1}
        self.send(named[item] if isinstance(item, str) else item)
        if kick:
            self.the_driver_kicks()

    @rule(pages=PAGES, kick=KICK)
    def the_driver_hints(self, pages: list[int], kick: bool) -> None:
        self.send(pages)
        if kick:
            self.the_driver_kicks()

    @rule()
    def the_driver_kicks(self) -> None:
        self.driver.kick(self.driver.free_page_vq, force=True)
        self.carry_out()

    @rule(index=st.integers(0, POOL_PAGES - 1), value=st.integers(1, 255), whole=st.booleans())
    def the_guest_writes(self, index: int, value: int, whole: bool) -> None:
        """All of the page, or what it holds once more in one byte of it."""
        gpa = self.pool[index] * PAGE_BYTES
        if whole:
            self.machine.memory.write(gpa, bytes([value]) * PAGE_BYTES)
            self.content[index] = value
        else:
            self.machine.memory.write(gpa + 16 * value, bytes([self.content[index]]))
        self.written[index] = True

    @rule(enabled=RARELY.map(lambda off: not off))
    def the_bus_master_bit(self, enabled: bool) -> None:
        """What was kicked meanwhile is looked at when it is set again; so is what was only published."""
        self.machine.host(self.balloon.set_dma_enabled(enabled, self.machine.now_ns))
        if enabled and not self.mastering:
            self.mastering = True
            self.driver.queues[self.driver.free_page_vq].publish()
            self.driver.kick(self.driver.free_page_vq, force=True)
            self.carry_out()
        self.mastering = enabled

    @rule()
    def the_state_is_saved_and_put_back(self) -> None:
        state = self.balloon.save_state()
        self.balloon.check_state(state, "balloon")
        self.balloon.restore_state(state)

    @rule(rarely=RARELY)
    def the_driver_starts_again(self, rarely: bool) -> None:
        if rarely:
            self.driver.start()
            self.mastering = True
            self.machine.host(self.balloon.set_dma_enabled(True, self.machine.now_ns))
            self.cmd_id = STOP
            self.forget()

    # -- what is always true -----------------------------------------------------------------------------------------

    @invariant()
    def no_page_is_lost(self) -> None:
        if hasattr(self, "machine"):
            for index, value in enumerate(self.content):
                assert self.machine.page(self.pool[index]) == bytes([value]) * PAGE_BYTES, (index, value)

    @invariant()
    def the_id_is_what_it_must_be(self) -> None:
        if hasattr(self, "machine"):
            assert self.driver.hint_cmd_id == self.cmd_id
            assert not self.driver.needs_reset


HintingModel.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestHintingModel = pytest.mark.skipif(not kernel_tracks_writes(), reason="this kernel does not track writes")(
    HintingModel.TestCase
)

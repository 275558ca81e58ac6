"""The balloon's model once more where every batch of some pages is worked off in slices: nothing of it may change."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from tests.devices.virtio.balloons import tiny_slices
from tests.hostile.test_balloon_model import BalloonModel
from tests.support import Way


class SlicedModel(BalloonModel):
    """The device has had the time it needs whenever something is expected of it."""

    @initialize(way=st.sampled_from(["pci", "packed-pci"]))
    def build(self, way: Way) -> None:
        self.tiny = tiny_slices()
        self.tiny.__enter__()
        super().build(way)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "tiny"):
            self.tiny.__exit__(None, None, None)

    def carry_out(self) -> None:
        self.machine.bench.advance(1_000_000)  # a slice begets the next a nanosecond later
        super().carry_out()


SlicedModel.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestSlicedModel = SlicedModel.TestCase

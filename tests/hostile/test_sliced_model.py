"""The balloon's models once more where every batch of some pages is worked off in slices: nothing of it may change."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from tests.devices.virtio.balloons import tiny_slices
from tests.hostile.test_balloon_model import BalloonModel
from tests.hostile.test_hinting_model import HintingModel, kernel_tracks_writes
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


class SlicedHintingModel(HintingModel):
    """The same for hints."""

    @initialize()
    def build(self) -> None:
        self.tiny = tiny_slices(1)
        self.tiny.__enter__()
        super().build()

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "tiny"):
            self.tiny.__exit__(None, None, None)

    def carry_out(self) -> None:
        self.machine.bench.advance(1_000_000)
        super().carry_out()


SlicedHintingModel.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestSlicedHintingModel = pytest.mark.skipif(not kernel_tracks_writes(), reason="this kernel does not track writes")(
    SlicedHintingModel.TestCase
)

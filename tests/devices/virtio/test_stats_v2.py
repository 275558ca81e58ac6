"""The statistics of the patch of 2009: {u16 tag, padding, le32 value}, seven tags, KiB, an empty first buffer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest

from devices.errors import ConfigError
from devices.memory import GuestMemory
from devices.virtio.balloon import Balloon
from devices.virtio.balloon.stats_formats import V2, parse
from tests.support import BalloonMachine, Way
from vmm.testing.balloon import STATSQ, stats_v2_bytes

SECOND = 10**9


@pytest.fixture(params=["direct", "pci"])
def started(request: pytest.FixtureRequest) -> Iterator[BalloonMachine]:
    way: Way = request.param

    def build(memory: GuestMemory) -> Balloon:
        return Balloon(memory, stats_format="v2")

    machine = BalloonMachine(way, build=build)
    machine.driver.start()
    yield machine
    machine.close()


ALL = list(enumerate((10, 20, 30, 40, 50, 60, 70)))


def test_the_layout_is_that_of_the_structure_with_natural_alignment() -> None:
    """Eight bytes an entry: tag, two bytes that mean nothing, value."""
    payload = bytes.fromhex("0500 beef 00010000  0600 dead 78563412")
    assert V2.entry_bytes == 8
    assert parse(payload, len(payload), V2).raw == ((5, 256), (6, 0x12345678))


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_tag_is_in_the_drivers_order_and_the_value_is_not(order: Literal["<", ">"]) -> None:
    """The patch converted one of the two and forgot the other."""
    payload = stats_v2_bytes([(3, 0x01020304)], order)
    assert payload[4:] == b"\4\3\2\1"
    assert payload[:2] == (b"\3\0" if order == "<" else b"\0\3")
    assert parse(payload, 8, V2, order).raw == ((3, 0x01020304),)
    other: Literal["<", ">"] = ">" if order == "<" else "<"
    assert parse(payload, 8, V2, other).raw == ((0x300, 0x01020304),)


def test_seven_tags_with_sizes_in_bytes_and_counts_as_they_are(started: BalloonMachine) -> None:
    started.driver.post_stats(bytes(56))
    started.request_stats()
    assert started.driver.stats_wanted()
    started.driver.post_stats(stats_v2_bytes([*ALL, (7, 1)]))
    assert started.statistics().values == {
        "stat-swap-in-pages": 10,
        "stat-swap-out-pages": 20,
        "stat-anonymous-memory": 30 * 1024,
        "stat-major-faults": 40,
        "stat-minor-faults": 50,
        "stat-free-memory": 60 * 1024,
        "stat-total-memory": 70 * 1024,
    }
    assert started.statistics().raw == (*ALL, (7, 1)), "unknown tags are passed on"


def test_the_first_buffer_holds_nothing(started: BalloonMachine) -> None:
    """It is posted before anything was stored in it: whatever lies there is no statistics."""
    started.driver.post_stats(stats_v2_bytes([(5, 0xFFFFFFFF)]))
    assert started.statistics().reason == "never posted"
    assert not started.driver.stats_wanted(), "it is held like any other"
    started.request_stats()
    assert started.driver.stats_wanted()
    started.driver.post_stats(stats_v2_bytes([(5, 4)]))
    assert (started.statistics().reason, started.statistics().values) == ("ok", {"stat-free-memory": 4096})


def test_each_driver_has_a_first_buffer_of_its_own(started: BalloonMachine) -> None:
    started.driver.post_stats(bytes(56))
    started.request_stats()
    started.driver.collect(STATSQ)
    started.driver.post_stats(stats_v2_bytes([(5, 4)]))
    started.driver.start()
    started.driver.post_stats(stats_v2_bytes([(5, 0xFFFFFFFF)]))
    assert started.statistics().reason == "never posted"


def test_polling_asks_past_it(started: BalloonMachine) -> None:
    started.set_polling_interval(SECOND)
    started.driver.post_stats(b"\xff" * 56)
    assert started.driver.stats_wanted(), "the poll is due at once"
    started.driver.post_stats(stats_v2_bytes([(6, 1)]))
    assert not started.driver.stats_wanted()
    started.bench.advance(SECOND)
    assert started.driver.stats_wanted()


@pytest.mark.parametrize("tail", range(1, 8))
def test_a_part_of_an_entry_is_ignored_and_counted(started: BalloonMachine, tail: int) -> None:
    started.driver.post_stats(b"\0")
    started.request_stats()
    started.driver.collect(STATSQ)
    started.driver.post_stats(stats_v2_bytes([(5, 4)]) + b"\xff" * tail)
    assert started.statistics().values == {"stat-free-memory": 4096}
    assert started.balloon.ignored_bytes == tail


def test_the_final_format_is_another_one(started: BalloonMachine) -> None:
    """What a driver of today sends is not understood, and breaks nothing."""
    for _ in range(2):
        started.driver.post_stats({"stat-free-memory": 5 << 20})
        started.request_stats()
        started.driver.collect(STATSQ)
    assert "stat-free-memory" not in started.statistics().values
    assert not started.driver.needs_reset


def test_a_saved_report_keeps_its_meaning(started: BalloonMachine) -> None:
    started.driver.post_stats(b"\0")
    started.request_stats()
    started.driver.collect(STATSQ)
    started.driver.post_stats(stats_v2_bytes(ALL))
    before, state = started.statistics(), started.balloon.save_state()
    started.driver.reset()
    started.balloon.check_state(state, "balloon")
    started.balloon.restore_state(state)
    assert started.statistics() == before


def test_there_is_no_third_format(started: BalloonMachine) -> None:
    with pytest.raises(KeyError):
        Balloon(started.memory, stats_format="v3")


# -- the order of the tag, over every way ------------------------------------------------------------------------------

EVERY_WAY: tuple[Way, ...] = ("direct", "pci", "mmio", "transitional", "legacy", "transitional-legacy", "mmio-legacy")
ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("way", EVERY_WAY)
def test_the_tag_is_the_processors_over_a_modern_interface_too(way: Way, order: Literal["<", ">"]) -> None:
    """The patch knows no VERSION_1: it stores the tag as the processor does, and the value little-endian."""
    machine = BalloonMachine(way, build=lambda memory: Balloon(memory, stats_format="v2"), processor=order)
    machine.driver.start()
    machine.driver.post_stats(b"\xa5" * 56)
    machine.request_stats()
    assert machine.driver.stats_wanted()
    machine.driver.post_stats(stats_v2_bytes(ALL, order))
    assert machine.statistics().raw == tuple(ALL)
    assert machine.statistics().values["stat-free-memory"] == 60 * 1024
    machine.close()


@pytest.mark.parametrize("way", ["pci", "mmio"])
def test_the_final_format_is_little_endian_there_whatever_the_processor_is(way: Way) -> None:
    machine = BalloonMachine(way, processor=">")
    machine.driver.start()
    machine.driver.post_stats(b"\5\0\1\0\0\0\0\0\0\0")
    assert machine.statistics().values == {"stat-total-memory": 1}
    machine.close()


# -- a driver that speaks the other one --------------------------------------------------------------------------------

FINAL_TAGS = {tag: 1000 + tag for tag in range(10)}
OLD_TAGS = dict.fromkeys(range(6), 77)


def heard(
    payload: bytes | dict[int, int], stats_format: str, way: Way = "pci", order: Literal["<", ">"] = "<"
) -> BalloonMachine:
    """The machine after a driver's first buffer, which may say nothing, and two of these."""
    machine = BalloonMachine(way, build=lambda memory: Balloon(memory, stats_format=stats_format), processor=order)
    machine.driver.start()
    machine.driver.post_stats(b"\0")
    for _ in range(2):
        machine.request_stats()
        assert machine.driver.stats_wanted()
        machine.driver.post_stats(payload)
    return machine


def events(machine: BalloonMachine, kind: str) -> list[str]:
    return [event.text for event in machine.events if event.kind == kind]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("way", EVERY_WAY)
def test_the_patchs_statistics_are_not_taken_for_final_ones(way: Way, order: Literal["<", ">"]) -> None:
    machine = heard(stats_v2_bytes(ALL, order), "final", way, order)
    found = machine.statistics()
    assert (found.reason, found.values, found.raw) == ("malformed", {}, ())
    assert events(machine, "stats-malformed") == [
        "the driver's statistics are laid out as with stats-format=v2, and this device has stats-format=final"
    ]
    assert not machine.driver.needs_reset
    assert machine.driver.queues[STATSQ].in_flight, "the buffer is held like any other"
    machine.close()


@pytest.mark.parametrize(
    "sent", [FINAL_TAGS, OLD_TAGS, dict.fromkeys(range(6), 0), dict.fromkeys(range(16), 1 << 40), {9: 5, 4: 1 << 30}]
)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("way", EVERY_WAY)
def test_final_statistics_are_not_taken_for_the_patchs(
    way: Way, order: Literal["<", ">"], sent: dict[int, int]
) -> None:
    machine = heard(sent, "v2", way, order)
    found = machine.statistics()
    assert (found.reason, found.values, found.raw) == ("malformed", {}, ())
    assert events(machine, "stats-malformed") == [
        "the driver's statistics are laid out as with stats-format=final, and this device has stats-format=v2"
    ], "once, though they came twice"
    machine.close()


def test_a_driver_that_comes_to_speak_the_devices_own_is_understood_and_another_one_told_again() -> None:
    machine = heard(FINAL_TAGS, "v2")
    machine.request_stats()
    machine.driver.collect(STATSQ)
    machine.driver.post_stats(stats_v2_bytes(ALL))
    assert machine.statistics().reason == "ok"
    for _ in range(2):
        machine.driver.start()
        machine.driver.post_stats(bytes(56))
        machine.request_stats()
        machine.driver.collect(STATSQ)
        machine.driver.post_stats(FINAL_TAGS)
    assert len(events(machine, "stats-malformed")) == 3
    machine.close()


def test_what_is_no_whole_entry_and_knows_no_tag_is_malformed() -> None:
    machine = heard(b"\xa5" * 57, "final")
    found = machine.statistics()
    assert (found.reason, found.values, found.raw) == ("malformed", {}, ())
    assert events(machine, "stats-malformed") == [
        "the driver's statistics are no whole entries of 10 bytes, and no tag is known"
    ]
    machine.close()


@pytest.mark.parametrize(
    ("payload", "stats_format", "values"),
    [
        ([(65534, 7), (65535, 8)], "final", {}),
        ([(5, 7), (5, 8), (99, 1)], "final", {"stat-total-memory": 8}),
        ([(5, 7), (4, 8), (3, 9), (2, 1)], "final", None),
        (b"\5\0\7" + bytes(7) + b"\xff" * 3, "final", {"stat-total-memory": 7}),
        (stats_v2_bytes([(5, 4), (99, 4)]), "v2", {"stat-free-memory": 4096}),
        (stats_v2_bytes([(5, 4), (4, 9)]) + bytes(4), "v2", {"stat-free-memory": 4096, "stat-minor-faults": 9}),
        (stats_v2_bytes(ALL[:5]), "v2", None),
        (b"\0", "final", {}),
    ],
    ids=["unknown", "twice", "four", "a tail", "v2, unknown", "v2, a tail", "v2, five of 40 bytes", "empty"],
)
def test_where_it_is_not_certain_nothing_is_guessed(
    payload: object, stats_format: str, values: dict[str, int] | None
) -> None:
    machine = heard(payload, stats_format)  # type: ignore[arg-type]
    assert machine.statistics().reason == "ok"
    assert values is None or machine.statistics().values == values
    assert events(machine, "stats-malformed") == []
    machine.close()


def test_bytes_behind_the_last_whole_entry_are_told_of() -> None:
    machine = heard(stats_v2_bytes(ALL) + b"\0\0\0", "v2")
    assert events(machine, "ignored-bytes")[0] == "statsq: 3 bytes are no whole entry, or too many"
    assert machine.statistics().reason == "ok"
    machine.close()


def test_a_saved_report_is_still_malformed(started: BalloonMachine) -> None:
    started.driver.post_stats(b"\0")
    started.request_stats()
    started.driver.collect(STATSQ)
    started.driver.post_stats(FINAL_TAGS)
    before = started.statistics()
    state: Any = started.balloon.save_state()
    assert before.reason == "malformed"
    other = Balloon(started.memory, stats_format="v2", features=started.balloon.device_features)
    other.check_state(state, "balloon")
    other.restore_state(state)
    assert other.statistics(started.now_ns) == before
    state["stats"]["last"]["misfit"] = "v3"
    with pytest.raises(ConfigError, match="'v3'"):
        other.check_state(state, "balloon")
    state["stats"]["last"] |= {"misfit": "final", "raw": [[4, 5]]}
    with pytest.raises(ConfigError, match="say nothing"):
        other.check_state(state, "balloon")

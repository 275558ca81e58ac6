"""Saved states of devices: nothing is left out, nothing is shared, and a reset device has the state of a new one."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from devices.acpi import PmEvents
from devices.bus import AddressSpace
from devices.debug_port import DebugPort
from devices.errors import ConfigError
from devices.fw_cfg import FwCfg
from devices.fw_cfg_dma import FwCfgDma
from devices.interval_timer import IntervalTimer
from devices.irq.apic_timer import ApicTimer
from devices.irq.ioapic import IoApic
from devices.irq.lapic import LocalApic
from devices.irq.lines import LineController
from devices.irq.pic import Pic, PicPair
from devices.irq.wiring import InterruptWiring
from devices.keyboard import KeyboardController, SystemControlA
from devices.memory import GuestMemory
from devices.pci.config import ConfigSpace, Identity
from devices.pci.function import PciFunction
from devices.pci.host_bridge import HostBridge
from devices.pci.i440fx import I440fx
from devices.pci.msix import MsixTable
from devices.pci.piix import IsaBridge, PowerManagement
from devices.power import Pm1aControl
from devices.rtc import Rtc
from devices.serial import Serial
from devices.state import (
    FLAG,
    PART,
    TEXT,
    Bytes,
    Int,
    Kind,
    Many,
    Maybe,
    Pairs,
    Record,
    Stateful,
    Table,
    Tuple,
    Word,
    uint,
)
from devices.timer import Counter, Timer8254
from devices.virtio import spec
from devices.virtio.balloon import Balloon
from devices.virtio.balloon.hinting import FreePageHinting
from devices.virtio.balloon.pages import BalloonPages
from devices.virtio.balloon.sliced import SlicedBatch
from devices.virtio.balloon.stats import StatsConversation
from devices.virtio.packed import PackedQueue
from devices.virtio.queue import Queue
from devices.virtio.rng import Rng
from devices.virtio.split import SplitQueue
from devices.virtio.transport.mmio import VirtioMmio
from devices.virtio.transport.mmio_legacy import VirtioMmioLegacy
from devices.virtio.transport.pci_legacy import LegacyRegisters, VirtioPciLegacy
from devices.virtio.transport.pci_modern import VirtioPciModern
from devices.virtio.transport.pci_transitional import VirtioPciTransitional
from devices.write_tracking import WriteTracking
from devices.writes import WriteLog
from tests.support import BalloonMachine, Way, build_with
from vmm.boards.board import SeededEntropy
from vmm.boards.pc import BalloonUnderWatch, PcBoard
from vmm.boards.ppc import PpcBoard
from vmm.clock import RealtimeClock, VirtualClock
from vmm.config import make_config
from vmm.cpu.shadow import ShadowMemory
from vmm.cpu.unicorn_cpu import UnicornCpu
from vmm.machine import Machine
from vmm.pc_platform import PcPlatform
from vmm.ppc_platform import PpcPlatform
from vmm.transcript import Transcript
from vmm.watch.balloon import DriverWatch
from vmm.watch.breaches import Breaches
from vmm.watch.conversations import HintRules, StatsRules
from vmm.watch.pages import PageRules

OTHER_TRANSPORTS: tuple[Way, ...] = ("transitional", "legacy", "mmio", "mmio-legacy")
FIT = "The saved state does not fit this machine: "


# -- completeness --------------------------------------------------------------------------------------------------

VIRTIO = "memory name device_features driver_order policy queues _used _budget"
BALLOON = (
    f"{VIRTIO} config numbering _ram_pages _payload_limit _reader _handlers _page_handlers _page_queues _stats_queue "
    "_partial"
)
FUNCTION = "slot devfn name address bars"
BUILT: dict[type, str] = {
    LocalApic: "name",
    ApicTimer: "",
    Timer8254: "line",
    Counter: "",
    Rtc: "below_4g_bytes above_4g_bytes line",
    Serial: "line",
    FwCfg: "",
    FwCfgDma: "_fw_cfg _memory",
    Pm1aControl: "name",
    ConfigSpace: "_fields _initial _writable",
    MsixTable: "vectors pba_offset bar",
    PciFunction: FUNCTION,
    I440fx: FUNCTION,
    IsaBridge: FUNCTION,
    PowerManagement: f"{FUNCTION} _ports",
    Pic: "is_master",
    PicPair: "",
    IoApic: "",
    InterruptWiring: "lapic _isa _pirq _router",
    PmEvents: "line",
    KeyboardController: "",
    SystemControlA: "",
    DebugPort: "",
    ShadowMemory: "_engine _changed _rom _hidden _mapping _window _address",
    VirtioPciModern: f"{FUNCTION} table _window_data",
    VirtioPciLegacy: f"{FUNCTION} table",
    VirtioPciTransitional: f"{FUNCTION} table _window_data",
    LegacyRegisters: "_function",
    VirtioMmio: "line",
    VirtioMmioLegacy: "line",
    HostBridge: "_spaces _ram _mapped functions",
    Queue: "index name max_size feature policy ring paused",
    PackedQueue: "size _memory _event_idx _in_order _policy _walker _bytes _words _driver_event _device_event _records "
    "_ring_gpa _device_gpa _round _ids_in_flight _place _told_place",
    SplitQueue: "size _memory _event_idx _in_order _notify_on_empty _used_elem _walker _available _available_ring "
    "_used _used_bytes _used_ring _used_gpa _heads_in_flight",
    Balloon: BALLOON,
    BalloonUnderWatch: f"{BALLOON} _now_ns _failed_before _bad_before _may_sweep",
    DriverWatch: "",
    Breaches: "",
    StatsRules: "_breaches",
    HintRules: "_breaches",
    PageRules: "_memory _breaches _pending",
    SlicedBatch: "_memory _reader _longest _payload _pages _read_bytes _from",
    Rng: f"{VIRTIO} _entropy",
    StatsConversation: "layout",
    FreePageHinting: "_memory",
    WriteTracking: "_regions _end_pages _close _pagemap _written_before",
    BalloonPages: "_size _host_unit _name _bytes _inside count",
    WriteLog: "",
    SeededEntropy: "seed",
    VirtualClock: "",
    RealtimeClock: "_start_ns _standing_ns _stops",
    PcBoard: "config memory payload ports mmio rom transports timed isa_bridge memory_map acpi_files collectors",
    PpcBoard: "config memory payload mmio rom timed entry",
    LineController: "_bits",
    IntervalTimer: "line",
    PpcPlatform: "attentive cpu table _board _clock _memory",
    PcPlatform: "attentive cpu table _board _clock _memory _pc collectors",
    Transcript: "",
    Machine: "config observers debug_sinks attendants is_paused paused_s debug_stop stats_unix_s _interrupted "
    "_quitting board memory _shortage",
}
"""The attributes that are not in the table: fixed when the object is built, made from others, or saved by code beside
the table (`queues`, `ring`, `functions`, `_mapped`, what `BalloonPages`, `SlicedBatch` and `ShadowMemory` hold,
`memory` of the machine, `cpu` of its platform)."""


def attributes(thing: object) -> set[str]:
    slots = {name for each in type(thing).__mro__ for name in getattr(each, "__slots__", ())}
    return slots | set(getattr(thing, "__dict__", ()))


def everything() -> dict[type, Any]:
    """One object of each class that has a state."""
    found: dict[type, Any] = {}
    seen: list[Any] = []

    def walk(thing: Any) -> None:
        if type(thing) in BUILT and not any(thing is each for each in seen):
            seen.append(thing)
            found.setdefault(type(thing), thing)
            for name in attributes(thing):
                value = getattr(thing, name)
                each: Any
                for each in (
                    value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
                ):
                    walk(each)

    machine = BalloonMachine("pci")
    machine.driver.start()
    full = Machine(make_config("hello", memory="4M", devices=("virtio-balloon-pci", "virtio-rng-pci")))
    assert isinstance(full.platform.cpu, UnicornCpu)
    packed = BalloonMachine(build=build_with(spec.VIRTIO_F_RING_PACKED))
    packed.driver.start()
    rings = machine.balloon.queues[0].ring, packed.balloon.queues[0].ring, full.memory.writes
    ppc = Machine(make_config("stats", memory="4M", arch="ppc"))
    plain = PciFunction(9, "plain", Identity(1, 2, 3, 4))
    others = [BalloonMachine(way) for way in OTHER_TRANSPORTS]
    functions = [other.function for other in others]
    watched = BalloonMachine(build=BalloonUnderWatch)
    machines = full, ppc, machine.balloon, watched.balloon, *functions
    for thing in (*machines, *rings, RealtimeClock(), plain, full.platform.cpu._shadow):
        walk(thing)
    full.close()
    ppc.close()
    for made in (machine, packed, watched, *others):
        made.close()
    return found


def test_every_attribute_of_every_device_is_saved_or_comes_from_how_it_was_built() -> None:
    found = everything()
    assert set(found) == set(BUILT)
    for kind, thing in found.items():
        saved, built = set(kind.STATE) if issubclass(kind, Stateful) else set(), set(BUILT[kind].split())
        assert not saved & built, kind
        assert attributes(thing) - {"STATE"} == {name for name in saved if name != "elapsed_ns"} | built, kind


def test_all_classes_with_a_state_are_known_here() -> None:
    def below(kind: type) -> set[type]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    # By name: a dataclass with slots leaves the class it was made from behind, until the collector finds it.
    own = {
        each for each in below(Stateful) if each.__module__.startswith(("devices.", "vmm.")) and "STATE" in vars(each)
    }
    abstract = {
        "Stateful",
        "BoardPlatform",
        "Negotiation",
        "VirtioDevice",
        "VirtioPciFunction",
        "NumberedDevice",
        "HintedDevice",
        "StatsDevice",
    }
    assert {each.__name__ for each in own} - abstract <= {each.__name__ for each in BUILT}


# -- reset ---------------------------------------------------------------------------------------------------------


def disturb_lapic(apic: LocalApic) -> None:
    apic.write(0xF0, 4, 0x1FF, 5)
    apic.write(0x320, 4, 0x20040, 5)
    apic.write(0x380, 4, 1000, 5)
    apic.message(0xFEE00000, 0x45)


def disturb_timer(timer: Timer8254) -> None:
    for value in (0x34, 0x10, 0x20):
        timer.write(3 if value == 0x34 else 0, 1, value, 1000)
    timer.write(3, 1, 0xC2, 5000)


def disturb_rtc(rtc: Rtc) -> None:
    for index, value in ((0x0B, 0x42), (0x40, 0x77), (0x09, 0x30)):
        rtc.write(0, 1, index, 10)
        rtc.write(1, 1, value, 10)
    rtc.advance(10**10)


def disturb_serial(serial: Serial) -> None:
    for offset, value in ((1, 0x0F), (2, 0xC1), (4, 0x0B), (0, 0x41), (7, 0x55)):
        serial.write(offset, 1, value, 0)
    serial.receive(b"abc", 0)


def disturb_fw_cfg(fw_cfg: FwCfg) -> None:
    fw_cfg.write(0, 2, 0x19, 0)
    fw_cfg.read(1, 4, 0)


def disturb_pm1a(pm1a: Pm1aControl) -> None:
    pm1a.write(0, 2, 0x1C02, 0)


CASES: list[tuple[Callable[[], Any], Callable[[Any], None]]] = [
    (LocalApic, disturb_lapic),
    (Timer8254, disturb_timer),
    (lambda: Rtc(10**9, 64 << 20), disturb_rtc),
    (Serial, disturb_serial),
    (lambda: FwCfg({"a": b"12345678"}), disturb_fw_cfg),
    (Pm1aControl, disturb_pm1a),
]


@pytest.mark.parametrize(("build", "disturb"), CASES, ids=["lapic", "8254", "rtc", "16550", "fw_cfg", "pm1a"])
def test_a_state_goes_to_a_new_device_and_a_reset_one_has_the_state_of_a_new_one(
    build: Callable[[], Any], disturb: Callable[[Any], None]
) -> None:
    device, fresh = build(), build()
    disturb(device)
    state = device.save_state()
    assert state != fresh.save_state()
    other = build()
    other.check_state(state, "device")
    other.restore_state(state)
    assert other == device and other.save_state() == state
    device.reset()
    assert device == fresh and device.save_state() == fresh.save_state()
    assert other.save_state() == state, "nothing is shared"
    other.restore_state(fresh.save_state())
    assert other == fresh


# -- the host bridge remembers who came first ------------------------------------------------------------------------


def test_two_functions_at_one_address_keep_their_order() -> None:
    def bridge(memory: GuestMemory) -> tuple[HostBridge, AddressSpace]:
        mmio = AddressSpace("memory", 52)
        bridge = HostBridge(AddressSpace("port", 16), mmio, memory)
        for slot in (3, 4):
            bridge.plug(VirtioPciModern(Balloon(memory, name=f"balloon{slot}"), slot))
        return bridge, mmio

    def map_at(bridge: HostBridge, slot: int, gpa: int) -> None:
        for offset, value in ((0x20, gpa), (4, 2)):
            bridge.write(0, 4, 1 << 31 | slot << 11 | offset, 0)
            bridge.write(4, 4, value, 0)

    with GuestMemory([(0, 1 << 20)]) as memory:
        (first, spaces), (second, other) = bridge(memory), bridge(memory)
        map_at(first, 4, 0xE0000000)
        map_at(first, 3, 0xE0000000)
        map_at(second, 3, 0xE0000000)
        state = first.save_state()
        second.check_state(state, "bridge")
        second.restore_state(state)
        assert [each.owner for each in spaces.ranges if each.base == 0xE0000000] == ["balloon4 BAR4"]
        assert [each.owner for each in other.ranges] == [each.owner for each in spaces.ranges]
        assert second == first and second.save_state() == state


# -- the kinds -----------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0

    def __post_init__(self) -> None:
        if self.x == self.y:
            raise ValueError("x and y are equal")


POINT = Record(Point, x=uint(4), y=uint(4))


@pytest.mark.parametrize(
    ("kind", "before", "value", "plain"),
    [
        (Int(-2, 5), 0, -2, -2),
        (uint(8), 0, 255, 255),
        (FLAG, False, True, True),
        (TEXT, "", "a", "a"),
        (Bytes(), b"12", b"ab", b"ab"),
        (Bytes(4), b"", b"abcd", b"abcd"),
        (Maybe(uint(8)), 3, None, None),
        (Maybe(uint(8)), None, 3, 3),
        (Many(uint(8)), [0, 0], [1, 2], [1, 2]),
        (Many(uint(8), longest=3), (), (1, 2, 3), [1, 2, 3]),
        (Pairs(Tuple(uint(8), uint(8)), TEXT), {}, {(2, 1): "b", (1, 2): "a"}, [[[1, 2], "a"], [[2, 1], "b"]]),
        (POINT, None, Point(1, 2), {"x": 1, "y": 2}),
        (Word(Colour), Colour.RED, Colour.BLUE, "blue"),
    ],
)
def test_a_kind_gives_back_what_it_saved(kind: Kind, before: object, value: object, plain: object) -> None:
    assert kind.save(value) == plain
    kind.check(before, plain, "it")
    restored = kind.restore(before, plain)
    assert restored == value and type(restored) is type(value)


@pytest.mark.parametrize(
    ("kind", "before", "plain", "sentence"),
    [
        (Int(-2, 5), 0, 6, "it must be a number from -2 to 5, not 6."),
        (Int(-2, 5), 0, -3, "it must be a number from -2 to 5, not -3."),
        (uint(1), 0, True, "it must be a number from 0 to 1, not True."),
        (FLAG, False, 1, "it must be true or false, not 1."),
        (TEXT, "", b"a", "it must be a text, not b'a'."),
        (Bytes(), b"12", b"a", "it must be 2 bytes, not '1 bytes'."),
        (Bytes(4), b"", b"abcde", "it must be at most 4 bytes, not '5 bytes'."),
        (Bytes(4), b"", "a" * 100, f"it must be bytes, not '{'a' * 39}…."),
        (Maybe(uint(8)), None, "3", "it must be a number from 0 to 255, not '3'."),
        (Many(uint(8)), [0, 0], [1], "it must be a list of 2 entries, not [1]."),
        (Many(uint(8)), [0, 0], [1, 256], "it[1] must be a number from 0 to 255, not 256."),
        (Many(uint(8), longest=1), [], [1, 2], "it must be at most 1 entries, not '2 entries'."),
        (Many(uint(8), longest=1), [], (1,), "it must be a list, not (1,)."),
        (Pairs(uint(8), TEXT), {}, {1: "a"}, "it must be a list, not {1: 'a'}."),
        (Pairs(uint(8), TEXT), {}, [[1, 2]], "it[0] must be a text, not 2."),
        (Tuple(uint(8), FLAG), (0, True), [0], "it must be a list of 2 entries, not [0]."),
        (POINT, None, {"x": 1}, "it has no field 'y'."),
        (POINT, None, {"x": 1, "y": 2, "z": 3}, "it has an unknown field 'z'."),
        (POINT, None, {"x": 1, "y": 1}, "it: x and y are equal."),
        (POINT, None, [1, 2], "it must be a table of fields, not [1, 2]."),
        (Word(Colour), Colour.RED, "green", "it must be one of red, blue, not 'green'."),
        (PART, None, {}, "it must be absent, not {}."),
    ],
)
def test_a_kind_refuses_in_one_sentence(kind: Kind, before: object, plain: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        kind.check(before, plain, "it")
    assert str(refused.value) == FIT + sentence


class Box(Stateful):
    STATE: ClassVar[Table] = {"_data": Bytes(), "inner": PART}

    def __init__(self, inner: Box | None = None) -> None:
        self._data = bytearray(2)
        self.inner = inner


def test_buffers_and_parts_stay_the_objects_they_are() -> None:
    box = Box(Box())
    data, inner, view = box._data, box.inner, memoryview(box._data)
    state: Any = {"data": b"ab", "inner": {"data": b"cd", "inner": None}}
    box.check_state(state, "box")
    box.restore_state(state)
    assert box._data is data and box.inner is inner and bytes(view) == b"ab"
    assert box.save_state() == state


def test_the_sentence_names_the_place() -> None:
    with pytest.raises(ConfigError) as refused:
        Box(Box()).check_state({"data": b"ab", "inner": {"data": b"c", "inner": None}}, "box")
    assert str(refused.value) == FIT + "box.inner.data must be 2 bytes, not '1 bytes'."

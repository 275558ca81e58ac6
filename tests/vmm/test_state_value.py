"""The saved state as a value: plain data, complete without its machine, and refused in one sentence where it does not
fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

import vmm
from devices import hostcalls
from devices.effects import Event
from devices.errors import ConfigError
from vmm.machine import Machine
from vmm.state import SCHEMA, VERSION, MachineState

MIB = 1 << 20


def boot(**options: Any) -> Machine:
    return vmm.boot("stats", **{"memory": "4M", "poll": 0.1, "targets": "3M@0.2,4M@0.6", **options})


def saved_at(until: str, **options: Any) -> MachineState:
    with boot(**options) as machine:
        machine.run(until=until)
        return machine.save()


def leaves(value: object) -> set[type]:
    if type(value) is dict:
        assert {type(key) for key in value} <= {str}
        return set().union(*map(leaves, value.values()))
    if type(value) is list:
        return set().union(*map(leaves, value))
    return {type(value)}


def changed(state: MachineState, change: Callable[[Any], None]) -> MachineState:
    data = copy.deepcopy(state.data)
    change(data)
    return MachineState(data)


# -- a value -----------------------------------------------------------------------------------------------------------


def test_it_is_plain_data_with_a_schema_and_a_version() -> None:
    state = saved_at("300ms")
    assert leaves(state.data) <= {type(None), bool, int, str, bytes}
    assert (state.data["schema"], state.data["version"]) == (SCHEMA, VERSION) == ("balloon-vmm machine", 8)


def test_registers_have_their_names() -> None:
    with boot() as machine:
        machine.run(until="300ms")
        state: Any = machine.save().data
        registers = state["cpu"]["registers"]
        assert {name: registers[name] for name in machine.registers()} == machine.registers()
        assert {"xmm15", "mxcsr", "fpr7", "fpu_control", "pat", "mtrr_def_type", "dr7", "xcr0"} <= set(registers)
        assert state["cpu"]["blocks"] == machine.blocks


def test_it_shares_nothing_with_the_machine_and_does_not_change_it() -> None:
    with boot() as machine, boot() as unwatched:
        machine.run(until="100ms")
        unwatched.run(until="100ms")
        state = machine.save()
        as_it_was = copy.deepcopy(state)
        machine.run(until="400ms")
        unwatched.run(until="400ms")
        assert state == as_it_was != machine.save() == unwatched.save()


def test_holes_stay_holes() -> None:
    with vmm.boot("balloon", memory="32M", targets="8M@0") as machine, vmm.boot("balloon", memory="32M") as other:
        machine.run(until="1s")
        backed = machine.memory.backed_bytes()
        assert backed < 16 * MIB
        state: Any = machine.save().data
        assert sum(len(data) for _, data in state["memory"]["extents"]) == backed == machine.memory.backed_bytes()
        other.run(until="1s")
        assert other.memory.backed_bytes() > 31 * MIB
        other.restore(MachineState(state))
        assert other.memory.backed_bytes() == backed


def test_what_the_host_asked_for_before_the_cut_is_told_after_it() -> None:
    heard: list[Event] = []

    class Ear:
        def on_event(self, now_ns: int, event: Event) -> None:
            heard.append(event)

        def on_console(self, data: bytes) -> None: ...
        def on_stats(self, now_ns: int) -> None: ...
        def on_target(self, now_ns: int) -> None: ...

    with boot(targets="", poll=0) as machine, boot(targets="", poll=0) as other:
        machine.run(until="200ms")
        machine.balloon.set_target("3M")
        machine.balloon.request_stats()
        other.restore(machine.save())
        other.observers.append(Ear())
        other.run(until="50ms")
        machine.run(until="50ms")
        assert [event.kind for event in heard][:2] == ["target", "stats"]
        assert other.balloon.actual_pages == other.balloon.target_pages == 256
        assert other.report() == machine.report()


def test_the_targets_still_to_come_go_with_the_state() -> None:
    state = saved_at("300ms")
    with boot(targets="2M@0.9", poll=0) as machine:
        machine.restore(state)
        assert machine.balloon.target_pages == 256
        machine.run(until="500ms")
        assert machine.balloon.target_pages == 0
        machine.run(until="1s")
        assert machine.balloon.target_pages == 0


def test_a_run_that_is_over_is_over_after_restoring_and_goes_on_after_going_back() -> None:
    with boot(duration="0.5s") as machine, boot(duration="0.5s") as other:
        machine.run(until="200ms")
        before = machine.save()
        machine.run()
        end = machine.save()
        other.restore(end)
        assert other.run() == machine.outcome and other.exit_code == 0
        machine.restore(before)
        assert machine.outcome is None
        machine.run()
        assert machine.save() == end


def test_another_guests_machine_takes_it_over_whole() -> None:
    with vmm.boot("hello", memory="4M") as machine, boot() as original:
        original.run(until="300ms")
        machine.restore(original.save())
        original.run(until="500ms")
        machine.run(until="500ms")
        assert machine.save() == original.save()


def test_real_time_goes_on_where_it_stood() -> None:
    with boot(clock="realtime", targets="") as machine, boot(clock="realtime", targets="") as other:
        machine.run(until="200ms")
        state = machine.save()
        other.restore(state)
        stood: Any = state.data["run"]
        assert 0 <= other.now_ns - stood["clock"]["elapsed_ns"] < 100_000_000_000
        other.run(until=lambda m: m.stats.reason == "ok")
        reports = other.board.need_balloon()[1].stats_reports
        other.run(until=lambda m: m.board.need_balloon()[1].stats_reports >= reports + 2)


def test_anonymous_ram_is_saved_by_extents_too(monkeypatch: pytest.MonkeyPatch) -> None:
    state: Any = saved_at("500ms").data
    monkeypatch.setattr(hostcalls, "create_memory_file", lambda name, size: None)
    with boot() as machine, boot() as other:
        assert machine.memory.fd is None
        machine.run(until="500ms")
        own: Any = machine.save().data
        assert own["cpu"] == state["cpu"] and own["board"] == state["board"]
        machine.restore(MachineState(state))
        assert own["memory"]["extents"] == state["memory"]["extents"]
        other.restore(MachineState(own))
        assert other.save() == MachineState(own)
        assert other.memory.backed_bytes() == machine.memory.backed_bytes()
        for each in (machine, other):
            each.run(until="500ms")
        assert machine.report()["stats"] == other.report()["stats"]


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({"memory": "5M"}, "bytes of RAM: 4194304, not 5242880"),
        ({"clock": "realtime"}, "clock: 'virtual', not 'realtime'"),
        ({"devices": ("virtio-balloon-pci", "virtio-rng-pci")}, "devices: "),
        ({"devices": ("virtio-balloon-pci,event_idx=off",)}, "devices: "),
        ({"devices": ("virtio-balloon-pci,addr=7",)}, "devices: "),
    ],
)
def test_another_machine_is_named(options: dict[str, Any], other: str) -> None:
    state = saved_at("10ms")
    with boot(**options) as machine, pytest.raises(ConfigError) as refused:
        machine.restore(state)
    assert str(refused.value).startswith(f"The saved state is of a machine with other {other}")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({}, "This is not the state of a machine of balloon-vmm."),
        ([], "This is not the state of a machine of balloon-vmm."),
        ({"schema": SCHEMA, "version": 7}, "The saved state must be of version 8, not 7."),
        ({"schema": SCHEMA}, "The saved state must be of version 8, not None."),
    ],
)
def test_other_schemas_and_versions_are_refused(data: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        MachineState(data)
    assert str(refused.value) == sentence


def at(path: str, value: object) -> Callable[[Any], None]:
    """A change that puts `value` at a path such as "cpu.registers.rax"."""

    def change(data: Any) -> None:
        *way, last = path.split(".")
        for step in way:
            data = data[int(step) if isinstance(data, list) else step]
        data[int(last) if isinstance(data, list) else last] = value

    return change


def without(path: str) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        *way, last = path.split(".")
        for step in way:
            data = data[step]
        del data[last]

    return change


BALLOON = "board.host_bridge.functions.18.device"
QUEUE = f"{BALLOON}.queues.0"
FIT = "The saved state does not fit this machine: "


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("cpu"), "the state has no field 'cpu'."),
        (at("extra", 1), "the state has an unknown field 'extra'."),
        (without("cpu.registers.xmm3"), "cpu.registers has no field 'xmm3'."),
        (at("cpu.registers.rax", 1 << 64), f"cpu.registers.rax must be a number from 0 to {2**64 - 1}, not {2**64}."),
        (at("cpu.registers.rip", "0"), f"cpu.registers.rip must be a number from 0 to {2**64 - 1}, not '0'."),
        (at("cpu.halted", 1), "cpu.halted must be true or false, not 1."),
        (at("board.lapic.irr", -1), f"board.lapic.irr must be a number from 0 to {2**256 - 1}, not -1."),
        (at("board.timer.counters", []), "board.timer.counters must be a list of 3 entries, not []."),
        (
            at("board.timer.counters.1.count", 0),
            "board.timer.counters[1].count must be a number from 1 to 65536, not 0.",
        ),
        (at("board.rtc.stored", b"x"), "board.rtc.stored must be 128 bytes, not '1 bytes'."),
        (at("board.serial.received", bytes(17)), "board.serial.received must be at most 16 bytes, not '17 bytes'."),
        (at("run.console.kept", "text"), "run.console.kept must be bytes, not 'text'."),
        (at("run.stop", {"kind": "sudden", "code": 0}), None),
        (at("run.steps.0.ram_bytes", None), None),
        (at("run.steps.0.ram_bytes", 5 * MIB), None),
        (at(f"{QUEUE}.size", 100), "balloon0.device.inflateq.size must be a power of two up to 128, not 100."),
        (
            at(f"{QUEUE}.ring", None),
            "balloon0.device.inflateq.ring must be there exactly if the queue is enabled, not None.",
        ),
        (at(f"{QUEUE}.desc_gpa", 1 << 50), None),
        (at(f"{QUEUE}.used", 1), "balloon0.device.inflateq has an unknown field 'used'."),
        (
            at(f"{BALLOON}.held.0.head", 100),
            "balloon0.device.held must be a chain in flight in statsq, not 'the head 100'.",
        ),
        (
            at(f"{BALLOON}.pages.runs", [[0, 1 << 40]]),
            "balloon0.device.pages.runs[0] must be inside RAM, not [0, 1099511627776].",
        ),
        (
            at(f"{BALLOON}.pages.runs", [[9, 3], [11, 2]]),
            "balloon0.device.pages.runs[1] must be behind the run before it, not [11, 2].",
        ),
        (at("board.host_bridge.functions", {}), "board.host_bridge.functions has no field '00'."),
        (at("memory.extents.0.0", 1), "memory.extents[0] must be whole pages behind the extent before it, not 1."),
        (
            at("memory.extents", [[0xA0000, bytes(4096)]]),
            "memory.extents[0] must be inside one region of RAM, not 655360.",
        ),
        (at("memory.regions", []), None),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(change: Callable[[Any], None], sentence: str | None) -> None:
    with boot() as machine, boot() as target:
        machine.run(until="150ms")
        state = machine.save()
        target.run(until="20ms")
        before = target.save()
        with pytest.raises(ConfigError) as refused:
            target.restore(changed(state, change))
        assert str(refused.value).endswith(".") and "\n" not in str(refused.value)
        if sentence is not None:
            assert str(refused.value) == FIT + sentence
        assert target.save() == before
        target.restore(state)
        assert target.save() == state


def test_regression_statistics_dead_after_restore() -> None:
    """The held buffer comes back with the rest: a request after the restore is answered.

    Seed: stats dead after restore."""
    with vmm.boot("stats", memory="16M") as first, vmm.boot("stats", memory="16M") as second:
        first.run(until="100ms")
        second.restore(first.save())
        reported = second.board.need_balloon()[1].stats_reports

        second.balloon.request_stats()
        second.run(until="20ms")

        assert second.board.need_balloon()[1].stats_reports == reported + 1
        assert second.stats.reason == "ok"
        assert second.stats.age_ns is not None and second.stats.age_ns < 20_000_000

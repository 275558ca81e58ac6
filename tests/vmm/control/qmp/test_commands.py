"""What the commands do to a real machine, and what they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vmm
from devices.virtio import spec
from tests.vmm.control.qmp.talk import Talk
from vmm.machine import Machine

MIB = 1 << 20
BACKEND = "/machine/peripheral/balloon0/virtio-backend"
UNREPORTED = 18446744073709551615


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events if "event" in event]


# -- the state ---------------------------------------------------------------------------------------------------------


def test_stop_and_cont_are_told_before_they_are_answered_and_once(talk: Talk, machine: Machine) -> None:
    machine.run("0.1s")
    assert talk.ask("query-status") == {"status": "running", "singlestep": False, "running": True}
    event, answer = talk.hear('{"execute":"stop"}')
    assert (event["event"], answer) == ("STOP", {"return": {}})
    assert event["timestamp"].keys() == {"seconds", "microseconds"}
    assert talk.hear('{"execute":"stop"}') == [{"return": {}}]
    assert talk.ask("query-status") == {"status": "paused", "singlestep": False, "running": False}
    blocks = machine.blocks
    machine.run("1s")
    assert machine.blocks == blocks
    assert names(talk.hear('{"execute":"cont"}{"execute":"cont"}')) == ["RESUME"]
    machine.run("0.1s")
    assert machine.blocks > blocks


def test_a_machine_that_has_not_begun_is_prelaunch(talk: Talk, machine: Machine) -> None:
    machine.pause()
    assert talk.ask("query-status")["status"] == "prelaunch"


def test_a_reset_begins_anew(talk: Talk, machine: Machine) -> None:
    machine.run("0.1s")
    before = machine.console
    event, _ = talk.hear('{"execute":"system_reset"}')
    assert (event["event"], event["data"]) == ("RESET", {"guest": False, "reason": "host-qmp-system-reset"})
    machine.run("0.1s")
    assert machine.console[len(before) :].startswith(before[:64])


def test_the_power_button_is_an_event_and_a_board_without_one_says_so(talk: Talk) -> None:
    assert names(talk.hear('{"execute":"system_powerdown"}')) == ["POWERDOWN"]
    with vmm.boot("stats", arch="ppc", devices=["virtio-balloon-device"]) as ppc:
        class_, desc = Talk(ppc).refusal("system_powerdown")
        assert class_ == "GenericError" and "power button" in desc


def test_quit_ends_the_run_well_and_is_told_once(talk: Talk, machine: Machine) -> None:
    event, answer = talk.hear('{"execute":"quit"}')
    assert (event["event"], event["data"]) == ("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
    assert answer == {"return": {}}
    outcome = machine.run()
    assert outcome is not None and (outcome.kind, outcome.exit_code) == ("host-quit", 0)
    talk.events.end(outcome)
    assert talk.wire.take() == []


def test_what_cannot_be_asked_is_answered_as_qemu_does(talk: Talk) -> None:
    assert talk.ask("query-uuid") == {"UUID": "00000000-0000-0000-0000-000000000000"}
    assert talk.ask("query-kvm") == {"enabled": False, "present": False}
    assert talk.ask("query-target") == {"arch": "x86_64"}
    assert talk.ask("query-memory-size-summary") == {"base-memory": 64 * MIB, "plugged-memory": 0}


# -- the balloon -------------------------------------------------------------------------------------------------------


def test_the_balloon_follows_and_its_size_is_told_as_the_ram_that_is_left(talk: Talk, machine: Machine) -> None:
    machine.run("0.1s")
    assert talk.ask("query-balloon") == {"actual": 64 * MIB}
    assert talk.ask("balloon", value=40 * MIB) == {}
    machine.run("0.5s")
    assert talk.ask("query-balloon") == {"actual": 40 * MIB}
    assert machine.balloon.actual_pages == 24 * 256


def test_more_than_all_ram_means_all_of_it(talk: Talk, machine: Machine) -> None:
    talk.ask("balloon", value=40 * MIB)
    talk.ask("balloon", value=99999999999999999)
    assert machine.balloon.target_pages == 0


def test_without_a_balloon_it_is_not_active() -> None:
    with vmm.boot("hello", devices=["virtio-rng-pci"]) as machine:
        talk = Talk(machine)
        refused = ("DeviceNotActive", "No balloon device has been activated")
        assert talk.refusal("query-balloon") == refused
        assert talk.refusal("balloon", value=1 << 24) == refused
        assert "balloon" not in talk.ask("x-vmm-status")


def test_statistics_have_qemus_names_and_its_number_for_what_is_missing(talk: Talk, machine: Machine) -> None:
    get = {"path": "balloon0", "property": "guest-stats"}
    before = talk.ask("qom-get", **get)
    assert before["last-update"] == 0
    assert len(before["stats"]) == 10 and set(before["stats"].values()) == {UNREPORTED}
    machine.run("0.1s")
    talk.ask("qom-set", path="balloon0", property="guest-stats-polling-interval", value=2)
    machine.run("0.5s")
    after = talk.ask("qom-get", path=BACKEND, property="guest-stats")
    assert after["last-update"] > 1_500_000_000
    assert 0 < after["stats"]["stat-free-memory"] < 64 * MIB
    assert after["stats"]["stat-htlb-pgalloc"] == UNREPORTED
    reports = machine.board.need_balloon()[1].stats_reports
    machine.run("4s")
    assert machine.board.need_balloon()[1].stats_reports == reports + 2
    assert talk.ask("qom-get", path="balloon0", property="guest-stats-polling-interval") == 2


@pytest.mark.parametrize(
    ("value", "desc"),
    [
        (-2, "timer value must be greater than zero"),
        (9999999999, "timer value is too big"),
        ("x", "Invalid parameter type for 'guest-stats-polling-interval', expected: integer"),
    ],
)
def test_a_polling_interval_that_cannot_be(talk: Talk, value: Any, desc: str) -> None:
    refusal = talk.refusal("qom-set", path="balloon0", property="guest-stats-polling-interval", value=value)
    assert refusal == ("GenericError", desc)


def test_fresh_statistics_can_be_asked_for(talk: Talk, machine: Machine) -> None:
    machine.run("0.1s")
    reports = talk.ask("x-vmm-status")["balloon"]["stats-reports"]
    talk.ask("x-vmm-request-stats")
    machine.run("0.1s")
    assert talk.ask("x-vmm-status")["balloon"]["stats-reports"] == reports + 1


# -- the object tree ---------------------------------------------------------------------------------------------------


def test_devices_are_where_qemu_has_them(talk: Talk) -> None:
    def listed(path: str) -> dict[str, str]:
        return {each["name"]: each["type"] for each in talk.ask("qom-list", path=path)}

    assert listed("/")["machine"].startswith("child<")
    assert {"peripheral", "peripheral-anon"} <= listed("/machine").keys()
    assert listed("/machine/peripheral") == {"type": "string", "balloon0": "child<virtio-balloon-pci>"}
    assert listed("/machine/peripheral-anon") == {"type": "string", "device[0]": "child<virtio-rng-pci>"}
    assert listed("balloon0")["guest-stats"] == "guest statistics"
    assert listed("balloon0/virtio-backend")["guest-stats-polling-interval"] == "int"
    assert talk.ask("qom-get", path="/machine/peripheral-anon/device[0]", property="type") == "virtio-rng-pci"
    assert talk.ask("qom-get", path="balloon0", property="virtio-backend") == BACKEND
    assert talk.ask("qom-get", path="balloon0", property="deflate-on-oom") is False
    assert talk.ask("qom-get", path="balloon0", property="legacy-addr") == "03.0"
    assert talk.ask("qom-get", path="balloon0", property="addr") == 24


def test_a_device_on_mmio_is_its_own_backend() -> None:
    with vmm.boot("hello", devices=["virtio-balloon-device,id=b"]) as machine:
        talk = Talk(machine)
        assert talk.ask("x-query-virtio") == [{"name": "virtio-balloon", "path": "/machine/peripheral/b"}]
        assert talk.ask("x-query-virtio-status", path="/machine/peripheral/b")["device-id"] == 5


@pytest.mark.parametrize(
    ("command", "arguments", "refusal"),
    [
        ("qom-list", {"path": "/nope"}, ("DeviceNotFound", "Device '/nope' not found")),
        ("qom-list", {"path": ""}, ("GenericError", "Path '' is ambiguous")),
        ("qom-list", {"path": "virtio-backend"}, ("GenericError", "Path 'virtio-backend' is ambiguous")),
        ("qom-get", {"path": "b9", "property": "x"}, ("DeviceNotFound", "Device 'b9' not found")),
        (
            "qom-get",
            {"path": "balloon0", "property": "x"},
            ("GenericError", "Property 'virtio-balloon-pci.x' not found"),
        ),
        (
            "qom-set",
            {"path": "balloon0", "property": "x", "value": 1},
            ("GenericError", "Property 'virtio-balloon-pci.x' not found"),
        ),
        (
            "qom-set",
            {"path": "balloon0", "property": "guest-stats", "value": 1},
            ("GenericError", "Property 'virtio-balloon-device.guest-stats' is not writable"),
        ),
        ("x-query-virtio-status", {"path": "/x"}, ("GenericError", "Path /x is not a VirtIODevice")),
        (
            "x-query-virtio-queue-status",
            {"path": BACKEND, "queue": 9},
            ("GenericError", "Invalid virtqueue number 9"),
        ),
        (
            "x-query-virtio-queue-element",
            {"path": BACKEND, "queue": 0},
            ("GenericError", "Region caches not initialized"),
        ),
        (
            "x-query-virtio-queue-status",
            {"path": BACKEND, "queue": 65536},
            ("GenericError", "Parameter 'queue' expects uint16_t"),
        ),
    ],
)
def test_what_is_not_there_is_told_in_qemus_words(
    talk: Talk, command: str, arguments: dict[str, Any], refusal: tuple[str, str]
) -> None:
    assert talk.refusal(command, **arguments) == refusal


def test_what_a_device_was_made_with_stays(talk: Talk) -> None:
    class_, desc = talk.refusal("qom-set", path="balloon0", property="deflate-on-oom", value=True)
    assert class_ == "GenericError"
    assert desc.startswith("Attempt to set property 'deflate-on-oom' on ") and desc.endswith("after it was realized")


# -- virtio and PCI ----------------------------------------------------------------------------------------------------


def test_a_virtio_device_is_told_from_negotiation_to_its_rings(talk: Talk, machine: Machine) -> None:
    fresh = talk.ask("x-query-virtio-status", path=BACKEND)
    assert (fresh["started"], fresh["status"]["statuses"], fresh["guest-features"]["transports"]) == (False, [], [])
    machine.run("0.1s")
    talk.ask("balloon", value=40 * MIB)
    machine.run("0.5s")
    status = talk.ask("x-query-virtio-status", path=BACKEND)
    assert (status["name"], status["device-id"], status["num-vqs"], status["started"]) == ("virtio-balloon", 5, 3, True)
    assert [each.partition(":")[0] for each in status["status"]["statuses"]] == [
        *("VIRTIO_CONFIG_S_ACKNOWLEDGE", "VIRTIO_CONFIG_S_DRIVER", "VIRTIO_CONFIG_S_FEATURES_OK"),
        "VIRTIO_CONFIG_S_DRIVER_OK",
    ]
    assert "VIRTIO_BALLOON_F_STATS_VQ" in status["guest-features"]["dev-features"]
    assert "VIRTIO_RING_F_EVENT_IDX" in status["host-features"]["transports"]
    queue = talk.ask("x-query-virtio-queue-status", path=BACKEND, queue=0)
    own = machine.board.virtio_devices[0].queues[0]
    assert (queue["vring-desc"], queue["vring-num"]) == (own.desc_gpa, own.size)
    assert queue["last-avail-idx"] == queue["used-idx"] == own.requests > 0
    assert queue["inuse"] == 0
    assert talk.ask("x-query-virtio-queue-status", path=BACKEND, queue=2)["inuse"] == 1  # the statistics that are held


def test_an_element_of_a_ring_is_what_the_driver_wrote(talk: Talk, machine: Machine) -> None:
    machine.run("0.1s")
    talk.ask("balloon", value=40 * MIB)
    machine.run("0.5s")
    backed = machine.memory.backed_bytes()
    element = talk.ask("x-query-virtio-queue-element", path=BACKEND, queue=0, index=0)
    own = machine.board.virtio_devices[0].queues[0]
    head = machine.memory.read_int(own.driver_gpa + 4, 2)
    assert element["index"] == element["avail"]["ring"] == head
    assert element["avail"]["idx"] == element["used"]["idx"] == own.requests
    descriptor = own.desc_gpa + 16 * head
    (found,) = element["descs"]
    assert (found["addr"], found["len"]) == (
        machine.memory.read_int(descriptor, 8),
        machine.memory.read_int(descriptor + 8, 4),
    )
    assert machine.memory.backed_bytes() == backed


def test_a_ring_that_leads_nowhere_is_an_error_of_the_command_only(talk: Talk, machine: Machine) -> None:
    machine.run("0.1s")
    own = machine.board.virtio_devices[0].queues[0]
    for flags, addr in ((spec.VIRTQ_DESC_F_INDIRECT, 1 << 50), (spec.VIRTQ_DESC_F_NEXT, 0)):
        machine.memory.write_int(own.desc_gpa, 8, addr)
        machine.memory.write_int(own.desc_gpa + 8, 4, 1 << 20)
        machine.memory.write_int(own.desc_gpa + 12, 2, flags)
        machine.memory.write_int(own.desc_gpa + 14, 2, 0)  # and so on round for ever
        machine.memory.write_int(own.driver_gpa + 4, 2, 0)
        answer = talk.answer("x-query-virtio-queue-element", path=BACKEND, queue=0, index=0)
        assert ("error" in answer) == (flags == spec.VIRTQ_DESC_F_INDIRECT)
    assert len(answer["return"]["descs"]) == own.size
    assert not machine.board.virtio_devices[0].needs_reset


def test_functions_on_the_bus_are_told_as_software_has_set_them_up(talk: Talk, machine: Machine) -> None:
    def find(slot: int, function: int = 0) -> dict[str, Any]:
        (bus,) = talk.ask("query-pci")
        return next(each for each in bus["devices"] if (each["slot"], each["function"]) == (slot, function))

    assert {region["address"] for region in find(3)["regions"]} == {-1}
    machine.run("0.1s")
    assert find(0)["class_info"] == {"class": 0x600, "desc": "Host bridge"}
    balloon = find(3)
    assert balloon["id"]["vendor"] == 0x1AF4 and balloon["id"]["device"] == 0x1045
    assert (balloon["qdev_id"], balloon["irq_pin"]) == ("balloon0", 1)
    assert find(4)["qdev_id"] == ""
    for region in balloon["regions"]:
        assert region["address"] % region["size"] == 0 and region["address"] > 0
        assert region["type"] == "memory"


# -- RAM ---------------------------------------------------------------------------------------------------------------


def test_memory_is_saved_as_it_is_and_nothing_comes_back_for_it(talk: Talk, machine: Machine, tmp_path: Path) -> None:
    machine.run("0.1s")
    machine.memory.write(0x9F000, bytes(range(256)))
    backed = machine.memory.backed_bytes()
    talk.ask("pmemsave", val=0x9EFF0, size=0x2000, filename=str(tmp_path / "some"))
    data = (tmp_path / "some").read_bytes()
    assert len(data) == 0x2000
    assert data[0x10:0x110] == bytes(range(256))
    assert data[0x1010:] == bytes(0xFF0)  # above A0000h there is no RAM
    talk.ask("pmemsave", val=0, size=64 * MIB, filename=str(tmp_path / "all"))
    assert (tmp_path / "all").stat().st_size == 64 * MIB
    assert (tmp_path / "all").read_bytes()[0x9F000:0x9F100] == bytes(range(256))
    assert machine.memory.backed_bytes() == backed


def test_memory_that_cannot_be_saved(talk: Talk, tmp_path: Path) -> None:
    missing = str(tmp_path / "no" / "x")
    refused = ("GenericError", f"Could not open '{missing}': No such file or directory")
    assert talk.refusal("pmemsave", val=0, size=16, filename=missing) == refused
    for val, size in ((0, 1 << 62), (-1, 2), (0, -1), (64 * MIB, 1)):
        assert talk.refusal("pmemsave", val=val, size=size, filename=str(tmp_path / "x"))[0] == "GenericError"
    assert not (tmp_path / "x").exists()


# -- the monitor -------------------------------------------------------------------------------------------------------


def test_the_other_monitor_is_reached(talk: Talk, machine: Machine) -> None:
    def monitor(line: str) -> str:
        text: str = talk.ask("human-monitor-command", command_line=line)
        return text

    assert monitor("info balloon") == "balloon: actual=64\r\n"
    assert monitor("info status") == "VM status: running\r\n"
    assert monitor("nope") == "unknown command: 'nope'\r\n"
    assert monitor("balloon 40") == ""
    assert machine.balloon.target_ram_bytes == 40 * MIB
    assert "info balloon" in monitor("info") and "balloon target" in monitor("help")

"""What a machine tells of its devices in a memory file of its own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import numpy as np
import pytest

import vmm
from devices import hostcalls
from devices.errors import ConfigError
from devices.virtio import spec
from tests.support import BalloonMachine
from vmm.device_table import BIG_ENDIAN, ENABLED, HEADER, NAME, PACKED, DeviceTable, TableView, parse
from vmm.machine import Machine


def table_files() -> list[str]:
    paths = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return [path for path in paths if os.path.islink(path) and os.readlink(path).startswith(f"/memfd:{NAME} ")]


def table() -> TableView:
    (path,) = table_files()
    with open(path, "rb") as file:
        return parse(file.read())


def queue_rows(view: TableView, device: int = 0) -> dict[str, tuple[int, int, int]]:
    return {
        row["name"].decode(): (int(row["index"]), int(row["size"]), int(row["flags"])) for row in view.queues[device]
    }


@pytest.fixture
def machine() -> Iterator[Machine]:
    with vmm.boot("stats", memory="16M") as made:
        yield made


def test_before_any_driver_the_queues_are_named_and_not_enabled(machine: Machine) -> None:
    view = table()
    assert view.devices["name"].tolist() == [b"balloon0"]
    assert view.devices["device_id"].tolist() == [5]
    assert view.devices["negotiated"].tolist() == [0]
    assert queue_rows(view) == {"inflateq": (0, 128, 0), "deflateq": (1, 128, 0), "statsq": (2, 128, 0)}
    assert machine.memory.fd is not None
    assert view.ram_inode == os.fstat(machine.memory.fd).st_ino


def test_it_follows_what_the_driver_sets_up(machine: Machine) -> None:
    machine.run("1s")
    view = table()
    assert {flags for _, _, flags in queue_rows(view).values()} == {ENABLED}
    balloon = machine.board.virtio_devices[0]
    rows = [(int(row["desc_gpa"]), int(row["driver_gpa"]), int(row["device_gpa"])) for row in view.queues[0]]
    assert rows == [(queue.desc_gpa, queue.driver_gpa, queue.device_gpa) for queue in balloon.queues]
    assert int(view.devices["negotiated"][0]) == balloon.negotiated_features != 0
    assert int(view.devices["status"][0]) == 15


def test_a_stop_of_a_queue_and_a_reset_of_the_device_are_followed(machine: Machine) -> None:
    machine.run("1s")
    transport, balloon = machine.board.need_balloon()
    machine.platform.carry_out(transport.signal(balloon.stop_queue(1)))
    assert [flags for _, _, flags in queue_rows(table()).values()] == [ENABLED, 0, ENABLED]
    machine.platform.carry_out(transport.signal(balloon.write_status(0, machine.now_ns)))
    view = table()
    assert [flags for _, _, flags in queue_rows(view).values()] == [0, 0, 0]
    assert int(view.devices["status"][0]) == 0


def test_a_broken_device_is_told(machine: Machine) -> None:
    machine.run("1s")
    transport, balloon = machine.board.need_balloon()
    gpa = balloon.queues[0].driver_gpa
    machine.memory.write_int(gpa + 2, 2, machine.memory.read_int(gpa + 2, 2) + 500)  # the available index jumps
    machine.platform.carry_out(transport.signal(balloon.notify(0, machine.now_ns)))
    assert int(table().devices["status"][0]) & spec.Status.DEVICE_NEEDS_RESET


def test_target_and_actual_are_followed_and_requests_write_nothing(machine: Machine) -> None:
    machine.run("1s")
    before = table()
    machine.balloon.set_target("8M")
    machine.run(until=lambda m: m.balloon.actual_pages == m.balloon.target_pages)
    after = table()
    size = int(after.devices["config_bytes"][0])
    config = np.frombuffer(after.devices["config"][0].tobytes()[:size], "<u4")
    assert config[:2].tolist() == [2048, 2048]
    assert machine.board.virtio_devices[0].queues[0].requests > 0
    assert after.generation == before.generation


def test_marks_map_and_place_are_where_it_says(machine: Machine) -> None:
    machine.run("1s")
    machine.balloon.set_target("8M")
    machine.run(until=lambda m: m.balloon.actual_pages == m.balloon.target_pages)
    view = table()
    with open("/proc/self/mem", "rb", buffering=0) as memory:

        def peek(address: int, length: int) -> bytes:
            return os.pread(memory.fileno(), length, address)

        pages = peek(int(view.devices["map_address"][0]), int(view.devices["map_pages"][0]))
        assert pages.count(1) == 2048
        marks = [peek(int(row["marks_address"]), int(row["marks_bytes"])) for row in view.queues[0]]
    assert [each.count(1) for each in marks] == [0, 0, 1]  # the device holds a buffer of statsq


@pytest.mark.parametrize("slots", [1, 3])
def test_a_packed_ring_says_where_it_goes_on(slots: int) -> None:
    """Its next used position (§2.8): two rounds of 128 descriptors, and how much each request takes."""
    bench = BalloonMachine("packed")
    bench.driver.start(queue_sizes={0: 128})
    made = DeviceTable([bench.balloon], bench.memory)
    view = table()
    assert {flags for _, _, flags in queue_rows(view).values()} == {ENABLED | PACKED}
    for count in range(1, 100):
        bench.driver.transfer(0, readable=[bytes([count, 3, 0, 0])] * slots, indirect=False)
        place = ctypes.c_uint32.from_address(int(view.queues[0]["place_address"][0])).value
        assert place == count * slots % 256
    made.close()
    bench.close()


def test_a_big_endian_legacy_driver_is_told() -> None:
    bench = BalloonMachine("mmio-legacy", processor=">")
    bench.driver.start()
    made = DeviceTable([bench.balloon], bench.memory)
    assert {flags for _, _, flags in queue_rows(table()).values()} == {ENABLED | BIG_ENDIAN}
    made.close()
    bench.close()


def test_a_restored_machine_has_its_own_table(machine: Machine) -> None:
    state = machine.save()
    machine.run("1s")
    machine.restore(state)
    assert [flags for _, _, flags in queue_rows(table()).values()] == [0, 0, 0]


def test_it_goes_with_the_machine() -> None:
    with vmm.boot("stats", memory="16M") as machine:
        assert len(table_files()) == 1
    assert table_files() == []
    machine.platform.table.update()
    machine.platform.table.close()


def test_a_host_without_memory_files_has_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostcalls, "create_memory_file", lambda name, size: None)
    with vmm.boot("stats", memory="16M") as machine:
        machine.run("1s")
        assert table_files() == []
        assert machine.balloon.guest_ram_bytes == 16 << 20


def test_what_is_no_table_is_refused() -> None:
    with vmm.boot("stats", memory="16M"):
        (path,) = table_files()
        with open(path, "rb") as file:
            data = file.read()
    with pytest.raises(ConfigError, match=r"^The table of devices is empty\.$"):
        parse(b"")
    with pytest.raises(ConfigError, match=r"^The table of devices ends early\.$"):
        parse(data[:-1])
    for damaged in (b"x" + data[1:], data[:8] + b"\xff" + data[9:], bytes(HEADER.itemsize)):
        with pytest.raises(ConfigError, match=r"^The process is a VMM of another version than this one: "):
            parse(damaged)

"""Every guest that drives the balloon gets the same results over its interrupt line as over MSI-X (§4.1.5.3)."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

import vmm
from devices.effects import NOTHING, Effects
from devices.virtio.balloon import Balloon
from devices.virtio.transport.pci_modern import VirtioPciModern
from guests import GUESTS
from tests.guests.test_hostile import PAYLOAD_ERRORS, RING_ERRORS
from vmm.machine import Machine

COUNTERS = ("inflated_pages", "deflated_pages", "discarded_bytes", "bad_pfns", "stray_pages", "ignored_bytes")


def run(name: str, parameter: str, **options: Any) -> Machine:
    with vmm.boot(name, parameter=parameter, **options) as machine:
        machine.run()
    return machine


def balloon(machine: Machine) -> Balloon:
    return machine.board.need_balloon()[1]


def said(machine: Machine) -> list[str]:
    """The console without what names the way."""
    return [line.removesuffix("INTx").removesuffix("MSI-X") for line in machine.console.decode().splitlines()]


def results(machine: Machine) -> dict[str, object]:
    """What came of a run: all but the moments at which it came."""
    device = balloon(machine)
    return {
        "outcome": machine.outcome,
        "console": said(machine),
        "actual": device.actual_pages,
        "requests": [queue.requests for queue in device.queues],
        **{name: getattr(device, name) for name in COUNTERS},
    }


@pytest.mark.parametrize("name", ["balloon", "stats"])
def test_the_demonstration_comes_to_the_same_over_both(name: str) -> None:
    row = GUESTS[name]
    options = {"memory": row.memory, "targets": row.demo_target, "poll": row.demo_poll, "duration": row.demo_for}
    line, messages = run(name, "intx=1", **options), run(name, "", **options)
    assert results(line) == results(messages)
    assert "INTx" in line.console.decode() and "MSI-X" in messages.console.decode()
    transport = line.board.need_balloon()[0]
    assert isinstance(transport, VirtioPciModern)
    assert not transport.table.enabled and transport.isr_status == 0


@pytest.mark.parametrize("request_name", [*RING_ERRORS, *PAYLOAD_ERRORS])
def test_a_hostile_request_is_answered_alike_over_both(request_name: str) -> None:
    options = {"memory": "2M", "duration": "1s"}
    line, messages = run("hostile", f"{request_name} intx=1", **options), run("hostile", request_name, **options)
    assert results(line) == results(messages)
    assert said(line)[-1] == f"hostile: {request_name}: as it should be"


def test_a_line_that_never_rises_is_noticed() -> None:
    """The guest sleeps until the line wakes it: nothing else does."""

    def silent(transport: VirtioPciModern, level: bool) -> Effects:
        return NOTHING

    with mock.patch.object(VirtioPciModern, "request_interrupt", silent):
        machine = run("balloon", "intx=1", memory="8M", targets="6M@1s", duration="2s")
    assert balloon(machine).actual_pages == 0

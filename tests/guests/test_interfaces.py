"""What the bundled guests make of devices that are not as they expect: other interfaces, other numbers of queues."""

from __future__ import annotations

from typing import Any

import pytest

import vmm
from guests.table import PPC, X86_64

MODERN, TRANSITIONAL = "virtio-balloon-pci", "virtio-balloon-pci,disable-legacy=off"
LEGACY = f"{TRANSITIONAL},disable-modern=on"
SMALL = {"memory": "8M", "targets": "6M@0.3s,4M@0.6s,8M@0.9s", "duration": "1.2s"}


class Events:
    """What the machine told of itself."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def on_event(self, now_ns: int, event: Any) -> None:
        self.texts.append((event.kind, event.text))

    def on_console(self, data: bytes) -> None: ...

    def on_stats(self, now_ns: int) -> None: ...

    def on_target(self, now_ns: int) -> None: ...


def finish(name: str, device: str, **options: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    heard = Events()
    with vmm.boot(name, devices=[device], **{**SMALL, **options}) as machine:
        machine.observers.append(heard)
        machine.run()
        return machine.report(), heard.texts


@pytest.mark.parametrize("parameter", ["", "intx=1"])
@pytest.mark.parametrize("name", ["stats", "balloon"])
def test_a_transitional_device_is_driven_by_its_modern_interface(name: str, parameter: str) -> None:
    """Device 1AF4:1002 with the balloon's number as its subsystem: all comes out as with 1AF4:1045."""
    device = ",free-page-reporting=on"
    reports = [finish(name, each + device, parameter=parameter)[0] for each in (MODERN, TRANSITIONAL)]
    assert reports[1]["outcome"] == "deadline"
    assert reports[1]["features"]["negotiated"] == reports[0]["features"]["negotiated"]
    assert "VIRTIO_F_VERSION_1" in reports[1]["features"]["negotiated"]
    assert reports[1]["balloon"] == reports[0]["balloon"]
    assert reports[1]["balloon"]["inflated_pages"] == 1024 and reports[1]["balloon"]["actual_pages"] == 0
    assert reports[1]["console"].splitlines()[-1] == reports[0]["console"].splitlines()[-1]


def test_another_transitional_device_is_not_taken_for_the_balloon() -> None:
    with vmm.boot("balloon", memory="8M", devices=["virtio-rng-pci,disable-legacy=off", TRANSITIONAL]) as machine:
        machine.run("50ms")
        machine.balloon.set_target("6M")
        machine.run("50ms")
        assert machine.balloon.actual_pages == 512
    with vmm.boot("balloon", memory="8M", devices=["virtio-rng-pci,disable-legacy=off"]) as machine:
        machine.run()
        assert machine.console.decode().splitlines()[-1] == "panic: there is no balloon"


def test_a_legacy_device_is_named_as_what_it_is() -> None:
    report, _ = finish("balloon", LEGACY)
    assert (report["outcome"], report["exit_code"]) == ("guest-panicked", 3)
    sentence = "panic: the virtio device at 00:03.0 is a legacy one, and this guest knows the modern interface only"
    assert report["console"].splitlines()[-1] == sentence


@pytest.mark.parametrize(
    ("arch", "device"),
    [
        (X86_64, MODERN),
        (X86_64, TRANSITIONAL),
        (PPC, "virtio-balloon-device"),
    ],
)
def test_who_counts_queues_otherwise_than_the_guest_is_told_what_to_set(arch: str, device: str) -> None:
    """The guest counts what is offered, and does without statistics; this device counts what was negotiated."""
    properties = "free-page-reporting=on,queue-numbering=negotiated"
    report, events = finish("balloon", f"{device},{properties}", parameter="report=1", arch=arch)
    assert report["outcome"] == "guest-panicked"
    assert "the device has no queue 3" in report["console"]
    assert [text for kind, text in events if kind == "queue-numbering"] == [
        "the driver looks for queue 3, which does not exist with queue-numbering=negotiated; "
        "set queue-numbering=offered if it means reporting_vq"
    ]
    assert "failed" in [kind for kind, _ in events], "§3.1.1: it says that it gives up"
    report, events = finish("balloon", f"{device},free-page-reporting=on", parameter="report=1", arch=arch)
    assert report["balloon"]["reported_pages"] > 1000
    assert "queue-numbering" not in [kind for kind, _ in events]

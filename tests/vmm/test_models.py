"""Devices as a user writes them: QEMU's `-device DRIVER,property=value`."""

from __future__ import annotations

import pytest

from devices.errors import ConfigError
from vmm.models import MODELS, DeviceConfig, parse_device, parse_devices, suggest

MODERN_ONLY = ("packed", "in_order", "queue_reset", "notification-data")
DRIVERS = "virtio-balloon-pci, virtio-balloon-device, virtio-rng-pci and virtio-rng-device"


def only(text: str) -> DeviceConfig:
    (device,) = parse_devices([text])
    return device


def test_a_device_without_properties_has_its_defaults() -> None:
    device = only("virtio-balloon-pci")
    assert (device.driver, device.id, device.slot) == ("virtio-balloon-pci", "balloon0", 3)
    assert all(device.flag(name) for name in ("must-tell-host", "stats-vq", "indirect_desc", "event_idx"))
    assert (device.choice("guest-errors"), device.choice("profile")) == ("reset", "none")
    assert not device.flag("deflate-on-oom") and not device.flag("free-page-reporting")
    assert device.flag("page-poison") and not device.flag("free-page-hint"), "as in QEMU"
    assert (device.choice("queue-numbering"), device.choice("stats-format")) == ("offered", "final")


def test_properties_are_taken_as_given() -> None:
    device = only("virtio-balloon-pci,id=b,addr=1f,stats-vq=off,event_idx=false,indirect_desc")
    assert (device.id, device.slot) == ("b", 31)
    assert not device.flag("stats-vq")
    assert not device.flag("event_idx")
    assert device.flag("indirect_desc")
    device = only("virtio-balloon-pci,deflate-on-oom=on,free-page-reporting=on,free-page-hint=on,page-poison=off")
    assert device.flag("deflate-on-oom") and device.flag("free-page-reporting") and device.flag("free-page-hint")
    assert not device.flag("page-poison")
    device = only("virtio-balloon-pci,queue-numbering=spec,stats-format=v2")
    assert (device.choice("queue-numbering"), device.choice("stats-format")) == ("spec", "v2")


def test_a_queue_size_is_any_power_of_two_up_to_32768() -> None:
    assert [only(f"virtio-balloon-pci,queue-size={1 << power}").number("queue-size") for power in range(16)] == [
        1 << power for power in range(16)
    ]
    assert (only("virtio-balloon-pci").number("queue-size"), only("virtio-rng-pci").number("queue-size")) == (128, 64)
    with pytest.raises(KeyError):
        only("virtio-balloon-pci").number("stats-vq")


def test_what_a_legacy_device_does_not_have_may_be_named_as_off_and_left_out() -> None:
    for device in ("virtio-balloon-pci,disable-legacy=off,disable-modern=on", "virtio-balloon-device,force-legacy=on"):
        assert not only(device + "".join(f",{name}=off" for name in MODERN_ONLY)).flag("queue_reset")
        assert not only(f"{device},any_layout=off,notify_on_empty=off").flag("any_layout")
    transitional = only("virtio-balloon-pci,disable-legacy=off" + "".join(f",{name}=on" for name in MODERN_ONLY))
    assert all(transitional.flag(name) for name in MODERN_ONLY)


@pytest.mark.parametrize("text", ["5", "05", "0x5", "5.0"])
def test_an_address_may_be_written_in_qemus_ways(text: str) -> None:
    assert only(f"virtio-rng-pci,addr={text}").slot == 5


def test_qemus_names_without_pci_are_understood() -> None:
    assert [device.driver for device in parse_devices(["virtio-balloon", "virtio-rng"])] == [
        "virtio-balloon-pci",
        "virtio-rng-pci",
    ]


def test_each_device_gets_a_name_and_an_address_that_nobody_asked_for() -> None:
    devices = parse_devices(["virtio-rng-pci", "virtio-rng-pci,addr=3", "virtio-rng-pci,id=mine", "virtio-rng-pci"])
    assert [(device.id, device.slot) for device in devices] == [("rng0", 4), ("rng1", 3), ("mine", 5), ("rng2", 6)]


def test_a_line_written_for_qemu_is_accepted_where_it_means_the_same() -> None:
    assert (
        only("virtio-balloon-pci,id=balloon0,deflate-on-oom=off,free-page-reporting=off,disable-legacy=on").id
        == "balloon0"
    )


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["virtio-ballon-pci"], "There is no device 'virtio-ballon-pci'; did you mean 'virtio-balloon-pci'?"),
        (["e1000"], f"There is no device 'e1000', only {DRIVERS}."),
        ([""], f"There is no device '', only {DRIVERS}."),
        (["virtio-rng-pci,evnt_idx=on"], "virtio-rng-pci has no property 'evnt_idx'; did you mean 'event_idx'?"),
        (
            ["virtio-rng-pci,colour=red"],
            "virtio-rng-pci has no property 'colour'; -device virtio-rng-pci,help lists them.",
        ),
        (["virtio-rng-pci,event_idx=maybe"], "virtio-rng-pci: event_idx must be on or off, not 'maybe'."),
        (
            ["virtio-balloon-pci,iommu_platform=on"],
            "virtio-balloon-pci: iommu_platform can only be off in this version (VIRTIO_F_ACCESS_PLATFORM).",
        ),
        (
            ["virtio-balloon-pci,queue-numbering=offred"],
            "virtio-balloon-pci: queue-numbering must be spec, offered or negotiated, not 'offred'; "
            "did you mean 'offered'?",
        ),
        (
            ["virtio-balloon-pci,stats-format=3"],
            "virtio-balloon-pci: stats-format must be final or v2, not '3'.",
        ),
        (
            ["virtio-balloon-pci,guest-errors=skp"],
            "virtio-balloon-pci: guest-errors must be reset, skip or ignore, not 'skp'; did you mean 'skip'?",
        ),
        (
            ["virtio-balloon-device,profile=xen"],
            "virtio-balloon-device: profile must be none, qemu, firecracker, crosvm, cloud-hypervisor or kvmtool, "
            "not 'xen'.",
        ),
        (
            ["virtio-balloon-pci,profile=qemu,guest-errors=skip"],
            "virtio-balloon-pci: profile=qemu says what becomes of guest errors itself; "
            "guest-errors=skip must not stand beside it.",
        ),
        *(
            (
                [f"virtio-balloon-pci,disable-legacy=off,disable-modern=on,{name}=on"],
                f"virtio-balloon-pci: {name}=on needs the modern interface, which disable-modern=on takes away.",
            )
            for name in MODERN_ONLY
        ),
        *(
            (
                [f"{driver},{name}=on,force-legacy=on"],
                f"{driver}: {name}=on needs the modern interface, which force-legacy=on takes away.",
            )
            for name in MODERN_ONLY
            for driver in ("virtio-balloon-device", "virtio-rng-device")
        ),
        *(
            (
                [device + ",any_layout=off"],
                f"{device.partition(',')[0]}: any_layout=off needs {legacy}; "
                "a device with a modern interface takes any layout.",
            )
            for device, legacy in (
                ("virtio-balloon-pci", "disable-modern=on"),
                ("virtio-balloon-pci,disable-legacy=off", "disable-modern=on"),
                ("virtio-rng-device", "force-legacy=on"),
            )
        ),
        *(
            (
                [f"virtio-balloon-pci,queue-size={size}"],
                f"virtio-balloon-pci: queue-size must be a power of two from 1 to 32768, not {size!r}.",
            )
            for size in ("0", "3", "65536", "-1", "128K", "", "on", "\N{SUPERSCRIPT TWO}", "9" * 5000)
        ),
        (
            ["virtio-rng-pci,guest-errors=skip"],
            "virtio-rng-pci has no property 'guest-errors'; -device virtio-rng-pci,help lists them.",
        ),
        (
            ["virtio-rng-pci,addr=2"],
            "virtio-rng-pci: addr must be a PCI device number from 3 to 1f (hexadecimal), not '2'.",
        ),
        (
            ["virtio-rng-pci,addr=20"],
            "virtio-rng-pci: addr must be a PCI device number from 3 to 1f (hexadecimal), not '20'.",
        ),
        (
            ["virtio-rng-pci,id=7up"],
            "A device's id must begin with a letter and have letters, digits, -, . and _ only, not '7up'.",
        ),
        (["virtio-rng-pci,id=a", "virtio-rng-pci,id=a"], "Two devices must not have the same id 'a'."),
        (["virtio-rng-pci,addr=4", "virtio-rng-pci,addr=0x4"], "Two devices must not have the same PCI address 0x4."),
        (["virtio-rng-pci"] * 30, "The PCI bus has no room for 'rng29': it takes 29 devices."),
        (["virtio-rng-device"] * 5, "The board has no room for 'rng4': it takes 4 devices."),
        (["virtio-rng-device,slot=4"], "virtio-rng-device: slot must be a number from 0 to 3, not '4'."),
        (["virtio-rng-device,slot=1"] * 2, "Two devices must not have the same virtio-mmio slot 1."),
        (
            ["virtio-rng-device,addr=3"],
            "virtio-rng-device has no property 'addr'; -device virtio-rng-device,help lists them.",
        ),
        (
            ["virtio-rng-pci,disable-modern=on"],
            "virtio-rng-pci: disable-legacy and disable-modern must not both be on; no interface would be left.",
        ),
        (
            ["virtio-balloon-pci", "virtio-balloon-device"],
            "A machine must not have more than one balloon; 'balloon1' is the second.",
        ),
    ],
)
def test_a_device_that_cannot_be_is_refused_in_one_sentence(texts: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_devices(texts)
    assert str(caught.value) == sentence


def test_devices_on_virtio_mmio_have_places_of_their_own() -> None:
    devices = parse_devices(["virtio-rng-pci", "virtio-balloon-device", "virtio-rng-device,slot=0,force-legacy=on"])
    assert [(device.id, device.bus, device.slot, device.place) for device in devices] == [
        ("rng0", "pci", 3, "00:03.0"),
        ("balloon0", "mmio", 1, "virtio-mmio 1"),
        ("rng1", "mmio", 0, "virtio-mmio 0"),
    ]
    assert devices[1].is_balloon and not devices[2].is_balloon
    assert devices[2].flag("force-legacy") and not devices[1].flag("force-legacy")


def test_which_interfaces_a_pci_device_has_is_said_in_qemus_words() -> None:
    assert only("virtio-balloon-pci").flag("disable-legacy"), "modern only, unless it is asked for"
    device = only("virtio-balloon-pci,disable-legacy=off,disable-modern=on")
    assert (device.flag("disable-legacy"), device.flag("disable-modern")) == (False, True)


def test_the_bus_takes_as_many_devices_as_it_has_room_for() -> None:
    slots = [device.slot for device in parse_devices(["virtio-rng-pci"] * 29)]
    assert slots == list(range(3, 32))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.driver)
def test_every_default_in_the_tables_can_be_written_out(model: object) -> None:
    from vmm.models import Model

    assert isinstance(model, Model)
    settings = [f"{prop.name}={prop.default}" for prop in model.properties if prop.kind in ("flag", "fixed")]
    written = parse_device(",".join([model.driver, *settings]))
    for prop in model.properties:
        if prop.kind in ("flag", "fixed"):
            assert written.flag(prop.name) is (prop.default == "on")
            assert prop.default in ("on", "off")


def test_a_word_far_from_everything_suggests_nothing() -> None:
    assert suggest("stts", ["stats", "hello"]) == "stats"
    assert suggest("zzz", ["stats", "hello"]) is None

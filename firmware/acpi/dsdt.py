r"""The DSDT: devices that no bus can enumerate, how PCI interrupts are wired, how to power off (ACPI 6.5 §5.2.11.1).

\_SB.PCI0 is the host bridge with what it decodes (`_CRS`) and where the interrupt pins of its devices go (`_PRT`).  The
operating system says by `\_PIC` which interrupt controller it uses: with the I/O APIC every pin has its own input for
good; with the 8259 pair it leads through one of the link devices LNKA to LNKD, which read and write the ISA bridge's
PIRQ registers.

Nothing comes and goes, so there are no methods for hot plugging and no general-purpose events; the power button is a
fixed event and needs no device.
"""

from __future__ import annotations

from firmware.acpi import aml, resources
from firmware.acpi.platform import IsaDevice, MmioDevice, Platform

_LINKS = ("LNKA", "LNKB", "LNKC", "LNKD")
_REGISTERS = ("PRQA", "PRQB", "PRQC", "PRQD")
_PIRQ_OFF = 0x80  # bit 7 of a PIRQ register: not routed (82371SB §2.3.9)
_ENABLED, _DISABLED, _HIDDEN = 0x0B, 0x09, 0x0B  # _STA: present, decoding, working; not shown to people
_ALWAYS_THERE = 0x0F
_FIRST_LINE_AT = 5  # in the descriptor of `resources.level_interrupts`
_CONFIGURATION_PORTS = (0xCF8, 8)
_ALL_FUNCTIONS = 0xFFFF


def terms(platform: Platform) -> bytes:
    """The definition block's terms, without the table's header."""
    return b"".join(
        [
            _power_off(platform),
            aml.name("PICF", 0),
            aml.method("_PIC", 1, aml.store(aml.ARG0, aml.path("PICF"))),
            aml.scope(
                "_SB",
                aml.device("CPU0", aml.name("_HID", aml.string("ACPI0007")), aml.name("_UID", 0)),
                _host_bridge(platform),
                *(_link(platform, index) for index in range(4)),
                _board_resources(platform),
                _firmware_files(platform),
                *(_virtio_mmio(device) for device in platform.virtio_mmio),
            ),
        ]
    )


def _power_off(platform: Platform) -> bytes:
    """S5, for PM1a_CNT and for the PM1b_CNT that is not there; two elements are reserved (§7.4.2.6)."""
    return aml.name("_S5", aml.package(platform.power_off_type, platform.power_off_type, 0, 0))


# -- PCI ---------------------------------------------------------------------------------------------------------------


def _host_bridge(platform: Platform) -> bytes:
    first, count = _CONFIGURATION_PORTS
    window = platform.memory_window
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", 0),
        aml.name("_BBN", 0),
        aml.name(
            "_CRS",
            resources.template(
                resources.word_bus_number(0, (platform.ecam.length >> 20) - 1),
                resources.io(first, count),
                resources.word_io(0, first - 1),
                resources.word_io(first + count, 0xFFFF),
                resources.dword_memory(window.first, window.last),
            ),
        ),
        aml.method(
            "_PRT",
            0,
            aml.if_(aml.path("PICF"), aml.return_(_pins_on_io_apic(platform))),
            aml.return_(_pins_on_links(platform)),
        ),
        _isa_bridge(platform),
    )


def _pins_on_io_apic(platform: Platform) -> bytes:
    """_PRT's answer (§6.2.13): for each pin the I/O APIC's input."""
    return aml.package(
        *(
            aml.package(pin.slot << 16 | _ALL_FUNCTIONS, pin.pin, 0, platform.first_pirq_pin + pin.pirq)
            for pin in platform.pci_pins
        )
    )


def _pins_on_links(platform: Platform) -> bytes:
    """_PRT's answer: for each pin the link device that says which input of the 8259 pair it has."""
    return aml.package(
        *(
            aml.package(pin.slot << 16 | _ALL_FUNCTIONS, pin.pin, aml.path(_LINKS[pin.pirq]), 0)
            for pin in platform.pci_pins
        )
    )


def _isa_bridge(platform: Platform) -> bytes:
    return aml.device(
        "ISA",
        aml.name("_ADR", platform.isa_bridge_slot << 16),
        aml.pci_config_region("PIRQ", platform.pirq_register, len(_REGISTERS)),
        aml.byte_fields("PIRQ", *_REGISTERS),
        _isa_device("RTC", aml.eisa_id("PNP0B00"), platform.clock),
        _isa_device("COM1", aml.eisa_id("PNP0501"), platform.serial, aml.name("_UID", 1)),
        _isa_device("PEVT", aml.string("QEMU0001"), platform.panic, aml.name("_STA", _ALWAYS_THERE)),
    )


def _isa_device(where: str, identifier: bytes, place: IsaDevice, *more: bytes) -> bytes:
    lines = () if place.line is None else (resources.irq_no_flags(place.line),)
    where_it_is = resources.template(resources.io(place.port, place.count), *lines)
    return aml.device(where, aml.name("_HID", identifier), *more, aml.name("_CRS", where_it_is))


def _link(platform: Platform, index: int) -> bytes:
    """A PCI interrupt link device (§6.2.13): PIRQ `index`, and the 8259 input it has now, may have, or shall have."""
    register = aml.path(f"\\_SB.PCI0.ISA.{_REGISTERS[index]}")
    off = aml.and_(register, _PIRQ_OFF)
    return aml.device(
        _LINKS[index],
        aml.name("_HID", aml.eisa_id("PNP0C0F")),
        aml.name("_UID", index + 1),
        aml.name("_PRS", resources.template(resources.level_interrupts(*platform.pirq_inputs))),
        aml.method("_STA", 0, aml.if_(off, aml.return_(_DISABLED)), aml.return_(_ENABLED)),
        aml.method("_DIS", 0, aml.or_(register, _PIRQ_OFF, register)),
        aml.method(
            "_CRS",
            0,
            aml.name("BUF", resources.template(resources.level_interrupts(0))),
            aml.create_dword_field(aml.path("BUF"), _FIRST_LINE_AT, "LINE"),
            aml.if_(aml.not_(off), aml.store(register, aml.path("LINE"))),
            aml.return_(aml.path("BUF")),
            serialized=True,
        ),
        aml.method(
            "_SRS",
            1,
            aml.create_dword_field(aml.ARG0, _FIRST_LINE_AT, "LINE"),
            aml.store(aml.path("LINE"), register),
            serialized=True,
        ),
    )


# -- what is neither PCI's nor anybody else's --------------------------------------------------------------------------


def _board_resources(platform: Platform) -> bytes:
    """Addresses that are taken: the ECAM window, where the operating system looks before it believes the MCFG (PCI
    Firmware Specification 3.0 §4.1.2), the power management ports and the 8259 pair's edge/level registers."""
    return aml.device(
        "MRES",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_UID", 1),
        aml.name(
            "_CRS",
            resources.template(
                resources.memory32_fixed(platform.ecam.first, platform.ecam.length),
                resources.io(platform.pm_base, platform.pm_ports),
                resources.io(platform.trigger_ports.port, platform.trigger_ports.count),
            ),
        ),
    )


def _firmware_files(platform: Platform) -> bytes:
    """fw_cfg, by the name that its driver looks for."""
    return _isa_device("FWCF", aml.string("QEMU0002"), platform.firmware_files, aml.name("_STA", _HIDDEN))


def _virtio_mmio(device: MmioDevice) -> bytes:
    """A virtio-mmio device, by the name that Linux's driver looks for."""
    return aml.device(
        f"VM{device.number:02X}",
        aml.name("_HID", aml.string("LNRO0005")),
        aml.name("_UID", device.number),
        aml.name(
            "_CRS",
            resources.template(
                resources.memory32_fixed(device.base, device.length), resources.level_interrupts(device.line)
            ),
        ),
    )

"""ACPI: what the board tells an operating system about itself, in the operating system's own language.

`tables.build` makes all of it from a `Platform`, the frozen description that the board hands over: static tables
(`tables`), a program in ACPI's machine language (`dsdt`, written with `aml` and `resources`), and the script by which
firmware puts them into RAM (`linker`, QEMU's table-loader), so that other people's firmware installs them as ours does.

Nothing here knows which devices there are beyond that description, where the tables will lie, or who reads them.
"""

from firmware.acpi.platform import IsaDevice as IsaDevice
from firmware.acpi.platform import MmioDevice as MmioDevice
from firmware.acpi.platform import PciPin as PciPin
from firmware.acpi.platform import Platform as Platform
from firmware.acpi.platform import Window as Window
from firmware.acpi.tables import build as build

"""The firmware: what the processor finds at power-on.

Owns the ROM image, built from the C and assembly beside it (`python -m firmware.build`), its version, and the exit
codes it gives when it cannot start a guest.  It knows the board through docs/architecture.md only.
"""

from importlib.resources import files

VERSION = "0.1"
ROM_BYTES = 64 * 1024

EXIT_BAD_BOARD = 120
"""Exit code: fw_cfg or a memory map that the firmware can use is missing."""
EXIT_BAD_PAYLOAD = 121
"""Exit code: there is no guest, or its description makes no sense, or it leaves no room for page tables."""


def image() -> bytes:
    """The ROM's 64 KiB, to be mapped so that they end at 4 GiB."""
    return files(__name__).joinpath("firmware.rom").read_bytes()


def symbols() -> bytes:
    """The same program as an ELF file with symbols and debug information, for a debugger."""
    return files(__name__).joinpath("firmware.debug").read_bytes()

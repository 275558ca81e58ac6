"""What runs in Linux: the scripts of the bundled initramfs, and `port`, a program with which they reach the machine.

`init` prepares the machine, `inittab` and `run` start `/main` and end the machine after it.  `/main` is `demo`,
`shell`, `commands` or a script of the user's; `power-button` is what acpid runs.  Nothing here knows how they are
packed, or which kernel it will be.
"""

from __future__ import annotations

from importlib.resources import files

FILES = ("init", "inittab", "run", "demo", "shell", "commands", "power-button", "port.elf")


def bundled_file(name: str) -> bytes:
    """The script or program `name`, one of FILES."""
    return files("guests.debian").joinpath(name).read_bytes()

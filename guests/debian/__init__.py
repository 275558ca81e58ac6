"""What runs in Linux: the scripts of the bundled initramfs, and `port`, a program with which they reach the machine.

`init` prepares the machine, `inittab` and `run` start `/main` and end the machine after it.  `/main` is `demo`,
`shell`, `commands`, or `script` for a script of the user's; `power-button` is what acpid runs.  Nothing here knows how
they are packed, or which kernel it will be.
"""

from __future__ import annotations

from importlib.resources import files

from guests.table import GuestRow

DEBIAN = GuestRow(  # without an image: the kernel is Debian's, and the rest is packed when it is booted
    name="debian",
    summary="Debian's cloud kernel and busybox, fetched with apt: follows the target with Linux's own driver",
    memory="512M",
    minimum_memory="128M",
    demo_target="256M@6s,384M@10s,512M@14s",
    demo_poll=1.0,
    demo_for="",
    parameters=(("demo=N", "ends after N seconds of the demonstration (16), 0: never"),),
    prints=(
        r"^demo: Linux 6\.\d+\.\d+.*-cloud-amd64$",
        r"^demo: virtio_balloon drives virtio0$",
        r"^demo: MemTotal \d+ MiB, MemFree \d+ MiB, MemAvailable \d+ MiB$",
    ),
)
FILES = ("init", "inittab", "run", "demo", "shell", "commands", "script", "power-button", "port.elf")


def bundled_file(name: str) -> bytes:
    """The script or program `name`, one of FILES."""
    return files("guests.debian").joinpath(name).read_bytes()

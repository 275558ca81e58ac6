"""`python -m guests.build [NAME…]`: each guest's NAME.elf and NAME.debug from its folder and `lib`.

A guest is a folder here with a `main.c`.  Every guest is linked with all of `lib`; what it does not use is left out.
`debian` has no image, but a program for Linux.
"""

from __future__ import annotations

import sys
from pathlib import Path

from firmware.toolchain import Linked, Program, build, sources_in

SECTIONS = ("-ffunction-sections", "-fdata-sections")


def guest_names(root: Path) -> list[str]:
    """The guests whose sources are below the project's folder `root`."""
    return sorted(main.parent.name for main in (root / "guests").glob("*/main.c"))


def build_guest(root: Path, name: str) -> Linked:
    """The guest's image and the ELF file for a debugger."""
    folder = root / "guests"
    return build(Program(root, sources_in(folder / name, folder / "lib"), folder / "guest.ld", SECTIONS))


def build_port(root: Path) -> Linked:
    """The helper program of the Linux guest."""
    folder = root / "guests" / "debian"
    return build(Program(root, (folder / "port.c",), folder / "port.ld", SECTIONS))


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    for name in sys.argv[1:] or ["debian", *guest_names(root)]:
        if name == "debian":
            (root / "guests" / name / "port.elf").write_bytes(build_port(root).image)
            continue
        linked = build_guest(root, name)
        (root / "guests" / name / f"{name}.elf").write_bytes(linked.image)
        (root / "guests" / name / f"{name}.debug").write_bytes(linked.debug)


if __name__ == "__main__":
    main()

"""`python -m guests.build [NAME…]`: each guest's NAME.elf and NAME.debug from its folder and `lib`.

For the PowerPC they are NAME-ppc.elf and NAME-ppc.debug, of the guests whose row in the table says so.

A guest is a folder here with a `main.c`.  Every guest is linked with all of `lib` and of its processor's folder there;
what it does not use is left out.
`debian` has no image, but a program for Linux.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from firmware import toolchain
from firmware.toolchain import Linked, Program, Target, build, sources_in
from guests.table import GUESTS, PPC, X86_64

SECTIONS = ("-ffunction-sections", "-fdata-sections")


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a guest is made for one kind of processor: `folder` below `lib`, the compiler's `target`, the linker's
    `script`."""

    folder: str
    target: Target
    script: str


ARCHITECTURES = {
    X86_64: Architecture("x86", toolchain.X86, "guest-x86.ld"),
    PPC: Architecture("ppc", toolchain.PPC, "guest-ppc.ld"),
}


def guest_names(root: Path) -> list[str]:
    """The guests whose sources are below the project's folder `root`."""
    return sorted(main.parent.name for main in (root / "guests").glob("*/main.c"))


def build_guest(root: Path, name: str, arch: str = X86_64) -> Linked:
    """The guest's image for one kind of processor, and the ELF file for a debugger."""
    folder, how = root / "guests", ARCHITECTURES[arch]
    sources = sources_in(folder / name, folder / "lib", folder / "lib" / how.folder)
    options = (*SECTIONS, f"-Iguests/lib/{how.folder}")
    return build(Program(root, sources, folder / how.script, options, how.target))


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
        for arch in GUESTS[name].architectures:
            linked = build_guest(root, name, arch)
            (root / "guests" / GUESTS[name].image_path(arch)).write_bytes(linked.image)
            (root / "guests" / GUESTS[name].symbols_path(arch)).write_bytes(linked.debug)


if __name__ == "__main__":
    main()

"""How C and assembly become images: one recipe for the firmware and for every bundled guest.

Owns the compiler's options.  The result depends on the sources and on the pinned compiler only: no header comes from
the compiler, objects are linked in the order of their names, and the debug information knows the project's folder as
".".  Each image is linked twice from the same objects, once without symbols (what runs) and once with them (what a
debugger reads); the two agree in every address.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ZIGLANG_VERSION = "0.17.1"


@dataclass(frozen=True, slots=True)
class Target:
    """A processor as the compiler knows it: its name, and what compiling and linking for it are told besides."""

    name: str
    options: tuple[str, ...]
    link_options: tuple[str, ...] = ()


# Handlers of interrupts save the general registers only, so no other may be used.
X86 = Target("x86_64-freestanding-none", ("-mcpu=x86_64-mmx-sse-sse2-x87+soft_float", "-mno-red-zone"))
# The formats of print() are checked for x86, where the l that stands for 64 bits is the compiler's as well.
PPC = Target("powerpc-freestanding-eabi", ("-mcpu=604e", "-Wno-format"), ("-Wl,-z,max-page-size=4096",))

CODE_OPTIONS = (
    "-std=c11",
    "-ffreestanding",
    "-fno-strict-aliasing",
    "-fno-builtin",
    "-nostdinc",
    "-Os",
    "-g",
    "-gdwarf-4",
    "-fno-sanitize=all",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fforce-dwarf-frame",  # how to find a caller, for the debugger alone
    "-fomit-frame-pointer",
    "-Wall",
    "-Wextra",
    "-Werror",
)
LINK_OPTIONS = (
    "-nostdlib",
    "-static",
    "-Wl,--build-id=none",
    "-Wl,-z,norelro",
    "-Wl,--gc-sections",
)


class BuildError(RuntimeError):
    """The compiler is missing, or refused a source; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Program:
    """What is linked together: `sources` and the linker `script` are paths below `root`, the project's folder."""

    root: Path
    sources: tuple[Path, ...]
    script: Path
    options: tuple[str, ...] = ()
    target: Target = X86


@dataclass(frozen=True, slots=True)
class Linked:
    """An ELF file as it runs, and the same with symbols and debug information."""

    image: bytes
    debug: bytes


def sources_in(*folders: Path) -> tuple[Path, ...]:
    """All C and assembly files of the folders, in an order that does not depend on the file system."""
    return tuple(path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in (".c", ".S"))


def build(program: Program) -> Linked:
    """Compile and link.  Raises BuildError with the compiler's words."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        objects = [_compile(program, source, folder / f"{n}.o") for n, source in enumerate(program.sources)]
        image = _link(program, objects, folder / "image.elf", ("-Wl,--strip-all",))
        debug = _link(program, objects, folder / "debug.elf", ())
        return Linked(image.read_bytes(), debug.read_bytes())


def _compile(program: Program, source: Path, target: Path) -> Path:
    mapping = (f"-ffile-prefix-map={program.root}=.", "-fdebug-compilation-dir=.")
    relative = source.relative_to(program.root)
    options = (*CODE_OPTIONS, *program.target.options, *program.options, *mapping)
    _zig(("-c", "-target", program.target.name, *options, str(relative), "-o", str(target)), program.root)
    return target


def _link(program: Program, objects: Sequence[Path], target: Path, options: tuple[str, ...]) -> Path:
    script = f"-Wl,-T,{program.script}"
    options = (*LINK_OPTIONS, *program.target.link_options, script, *options)
    _zig(("-target", program.target.name, *options, *map(str, objects), "-o", str(target)), program.root)
    return target


def _zig(arguments: Sequence[str], folder: Path) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")

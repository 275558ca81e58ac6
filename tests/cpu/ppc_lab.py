"""A PowerPC on a bench: 4 MiB of RAM, a program at 64 KiB, and a platform that writes a log of every access.

Programs are assembled from the source in the test.  They report by storing words from F0000000h on; `reports` are the
words as the program had them in its register.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from devices.memory import GuestMemory
from vmm.cpu import Exit
from vmm.cpu.ppc.ppc_cpu import PpcCpu

ORIGIN, REPORT = 0x10000, 0xF0000000
RAM_BYTES = 4 << 20

_HEADER = """
    .macro report register
    lis     31, 0xf000
    stw     \\register, 0(31)
    .endm
    .macro idle
    lis     11, 1
    ori     11, 11, 16
    sc      1
    .endm
    .macro handler address, label
    lis     31, \\label@h
    ori     31, 31, \\label@l
    mtctr   31
    .endm
"""


@dataclass
class Recorder:
    """Answers reads from `inputs` (as the bus has them, lowest byte first) and keeps what was written."""

    writes: list[tuple[int, int, int]] = field(default_factory=list)
    reads: list[tuple[int, int]] = field(default_factory=list)
    inputs: dict[int, int] = field(default_factory=dict)
    on_write: Callable[[int], None] | None = None

    def mmio_read(self, gpa: int, size: int) -> int:
        self.reads.append((gpa, size))
        return self.inputs.get(gpa, 0)

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        self.writes.append((gpa, size, value))
        if self.on_write is not None:
            self.on_write(gpa)


@dataclass
class PpcLab:
    """One bench with its program loaded, ready for `run`."""

    memory: GuestMemory
    platform: Recorder
    cpu: PpcCpu
    labels: dict[str, int]

    def run(self, budget_blocks: int = 100_000) -> Exit:
        return self.cpu.run(budget_blocks)

    @property
    def reports(self) -> list[int]:
        """The words stored at F0000000h, in the processor's order of bytes."""
        return [
            int.from_bytes(value.to_bytes(size, "little"), "big")
            for gpa, size, value in self.platform.writes
            if gpa == REPORT
        ]


@functools.cache
def assemble(source: str) -> tuple[bytes, dict[str, int]]:
    """PowerPC assembly (registers as plain numbers) to a flat image at ORIGIN, and its labels."""
    with tempfile.TemporaryDirectory() as folder:
        path, linked, script = (Path(folder, name) for name in ("program.S", "program.elf", "program.ld"))
        path.write_text(f"{_HEADER}\n.text\n{source}\n")
        script.write_text(f"SECTIONS {{ . = {ORIGIN}; .text : {{ *(.text) }} }}")
        command = [
            *(sys.executable, "-m", "ziglang", "cc", "-target", "powerpc-freestanding-none", "-nostdlib", "-static"),
            *("-Wl,--build-id=none", "-Wl,-e,0", f"-Wl,-T,{script}", str(path), "-o", str(linked)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        with linked.open("rb") as file:
            elf = ELFFile(file)
            section, symbols = elf.get_section_by_name(".text"), elf.get_section_by_name(".symtab")
            assert section is not None and isinstance(symbols, SymbolTableSection)
            return section.data(), {each.name: int(each["st_value"]) for each in symbols.iter_symbols() if each.name}


@contextmanager
def ppc_lab(
    source: str, *, vectors: dict[int, str] | None = None, native: bool = True
) -> Generator[PpcLab, None, None]:
    """A bench that begins at the program's first instruction.  `vectors` maps an exception's address to a label that a
    branch there goes to."""
    code, labels = assemble(source)
    memory = GuestMemory([(0, RAM_BYTES)])
    memory.write(ORIGIN, code)
    for vector, label in (vectors or {}).items():
        distance = labels[label] - vector
        memory.write(vector, (0x48000000 | distance & 0x03FFFFFC).to_bytes(4, "big"))
    platform = Recorder()
    cpu = PpcCpu(memory, platform, ORIGIN, 0x1234, native=native)
    try:
        yield PpcLab(memory, platform, cpu, labels)
    finally:
        cpu.close()
        memory.close()

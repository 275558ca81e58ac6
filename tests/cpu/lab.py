"""A processor on a bench: RAM, a ROM that switches to a mode, descriptor tables, and a platform that writes a log.

Programs are assembled from the source in the test.  They find all tables ready and report with OUT; a test compares
the log with what the processor manuals say.
"""

from __future__ import annotations

import functools
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from devices.memory import GuestMemory
from vmm.cpu import Exit
from vmm.cpu.unicorn_cpu import UnicornCpu

RAM_LAYOUT = ((0, 0xA0000), (0x100000, 0x300000), (1 << 32, 0x100000))

# where the lab puts things in RAM
PML4, PDPT, PAGE_DIRECTORY = 0x1000, 0x2000, 0x3000
PAGE_TABLE, SECOND_DIRECTORY, ROM_DIRECTORY = 0x20000, 0x21000, 0x22000
GDT, IDT, TSS = 0x4000, 0x5000, 0x6000
KERNEL_STACK, RSP0, IST1 = 0x9000, 0x8000, 0x7800
ORIGIN = 0x10000
REPORT_PORT = 0x80

# selectors
CODE, DATA, USER_DATA, USER_CODE, TSS_SELECTOR = 0x08, 0x10, 0x1B, 0x23, 0x28
CODE_32, USER_CODE_32, CODE_16, DATA_16, NOT_PRESENT_CODE = 0x38, 0x43, 0x48, 0x50, 0x58

_LONG_GDT = (
    0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF, 0, 0,
    0x00CF9B000000FFFF, 0x00CFFB000000FFFF, 0x00009B010000FFFF, 0x000093000000FFFF, 0x00AF1B000000FFFF,
)  # fmt: skip
_PROTECTED_GDT = (0, 0x00CF9B000000FFFF, *_LONG_GDT[2:4], 0x00CFFB000000FFFF, *_LONG_GDT[5:])

_ROM_SOURCE = f"""
    .code16
    .org 0xf000
start:
    .if MODE == 16
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw ${KERNEL_STACK}, %sp
    ljmpw $0x1000, $0
    .endif
    lgdtl %cs:gdt - program
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl ${CODE_32}, $protected
    .code32
protected:
    movl ${DATA}, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl ${KERNEL_STACK}, %esp
    .if MODE == 32
    movl ${TSS_SELECTOR}, %eax
    ltr %ax
    lidtl idt
    ljmpl ${CODE}, ${ORIGIN}
    .endif
    movl %cr4, %eax
    orl $0x620, %eax                /* PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl ${PML4}, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x901, %eax                /* SCE, LME, NXE */
    wrmsr
    movl %cr0, %eax
    orl $0x80010000, %eax           /* PG, WP */
    movl %eax, %cr0
    ljmpl ${CODE}, $long
    .code64
long:
    movl ${TSS_SELECTOR}, %eax
    ltr %ax
    movl $idt, %eax
    lidtq (%rax)
    movl ${ORIGIN}, %eax
    jmpq *%rax
gdt:
    .word {8 * len(_LONG_GDT) - 1}
    .long {GDT}
idt:
    .word 0xfff
    .quad {IDT}
    .org 0xfff0
    .code16
    jmp start
    .org 0x10000
"""


@dataclass(frozen=True)
class Image:
    """Assembled bytes and the addresses of all labels."""

    code: bytes
    labels: dict[str, int]


@functools.cache
def assemble(source: str, origin: int = ORIGIN, definitions: str = "") -> Image:
    """GNU assembly to a flat image at `origin`, where the label `program` is."""
    with tempfile.TemporaryDirectory() as folder:
        path, linked = Path(folder, "program.S"), Path(folder, "program.elf")
        path.write_text(f"{definitions}\n.text\nprogram:\n{source}\n")
        script = Path(folder, "program.ld")
        script.write_text(f"SECTIONS {{ . = {origin}; .text : {{ *(.text) }} }}")
        command = [
            *(sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-freestanding-none", "-nostdlib", "-static"),
            *("-Wl,--build-id=none", "-Wl,-e,0", f"-Wl,-T,{script}", str(path), "-o", str(linked)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        with linked.open("rb") as file:
            elf = ELFFile(file)
            section = elf.get_section_by_name(".text")
            symbols = elf.get_section_by_name(".symtab")
            assert section is not None and isinstance(symbols, SymbolTableSection)
            labels = {symbol.name: int(symbol["st_value"]) for symbol in symbols.iter_symbols() if symbol.name}
            return Image(section.data(), labels)


@functools.cache
def rom(mode: int) -> bytes:
    """The 64 KiB that take the processor from reset to `mode` (16, 32 or 64) and to the program."""
    image = assemble(_ROM_SOURCE, 0xFFFF0000, f".set MODE, {mode}")
    assert len(image.code) == 0x10000
    return image.code


@dataclass
class LogPlatform:
    """Answers everything and writes down what was asked.  `on_write` maps a port to what shall happen there."""

    log: list[tuple[str, int, int, int]] = field(default_factory=list)
    vectors: list[int] = field(default_factory=list)
    inputs: dict[int, int] = field(default_factory=dict)
    on_write: dict[int, Callable[[int], None]] = field(default_factory=dict)
    collectors: dict[int, Callable[[bytes], object]] = field(default_factory=dict)
    cpu: UnicornCpu | None = None
    tsc_line: tuple[int, int] | None = None

    def port_read(self, port: int, size: int) -> int:
        self.log.append(("in", port, size, 0))
        return self.inputs.get(port, (1 << 8 * size) - 1)

    def port_write(self, port: int, size: int, value: int) -> None:
        if port in self.on_write:
            self.on_write[port](value)
        else:
            self.log.append(("out", port, size, value))

    def mmio_read(self, gpa: int, size: int) -> int:
        self.log.append(("read", gpa, size, 0))
        return self.inputs.get(gpa, (1 << 8 * size) - 1)

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        self.log.append(("write", gpa, size, value))

    def tsc(self) -> int:
        assert self.cpu is not None
        return self.cpu.blocks * 10

    def tsc_of_blocks(self) -> tuple[int, int] | None:
        return self.tsc_line

    def acknowledge_irq(self) -> int:
        assert self.cpu is not None
        vector = self.vectors.pop(0)
        self.cpu.set_irq(bool(self.vectors))
        return vector

    def raise_irq(self, vector: int) -> None:
        assert self.cpu is not None
        self.vectors.append(vector)
        self.cpu.set_irq(True)

    @property
    def reports(self) -> list[int]:
        """The values that were written to the report port."""
        return [value for kind, port, _, value in self.log if kind == "out" and port == REPORT_PORT]


@dataclass
class Lab:
    """One bench with its program loaded, ready for `run`."""

    memory: GuestMemory
    platform: LogPlatform
    cpu: UnicornCpu
    labels: dict[str, int]

    def run(self, budget_blocks: int = 100_000) -> Exit:
        return self.cpu.run(budget_blocks)

    @property
    def reports(self) -> list[int]:
        return self.platform.reports

    def gate(
        self, vector: int, label: str | int, *, dpl: int = 0, ist: int = 0, kind: int = 0x0E, cs: int = CODE
    ) -> None:
        """Write a 64-bit gate."""
        offset = self.labels[label] if isinstance(label, str) else label
        flags = 0x8000 | dpl << 13 | kind << 8 | ist
        words = (offset & 0xFFFF, cs, flags, offset >> 16 & 0xFFFF, offset >> 32, 0)
        self.memory.write(IDT + 16 * vector, struct.pack("<HHHHII", *words))

    def gate_32(self, vector: int, label: str, *, dpl: int = 0, kind: int = 0x0E, cs: int = CODE) -> None:
        """Write a 16- or 32-bit gate of protected mode; CODE_16 has its base at ORIGIN."""
        offset = self.labels[label] - (ORIGIN if cs == CODE_16 else 0)
        words = (offset & 0xFFFF, cs, 0x8000 | dpl << 13 | kind << 8, offset >> 16)
        self.memory.write(IDT + 8 * vector, struct.pack("<HHHH", *words))

    def map_page(self, gva: int, gpa: int, flags: int) -> None:
        """Map one 4 KiB page in the region 40000000h to 401FFFFFh, whose page table is made on first use."""
        assert gva >> 21 == 0x200
        self.memory.write_int(PDPT + 8, 8, SECOND_DIRECTORY | 7)
        self.memory.write_int(SECOND_DIRECTORY, 8, PAGE_TABLE | 7)
        self.memory.write_int(PAGE_TABLE + 8 * (gva >> 12 & 511), 8, gpa | flags)


def _write_tables(memory: GuestMemory, mode: int) -> None:
    table = list(_LONG_GDT if mode == 64 else _PROTECTED_GDT)
    table[5] = 0x67 | TSS << 16 | 0x89 << 40
    memory.write(GDT, struct.pack(f"<{len(table)}Q", *table))
    memory.write_int(PML4, 8, PDPT | 7)
    memory.write_int(PDPT, 8, PAGE_DIRECTORY | 7)
    memory.write_int(PDPT + 24, 8, ROM_DIRECTORY | 7)  # the last GiB, for the ROM
    memory.write_int(ROM_DIRECTORY + 8 * 511, 8, 0xFFE00000 | 0x87)
    for number in range(512):
        memory.write_int(PAGE_DIRECTORY + 8 * number, 8, number << 21 | 0x87)
    if mode == 64:
        memory.write_int(TSS + 4, 8, RSP0)
        memory.write_int(TSS + 36, 8, IST1)
    else:
        memory.write(TSS + 4, struct.pack("<II", RSP0, DATA))
    memory.write_int(TSS + 0x66, 2, 0x68)


@contextmanager
def lab(
    source: str, mode: int = 64, *, gates: Mapping[int, str] | None = None, native: bool = True
) -> Generator[Lab, None, None]:
    """A bench that runs `source` in 16-, 32- or 64-bit mode from reset on; `gates` are interrupt gates of ring 0."""
    image = assemble(source)
    memory = GuestMemory(RAM_LAYOUT, "cpu-lab")
    platform = LogPlatform()
    if mode != 16:
        _write_tables(memory, mode)
    memory.write(ORIGIN, image.code)
    cpu = UnicornCpu(memory, platform, rom(mode), native=native)
    platform.cpu = cpu
    bench = Lab(memory, platform, cpu, image.labels)
    for vector, label in (gates or {}).items():
        if mode == 64:
            bench.gate(vector, label)
        elif mode == 32:
            bench.gate_32(vector, label)
        else:
            memory.write(4 * vector, struct.pack("<HH", image.labels[label] - ORIGIN, ORIGIN >> 4))
    try:
        yield bench
    finally:
        cpu.close()
        memory.close()

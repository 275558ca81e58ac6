"""Multiboot 1 kernels, from the specification 0.6.96: found, loaded, told, and entered in the state it names."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import vmm
from devices.errors import ConfigError
from devices.memory import GuestMemory
from tests.cpu.lab import assemble
from vmm import loader
from vmm.loader import BootData, Image, Module
from vmm.loader.multiboot import find_header

MAGIC, FLAGS_ADDRESSES = 0x1BADB002, 1 << 16
BASE = 0x100000
MAP = ((0, 0xA0000, 1), (0xF0000, 0x10000, 2), (0x100000, 0x300000, 1))


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory([(0, 0xA0000), (0x100000, 0x300000)]) as ram:
        yield ram


def header(flags: int, *addresses: int, checksum: int | None = None) -> bytes:
    if checksum is None:
        checksum = -(MAGIC + flags) % 2**32
    return struct.pack(f"<III{len(addresses)}I", MAGIC, flags, checksum, *addresses)


def flat(code: bytes, *, flags: int = 3, load_end: int = 0, bss_end: int = 0, entry: int = BASE + 32) -> bytes:
    """A kernel whose header has address fields and stands at its beginning."""
    return header(flags | FLAGS_ADDRESSES, BASE, BASE, load_end, bss_end, entry) + code


def elf(bits: int, code: bytes, *, vaddr: int = BASE, entry: int = BASE + 12, memory_bytes: int = 0) -> bytes:
    """A 32- or 64-bit ELF file with one segment at BASE: a header, then the code."""
    body = header(3) + code
    size = memory_bytes or len(body)
    ident = b"\x7fELF" + bytes([1 if bits == 32 else 2, 1, 1]) + bytes(9)
    if bits == 32:
        fields = struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, 1, 40, 0, 0)
        segment = struct.pack("<IIIIIIII", 1, 84, vaddr, BASE, len(body), size, 7, 4)
    else:
        fields = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 64, 0, 0)
        segment = struct.pack("<IIQQQQQQ", 1, 7, 120, vaddr, BASE, len(body), size, 4)
    return ident + fields + segment + body


# -- the header --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 4, 4096, 8192 - 12])
def test_the_header_is_found_anywhere_in_the_first_8_kib(position: int) -> None:
    found = find_header(bytes(position) + header(3) + bytes(40))
    assert found is not None
    assert (found.position, found.flags) == (position, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(8192),
        bytes(8188) + header(3),  # not wholly inside
        bytes(2) + header(3),  # not aligned
        header(3, checksum=1),
        struct.pack("<I", MAGIC),
    ],
)
def test_anything_else_is_no_multiboot_kernel(data: bytes) -> None:
    assert find_header(data) is None


def test_a_false_start_does_not_hide_the_header() -> None:
    found = find_header(header(3, checksum=7) + bytes(4) + header(1))
    assert found is not None and found.flags == 1


# -- loading -----------------------------------------------------------------------------------------------------------


def load(data: bytes, memory: GuestMemory, boot: BootData | None = None) -> loader.Payload:
    return loader.load(Image("dir/kernel", data), memory, boot or BootData(memory_map=MAP))


def test_address_fields_say_where_a_flat_kernel_goes(memory: GuestMemory) -> None:
    payload = load(flat(b"code"), memory)
    assert (payload.kind, payload.entry) == ("Multiboot", BASE + 32)
    assert memory.read(BASE + 32, 4) == b"code"


def test_load_end_and_bss_end_bound_what_is_loaded_and_what_is_taken(memory: GuestMemory) -> None:
    payload = load(flat(b"codeJUNK", load_end=BASE + 36, bss_end=BASE + 0x5000), memory)
    assert memory.read(BASE + 32, 8) == b"code\0\0\0\0"
    assert any((s.gpa, s.size_bytes) == (BASE, 0x5000) for s in payload.segments)


@pytest.mark.parametrize("bits", [32, 64])
def test_an_elf_kernel_goes_to_its_physical_addresses(memory: GuestMemory, bits: int) -> None:
    payload = load(elf(bits, b"code", memory_bytes=0x3000), memory)
    assert payload.entry == BASE + 12
    assert memory.read(BASE + 12, 4) == b"code"
    assert any((s.gpa, s.size_bytes) == (BASE, 0x3000) for s in payload.segments)


def test_a_kernel_linked_high_is_entered_at_the_physical_place_of_its_entry(memory: GuestMemory) -> None:
    payload = load(elf(32, b"code", vaddr=0xC0100000, entry=0xC010000C), memory)
    assert payload.entry == BASE + 12


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (flat(b"code", flags=3 | 1 << 5), "flag bits 0x20"),
        (header(FLAGS_ADDRESSES, BASE), "no address fields"),
        (header(3) + b"code", "neither an ELF file nor has it address fields"),
        (flat(b"code", load_end=BASE + 4096), "do not fit its file"),
        (flat(b"code", load_end=BASE - 4), "do not fit its file"),
        (flat(b"code", entry=0x5000), "starts at 0x5000"),
        (flat(b"code", bss_end=BASE + 0x400000), "which this machine does not have"),
        (elf(32, b"code")[:-2], "truncated"),
    ],
)
def test_a_kernel_that_cannot_be_loaded_gets_one_sentence(memory: GuestMemory, data: bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load(data, memory)
    assert "dir/kernel" in str(caught.value)


# -- the boot information ----------------------------------------------------------------------------------------------


def words_at(memory: GuestMemory, gpa: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}I", memory.read(gpa, 4 * count))


def string_at(memory: GuestMemory, gpa: int) -> bytes:
    return memory.read(gpa, 64).split(b"\0")[0]


def test_the_information_tells_memory_command_line_modules_and_loader(memory: GuestMemory) -> None:
    modules = (Module("a", b"first", b"a one"), Module("b", bytes(5000), b"b"))
    payload = load(flat(b"code"), memory, BootData(b"verbose x=1", modules, MAP))
    assert payload.protocol == 1
    words = words_at(memory, payload.information, 17)
    flags, lower, upper, _, cmdline, count, list_gpa = words[:7]
    assert flags == 0b10_0100_1101
    assert (lower, upper) == (640, 3072)
    assert string_at(memory, cmdline) == b"kernel verbose x=1"
    assert count == 2
    first, second = words_at(memory, list_gpa, 4), words_at(memory, list_gpa + 16, 4)
    assert first[0] % 4096 == second[0] % 4096 == 0
    assert memory.read(first[0], 5) == b"first"
    assert (first[1] - first[0], second[1] - second[0]) == (5, 5000)
    assert [string_at(memory, entry[2]) for entry in (first, second)] == [b"a one", b"b"]
    assert string_at(memory, words[16]) == b"balloon-vmm"


def test_the_memory_map_has_the_board_s_entries(memory: GuestMemory) -> None:
    payload = load(flat(b"code"), memory)
    assert payload.protocol == 1
    length, gpa = words_at(memory, payload.information + 44, 2)
    entries = [struct.unpack("<IQQI", memory.read(gpa + at, 24)) for at in range(0, length, 24)]
    assert entries == [(20, *entry) for entry in MAP]


def test_what_the_kernel_was_given_overlaps_nothing(memory: GuestMemory) -> None:
    modules = tuple(Module(f"m{n}", bytes([n]) * 5000, b"m") for n in range(3))
    low = header(3 | FLAGS_ADDRESSES, 0x90000, 0x90000, 0, 0x9FC00, 0x90020) + b"code"
    payload = load(low, memory, BootData(b"", modules, MAP))
    places = sorted((s.gpa, s.gpa + s.size_bytes) for s in payload.segments)
    assert all(before[1] <= after[0] for before, after in pairwise(places))
    assert len(places) == 3  # the kernel, its modules together, and the boot information


def test_a_kernel_with_more_segments_than_the_firmware_can_take_is_refused(memory: GuestMemory) -> None:
    one = elf(32, b"code")
    table = one[52:84] * 15
    image = one[:28] + struct.pack("<I", len(one)) + one[32:44] + struct.pack("<H", 15) + one[46:] + table
    with pytest.raises(ConfigError, match=r"has 15 segments to load; at most 14 are supported[.]$"):
        load(image, memory)


def test_a_table_of_segments_that_no_file_can_reach_is_one_sentence(memory: GuestMemory) -> None:
    image = bytearray(elf(64, b"code"))
    struct.pack_into("<Q", image, 32, 1 << 63)  # e_phoff
    with pytest.raises(ConfigError, match=r"^The Multiboot kernel '.*' is neither an ELF file nor .*[.]$"):
        load(bytes(image), memory)


def test_modules_are_named_with_their_words_one_by_one_or_behind_commas(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode())
    a, b, c = (str(tmp_path / name) for name in ("a", "b", "c"))
    modules = loader.read_modules([f"{a} x=1 y,{b}", c])
    assert [module.data for module in modules] == [b"a", b"b", b"c"]
    assert [module.cmdline for module in modules] == [f"{a} x=1 y".encode(), b.encode(), c.encode()]
    with pytest.raises(ConfigError, match=r"^There is no file '.*/d'[.]$"):
        loader.read_modules([str(tmp_path / "d")])


def test_a_guest_that_is_no_kernel_takes_no_modules(tmp_path: Path) -> None:
    (tmp_path / "module").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"^The guest 'hello' is no Linux or Multiboot kernel: it takes no"):
        vmm.boot("hello", modules=[str(tmp_path / "module")])


# -- running -----------------------------------------------------------------------------------------------------------

KERNEL = """
    .code32
start:
    .long {magic}, {flags}, -({magic} + {flags}), start, start, 0, end, entry
entry:
    movl $0x402, %edx
    outb %al, %dx; shrl $8, %eax; outb %al, %dx; shrl $8, %eax; outb %al, %dx; shrl $8, %eax; outb %al, %dx
    movl %cr0, %eax; outb %al, %dx; shrl $24, %eax; outb %al, %dx
    movl $0xc0000080, %ecx; rdmsr; movl $0x402, %edx; movb %ah, %al; outb %al, %dx
    movl 16(%ebx), %esi                 /* the command line */
1:  lodsb; outb %al, %dx; testb %al, %al; jnz 1b
    {rest}
    movl $7, %eax; movl $0x5f4, %edx; outl %eax, %dx
    hlt
end:
"""


def kernel(rest: str = "") -> bytes:
    return assemble(KERNEL.format(magic=MAGIC, flags=3 | FLAGS_ADDRESSES, rest=rest), BASE).code


def test_a_kernel_is_entered_as_the_specification_says(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(kernel())
    with vmm.boot(path, parameter="some words") as m:
        outcome = m.run()
        assert outcome is not None and (outcome.kind, outcome.exit_code) == ("quit", 7)
        eax, cr0_low, cr0_high, efer = struct.unpack_from("<IBBB", m.debug_output)
        assert eax == 0x2BADB002
        assert cr0_low & 1 == 1 and cr0_high & 0x80 == 0  # protected mode, no paging
        assert efer == 0  # not in long mode
        assert m.debug_output[7:] == b"kernel some words\0"


def test_the_firmware_has_enumerated_pci_before(tmp_path: Path) -> None:
    """The balloon's BAR 4 has an address, and the interrupt line names an input of the 8259."""
    rest = """
        movl $0x80001820, %eax; movl $0xcf8, %edx; outl %eax, %dx
        movl $0xcff, %edx; inb %dx, %al; movl $0x402, %edx; outb %al, %dx
        movl $0x8000183c, %eax; movl $0xcf8, %edx; outl %eax, %dx
        movl $0xcfc, %edx; inb %dx, %al; movl $0x402, %edx; outb %al, %dx
    """
    path = tmp_path / "kernel"
    path.write_bytes(kernel(rest))
    with vmm.boot(path) as m:
        m.run()
        assert m.debug_output[-2:] == b"\xe0\x0b"


def test_timer_interrupts_reach_a_kernel_through_the_8259(tmp_path: Path) -> None:
    """The virtual wire: the kernel programs the pair and the 8254 and waits in HLT."""
    rest = """
        lgdtl gdt_pointer; lidtl idt_pointer; movl $0x9000, %esp
        movl $handler, %eax; movw %ax, gate; shrl $16, %eax; movw %ax, gate + 6
        ljmpl $8, $2f
    2:  movl $0x10, %eax; movl %eax, %ss
        movb $0x11, %al; outb %al, $0x20; movb $0x20, %al; outb %al, $0x21
        movb $4, %al; outb %al, $0x21; movb $1, %al; outb %al, $0x21; movb $0xfe, %al; outb %al, $0x21
        movb $0x34, %al; outb %al, $0x43; movb $0, %al; outb %al, $0x40; movb $0x10, %al; outb %al, $0x40
    3:  sti; hlt; cmpl $3, count; jb 3b
        jmp 4f
    handler: incl count; pushl %eax; movb $0x20, %al; outb %al, $0x20; popl %eax; iretl
        .balign 8
    gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
    gdt_pointer: .word 23; .long gdt
    idt_pointer: .word 0x107; .long gate - 0x100
    count: .long 0
        .balign 8
        .skip 0x100
    gate: .word 0, 8, 0x8e00, 0
    4:
    """
    path = tmp_path / "kernel"
    path.write_bytes(kernel(rest))
    with vmm.boot(path, duration="10s") as m:
        outcome = m.run()
        assert outcome is not None and (outcome.kind, outcome.exit_code) == ("quit", 7)
        # Programming the counter makes its output rise, which is the first interrupt.
        assert m.now_ns > 2 * 4096 * 10**9 // 1_193_182

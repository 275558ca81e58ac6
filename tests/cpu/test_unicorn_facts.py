"""Each thing about Unicorn 2.1.4 that this project depends on, so that another release shows what has changed.

A failure here is no bug of Unicorn or of the project: it says that a design decision must be looked at again.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Generator

import pytest
from unicorn import x86_const

from devices.errors import ConfigError
from vmm.cpu import binding, exit_checks, layout
from vmm.cpu.layout import HF_CS64, HF_LMA, HF_PE, CpuState

CODE = 0x1000
DATA = 0x3000
RAM_BYTES = 0x10000


class Bare:
    """An engine in flat 64-bit mode without paging, and 64 KiB of memory."""

    def __init__(self) -> None:
        self.engine = binding.Engine()
        self.state = CpuState(self.engine.state_address, self.engine.state_size)
        self.ram = mmap.mmap(-1, RAM_BYTES)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.ram))
        self.engine.map_memory(0, RAM_BYTES, binding.PROT_ALL, self.address)

    def load(self, code: str, at: int = CODE) -> None:
        raw = bytes.fromhex(code)
        self.ram[at : at + len(raw)] = raw

    def register(self, name: str) -> int:
        return self.engine.read_register(getattr(x86_const, f"UC_X86_REG_{name.upper()}"))

    def set(self, name: str, value: int) -> None:
        self.engine.write_register(getattr(x86_const, f"UC_X86_REG_{name.upper()}"), value)


@pytest.fixture
def bare() -> Generator[Bare, None, None]:
    made = Bare()
    yield made
    made.state.memory.release()
    made.engine.close()


def test_this_is_the_version_that_was_tested() -> None:
    binding.require_tested_version()
    with pytest.raises(ConfigError, match=r"Unicorn must be version 2\.1\.4, not 2\.2\.0: its CPU state may differ"):
        binding.require_tested_version("2.2.0")


def test_the_layout_is_the_known_one() -> None:
    layout.verify_layout.cache_clear()
    layout.verify_layout()


@pytest.mark.parametrize("field", ["lstar", "eip", "cr2", "error_code", "old_exception", "exception_is_int", "hflags"])
def test_a_field_at_another_place_is_refused(field: str) -> None:
    layout.verify_layout.cache_clear()
    known = CpuState.__dict__[field]
    setattr(CpuState, field, layout._Field(known.offset + 8, known.code))
    try:
        with pytest.raises(ConfigError, match="this build of Unicorn keeps its CPU state in an unknown layout: "):
            layout.verify_layout()
    finally:
        setattr(CpuState, field, known)


def test_a_new_engine_is_in_64_bit_mode(bare: Bare) -> None:
    bare.engine.save()
    assert bare.state.hflags & (HF_PE | HF_LMA | HF_CS64) == HF_PE | HF_LMA | HF_CS64
    assert bare.state.efer == 0x500


def test_hlt_ends_a_run_without_an_error_behind_the_instruction(bare: Bare) -> None:
    bare.load("f4")
    assert bare.engine.start(CODE) == binding.OK
    assert bare.register("rip") == CODE + 1


def test_no_exit_address_is_looked_up_so_that_cr2_stays(bare: Bare) -> None:
    bare.load("f4")
    bare.set("cr2", 0x1234)
    bare.engine.start(CODE)
    assert bare.register("cr2") == 0x1234


def test_a_block_callback_is_called_before_its_block_and_can_stop_it(bare: Bare) -> None:
    bare.load("48ffc0" + "eb00" + "48ffc0" + "f4")  # inc rax; jmp next; next: inc rax; hlt
    seen: list[tuple[int, int]] = []

    def on_block(_engine: int, pc: int, size: int, _data: int) -> None:
        seen.append((pc, size))
        if len(seen) == 2:
            bare.engine.stop()

    bare.engine.hook(binding.HOOK_BLOCK, binding.BlockCallback(on_block))
    assert bare.engine.start(CODE) == binding.OK
    assert seen == [(CODE, 5), (CODE + 5, 4)]
    assert (bare.register("rax"), bare.register("rip")) == (1, CODE + 5)


def test_a_string_instruction_is_a_block_for_each_step(bare: Bare) -> None:
    bare.load("f3aa" + "f4")  # rep stosb; hlt
    bare.set("rcx", 10)
    bare.set("rdi", DATA)
    pcs: list[int] = []
    bare.engine.hook(binding.HOOK_BLOCK, binding.BlockCallback(lambda _engine, pc, _size, _data: pcs.append(pc)))
    bare.engine.start(CODE)
    assert pcs.count(CODE) == 11


def test_a_store_into_its_own_block_leaves_it_and_runs_again_alone(bare: Bare) -> None:
    """Such a block begins inside the one before; native.c must not stop there."""
    bare.load("c6050100000005" + "b001" + "f4")  # mov byte [rip+1], 5; mov al, 1 (its operand changes); hlt
    seen: list[tuple[int, int]] = []
    callback = binding.BlockCallback(lambda _engine, pc, size, _data: seen.append((pc, size)))
    bare.engine.hook(binding.HOOK_BLOCK, callback)
    bare.engine.start(CODE)
    assert bare.register("rax") & 0xFF == 5
    assert seen == [(CODE, 10), (CODE, 7), (CODE + 7, 3)]


def test_every_exception_but_invalid_opcode_goes_to_the_interrupt_callback(bare: Bare) -> None:
    bare.load("31c9f7f1")  # xor ecx, ecx; div ecx
    seen: list[tuple[int, int]] = []

    def on_interrupt(_engine: int, vector: int, _data: int) -> None:
        bare.engine.save()
        seen.append((vector, bare.state.eip))
        bare.engine.stop()

    bare.engine.hook(binding.HOOK_INTERRUPT, binding.InterruptCallback(on_interrupt))
    bare.engine.start(CODE)
    assert seen == [(0, CODE + 2)]


def test_invalid_opcode_goes_to_a_callback_of_its_own(bare: Bare) -> None:
    bare.load("0f0b")
    seen: list[int] = []

    def on_invalid(_engine: int, _data: int) -> bool:
        bare.engine.save()
        seen.append(bare.state.eip)
        bare.state.eip = CODE + 0x100
        bare.engine.restore()
        return True

    bare.load("f4", CODE + 0x100)
    bare.engine.hook(binding.HOOK_INVALID_INSTRUCTION, binding.InvalidInstructionCallback(on_invalid))
    assert bare.engine.start(CODE) == binding.OK
    assert seen == [CODE]
    assert bare.register("rip") == CODE + 0x101, "a state changed in the callback counts at once"


def test_a_stop_in_the_interrupt_callback_is_precise(bare: Bare) -> None:
    bare.load("cd40" + "48ffc0" + "f4")  # int 40h; inc rax; hlt
    bare.engine.hook(
        binding.HOOK_INTERRUPT, binding.InterruptCallback(lambda _engine, _vector, _data: bare.engine.stop())
    )
    bare.engine.start(CODE)
    assert (bare.register("rip"), bare.register("rax")) == (CODE + 2, 0)


def test_a_second_exception_becomes_a_double_fault_unless_old_exception_is_cleared(bare: Bare) -> None:
    bare.load("8ed8" + "f4")  # mov ds, eax: #GP
    bare.set("rax", 0x38)
    vectors: list[int] = []

    def on_interrupt(_engine: int, vector: int, _data: int) -> None:
        vectors.append(vector)
        if len(vectors) == 4:
            bare.engine.stop()
        if len(vectors) <= 2:
            bare.engine.save()
            bare.state.old_exception = -1
            bare.engine.restore()

    bare.engine.hook(binding.HOOK_INTERRUPT, binding.InterruptCallback(on_interrupt))
    bare.engine.start(CODE)
    assert vectors == [13, 13, 13, 8]


def test_host_writes_into_translated_code_are_not_seen_until_it_is_dropped(bare: Bare) -> None:
    bare.load("b801000000f4")
    bare.engine.start(CODE)
    bare.load("b802000000f4")
    bare.engine.start(CODE)
    assert bare.register("rax") == 1
    bare.engine.remove_translations(CODE, CODE + 1)
    bare.engine.start(CODE)
    assert bare.register("rax") == 2


def test_translations_are_announced_except_before_the_first_block_of_all(bare: Bare) -> None:
    bare.load("eb00" + "eb00" + "f4")
    announced: list[int] = []

    def on_translated(_engine: int, now: int, _before: int, _data: int) -> None:
        announced.append(ctypes.c_uint64.from_address(now).value)

    bare.engine.hook(binding.HOOK_TRANSLATED, binding.TranslatedCallback(on_translated))
    bare.engine.start(CODE)
    assert announced == [CODE + 2, CODE + 4]
    bare.load("f4", CODE + 0x100)
    bare.engine.start(CODE + 0x100)
    assert announced[2:] == [CODE + 0x100], "at the beginning of a later run it is"


def test_ports_are_not_checked_against_the_privilege_level(bare: Bare) -> None:
    bare.load("e680f4")  # out 80h, al; hlt
    bare.engine.save()
    bare.state.hflags |= 3
    bare.engine.restore()
    ports: list[int] = []
    callback = binding.OutCallback(lambda _engine, port, _size, _value, _data: ports.append(port))
    bare.engine.hook(binding.HOOK_INSTRUCTION, callback, instruction=binding.INSTRUCTION_OUT)
    bare.engine.hook(
        binding.HOOK_INTERRUPT, binding.InterruptCallback(lambda _engine, _vector, _data: bare.engine.stop())
    )
    bare.engine.start(CODE)
    assert ports == [0x80], "so Instructions checks it"


@pytest.mark.parametrize(
    ("code", "instruction"),
    [("0f05", binding.INSTRUCTION_SYSCALL), ("0f34", binding.INSTRUCTION_SYSENTER)],
)
def test_syscall_and_sysenter_only_call_their_callback_and_move_on(bare: Bare, code: str, instruction: int) -> None:
    bare.load(code + "f4")
    bare.set("rcx", 7)
    calls: list[int] = []
    callback = binding.SyscallCallback(lambda _engine, _data: calls.append(1))
    bare.engine.hook(binding.HOOK_INSTRUCTION, callback, instruction=instruction)
    bare.engine.start(CODE)
    assert (calls, bare.register("rip"), bare.register("rcx")) == ([1], CODE + 3, 7)


def test_rdtsc_can_be_replaced_through_the_c_interface(bare: Bare) -> None:
    bare.load("0f31f4")

    def on_rdtsc(_engine: int, _data: int) -> int:
        bare.set("rax", 0x11)
        bare.set("rdx", 0x22)
        return 1

    bare.engine.hook(binding.HOOK_INSTRUCTION, binding.ReplaceCallback(on_rdtsc), instruction=binding.INSTRUCTION_RDTSC)
    bare.engine.start(CODE)
    assert (bare.register("rax"), bare.register("rdx")) == (0x11, 0x22)


def test_eight_bytes_of_a_device_come_as_two_of_four(bare: Bare) -> None:
    bare.load("488b04250000020048890425000002" + "00f4")  # mov rax, [20000h]; mov [20000h], rax; hlt
    log: list[tuple[str, int, int]] = []

    def read(_engine: int, offset: int, size: int, _data: int) -> int:
        log.append(("read", offset, size))
        return 0x11111111

    def write(_engine: int, offset: int, size: int, _value: int, _data: int) -> None:
        log.append(("write", offset, size))

    bare.engine.map_device(0x20000, 0x1000, binding.MmioReadCallback(read), binding.MmioWriteCallback(write))
    assert bare.engine.start(CODE) == binding.OK
    assert log == [("read", 0, 4), ("read", 4, 4), ("write", 0, 4), ("write", 4, 4)]


def test_jumping_to_a_device_is_an_error_of_the_run_with_rip_at_the_target(bare: Bare) -> None:
    bare.load("b800000200ffe0")  # mov eax, 20000h; jmp rax
    nothing = binding.MmioReadCallback(lambda _engine, _offset, _size, _data: 0)
    bare.engine.map_device(
        0x20000, 0x1000, nothing, binding.MmioWriteCallback(lambda _engine, _offset, _size, _value, _data: None)
    )
    assert bare.engine.start(CODE) in binding.FETCH_ERRORS
    assert bare.register("rip") == 0x20000


def test_only_memory_protected_afterwards_discards_stores(bare: Bare) -> None:
    bare.load("c604250030000055f4")  # mov byte [3000h], 55h; hlt
    bare.ram[DATA] = 7
    stores: list[tuple[int, int, int]] = []
    bare.engine.take_protected_writes(DATA, DATA + 0xFFF, lambda gpa, size, value: stores.append((gpa, size, value)))
    assert bare.engine.start(CODE) == binding.OK
    assert bare.ram[DATA] == 7
    assert stores == [(DATA, 1, 0x55)]


def test_reading_cr8_gives_zero_whatever_was_written(bare: Bare) -> None:
    """So no guest can use it; the local APIC's own register works."""
    bare.load("b80500000044" + "0f22c0" + "440f20c3" + "f4")  # mov eax, 5; mov cr8, rax; mov rbx, cr8; hlt
    bare.set("rbx", 9)
    bare.engine.start(CODE)
    assert bare.register("rbx") == 0
    bare.engine.save()
    assert bare.state.cr8 == 5


def test_the_state_of_the_fpu_is_empty_in_a_new_engine(bare: Bare) -> None:
    """The values after a real reset are set by UnicornCpu.reset."""
    assert (bare.register("mxcsr"), bare.register("fpcw")) == (0, 0)


@pytest.mark.parametrize("sizes", [(0x1000, 0x4000, 0x1000), (0x4000, 0x1000, 0x1000)])
def test_blocks_that_are_not_mapped_from_the_largest_down_share_numbers(sizes: tuple[int, int, int]) -> None:
    """A store to one page then looks like one to the code of another, and the block is cut there."""
    engine = binding.Engine()
    pages = [mmap.mmap(-1, size) for size in sizes]
    places = (0x10000, 0x20000, 0x30000)
    for place, size, page in zip(places, sizes, pages, strict=True):
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        engine.map_memory(place, size, binding.PROT_ALL, address)
    blocks: list[int] = []
    engine.hook(binding.HOOK_BLOCK, binding.BlockCallback(lambda _engine, pc, _size, _data: blocks.append(pc)))
    # The code runs from the third block, and stores to the first bytes of the second, whose first page has its number.
    program = bytes.fromhex("b800000200" + "c60055" + "90" + "f4")  # mov eax, 20000h; mov byte [rax], 55h; nop; hlt
    pages[2][: len(program)] = program
    assert engine.start(places[2]) == binding.OK
    assert pages[1][0] == 0x55
    assert (len(blocks) > 1) == (sizes[0] < sizes[1])
    engine.close()


@pytest.mark.parametrize("checked", [True, False])
def test_a_stop_within_a_block_waits_for_its_end_without_the_checks(bare: Bare, checked: bool) -> None:
    """With Unicorn's check after each access it stops behind the load; without, before the block that follows."""
    if not checked:
        exit_checks.leave_out(bare.engine)
    bare.load("8b07 ffc3 8907 ffc3 eb00 ffc3 f4")  # mov eax, [rdi]; inc ebx; mov [rdi], eax; inc ebx; jmp; inc ebx; hlt
    bare.set("rdi", DATA)
    bare.set("rbx", 0)
    bare.engine.hook(binding.HOOK_LOAD, binding.LoadCallback(lambda *_access: bare.engine.stop()))
    assert bare.engine.start(CODE) == binding.OK
    assert bare.register("rbx") == (0 if checked else 2)


def test_the_flag_for_the_checks_is_where_it_was_found() -> None:
    exit_checks.find_flag.cache_clear()
    assert exit_checks.find_flag() > 0


def test_without_the_flag_nothing_is_changed(bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exit_checks, "find_flag", lambda: 0)
    before = ctypes.string_at(bare.engine.handle.value or 0, 4096)
    exit_checks.leave_out(bare.engine)
    assert ctypes.string_at(bare.engine.handle.value or 0, 4096) == before


@pytest.mark.parametrize("place", [exit_checks._FLAG - 1, exit_checks._FLAG + 1])
def test_another_byte_is_not_taken_for_the_flag(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    exit_checks.find_flag.cache_clear()
    monkeypatch.setattr(exit_checks, "_FLAG", place)
    assert exit_checks.find_flag() == 0
    exit_checks.find_flag.cache_clear()

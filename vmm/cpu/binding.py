"""Unicorn's C interface, as far as this project uses it.

The Python binding of Unicorn is not used for running: its wrapper stops the CPU in the middle of an instruction when
a callback raises, refuses hooks on RDTSC, and costs several times more for each call.  Here every callback is a plain
C function pointer and every call goes straight to the library, whose version is checked once.

This module knows no machine, and no more of a processor than the numbers of Unicorn's constants.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, byref, c_bool, c_int, c_int64, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from typing import Any

import unicorn
from unicorn import unicorn_const as const
from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import uclib

from devices.errors import ConfigError

TESTED_VERSION = "2.1.4"
_INSTALLED_VERSION: str = unicorn.__version__  # type: ignore[attr-defined]

PROT_READ, PROT_WRITE, PROT_EXECUTE = 1, 2, 4
PROT_ALL = 7

# uc_ctl: the kind of access in the top bits, the number of arguments next, the subject in the low 16
_CTL_WRITE = const.UC_CTL_IO_WRITE << 30


def _ctl(subject: int, arguments: int) -> int:
    return ctypes.c_int32(subject | arguments << 26 | _CTL_WRITE).value


CTL_USE_EXITS = _ctl(const.UC_CTL_UC_USE_EXITS, 1)
CTL_CPU_MODEL = _ctl(const.UC_CTL_CPU_MODEL, 1)
CTL_REMOVE_CACHE = _ctl(const.UC_CTL_TB_REMOVE_CACHE, 2)
CTL_FLUSH_TRANSLATIONS = _ctl(const.UC_CTL_TB_FLUSH, 0)
CTL_FLUSH_TLB = _ctl(const.UC_CTL_TLB_FLUSH, 0)

HOOK_INTERRUPT = const.UC_HOOK_INTR
HOOK_INSTRUCTION = const.UC_HOOK_INSN
HOOK_BLOCK = const.UC_HOOK_BLOCK
HOOK_INVALID_INSTRUCTION = const.UC_HOOK_INSN_INVALID
HOOK_LOAD = const.UC_HOOK_MEM_READ
HOOK_STORE = const.UC_HOOK_MEM_WRITE
HOOK_CODE = const.UC_HOOK_CODE
HOOK_WRITE_PROTECTED = const.UC_HOOK_MEM_WRITE_PROT
HOOK_TRANSLATED = const.UC_HOOK_EDGE_GENERATED

INSTRUCTION_IN = x86_const.UC_X86_INS_IN
INSTRUCTION_OUT = x86_const.UC_X86_INS_OUT
INSTRUCTION_SYSCALL = x86_const.UC_X86_INS_SYSCALL
INSTRUCTION_SYSENTER = x86_const.UC_X86_INS_SYSENTER
INSTRUCTION_CPUID = x86_const.UC_X86_INS_CPUID
INSTRUCTION_RDTSC = x86_const.UC_X86_INS_RDTSC
INSTRUCTION_RDTSCP = x86_const.UC_X86_INS_RDTSCP

OK = const.UC_ERR_OK
#: what emu_start returns when the guest jumped to a place that holds no memory
FETCH_ERRORS = (const.UC_ERR_FETCH_UNMAPPED, const.UC_ERR_FETCH_PROT)

ANYWHERE = (1, 0)  # bounds of a hook: an empty range means every address

# the signatures of callbacks
InterruptCallback = CFUNCTYPE(None, c_void_p, c_uint32, c_void_p)
InvalidInstructionCallback = CFUNCTYPE(c_bool, c_void_p, c_void_p)
BlockCallback = CFUNCTYPE(None, c_void_p, c_uint64, c_uint32, c_void_p)
TranslatedCallback = CFUNCTYPE(None, c_void_p, c_void_p, c_void_p, c_void_p)
InCallback = CFUNCTYPE(c_uint32, c_void_p, c_uint32, c_int, c_void_p)
OutCallback = CFUNCTYPE(None, c_void_p, c_uint32, c_int, c_uint32, c_void_p)
SyscallCallback = CFUNCTYPE(None, c_void_p, c_void_p)
ReplaceCallback = CFUNCTYPE(c_int, c_void_p, c_void_p)  # CPUID, RDTSC, RDTSCP: 1 = done, 0 = execute it
LoadCallback = CFUNCTYPE(None, c_void_p, c_int, c_uint64, c_int, c_int64, c_void_p)
ProtectedCallback = CFUNCTYPE(c_bool, c_void_p, c_int, c_uint64, c_int, c_int64, c_void_p)
MmioReadCallback = CFUNCTYPE(c_uint64, c_void_p, c_uint64, c_uint, c_void_p)
MmioWriteCallback = CFUNCTYPE(None, c_void_p, c_uint64, c_uint, c_uint64, c_void_p)


class _Msr(ctypes.Structure):
    _fields_ = (("number", c_uint32), ("value", c_uint64))


class _SystemTable(ctypes.Structure):
    _fields_ = (("selector", ctypes.c_uint16), ("base", c_uint64), ("limit", c_uint32), ("flags", c_uint32))


def _load() -> ctypes.CDLL:
    """A handle of its own on the library, so that the prototypes of the Python binding stay as they are."""
    library = ctypes.CDLL(uclib._name)
    handle, size, number = c_void_p, c_uint64, c_int
    prototypes: dict[str, tuple[Any, ...]] = {
        "uc_open": (number, number, POINTER(handle)),
        "uc_close": (handle,),
        "uc_emu_start": (handle, size, size, size, c_size_t),
        "uc_emu_stop": (handle,),
        "uc_mem_map_ptr": (handle, size, size, c_uint32, c_void_p),
        "uc_mem_protect": (handle, size, size, c_uint32),
        "uc_mmio_map": (handle, size, size, c_void_p, c_void_p, c_void_p, c_void_p),
        "uc_context_alloc": (handle, POINTER(handle)),
        "uc_context_save": (handle, handle),
        "uc_context_restore": (handle, handle),
        "uc_context_free": (handle,),
        "uc_context_size": (handle,),
        "uc_reg_read": (handle, number, c_void_p),
        "uc_reg_write": (handle, number, c_void_p),
        "uc_vmem_translate": (handle, size, number, POINTER(c_uint64)),
        "uc_hook_add": (handle, POINTER(c_size_t), number, c_void_p, c_void_p, size, size),  # and ...
        "uc_hook_del": (handle, c_size_t),
        "uc_ctl": (handle, number),  # and ...
    }
    for name, arguments in prototypes.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = c_size_t if name == "uc_context_size" else c_int
    library.uc_strerror.restype = ctypes.c_char_p
    library.uc_strerror.argtypes = (c_int,)
    return library


def require_tested_version(version: str = _INSTALLED_VERSION) -> None:
    """ConfigError unless this is the release whose internals were tested."""
    if version != TESTED_VERSION:
        raise ConfigError(f"Unicorn must be version {TESTED_VERSION}, not {version}: its CPU state may differ")


class UnicornError(RuntimeError):
    """The library refused something that must not fail: a bug of this project or of Unicorn."""


LIBRARY = _load()


class Engine:
    """One engine of Unicorn, its saved CPU state, and the callbacks that must live as long as it.

    `state_address` and `state_size` tell where `save()` leaves the CPU state and from where `restore()` takes it.
    `architecture`, `mode` and `model` (None: Unicorn's own choice) are Unicorn's numbers for a processor.
    """

    def __init__(
        self, architecture: int = const.UC_ARCH_X86, mode: int = const.UC_MODE_64, model: int | None = None
    ) -> None:
        require_tested_version()
        self.handle = c_void_p()
        self.callbacks: list[Any] = []
        self._check(LIBRARY.uc_open(architecture, mode, byref(self.handle)), "open an engine")
        if model is not None:
            self.ctl(CTL_CPU_MODEL, c_int(model))
        context = c_void_p()
        self._check(LIBRARY.uc_context_alloc(self.handle, byref(context)), "allocate a context")
        self._context = context
        self.state_size = ctypes.c_size_t.from_address(context.value or 0).value
        self.state_address = (context.value or 0) + LIBRARY.uc_context_size(self.handle) - self.state_size
        self._value = c_uint64()
        self._value_reference = byref(self._value)
        self.ctl(CTL_USE_EXITS, c_int(1))  # and set none: else the end of each run looks one up, which changes CR2

    def _check(self, error: int, what: str) -> None:
        if error != OK:
            raise UnicornError(f"Unicorn could not {what}: {LIBRARY.uc_strerror(error).decode()}")

    def start(self, instruction_pointer: int) -> int:
        """Run until something stops it.  The error number, OK for none."""
        error: int = LIBRARY.uc_emu_start(self.handle, instruction_pointer, 0, 0, 0)
        return error

    def stop(self) -> None:
        """Only from the block callback or from the interrupt callbacks: anywhere else it is not precise."""
        LIBRARY.uc_emu_stop(self.handle)

    def save(self) -> None:
        LIBRARY.uc_context_save(self.handle, self._context)

    def restore(self) -> None:
        LIBRARY.uc_context_restore(self.handle, self._context)

    def read_register(self, register: int) -> int:
        LIBRARY.uc_reg_read(self.handle, register, self._value_reference)
        return self._value.value

    def write_register(self, register: int, value: int) -> None:
        self._value.value = value
        LIBRARY.uc_reg_write(self.handle, register, self._value_reference)

    def write_msr(self, number: int, value: int) -> None:
        LIBRARY.uc_reg_write(self.handle, x86_const.UC_X86_REG_MSR, byref(_Msr(number, value)))

    def read_msr(self, number: int) -> int:
        msr = _Msr(number, 0)
        LIBRARY.uc_reg_read(self.handle, x86_const.UC_X86_REG_MSR, byref(msr))
        return int(msr.value)

    def write_table(self, register: int, selector: int, base: int, limit: int, flags: int) -> None:
        LIBRARY.uc_reg_write(self.handle, register, byref(_SystemTable(selector, base, limit, flags)))

    def map_memory(self, gpa: int, size: int, prot: int, address: int) -> None:
        self._check(LIBRARY.uc_mem_map_ptr(self.handle, gpa, size, prot, address), f"map memory at {gpa:#x}")

    def map_device(self, gpa: int, size: int, read: Any, write: Any) -> None:
        """Let two MMIO callbacks answer for a range; both get the offset from `gpa`."""
        self.callbacks += [read, write]
        error = LIBRARY.uc_mmio_map(
            self.handle, gpa, size, ctypes.cast(read, c_void_p), None, ctypes.cast(write, c_void_p), None
        )
        self._check(error, f"map a device window at {gpa:#x}")

    def hook(
        self, kind: int, callback: Any, user_data: int = 0, instruction: int = 0, bounds: tuple[int, int] = ANYWHERE
    ) -> int:
        """Call `callback` (a C function pointer) for every event of this kind at first ≤ address ≤ last.  What comes
        back is for `unhook`."""
        if not any(known is callback for known in self.callbacks):
            self.callbacks.append(callback)
        pointer, handle = ctypes.cast(callback, c_void_p), c_size_t()
        error = LIBRARY.uc_hook_add(
            self.handle, byref(handle), kind, pointer, c_void_p(user_data), *bounds, c_int(instruction)
        )
        self._check(error, "add a hook")
        return handle.value or 0

    def unhook(self, handle: int) -> None:
        """Call it no more; between runs."""
        self._check(LIBRARY.uc_hook_del(self.handle, handle), "remove a hook")

    def take_protected_writes(self, first: int, last: int, write: Callable[[int, int, int], None]) -> None:
        """Make memory read-only and let `write(gpa, size, value)`, which must not raise, have the guest's stores to it.

        Only memory that `protect_memory` has made read-only discards them otherwise; what was mapped read-only takes
        the stores that a hook has seen."""
        self.protect_memory(first, last + 1 - first, PROT_READ | PROT_EXECUTE)

        def take(_engine: int, _kind: int, gpa: int, size: int, value: int, _data: int) -> bool:
            write(gpa, size, value)
            return True

        self.hook(HOOK_WRITE_PROTECTED, ProtectedCallback(take), bounds=(first, last))

    def protect_memory(self, gpa: int, size: int, prot: int) -> None:
        """Change what the guest may do with mapped memory; at once, from inside a port or MMIO callback too."""
        self._check(LIBRARY.uc_mem_protect(self.handle, gpa, size, prot), f"protect memory at {gpa:#x}")
        self.ctl(CTL_FLUSH_TLB)

    def ctl(self, control: int, *arguments: Any) -> None:
        self._check(LIBRARY.uc_ctl(self.handle, control, *arguments), "change a setting")

    def remove_translations(self, start: int, end: int) -> None:
        """Drop what was translated from the *virtual* addresses start ≤ a < end, as the MMU sees them now."""
        self.ctl(CTL_REMOVE_CACHE, c_uint64(start), c_uint64(end))

    def close(self) -> None:
        if self.handle:
            LIBRARY.uc_context_free(self._context)
            LIBRARY.uc_close(self.handle)
            self.handle = c_void_p()
            self.callbacks.clear()

"""The one door to python-ptrace: imported late, because it takes a while, and with its own warnings silenced.

It has no type information; what is used of it is called through `Any` here and nowhere else.
"""

from __future__ import annotations

import importlib
import os
import pwd
import warnings
from typing import Any

from devices.errors import ConfigError


def load(module: str) -> Any:
    """The module `ptrace.<module>`."""
    with warnings.catch_warnings():
        # ptrace.tools computes a constant with it; deprecated from Python 3.12 on.
        warnings.filterwarnings(
            "ignore",
            message=r"datetime\.datetime\.utcfromtimestamp\(\) is deprecated",
            category=DeprecationWarning,
            module=r"ptrace\.tools",
        )
        return importlib.import_module(f"ptrace.{module}")


class _Target:
    """What python-ptrace's readers of /proc want to know of a process that is not attached."""

    def __init__(self, pid: int) -> None:
        self.pid = pid


def mappings_of(pid: int) -> list[Any]:
    """The memory map of a process that goes on running: python-ptrace's MemoryMapping, `start`, `end`, `offset`,
    `permissions`, `inode` and `pathname` each.  ConfigError where there is no such process or it may not be read."""
    memory_mapping, process_error = load("debugger.memory_mapping"), load("debugger.process_error")
    try:
        mappings: list[Any] = memory_mapping.readProcessMappings(_Target(pid))
    except (process_error.ProcessError, OSError) as error:
        raise refusal(pid, "read the memory map of", error) from error
    return mappings


def status_of(pid: int, tid: int | None = None) -> dict[str, str]:
    """The fields of /proc/PID/status, or of one thread's.  OSError where there is none."""
    path = f"/proc/{pid}/status" if tid is None else f"/proc/{pid}/task/{tid}/status"
    with open(path, encoding="utf-8", errors="replace") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def peek_user(tid: int, offset: int) -> int:
    """A word of a thread's `struct user`.  PtraceError where the kernel refuses."""
    word: int = load("binding.func").ptrace_peekuser(tid, offset)
    return word


def refusal(pid: int, what: str, error: BaseException) -> ConfigError:
    """The sentence for a process that is gone or that the host protects: why, and what helps."""
    try:
        status = status_of(pid)
    except OSError:
        status = {}
    if not status or status.get("State", "")[:1] in ("Z", "X"):
        return ConfigError(f"there is no process {pid}")
    tracer = int(status.get("TracerPid", "0"))
    if tracer not in (0, os.getpid()):
        return ConfigError(f"process {pid} is already traced by process {tracer}: end that one first, then {what} it")
    owner = int(status.get("Uid", "0").split()[0])
    if os.geteuid() not in (0, owner):
        return ConfigError(f"process {pid} belongs to {_user(owner)}: only that user and root can {what} it")
    if scope := _YAMA.get(_yama_scope()):
        return ConfigError(f"the host's Yama does not let this user {what} process {pid}: {scope} ({YAMA})")
    return ConfigError(
        f"the host does not let this user {what} process {pid}: run as its owner or as root, and see {YAMA} ({error})"
    )


YAMA = "/proc/sys/kernel/yama/ptrace_scope"
_YAMA = {
    "1": "run as root, or let root write 0 there",
    "2": "run as root",
    "3": "nobody can until the host is started anew",
}


def _yama_scope() -> str:
    """What binds this user; there may be no Yama, and only its last level binds root."""
    try:
        with open(YAMA, encoding="ascii") as file:
            scope = file.read().strip()
    except OSError:
        return ""
    return scope if os.geteuid() or scope == "3" else ""


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"

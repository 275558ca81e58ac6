"""The one door to python-ptrace: imported late, because it takes a while, and with its own warnings silenced.

It has no type information; what is used of it is called through `Any` here and nowhere else.
"""

from __future__ import annotations

import importlib
import os
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


def refusal(pid: int, what: str, error: BaseException) -> ConfigError:
    """The sentence for a process that is gone or that the host protects."""
    if not os.path.isdir(f"/proc/{pid}"):
        return ConfigError(f"there is no process {pid}")
    return ConfigError(
        f"the host does not let this user {what} process {pid}: run as its owner or as root, "
        f"and see /proc/sys/kernel/yama/ptrace_scope ({error})"
    )

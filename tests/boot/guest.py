"""A Linux guest that a test talks to over its serial console."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import vmm
from devices.effects import Event
from tests.boot import debian
from vmm.config import parse_duration
from vmm.machine import Machine
from vmm.outcome import Outcome
from vmm.state import MachineState

STEP = "20ms"
GIVE_UP_NS = 60 * 10**9

MOUNT = """#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
"""
SHELL = 'stty -F /dev/ttyS0 cols 500\nexec setsid sh -c "exec sh -i </dev/ttyS0 >/dev/ttyS0 2>&1"\n'
SHELL_IS_UP = "/ # "
COMPLAINT = re.compile(r"BUG:|WARNING:|blocked for more than|virtio_balloon.*(fail|error)", re.IGNORECASE)
WITHOUT_APIC = "nolapic noapic acpi=off"
# The first device with MSI-X that is bound without a local APIC makes Linux 6.1 warn of itself, once for each of these
# two: it asks for vectors without looking whether there is an interrupt domain for them, and falls back to INTx then.
# In QEMU 7.2 (-machine pc, the same kernel, initramfs and command line) it does so as well, for a virtio-rng-pci; not
# for a virtio-balloon-pci, since QEMU's balloon has no MSI-X.
OF_MSI_WITHOUT_APIC = re.compile(
    r"WARNING: CPU: 0 PID: \d+ at drivers/pci/msi/msi\.h:\d+ (pci_msi_(?:setup|teardown)_msi_irqs)\+"
)


@dataclass(frozen=True)
class Saved:
    """A guest at one moment: its machine, the events until then, and how many questions there had been."""

    machine: MachineState
    events: tuple[tuple[int, Event], ...]
    questions: int


@dataclass
class Linux:
    """A machine with Debian's kernel and the `initramfs`, running as a context manager."""

    folder: Path
    initramfs: bytes
    cmdline: str = ""
    memory: str = "256M"
    kernel: Path = field(default_factory=debian.kernel)
    devices: tuple[str, ...] = ("virtio-balloon-pci,id=balloon0",)
    powerdown: str | None = None
    duration: str | None = None
    watch_driver: bool = False
    bios: str = ""

    def __enter__(self) -> Self:
        archive = self.folder / "initramfs"
        archive.write_bytes(self.initramfs)
        self.machine = vmm.boot(
            self.kernel,
            memory=self.memory,
            parameter=f"console=ttyS0 {self.cmdline}",
            modules=[str(archive)],
            devices=self.devices,
            powerdown=self.powerdown,
            duration=self.duration,
            watch_driver=self.watch_driver,
            bios=self.bios,
        )
        self.events: list[tuple[int, Event]] = []
        self.machine.observers.append(self)
        self._questions = 0
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.machine.close()

    # -- what the machine tells ------------------------------------------------------------------------------------

    def on_event(self, now_ns: int, event: Event) -> None:
        self.events.append((now_ns, event))

    def on_console(self, data: bytes) -> None: ...

    def on_stats(self, now_ns: int) -> None: ...

    def on_target(self, now_ns: int) -> None: ...

    # -- what a test asks --------------------------------------------------------------------------------------------

    @property
    def console(self) -> str:
        return self.machine.console.decode("utf-8", "replace").replace("\r\n", "\n")

    def wait_for(self, text: str, after: int = 0, step: str = STEP) -> None:
        """Run until the console shows `text` beyond its first `after` characters."""
        end_ns = self.machine.now_ns + GIVE_UP_NS
        while text not in self.console[after:]:
            outcome = self.machine.run(step)
            assert outcome is None or text in self.console[after:], f"{outcome} before {text!r}:\n{self.tail()}"
            assert self.machine.now_ns < end_ns, f"{text!r} did not come:\n{self.tail()}"

    def run_until(self, holds: Callable[[Machine], bool], within: str = "20s") -> None:
        """Run until `holds` is true of the machine."""
        end_ns = self.machine.now_ns + parse_duration(within)
        outcome = self.machine.run(lambda machine: machine.now_ns >= end_ns or holds(machine))
        assert outcome is None, f"{outcome}:\n{self.tail()}"
        assert holds(self.machine), f"it does not come to hold within {within}; {self.machine.balloon}:\n{self.tail()}"

    def run_to_the_end(self) -> Outcome:
        """Run until the guest ends the machine itself."""
        outcome = self.machine.run("60s")
        assert outcome is not None, f"the guest goes on and on:\n{self.tail()}"
        return outcome

    def type(self, text: str) -> None:
        """As fast as the guest takes it."""
        data = text.encode()
        while data:
            data = data[self.machine.send_console(data) :]
            self.machine.run("1ms")

    def ask(self, command: str) -> str:
        """What a command prints, run by the shell; it must end with status 0."""
        self._questions += 1
        before, end = len(self.console), f"end-{self._questions}-"
        self.type(f"{command}; echo {end}$?.\n")
        self.wait_for(f"\n{end}", before)
        self.wait_for(SHELL_IS_UP, self.console.index(f"\n{end}", before))
        answer = self.console[before:]
        found = re.search(rf"^(.*?)^{end}(\d+)\.", answer.partition("\n")[2], re.DOTALL | re.MULTILINE)
        assert found is not None, answer
        assert found[2] == "0", f"{command!r} ended with {found[2]}: {found[1]}"
        return found[1]

    @property
    def complaints(self) -> list[str]:
        """Lines in which the kernel says that something is wrong with it or with a device, but for what it says of
        itself where it has no APIC."""
        found = [line for line in self.console.splitlines() if COMPLAINT.search(line)]
        if WITHOUT_APIC not in self.cmdline:
            return found
        excused: set[str] = set()
        for line in list(found):
            about = OF_MSI_WITHOUT_APIC.search(line)
            if about is not None and about[1] not in excused:
                excused.add(about[1])
                found.remove(line)
        return found

    # -- one boot for many tests -------------------------------------------------------------------------------------

    def save(self) -> Saved:
        return Saved(self.machine.save(), tuple(self.events), self._questions)

    def restore(self, saved: Saved) -> None:
        """Go back to the moment of `saved`, with all the guest has printed and all that was heard until then."""
        self.machine.restore(saved.machine)
        self.events[:] = saved.events
        self._questions = saved.questions

    def tail(self) -> str:
        return self.console[-3000:]

"""The power button: pressed by the host, heard by a guest that has enabled it (ACPI §4.8.2.2.1).

The guest here is what an operating system's driver is at its smallest: it enables PWRBTN_EN, waits in HLT for the SCI
on input 9 of the 8259 pair, and its handler powers off when the button's status bit is set.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import vmm
from devices.effects import Event
from devices.errors import ConfigError
from tests.cpu.lab import assemble
from tests.vmm.boards import pc_board
from vmm.cli import main
from vmm.config import make_config
from vmm.machine import Machine

MS = 10**6
FLAT_BASE = 0x100000
SOURCE = """
    movw    %cs, gate + 2(%rip)
    lidt    idt_pointer(%rip)
    movw    $0x602, %dx             # PM1_EN
    movw    ${enable}, %ax
    outw    %ax, %dx
    movb    $0xfb, %al              # the 8259 pair: input 2, the cascade, and input 9
    outb    %al, $0x21
    movb    $0xfd, %al
    outb    %al, $0xa1
    sti
again:
    hlt
    jmp     again
handler:
    movw    $0x600, %dx             # PM1_STS
    inw     %dx, %ax
    testw   $0x100, %ax
    jz      again
    movw    $0x604, %dx             # PM1_CNT: S5
    movw    $0x2000, %ax
    outw    %ax, %dx
    jmp     again
idt_pointer:
    .word   0x72 * 16 - 1
    .quad   gate - 0x71 * 16        # the firmware has given the slave the vectors from 70h on
    .balign 16
gate:
    .word   handler - program, 0, 0x8e00, 0x10
    .quad   0
"""
LISTENS, DOES_NOT = 0x100, 0x001


class Listener:
    def __init__(self) -> None:
        self.events: list[tuple[int, Event]] = []

    def on_event(self, now_ns: int, event: Event) -> None:
        self.events.append((now_ns, event))

    def on_console(self, data: bytes) -> None: ...

    def on_stats(self, now_ns: int) -> None: ...

    def on_target(self, now_ns: int) -> None: ...


@pytest.fixture
def flat(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "guest.bin"


def boot(path: Path, enable: int, **options: object) -> Machine:
    path.write_bytes(assemble(SOURCE.format(enable=enable), FLAT_BASE).code)
    return vmm.boot(path, **options)  # type: ignore[arg-type]


def test_a_guest_that_listens_powers_off_when_the_button_is_pressed(flat: Path) -> None:
    listener = Listener()
    with boot(flat, LISTENS, powerdown="20ms", duration="1s") as m:
        m.observers.append(listener)
        outcome = m.run()
        assert outcome is not None and (outcome.kind, outcome.exit_code) == ("powered-off", 0)
        assert 20 * MS <= m.now_ns < 21 * MS
        ((now_ns, event),) = listener.events
    assert now_ns == 20 * MS
    assert event.kind == "power-button" and "not enabled" not in event.text


def test_a_guest_that_does_not_listen_goes_on_and_the_event_says_so(flat: Path) -> None:
    listener = Listener()
    with boot(flat, DOES_NOT, powerdown="20ms", duration="50ms") as m:
        m.observers.append(listener)
        outcome = m.run()
        assert outcome is not None and outcome.kind == "deadline"
        assert m.now_ns == 50 * MS
        ((_, event),) = listener.events
        assert event.text.endswith("the guest has not enabled its interrupt")
        assert pc_board(m).pm_events.status & 0x100


def test_it_can_be_pressed_between_two_runs(flat: Path) -> None:
    with boot(flat, LISTENS, duration="1s") as m:
        assert m.run(until="5ms") is None
        m.press_power_button()
        outcome = m.run()
        assert outcome is not None and outcome.kind == "powered-off"


def test_a_press_to_come_is_in_the_saved_state_and_one_that_was_is_not_repeated(flat: Path) -> None:
    def end(machine: Machine) -> tuple[object, ...]:
        return machine.run(), machine.now_ns, machine.blocks, machine.registers()

    with boot(flat, LISTENS, powerdown="20ms", duration="1s") as whole:
        expected = end(whole)
    with boot(flat, LISTENS, powerdown="20ms", duration="1s") as first, boot(flat, LISTENS, duration="1s") as second:
        first.run(until="10ms")
        state = first.save()
        second.restore(state)
        assert second.save() == state
        assert end(second) == expected

    listener = Listener()
    with boot(flat, DOES_NOT, powerdown="20ms") as first, boot(flat, DOES_NOT, powerdown="20ms") as second:
        first.run(until="30ms")
        second.observers.append(listener)
        second.restore(first.save())
        second.run(until="30ms")
    assert listener.events == []


def test_the_command_line_presses_it(flat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boot(flat, LISTENS).close()
    assert main(["boot", str(flat), "--powerdown", "20ms", "--for", "1s"]) == 0
    shown = capsys.readouterr().out
    assert "power button: it is pressed" in shown
    assert "powered off" in shown


def test_a_time_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^A time must be .*, not 'soon'[.]$"):
        make_config("hello", powerdown="soon")

"""What the monitor says and does; layouts and complaints are those that QEMU 7.2 prints."""

from __future__ import annotations

import itertools
import re

import pytest

import vmm
from vmm.control.monitor import Monitor
from vmm.control.monitor.commands import COMMANDS, INFOS
from vmm.machine import Machine

BACKEND = "/machine/peripheral/balloon0/virtio-backend"
ANONYMOUS = "/machine/peripheral-anon/device[0]/virtio-backend"
TRY_QUEUE_STATUS = 'Try "help info virtio-queue-status" for more information\n'


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("", ""),
        ("   ", ""),
        ("foo", "unknown command: 'foo'\n"),
        ("sys", "unknown command: 'sys'\n"),
        ("info foo", "unknown command: 'info foo'\n"),
        ("help foo", "unknown command: 'foo'\n"),
        ("help info foo", "unknown command: 'info foo'\n"),
        ("? ?", "help|? [cmd] -- show the help\n"),
        ("help x", "x /fmt addr -- virtual memory dump starting at 'addr'\n"),
        ("help stop", "stop|s  -- stop emulation\n"),
        ("help c", "cont|c  -- resume emulation\n"),
        ("help info pci", "info pci  -- show PCI info\n"),
        ("help info virtio-status", "info virtio-status path -- Display status of a given virtio device\n"),
        ("stop 1", 'stop|s: extraneous characters at the end of line\nTry "help stop" for more information\n'),
        ("s 1", 'stop|s: extraneous characters at the end of line\nTry "help s" for more information\n'),
        ("info uuid 1", 'uuid: extraneous characters at the end of line\nTry "help info uuid" for more information\n'),
        ("info  name", "fred\n"),
        ("balloon", 'unexpected end of expression\nTry "help balloon" for more information\n'),
        ("balloon x", "invalid char 'x' in expression\nTry \"help balloon\" for more information\n"),
        ("balloon 1M", 'balloon: extraneous characters at the end of line\nTry "help balloon" for more information\n'),
        ("balloon -5", 'enter a positive value\nTry "help balloon" for more information\n'),
        ("balloon 0", "Error: Parameter 'target' expects a size\n"),
        ("info balloon", "balloon: actual=64\n"),
        ("info uuid", "00000000-0000-0000-0000-000000000000\n"),
        ("info registers 1", "CPU#1 not available\n"),
        ("info registers -z", 'registers: unsupported option -z\nTry "help info registers" for more information\n'),
        ("info virtio-status", 'virtio-status: string expected\nTry "help info virtio-status" for more information\n'),
        ("info virtio-status foo", "Error: Path foo is not a VirtIODevice\n"),
        (f"info virtio-queue-status {BACKEND} 77", "Error: Invalid virtqueue number 77\n"),
        ("info virtio-queue-status x", f"unexpected end of expression\n{TRY_QUEUE_STATUS}"),
        (f"info virtio-queue-element {BACKEND} 0", "Error: Region caches not initialized\n"),
        ("info virtio", f"{ANONYMOUS} [virtio-rng]\n{BACKEND} [virtio-balloon]\n"),
        ("info stats", "No statistics: not negotiated\n"),
    ],
)  # fmt: skip
def test_a_line_and_its_answer(line: str, answer: str, monitor: Monitor) -> None:
    assert monitor.execute(line) == answer


@pytest.mark.parametrize(
    ("queue", "answer"),
    [
        ("99999", "Error: Invalid virtqueue number 99999\n"),
        ("0xffffffff", "Error: Invalid virtqueue number 4294967295\n"),
        ("-1", "'virtio-queue-{}' has failed: integer is for 32-bit values\n{}"),
        ("-0x8000000000000000", "'virtio-queue-{}' has failed: integer is for 32-bit values\n{}"),
        ("0x100000000", "'virtio-queue-{}' has failed: integer is for 32-bit values\n{}"),
    ],
)
def test_no_queue_number_does_harm(queue: str, answer: str, monitor: Monitor) -> None:
    for item in ("status", "element"):
        more = f'Try "help info virtio-queue-{item}" for more information\n'
        assert monitor.execute(f"info virtio-queue-{item} {BACKEND} {queue}") == answer.format(item, more)


def test_help_has_a_line_for_everything(monitor: Monitor) -> None:
    lines = monitor.execute("help").splitlines()
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    assert all(" -- " in line for line in lines)
    infos = monitor.execute("info")
    assert [line.split()[1] for line in infos.splitlines()] == list(INFOS)
    assert monitor.execute("help info") == infos


def test_stopping_and_going_on(machine: Machine, monitor: Monitor) -> None:
    assert monitor.execute("info status") == "VM status: running\n"
    assert monitor.execute("stop") == ""
    assert monitor.execute("info status") == "VM status: paused (prelaunch)\n"
    assert monitor.execute("c") == ""
    machine.run("0.1s")
    monitor.execute("s")
    assert machine.is_paused
    assert monitor.execute("info status") == "VM status: paused\n"
    monitor.execute("cont")
    assert not machine.is_paused


def test_a_new_target_reaches_the_guest(machine: Machine, monitor: Monitor) -> None:
    machine.run("1s")
    assert monitor.execute("balloon 8+24") == ""
    machine.run("1s")
    assert monitor.execute("info balloon") == "balloon: actual=32\n"
    assert monitor.execute("balloon 9999") == ""
    machine.run("1s")
    assert monitor.execute("info balloon") == "balloon: actual=64\n"


def test_without_a_balloon_it_says_so() -> None:
    with vmm.boot("hello", memory="16M", devices=["virtio-rng-pci"]) as machine:
        for line in ("info balloon", "info stats", "balloon 8"):
            assert Monitor(machine).execute(line) == "Error: No balloon device has been activated\n"


def test_the_balloons_statistics(machine: Machine, monitor: Monitor) -> None:
    machine.run("1s")
    first, *lines = monitor.execute("info stats").splitlines()
    assert re.fullmatch(r"statistics: ok, \d+\.\d{3} s old", first)
    assert {line.split(":")[0].strip(): int(line.split()[1]) for line in lines} == machine.stats.values


def test_reset_power_button_and_quit(machine: Machine, monitor: Monitor) -> None:
    machine.run("1s")
    assert machine.registers()["rip"] != 0xFFF0
    assert monitor.execute("system_reset") == ""
    assert machine.registers()["rip"] == 0xFFF0
    assert monitor.execute("system_powerdown") == ""
    assert not monitor.has_quit
    assert monitor.execute("q") == ""
    assert monitor.has_quit
    outcome = machine.run("1s")
    assert outcome is not None
    assert (outcome.kind, outcome.exit_code) == ("host-quit", 0)


def test_a_board_without_a_power_button_says_so() -> None:
    with vmm.boot("stats", memory="64M", arch="ppc", devices=["virtio-balloon-device"]) as machine:
        monitor = Monitor(machine)
        assert monitor.execute("system_powerdown") == "Error: The PowerPC board has no power button.\n"
        assert monitor.execute("info pci") == ""
        assert "(prio 0, i/o): interrupt controller\n" in monitor.execute("info mtree")
        machine.run("0.5s")
        shown = monitor.execute("info registers")
        registers = machine.registers()
        assert f"NIP {registers['pc']:08x}   LR {registers['lr']:08x}" in shown
        assert f"GPR00 {registers['r0']:08x} {registers['r1']:08x}" in shown
        assert monitor.execute("p $r1") == f"{registers['r1']:#x}\n"
        assert monitor.execute("p $srr0") == f"{registers['spr_26']:#x}\n"


# -- registers -----------------------------------------------------------------------------------------------------

REAL_MODE = """
CPU#0
EAX=00000000 EBX=00000000 ECX=00000000 EDX=........
ESI=00000000 EDI=00000000 EBP=00000000 ESP=00000000
EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
ES =0000 00000000 0000ffff 00009300
CS =f000 ffff0000 0000ffff 00009b00
SS =0000 00000000 0000ffff 00009300
DS =0000 00000000 0000ffff 00009300
FS =0000 00000000 0000ffff 00009300
GS =0000 00000000 0000ffff 00009300
LDT=0000 00000000 0000ffff 00008200
TR =0000 00000000 0000ffff 00008b00
GDT=     00000000 0000ffff
IDT=     00000000 0000ffff
CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000@
DR6=00000000ffff0ff0 DR7=0000000000000400
EFER=0000000000000000
FCW=.... FSW=0000 [ST=0] FTW=.. MXCSR=00001f80
"""  # what QEMU prints at the reset vector; EDX is the model, and the x87 begins otherwise
LONG_MODE = r"""
CPU#0
RAX=@16 RBX=@16 RCX=@16 RDX=@16
RSI=@16 RDI=@16 RBP=@16 RSP=@16
R8 =@16 R9 =@16 R10=@16 R11=@16
R12=@16 R13=@16 R14=@16 R15=@16
RIP=@16 RFL=@8 \[.{7}\] CPL=0 II=0 A20=1 SMM=0 HLT=[01]
ES =0010 0{16} f{8} 00cf9300 DPL=0 DS   \[-WA\]
CS =0008 0{16} f{8} 00af9b00 DPL=0 CS64 \[-RA\]
SS =0010 0{16} f{8} 00cf9300 DPL=0 DS   \[-WA\]
DS =0010 0{16} f{8} 00cf9300 DPL=0 DS   \[-WA\]
FS =0000 0{16} 0{8} 0{8}
GS =0000 0{16} 0{8} 0{8}
LDT=0000 0{16} 0000ffff 00008200 DPL=0 LDT
TR =0028 @16 00000067 @8 DPL=0 TSS64-(avl|busy)
GDT=     @16 @8
IDT=     @16 @8
CR0=@8 CR2=@16 CR3=@16 CR4=@8
"""


def test_registers_in_real_mode(monitor: Monitor) -> None:
    shown = monitor.execute("info registers")
    pattern = re.sub(r"\\\.", ".", re.escape(REAL_MODE.replace("@", " ")))
    assert re.match(pattern, shown), shown
    assert shown.count("XMM") == 8
    assert monitor.execute("info registers -a") == monitor.execute("info registers 0") == shown


def test_registers_in_long_mode(machine: Machine, monitor: Monitor) -> None:
    machine.run("1s")
    shown = monitor.execute("info registers")
    assert re.match(re.sub(r"@(\d+)", r"[0-9a-f]{\1}", LONG_MODE), shown), shown
    assert shown.count("XMM") == 16
    registers = machine.registers()
    for name in ("rip", "rsp", "cr3", "r15"):
        assert f"{name.upper()}={registers[name]:016x}" in shown
        assert monitor.execute(f"p ${name}") == f"{registers[name]:#x}\n"


@pytest.mark.parametrize(
    ("flags", "mode", "kind"),
    [
        (0x00CF9B00, 0x1, "DPL=0 CS32 [-RA]"),
        (0x00CFFA00, 0x1, "DPL=3 CS32 [-R-]"),
        (0x00009F00, 0x1, "DPL=0 CS16 [CRA]"),
        (0x00CF9300, 0x1, "DPL=0 DS   [-WA]"),
        (0x00009600, 0x1, "DPL=0 DS16 [EW-]"),
        (0x00CF1300, 0x1, ""),
        (0x00CF9300, 0x0, ""),
    ],
)
def test_a_segments_flags_in_words(flags: int, mode: int, kind: str, machine: Machine, monitor: Monitor) -> None:
    """Of DS, whose flags anything may be loaded into here; real mode and what is not present say nothing."""
    cr0 = machine.registers()["cr0"] & ~1 | mode
    machine.platform.cpu.set_registers({"cr0": cr0, "ds_flags": flags})
    (line,) = [line for line in monitor.execute("info registers").splitlines() if line.startswith("DS ")]
    assert line == f"DS =0000 00000000 0000ffff {flags:08x} {kind}".rstrip()


# -- buses and queues ----------------------------------------------------------------------------------------------


def test_pci_before_and_after_firmware(machine: Machine, monitor: Monitor) -> None:
    before = monitor.execute("info pci")
    assert before.startswith(
        "  Bus  0, device   0, function 0:\n    Host bridge: PCI device 8086:1237\n"
        '      PCI subsystem 1af4:1100\n      id ""\n  Bus  0, device   1, function 0:\n    ISA bridge: '
    )
    assert "      BAR4: 64 bit memory (not mapped)\n" in before
    machine.run("1s")
    assert (
        "  Bus  0, device   3, function 0:\n"
        "    Class 0255: PCI device 1af4:1045\n"
        "      PCI subsystem 1af4:0045\n"
        "      IRQ 11, pin A\n"
        "      BAR1: 32 bit memory at 0xe0000000 [0xe0000fff].\n"
        "      BAR4: 64 bit memory at 0xe0004000 [0xe0007fff].\n"
        '      id "balloon0"\n'
    ) in monitor.execute("info pci")


def test_ports_of_a_transitional_device() -> None:
    with vmm.boot("hello", memory="16M", devices=["virtio-balloon-pci,disable-legacy=off"]) as machine:
        assert "      BAR0: I/O (not mapped)\n" in Monitor(machine).execute("info pci")
        machine.run("1s")
        assert re.search(r"      BAR0: I/O at 0x(c...) \[0xc...\]\.\n", Monitor(machine).execute("info pci"))


def test_the_tree_of_devices(machine: Machine, monitor: Monitor) -> None:
    before = monitor.execute("info qtree")
    assert before.startswith(
        'bus: main-system-bus\n  type System\n  dev: i440FX-pcihost, id ""\n    bus: pci.0\n      type PCI\n'
        '      dev: virtio-rng-pci, id ""\n'
    )
    assert "        bar 4: mem at 0xffffffffffffffff [0x3ffe]\n" in before, "as QEMU shows what is not mapped"
    machine.run("1s")
    after = monitor.execute("info qtree")
    start, end = after.index("      dev: virtio-balloon-pci"), after.index("      dev: PIIX4_PM")
    balloon = after[start:end].splitlines()
    assert balloon[0] == '      dev: virtio-balloon-pci, id "balloon0"'
    assert "        deflate-on-oom = false" in balloon
    assert '        queue-numbering = "offered"' in balloon
    assert balloon[-6:] == [
        "        class Class 00ff, addr 00:03.0, pci id 1af4:1045 (sub 1af4:0045)",
        "        bar 1: mem at 0xe0000000 [0xe0000fff]",
        "        bar 4: mem at 0xe0004000 [0xe0007fff]",
        "        bus: virtio-bus",
        "          type virtio-pci-bus",
        '          dev: virtio-balloon-device, id ""',
    ]


def test_the_tree_of_devices_without_pci() -> None:
    with vmm.boot("stats", memory="64M", arch="ppc", devices=["virtio-balloon-device,id=b"]) as machine:
        shown = Monitor(machine).execute("info qtree")
    assert shown.startswith('bus: main-system-bus\n  type System\n  dev: virtio-balloon-device, id "b"\n')
    assert "pci" not in shown


def test_the_tree_of_addresses(machine: Machine, monitor: Monitor) -> None:
    machine.run("1s")
    lines = monitor.execute("info mtree").splitlines()
    for line in (
        "address-space: I/O",
        "  0000000000000000-000000000000ffff (prio 0, i/o): io",
        "    00000000000003f8-00000000000003ff (prio 0, i/o): COM1",
        "    0000000000000600-000000000000063f (prio 0, i/o): power management ports",
        "      0000000000000604-0000000000000605 (prio 0, i/o): PM1a control",
        "address-space: memory",
        "    0000000000000000-000000000009ffff (prio 0, ram): ram",
        "    0000000000100000-0000000003ffffff (prio 0, ram): ram",
        "    00000000000e0000-00000000000e3fff (prio 1, rom): shadow-ram",  # with our firmware's RSDP
        "    00000000d0000000-00000000febfffff (prio -1, i/o): pci",
        "      00000000e0004000-00000000e0007fff (prio 0, i/o): balloon0 BAR4",
        "        00000000e0004000-00000000e000403f (prio 0, i/o): virtio-pci-common-balloon0",
        "        00000000e0005000-00000000e0005000 (prio 0, i/o): virtio-pci-isr-balloon0",
        "    00000000ffff0000-00000000ffffffff (prio 0, rom): firmware",
    ):
        assert line in lines
    flat = monitor.execute("info mtree -f").splitlines()
    assert "  00000000000c0000-00000000000dffff (prio 0, rom): firmware below 1 MiB" in flat
    assert "  00000000000e4000-00000000000fffff (prio 0, rom): firmware below 1 MiB @0000000000024000" in flat
    memory = [line[2:35].split("-") for line in flat[flat.index("FlatView #1") :] if "prio" in line]
    pairs = itertools.pairwise((int(start, 16), int(end, 16)) for start, end in memory)
    assert all(before[1] < after[0] for before, after in pairs), "none hides another"


def test_the_queues_at_a_glance(machine: Machine, monitor: Monitor) -> None:
    machine.run("1s")
    _, device = machine.board.need_balloon()
    shown = monitor.execute("info virtio-queue")
    assert f"{BACKEND}:\n  queue 0 inflateq: size 128, enabled, requests 0\n" in shown
    assert "  queue 0 requestq: size 64, not enabled, requests 0\n" in shown
    queue = device.queues[2]
    assert (
        "  queue 2 statsq: size 128, enabled, requests 1\n"
        f"    desc 0x{queue.desc_gpa:016x} avail 0x{queue.driver_gpa:016x} used 0x{queue.device_gpa:016x}\n"
        "    next to take 1, next to return 0, in flight 1\n"
    ) in shown


def test_one_queue_in_qemus_words(machine: Machine, monitor: Monitor) -> None:
    machine.run("1s")
    queue = machine.board.need_balloon()[1].queues[2]
    assert monitor.execute(f"info virtio-queue-status {BACKEND} 2") == (
        f"{BACKEND}:\n"
        "  device_name:          virtio-balloon\n"
        "  queue_index:          2\n"
        "  inuse:                1\n"
        "  used_idx:             0\n"
        "  signalled_used:       0\n"
        "  signalled_used_valid: true\n"
        "  last_avail_idx:       1\n"
        "  shadow_avail_idx:     1\n"
        "  VRing:\n"
        "    num:          128\n"
        "    num_default:  128\n"
        "    align:        4096\n"
        f"    desc:         0x{queue.desc_gpa:016x}\n"
        f"    avail:        0x{queue.driver_gpa:016x}\n"
        f"    used:         0x{queue.device_gpa:016x}\n"
    )
    assert re.fullmatch(
        f"{BACKEND}:\n  device_name: virtio-balloon\n  index:   0\n  desc:\n    descs:\n"
        "        addr 0x[0-9a-f]+ len 80\n  avail:\n    flags: 0\n    idx:   1\n    ring:  0\n"
        "  used:\n    flags: 0\n    idx:   0\n",
        monitor.execute(f"info virtio-queue-element {BACKEND} 2 0"),
    )


def test_one_device_in_qemus_layout(machine: Machine, monitor: Monitor) -> None:
    machine.run("1s")
    shown = monitor.execute(f"info virtio-status {BACKEND}")
    assert shown.startswith(
        f"{BACKEND}:\n"
        "  device_name:             virtio-balloon \n"
        "  device_id:               5\n"
        "  vhost_started:           false\n"
    )
    assert "  num_vqs:                 3\n" in shown
    assert "\tVIRTIO_CONFIG_S_DRIVER_OK: the driver is ready\n  Guest features:\n\tVIRTIO_F_VERSION_1\n" in shown
    assert shown.endswith("  Backend features:\n\n")


# -- completion ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "length", "words"),
    [
        ("sy", 2, ["system_powerdown", "system_reset"]),
        ("info reg", 3, ["registers"]),
        ("help ba", 2, ["balloon"]),
        ("help info ver", 3, ["version"]),
        ("info virtio-status /machine/peripheral/", 20, [BACKEND]),
        ("stop x", 1, []),
        ("xyz", 3, []),
    ],
)
def test_words_are_completed_where_they_are_clear(line: str, length: int, words: list[str], monitor: Monitor) -> None:
    found = monitor.complete(line)
    assert found[1] == words
    assert found[0] == (len("/machine/peripheral/") if length == 20 else length)

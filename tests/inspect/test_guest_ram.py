"""Finding and mapping the RAM of another process."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from devices.errors import ConfigError, OutsideRam
from devices.memory import GuestMemory
from tests.inspect.conftest import Child
from tests.inspect.vmm_process import LAYOUT
from vmm.inspect import GuestRam, ptrace_import

HIGH = 1 << 32
PAGE = 4096


def test_the_ram_of_a_running_process_is_found_and_is_the_same_pages(child: Child) -> None:
    with GuestRam.attach(child.pid) as ram:
        assert [(region.gpa, region.size) for region in ram.regions] == LAYOUT
        view = ram.view(0x100010, 5)
        assert view.tobytes() == bytes(5)
        assert child.do("write 100010 hello") == "done"
        assert view.tobytes() == b"hello"
        child.do(f"write {HIGH:x} high")
        assert ram.peek(HIGH, 4) == b"high"
        assert ram.view_records(HIGH, "<u2", 2).tolist() == [0x6968, 0x6867]


def test_attaching_does_not_stop_the_process(child: Child) -> None:
    with GuestRam.attach(child.pid), open(f"/proc/{child.pid}/status") as status:
        assert "TracerPid:\t0\n" in status.read()
        assert child.do("backed") == "0"


def test_peek_sees_discarded_pages_as_zeros_and_leaves_them_away(child: Child) -> None:
    child.do("fill")
    with GuestRam.attach(child.pid) as ram:
        assert ram.backed_bytes() == sum(size for _, size in LAYOUT)
        assert child.do("discard 101+2") == str(2 * PAGE)
        before = ram.backed_bytes()
        assert ram.peek(0x100FFF, 2 * PAGE + 2) == b"\xaa" + bytes(2 * PAGE) + b"\xaa"
        assert ram.backed_bytes() == before == int(child.do("backed")) == sum(size for _, size in LAYOUT) - 2 * PAGE


def test_looking_cannot_change_the_guest(child: Child) -> None:
    with GuestRam.attach(child.pid) as ram, pytest.raises(ValueError, match="read-only"):
        ram.view(0, 1)[0] = 1


@pytest.mark.parametrize(
    ("gpa", "length"),
    [(0x9FFFF, 2), (0xA0000, 1), (0xFFFFF, 1), (0x200000, 1), (HIGH - 1, 2), (0, -1), (0, 1 << 64), ((1 << 64) - 1, 1)],
)
def test_what_is_not_ram_cannot_be_looked_at(child: Child, gpa: int, length: int) -> None:
    with GuestRam.attach(child.pid) as ram:
        with pytest.raises(OutsideRam):
            ram.view(gpa, length)
        with pytest.raises(OutsideRam):
            ram.peek(gpa, length)


def test_after_close_nothing_is_ram_and_no_descriptor_is_left(child: Child) -> None:
    open_before = sorted(os.listdir("/proc/self/fd"))
    ram = GuestRam.attach(child.pid)
    view = ram.view(0, 4)
    ram.close()
    ram.close()
    assert view.tobytes() == bytes(4)
    assert ram.backed_bytes() == 0
    with pytest.raises(OutsideRam):
        ram.peek(0, 1)
    del view
    assert sorted(os.listdir("/proc/self/fd")) == open_before


def test_ram_is_found_through_its_mapping_when_the_process_has_closed_the_file(child: Child) -> None:
    child.do("write 0 text")
    assert child.do("closefiles") == "done"
    try:
        with GuestRam.attach(child.pid) as ram:
            assert ram.peek(0, 4) == b"text"
    except ConfigError as error:  # only root may open a mapping
        assert os.geteuid() != 0
        assert f"open the guest RAM of process {child.pid}" in str(error)


def test_one_of_several_rams_is_chosen_by_its_inode(child_with_two: Child) -> None:
    child_with_two.do("write 0 first")
    with pytest.raises(ConfigError) as caught:
        GuestRam.attach(child_with_two.pid)
    sentence = str(caught.value)
    assert sentence.startswith(f"process {child_with_two.pid} has 2 guest RAMs: inode must be one of [")
    inodes = [int(number) for number in sentence.split("[")[1].rstrip("]").split(",")]
    contents = set()
    for inode in inodes:
        with GuestRam.attach(child_with_two.pid, inode=inode) as ram:
            assert ram.inode == inode
            contents.add(ram.peek(0, 5))
    assert contents == {b"first", bytes(5)}
    with pytest.raises(ConfigError, match=r"has no guest RAM of that inode: inode must be one of \[.*\], not 1$"):
        GuestRam.attach(child_with_two.pid, inode=1)


def test_a_process_can_look_at_its_own_ram() -> None:
    with GuestMemory([(0, PAGE)], name="own-ram") as memory, GuestRam.attach(os.getpid(), name="own-ram") as ram:
        memory.write(7, b"me")
        assert ram.peek(7, 2) == b"me"


def test_a_process_without_guest_ram_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        GuestRam.attach(os.getpid(), name="nothing-of-this-name")
    assert str(caught.value) == f"process {os.getpid()} has no guest RAM named 'nothing-of-this-name' in its memory map"


@pytest.mark.parametrize("pid", [0, -1, 1 << 30])
def test_a_process_that_does_not_exist_is_named(pid: int) -> None:
    with pytest.raises(ConfigError) as caught:
        GuestRam.attach(pid)
    assert str(caught.value) == f"there is no process {pid}"


def test_a_memory_map_that_may_not_be_read_is_explained(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ptrace_import.load("linux_proc"), "open", refused, raising=False)
    with pytest.raises(ConfigError) as caught:
        GuestRam.attach(child.pid)
    assert str(caught.value).startswith(
        f"the host does not let this user read the memory map of process {child.pid}: run as its owner or as root, "
        "and see /proc/sys/kernel/yama/ptrace_scope ("
    )


def test_a_memory_file_that_may_not_be_opened_is_explained(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.stat

    def guarded(path: str, **options: bool) -> os.stat_result:
        if str(path).startswith(f"/proc/{child.pid}/"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return allowed(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", guarded)
        with pytest.raises(ConfigError) as caught:
            GuestRam.attach(child.pid)
    assert str(caught.value).startswith(f"the host does not let this user open the guest RAM of process {child.pid}: ")


def test_ptrace_is_imported_late_and_without_a_warning() -> None:
    program = (
        "import sys, vmm.inspect\n"
        "assert 'ptrace' not in sys.modules\n"
        "from vmm.inspect import ptrace_import\n"
        "for name in ('debugger', 'syscall', 'tools', 'func_call'): ptrace_import.load(name)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)

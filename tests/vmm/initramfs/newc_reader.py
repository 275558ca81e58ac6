"""A reader of newc archives, written from the kernel's buffer-format.rst: it shares nothing with the writer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One member; the numbers are the header's fields."""

    name: str
    mode: int
    uid: int
    gid: int
    nlink: int
    mtime: int
    device: tuple[int, int]
    data: bytes


def read_newc(archive: bytes) -> list[Member]:
    """The members in order, without the trailer.  AssertionError for what the kernel would not unpack."""
    members: list[Member] = []
    at = 0
    while True:
        assert at % 4 == 0
        header = archive[at : at + 110]
        assert len(header) == 110 and header[:6] == b"070701", f"no header at {at}"
        fields = [int(header[start : start + 8], 16) for start in range(6, 110, 8)]
        _, mode, uid, gid, nlink, mtime, size, _, _, major, minor, name_size, check = fields
        assert check == 0
        name = archive[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        at = (at + 110 + name_size + 3) // 4 * 4
        data = archive[at : at + size]
        assert len(data) == size, "the archive is cut off"
        at = (at + size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            return members
        members.append(Member(name[:-1].decode(), mode, uid, gid, nlink, mtime, (major, minor), data))


def by_name(archive: bytes) -> dict[str, Member]:
    """The members by their names, each of which stands there once."""
    members = read_newc(archive)
    found = {member.name: member for member in members}
    assert len(found) == len(members)
    return found

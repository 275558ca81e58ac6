"""Files that are no snapshot any more, or never were: one sentence each, and nothing comes of them."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import vmm
from devices.errors import ConfigError
from tests.vmm.snapshots.forger import HEADER, Forger, pack, sha256, unpack
from vmm.cli import main
from vmm.machine import Machine
from vmm.snapshots import Snapshot, read_snapshot, write_snapshot
from vmm.state import VERSION

Change = Callable[[Forger], object]
PAGE_BYTES = 4096


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small snapshot."""
    path = tmp_path_factory.mktemp("whole") / "hello.snap"
    with vmm.boot("hello", memory="1M", duration="1s") as machine:
        machine.run("0.4ms")
        write_snapshot(machine, path)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "other.snap"


def refusal(path: Path) -> str:
    """The sentence; both ways of reading must give one, and neither leaves a machine behind."""
    sentences = []
    for use in (Snapshot.boot, Snapshot.state):
        with pytest.raises(ConfigError) as caught, read_snapshot(path) as snapshot:
            use(snapshot)
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]
    assert sentences[0].endswith((".", "?")) and "\n" not in sentences[0] and len(sentences[0]) < 400
    return sentences[0]


def refusal_of_boot(path: Path) -> str:
    """The same where the state as a value is still that of a machine, which then has to be asked."""
    with pytest.raises(ConfigError) as caught, read_snapshot(path) as snapshot:
        snapshot.boot()
    return str(caught.value)


def test_the_file_is_as_its_documentation_says(whole: bytes, path: Path) -> None:
    forger = Forger.of(whole)
    assert forger.description["guest"] == b"hello"
    assert forger.description["devices"][0].startswith("virtio-balloon-pci,id=balloon0,")
    tables = forger.tables()
    offset, contents = 0, b""
    for stored, runs, pages, digest in tables["chunks"]:
        frame = forger.chunks[offset : offset + stored]
        assert sha256(frame) == digest and runs
        data = unpack(frame)
        assert len(data) == pages * PAGE_BYTES
        offset, contents = offset + stored, contents + data
    assert offset == len(forger.chunks)
    pieces = {}
    for pfn, pages in tables["runs"]:
        for index in range(pages):
            pieces[pfn + index], contents = contents[:PAGE_BYTES], contents[PAGE_BYTES:]
    assert contents == b"" and all(any(page) for page in pieces.values())
    path.write_bytes(whole)
    with read_snapshot(path) as snapshot, snapshot.boot() as machine:
        for gpa, length in tables["extents"]:
            for start in range(gpa, gpa + length, PAGE_BYTES):
                assert machine.memory.peek(start, PAGE_BYTES) == pieces.get(start // PAGE_BYTES, bytes(PAGE_BYTES))
    path.write_bytes(Forger.of(whole).put_state(forger.state()).to_bytes())
    with read_snapshot(path) as again, again.boot() as machine:
        assert machine.config.guest == "hello", "what the forger puts together can be read, so refusals mean something"


# -- damage ------------------------------------------------------------------------------------------------------------


def test_a_file_that_ends_anywhere_too_early_is_cut_off(whole: bytes, path: Path) -> None:
    path.write_bytes(whole)
    lengths = [*range(len(whole) - 1, len(whole) - 600, -1), *range(len(whole) - 600, 200, -61), *range(200, -1, -1)]
    for length in lengths:
        os.truncate(path, length)
        with pytest.raises(ConfigError) as caught:
            read_snapshot(path)
        sentence = str(caught.value)
        if length < 8:
            assert sentence == f"{str(path)!r} is no snapshot of a machine."
        elif length < HEADER.size:
            assert sentence == (
                f"The snapshot {str(path)!r} is damaged: it ends after {length} bytes, within its header."
            )
        else:
            assert sentence == (
                f"The snapshot {str(path)!r} is damaged: it must have {len(whole)} bytes, not {length}."
            )


def test_a_file_that_goes_on_behind_its_end_is_refused(whole: bytes, path: Path) -> None:
    path.write_bytes(whole + b"\0")
    assert "it must have" in refusal(path)


def test_every_bit_of_the_header_and_of_the_description_counts(whole: bytes, path: Path) -> None:
    start = HEADER.unpack_from(whole)[3]
    path.write_bytes(whole)
    with open(path, "r+b", buffering=0) as file:
        for place in (*range(HEADER.size), *range(start, len(whole))):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([whole[place] ^ 1 << bit]), place)
                with pytest.raises(ConfigError, match="snapshot"):
                    read_snapshot(path)
            os.pwrite(file.fileno(), whole[place : place + 1], place)
    read_snapshot(path).close()


def test_a_flipped_bit_anywhere_else_is_noticed(whole: bytes, path: Path) -> None:
    """A bit of every 40th byte, each time another."""
    chance = random.Random(1)
    path.write_bytes(whole)
    with open(path, "r+b", buffering=0) as file:
        for start in range(HEADER.size, len(whole) - 40, 40):
            place = start + chance.randrange(40)
            os.pwrite(file.fileno(), bytes([whole[place] ^ 1 << chance.randrange(8)]), place)
            with pytest.raises(ConfigError, match="does not have its checksum"), read_snapshot(path) as snapshot:
                snapshot.state()
            os.pwrite(file.fileno(), whole[place : place + 1], place)


def test_a_damaged_chunk_is_refused_by_both_ways_of_reading(whole: bytes, path: Path) -> None:
    damaged = bytearray(whole)
    damaged[HEADER.size + 100] ^= 1
    path.write_bytes(damaged)
    assert refusal(path) == f"The snapshot {str(path)!r} is damaged: a chunk of its RAM does not have its checksum."


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_other_bytes_are_read_as_a_snapshot(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A piece of the file overwritten, taken out or put in."""
    path = tmp_path_factory.getbasetemp() / "changed.snap"
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 5000)))
    piece = data.draw(st.binary(max_size=200) | st.just(whole[max(start - 64, 0) : start]))
    changed = whole[:start] + piece + whole[end:]
    if changed == whole:
        return
    path.write_bytes(changed)
    with pytest.raises(ConfigError), read_snapshot(path) as snapshot:
        snapshot.state()


# -- what somebody made on purpose -------------------------------------------------------------------------------------


def set_description(**fields: Any) -> Change:
    return lambda forger: forger.description.update(fields)


def bomb(part: str, told: int | None = None) -> Change:
    """A part that is a GiB of zeros, or says that it is `told` bytes."""

    def change(forger: Forger) -> None:
        compressor = zstandard.ZstdCompressor().compressobj(size=1 << 30)
        frame = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(1 << 10)) + compressor.flush()
        setattr(forger, part, frame)
        forger.sizes[part] = 1 << 30 if told is None else told

    return change


def chunk_bomb(forger: Forger) -> None:
    """A chunk with the right checksum that would be a GiB."""
    bomb("chunks")(forger)
    ((_, runs, pages, _), *_) = forger.tables()["chunks"]
    forger.put_tables(chunks=[(len(forger.chunks), runs, pages, sha256(forger.chunks))])


def first_chunk(**changes: int) -> Change:
    def change(forger: Forger) -> None:
        names = ("stored", "runs", "pages")
        (first, *others) = forger.tables()["chunks"]
        row = tuple(changes.get(name, value) for name, value in zip(names, first, strict=False))
        forger.put_tables(chunks=[(*row, first[3]), *others])

    return change


def tables(**rows: list[tuple[Any, ...]]) -> Change:
    return lambda forger: forger.put_tables(**rows)


def in_state(*path: str, value: Any) -> Change:
    def change(forger: Forger) -> None:
        state = forger.state()
        place = state
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        forger.put_state(state)

    return change


def raw_tree(data: bytes, blobs: bytes = b"") -> Change:
    def change(forger: Forger) -> None:
        forger.tree, forger.blobs = pack(data), pack(blobs)

    return change


def blob_named_twice(forger: Forger) -> None:
    """Ten thousand times the same megabyte."""
    place = msgspec.msgpack.Ext(2, (1 << 20).to_bytes(8, "little"))
    raw_tree(msgspec.msgpack.encode({"rom": [place] * 10_000, "state": {}}), bytes(1 << 20))(forger)


NEST = b"\x81\xa3rom" + b"\x91" * 200_000 + b"\xc0"
LAYOUT = "its RAM is laid out like no machine's"
PAGES = "its pages are no RAM of this machine"
HOSTILE: dict[str, tuple[Change, str]] = {
    "another format": (lambda forger: setattr(forger, "format", 2), "must be of format 1, not 2"),
    "another version": (
        set_description(version=VERSION + 1),
        f"must have a state of version {VERSION}, not {VERSION + 1}; vmm 0.1.0 has",
    ),
    "a version that is none": (set_description(version="x" * 10_000), f"must have a state of version {VERSION}, not "),
    "another schema": (set_description(schema="QEMU"), "it is no snapshot of this kind of machine"),
    "an unknown field": (set_description(more=1), "its description cannot be read"),
    "a field of another type": (set_description(memory_bytes="64M"), "its description cannot be read"),
    "more RAM than there is": (set_description(memory_bytes=1 << 62), "The memory must be at most"),
    "no whole pages of RAM": (set_description(memory_bytes=(1 << 20) + 1), "whole number of 4 KiB pages"),
    "negative RAM": (set_description(memory_bytes=-4096), "damaged"),
    "another processor": (set_description(arch="z80"), "The processor must be x86_64 or ppc"),
    "another clock": (set_description(clock="sundial"), "The clock must be virtual or realtime"),
    "a device that there is not": (set_description(devices=["virtio-gpu"]), "There is no device 'virtio-gpu'"),
    "many devices": (set_description(devices=["virtio-rng-pci"] * 40), "has no room for"),
    "very many devices": (set_description(devices=["virtio-rng-pci"] * 40_000), "its description cannot be read"),
    "a long name of a device": (set_description(devices=["x" * 900_000]), "its description cannot be read"),
    "an end that cannot be": (set_description(for_ns=-1), "its description cannot be read"),
    "an exit status that cannot be": (set_description(reset_status=256), "its description cannot be read"),
    "a bomb for a tree": (bomb("tree"), "larger than that of any machine"),
    "a bomb that says it is small": (bomb("tree", 10**6), "its tree must be 1000000 bytes, not 1073741824"),
    "a bomb for blobs": (bomb("blobs"), "larger than that of any machine"),
    "a bomb for a chunk": (chunk_bomb, "bytes, not 1073741824"),
    "a nested tree": (raw_tree(NEST), "its tree is no table of fields"),
    "a tree that is no table": (raw_tree(msgspec.msgpack.encode([1])), "its tree is no table of fields"),
    "a tree of bytes that mean nothing": (raw_tree(b"\xc1" * 50), "its tree is no table of fields"),
    "an extension that nobody has": (
        raw_tree(msgspec.msgpack.encode({"rom": msgspec.msgpack.Ext(9, b"")})),
        "an extension that means nothing",
    ),
    "an integer of a kilobyte": (
        raw_tree(msgspec.msgpack.encode({"rom": msgspec.msgpack.Ext(1, bytes(1000))})),
        "an extension that means nothing",
    ),
    "a blob named again and again": (blob_named_twice, "an extension that means nothing"),
    "a blob that nobody names": (
        raw_tree(msgspec.msgpack.encode({"rom": b"", "state": {}}), b"x"),
        "does not name all of its bytes",
    ),
    "no ROM": (in_state("rom", value=b""), "its state is none"),
    "a ROM of another size": (in_state("rom", value=bytes(65537)), "its state is none"),
    "another ROM": (in_state("rom", value=bytes(65536)), "of a machine with other firmware"),
    "no state": (in_state("state", value=[]), "its state is none"),
    "RAM in other places": (in_state("state", "memory", "regions", value=[[0, 1 << 20]]), "other places of RAM"),
    "RAM in no place": (in_state("state", "memory", "regions", value=[]), LAYOUT),
    "RAM of no size": (in_state("state", "memory", "regions", value=[[0, 0]]), LAYOUT),
    "RAM in half pages": (in_state("state", "memory", "regions", value=[[0, 2048]]), LAYOUT),
    "RAM that wraps round": (in_state("state", "memory", "regions", value=[[4096, (1 << 64) - 4096]]), LAYOUT),
    "RAM far away": (in_state("state", "memory", "regions", value=[[1 << 62, 4096]]), LAYOUT),
    "RAM in places that are none": (in_state("state", "memory", "regions", value=[["0", None], 7]), LAYOUT),
    "RAM in a hundred thousand places": (
        in_state("state", "memory", "regions", value=[[place << 13, 4096] for place in range(100_000)]),
        LAYOUT,
    ),
    "tables of half a row": (in_state("state", "memory", "runs", value=b"12345"), "a table of its RAM is none"),
    "tables that are no bytes": (in_state("state", "memory", "runs", value=5), "a table of its RAM is none"),
    "pages beyond RAM": (tables(extents=[(1 << 40, 1 << 20)], runs=[], chunks=[]), "damaged"),
    "pages in a hole of RAM": (tables(extents=[(0xA0000, 0x1000)], runs=[], chunks=[]), "damaged"),
    "more pages than RAM": (tables(extents=[(0, 1 << 50)], runs=[], chunks=[]), PAGES),
    "extents that wrap round": (tables(extents=[(4096, (1 << 64) - 4096)], runs=[], chunks=[]), PAGES),
    "extents twice": (tables(extents=[(0, 4096), (0, 4096)], runs=[], chunks=[]), PAGES),
    "extents of half a page": (tables(extents=[(0, 2048)], runs=[], chunks=[]), "not in whole pages"),
    "empty extents": (tables(extents=[(0, 0)], runs=[], chunks=[]), PAGES),
    "runs outside extents": (tables(extents=[], runs=[(5, 1)], chunks=[]), "pages that nothing was behind"),
    "runs over the end of an extent": (
        tables(extents=[(0, 8192)], runs=[(1, 2)], chunks=[]),
        "pages that nothing was behind",
    ),
    "runs that wrap round": (tables(runs=[((1 << 52) + 1, 1)]), PAGES),
    "runs without chunks": (tables(chunks=[]), "its chunks do not have its pages"),
    "a chunk without runs": (first_chunk(runs=0), "its chunks do not have its pages"),
    "a chunk with too many runs": (first_chunk(runs=(1 << 32) - 1), "its chunks do not have its pages"),
    "a chunk with other pages": (first_chunk(pages=(1 << 32) - 1), "its chunks do not have its pages"),
    "a chunk of another length": (first_chunk(stored=(1 << 32) - 1), "its chunks are not as long as it says"),
}
ONLY_WHEN_BOOTED = {"another ROM", "pages beyond RAM", "pages in a hole of RAM"}
ONLY_WHEN_BOOTED |= {name for name in HOSTILE if name.startswith("RAM ")}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_somebody_made_on_purpose_is_refused_in_one_sentence(what: str, whole: bytes, path: Path) -> None:
    change, sentence = HOSTILE[what]
    forger = Forger.of(whole)
    change(forger)
    path.write_bytes(forger.to_bytes())
    found = (refusal_of_boot if what in ONLY_WHEN_BOOTED else refusal)(path)
    assert sentence in found


@pytest.mark.parametrize("what", ["a bomb that says it is small", "a bomb for a chunk", "a blob named again and again"])
def test_a_bomb_costs_no_memory(what: str, whole: bytes, path: Path) -> None:
    """In a process that may have little more than it takes to start."""
    forger = Forger.of(whole)
    HOSTILE[what][0](forger)
    path.write_bytes(forger.to_bytes())
    program = (
        "import resource, sys\n"
        "from vmm.snapshots import read_snapshot\n"
        "own = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (own + (300 << 20),) * 2)\n"
        "try:\n"
        "    read_snapshot(sys.argv[1]).state()\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"The snapshot {str(path)!r} is damaged: ")


@pytest.mark.parametrize("field", ["chunks_bytes", "blobs", "tree"])
def test_parts_that_do_not_fill_the_file_are_refused(field: str, whole: bytes, path: Path) -> None:
    forger = Forger.of(whole)
    forger.fixes_sizes = False
    found = forger.description[field]
    if isinstance(found, dict):
        found["stored"] -= 1
    else:
        forger.description[field] = len(forger.chunks) + 1
    path.write_bytes(forger.to_bytes())
    assert "its parts do not fill it" in refusal(path)


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of everything in a state that is no table and no list."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if entries is None:
        yield place
    else:
        for name, each in entries:
            yield from leaves(each, (*place, name))


WRONG = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 130), 1 << 130), st.floats(), st.text(max_size=5),
    st.binary(max_size=5), st.just([]), st.just({}), st.lists(st.integers(0, 9), max_size=3),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_state_with_anything_else_in_it_is_refused_or_is_a_machine(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever stands in one place of a state under right checksums, there is a sentence or a whole machine."""
    path = tmp_path_factory.getbasetemp() / "wrong.snap"
    forger = Forger.of(whole)
    state = forger.state()
    place = data.draw(st.sampled_from(sorted(leaves(state), key=str)))
    within = state
    for name in place[:-1]:
        within = within[name]
    within[place[-1]] = data.draw(WRONG)
    path.write_bytes(forger.put_state(state).to_bytes())
    try:
        with read_snapshot(path) as snapshot:
            machine = snapshot.boot()
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    with machine:
        assert isinstance(machine, Machine)
        machine.save()


# -- what is no file for it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("nothing", "There is no file {!r}."),
        ("a folder", "The snapshot {!r} must be an ordinary file."),
        ("a pipe", "The snapshot {!r} must be an ordinary file."),
        ("an empty file", "{!r} is no snapshot of a machine."),
        ("a text", "{!r} is no snapshot of a machine."),
        ("a file of others", "The snapshot {!r} cannot be read: Permission denied."),
    ],
)
def test_the_command_tells_what_it_was_given(
    kind: str, sentence: str, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    match kind:
        case "a folder":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
        case "an empty file" | "a text":
            path.write_bytes(b"" if kind == "an empty file" else b"BVMM is what it begins with")
        case "a file of others":

            def denied(*_: object) -> int:
                raise PermissionError(13, "Permission denied")

            monkeypatch.setattr("vmm.snapshots.reading.os.open", denied)
    assert main(["boot", "--restore", str(path)]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"vmm: {sentence.format(str(path))}\n")


def test_a_refused_file_leaves_a_machine_as_it_was(whole: bytes, path: Path) -> None:
    damaged = bytearray(whole)
    damaged[HEADER.size + 10] ^= 1
    path.write_bytes(damaged)
    with vmm.boot("hello", memory="1M", duration="1s") as machine:
        machine.run("0.1ms")
        before = machine.save()
        with pytest.raises(ConfigError), read_snapshot(path) as snapshot:
            machine.restore(snapshot.state())
        assert machine.save() == before


def test_a_refused_file_leaves_no_machine_and_no_open_file_behind(whole: bytes, path: Path) -> None:
    damaged = bytearray(whole)
    damaged[HEADER.size + 10] ^= 1
    path.write_bytes(damaged)
    before = open_files()
    for _ in range(3):
        refusal(path)
    assert open_files() == before


def open_files() -> list[str]:
    """What the descriptors of this process are open on, but the one that is needed to look.

    A mapping has a descriptor of its own until nobody refers to it."""
    gc.collect()
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    return sorted(os.readlink(link) for link in links if link.is_symlink())

"""The committed guest images: what is in them, and that they are exactly what their sources say, wherever those lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

import guests
from firmware.toolchain import ZIGLANG_VERSION, BuildError, Program, build
from guests import GUESTS, GuestRow
from guests.build import build_guest, guest_names
from guests.table import PPC, X86_64
from tests.firmware.elf import parse, symbols

ROOT = Path(guests.__file__).resolve().parents[1]
IMAGES = [(row, arch) for row in GUESTS.values() for arch in row.architectures]
EVERY_IMAGE = pytest.mark.parametrize(("row", "arch"), IMAGES, ids=[f"{row.name}-{arch}" for row, arch in IMAGES])
KINDS = {X86_64: (64, True, "EM_X86_64"), PPC: (32, False, "EM_PPC")}
EXECUTABLE, WRITABLE, READABLE = 1, 2, 4
FIRST_ADDRESS = 0x10000
SMALL = 64 * 1024
SOURCE_FOLDERS = ("firmware", "guests")


@pytest.fixture(scope="module")
def another_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, without the images, under a longer path."""
    root = tmp_path_factory.mktemp("somewhere-else-entirely") / "with a blank"
    for folder in SOURCE_FOLDERS:
        ignored = shutil.ignore_patterns("*.elf", "*.debug", "*.rom", "__pycache__")
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    return root


def elf(row: GuestRow, arch: str) -> ELFFile:
    return parse(row.image(arch))


def test_every_guest_with_sources_has_a_row() -> None:
    assert sorted(GUESTS) == guest_names(ROOT)


@EVERY_IMAGE
def test_building_in_the_checkout_gives_the_committed_image(row: GuestRow, arch: str) -> None:
    built = build_guest(ROOT, row.name, arch)
    assert built.image == row.image(arch), "run `make images`"
    assert built.debug == row.symbols(arch), "run `make images`"


@EVERY_IMAGE
def test_building_in_another_folder_gives_the_same_bytes(row: GuestRow, arch: str, another_folder: Path) -> None:
    built = build_guest(another_folder, row.name, arch)
    assert built.image == row.image(arch)
    assert built.debug == row.symbols(arch)


@EVERY_IMAGE
def test_no_path_of_the_machine_that_built_it_is_inside(row: GuestRow, arch: str) -> None:
    for contents in (row.image(arch), row.symbols(arch)):
        for path in (str(ROOT), "/tmp/", "/home/", "/root/", "site-packages", ".cache"):
            assert path.encode() not in contents


@EVERY_IMAGE
def test_an_image_is_a_small_static_program_without_debug_information(row: GuestRow, arch: str) -> None:
    image = elf(row, arch)
    assert len(row.image(arch)) < SMALL
    assert (image.elfclass, image.little_endian, image["e_machine"]) == KINDS[arch]
    assert image["e_type"] == "ET_EXEC"
    assert not any(segment["p_type"] in ("PT_INTERP", "PT_DYNAMIC") for segment in image.iter_segments())
    assert not image.has_dwarf_info()
    assert image.get_section_by_name(".symtab") is None


@EVERY_IMAGE
def test_text_constants_and_data_are_segments_on_pages_of_their_own(row: GuestRow, arch: str) -> None:
    segments = list(elf(row, arch).iter_segments(type="PT_LOAD"))
    assert [s["p_flags"] for s in segments] == [READABLE | EXECUTABLE, READABLE, READABLE | WRITABLE]
    assert segments[0]["p_vaddr"] == FIRST_ADDRESS == elf(row, arch)["e_entry"]
    assert all(s["p_vaddr"] == s["p_paddr"] and s["p_vaddr"] % 4096 == 0 for s in segments)
    ends = [s["p_vaddr"] + s["p_memsz"] for s in segments]
    assert all(later["p_vaddr"] >= end for later, end in zip(segments[1:], ends, strict=False))


@EVERY_IMAGE
def test_symbols_and_lines_belong_to_the_image(row: GuestRow, arch: str) -> None:
    debug = parse(row.symbols(arch))
    for ours, theirs in zip(
        elf(row, arch).iter_segments(type="PT_LOAD"), debug.iter_segments(type="PT_LOAD"), strict=True
    ):
        assert ours.data() == theirs.data()
        assert ours["p_vaddr"] == theirs["p_vaddr"]
    assert {"_start", "guest_main"} <= symbols(debug).keys()
    units = [unit.get_top_DIE() for unit in debug.get_dwarf_info().iter_CUs()]
    files = {unit.attributes["DW_AT_name"].value.decode() for unit in units}
    assert f"guests/{row.name}/main.c" in files
    assert all((ROOT / name).is_file() for name in files)
    assert {unit.attributes["DW_AT_comp_dir"].value for unit in units} == {b"."}


def test_the_compiler_is_pinned_to_the_version_of_the_recipe() -> None:
    assert f'"ziglang=={ZIGLANG_VERSION}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_a_source_that_does_not_compile_says_so(tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("int main(void) { return undeclared; }\n", encoding="utf-8")
    with pytest.raises(BuildError, match="undeclared"):
        build(Program(tmp_path, (source,), ROOT / "guests" / "guest-x86.ld"))

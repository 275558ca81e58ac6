"""Reading ELF files with the types that pyelftools promises."""

from __future__ import annotations

from io import BytesIO

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Section, SymbolTableSection


def parse(contents: bytes) -> ELFFile:
    return ELFFile(BytesIO(contents))


def section(elf: ELFFile, name: str) -> Section:
    found = elf.get_section_by_name(name)
    assert found is not None, f"there is no section {name}"
    return found


def symbols(elf: ELFFile) -> dict[str, int]:
    """Name to value."""
    table = section(elf, ".symtab")
    assert isinstance(table, SymbolTableSection)
    return {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}

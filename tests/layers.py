"""The modules of the project, what each imports, and the layer that docs/architecture.md gives it, from the text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vmm", "devices", "firmware", "guests")


@dataclass(frozen=True)
class Import:
    """`name` is the module, "devices.bus"; `only_types` tells whether it stands under TYPE_CHECKING."""

    name: str
    line: int
    only_types: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    """Every module of the four packages by its dotted name."""
    return {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(body: ast.Module, package: str, known: frozenset[str]) -> list[Import]:
    """Every import in a module of `package`, wherever it stands.  `from package import x` means the module package.x
    where `known` has one, and package otherwise."""
    return list(_imports(body, package, known, False))


def _imports(node: ast.AST, package: str, known: frozenset[str], only_types: bool) -> Iterator[Import]:
    match node:
        case ast.Import(names=names):
            for alias in names:
                yield Import(alias.name, node.lineno, only_types)
        case ast.ImportFrom(module=module, names=names, level=level):
            base = ".".join(package.split(".")[: len(package.split(".")) - level + 1]) if level else ""
            whole = ".".join(part for part in (base, module or "") if part)
            for alias in names:
                inner = f"{whole}.{alias.name}"
                yield Import(inner if inner in known else whole, node.lineno, only_types)
        case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body, orelse=otherwise):
            for statement in body:
                yield from _imports(statement, package, known, True)
            for statement in otherwise:
                yield from _imports(statement, package, known, only_types)
        case _:
            for child in ast.iter_child_nodes(node):
                yield from _imports(child, package, known, only_types)


@cache
def imports_of(module: str) -> tuple[Import, ...]:
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return tuple(imports(tree(path), package, frozenset(modules())))


def layer_table(text: str) -> dict[str, int]:
    """Dotted prefix -> layer, from the rows `| L3 | `a/b.py`, `c/{d,e}.py`, `f/` … |` of the document."""
    table: dict[str, int] = {}
    for row in re.finditer(r"^\| L(\d+) \| (.*) \|$", text, re.MULTILINE):
        for entry in re.findall(r"`([^`]+)`", row[2]):
            for path in _expanded(entry):
                name = path.removesuffix(".py").strip("/").replace("/", ".")
                if name in table:
                    raise ValueError(f"{name} stands in two rows")
                table[name] = int(row[1])
    return table


def _expanded(entry: str) -> list[str]:
    found = re.fullmatch(r"(.*)\{(.*)\}(.*)", entry)
    return [found[1] + middle + found[3] for middle in found[2].split(",")] if found else [entry]


@cache
def document_table() -> dict[str, int]:
    return layer_table((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))


def layer_of(module: str) -> int | None:
    """The layer of a module: its own row, or that of the folder it stands in."""
    while module:
        if module in document_table():
            return document_table()[module]
        module = module.rpartition(".")[0]
    return None


def folder_of(module: str) -> str:
    return module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]

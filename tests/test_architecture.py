"""The rules of docs/architecture.md, checked against the source text."""

from __future__ import annotations

import ast
import sys
import tomllib
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.layers import (
    PACKAGES,
    ROOT,
    Import,
    document_table,
    folder_of,
    imports,
    imports_of,
    layer_of,
    layer_table,
    modules,
    tree,
)

LAYERED = sorted(name for name in modules() if name.split(".")[0] in ("devices", "vmm"))
FACES = {"vmm"} | {name for name in modules() if name.startswith("devices") and not tree(modules()[name]).body[1:]}
"""The public face and the empty packages: they have no layer."""

CONCRETE = (
    "devices.irq",
    "devices.pci.host_bridge",
    "devices.serial",
    "devices.timer",
    "devices.rtc",
    "devices.power",
    "devices.fw_cfg",
    "devices.virtio.balloon",
    "devices.virtio.rng",
    "devices.virtio.transport",
)
PICKLES = {"pickle", "cPickle", "_pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib", "copyreg"}


def is_in(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def at_run_time(module: str) -> list[Import]:
    return [each for each in imports_of(module) if not each.only_types]


def all_python_files() -> dict[str, ast.Module]:
    folders = [ROOT / name for name in (*PACKAGES, "tests", "bench", "tools")]
    return {str(path.relative_to(ROOT)): tree(path) for folder in folders for path in sorted(folder.rglob("*.py"))}


# -- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [name for name in LAYERED if name not in FACES])
def test_every_module_has_a_layer(module: str) -> None:
    assert layer_of(module) is not None, f"{module} has no row in the layer table of docs/architecture.md"


def test_every_row_of_the_layer_table_is_a_module_or_a_folder() -> None:
    missing = [name for name in document_table() if name not in modules()]
    assert missing == [], "the layer table of docs/architecture.md names what is not there"


@pytest.mark.parametrize("module", LAYERED)
def test_a_module_imports_only_from_lower_layers_or_beside_itself(module: str) -> None:
    own = layer_of(module)
    for each in at_run_time(module):
        other = layer_of(each.name) if each.name in modules() else None
        if own is None or other is None or other < own:
            continue
        beside = other == own and folder_of(module) == folder_of(each.name)
        inside = other == own and is_in(each.name, folder_of(module)) and layer_row(module) == layer_row(each.name)
        assert beside or inside, f"{module} (L{own}) imports {each.name} (L{other}) in line {each.line}"


def layer_row(module: str) -> str:
    """The entry of the table that gives the module its layer."""
    while module not in document_table():
        module = module.rpartition(".")[0]
    return module


def test_imports_run_in_no_circle() -> None:
    graph = {
        module: {each.name for each in at_run_time(module) if each.name in modules() and each.name not in FACES}
        for module in modules()
        if module not in FACES
    }
    for module, needed in graph.items():
        # A package's face that shows what is inside is no circle with what is inside.
        needed -= {other for other in needed if is_in(module, other)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("imports run in a circle: " + " -> ".join(error.args[1]))


# -- who may import whom ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [name for name in modules() if is_in(name, "devices")])
def test_devices_import_the_standard_library_and_numpy_only(module: str) -> None:
    for each in imports_of(module):
        top = each.name.split(".")[0]
        allowed = top in sys.stdlib_module_names or top in ("devices", "numpy")
        assert allowed, f"{module} imports {each.name} in line {each.line}"


@pytest.mark.parametrize("module", [name for name in modules() if is_in(name, "devices", "firmware", "guests")])
def test_what_the_guest_sees_never_imports_vmm(module: str) -> None:
    for each in imports_of(module):
        assert not is_in(each.name, "vmm"), f"{module} imports {each.name} in line {each.line}"


@pytest.mark.parametrize("module", modules())
def test_only_the_cpu_imports_unicorn_only_inspect_python_ptrace_and_only_the_view_textual(module: str) -> None:
    for each in imports_of(module):
        sentence = f"{module} imports {each.name} in line {each.line}"
        assert not is_in(each.name, "unicorn") or is_in(module, "vmm.cpu"), sentence
        assert not is_in(each.name, "ptrace") or is_in(module, "vmm.inspect"), sentence
        assert not is_in(each.name, "textual") or module == "vmm.top.view", sentence


@pytest.mark.parametrize("module", [name for name in modules() if is_in(name, "vmm.testing")])
def test_the_driver_s_side_knows_only_the_specification_s_numbers(module: str) -> None:
    for each in imports_of(module):
        own = is_in(each.name, "vmm.testing")
        numbers = each.name == "devices.virtio.spec"
        assert own or numbers or not is_in(each.name, *PACKAGES), f"{module} imports {each.name} in line {each.line}"


@pytest.mark.parametrize("module", [name for name in modules() if is_in(name, "vmm")])
def test_only_the_board_and_the_machine_name_concrete_devices(module: str) -> None:
    for each in at_run_time(module):
        allowed = is_in(module, "vmm.boards", "vmm.machine") or not is_in(each.name, *CONCRETE)
        assert allowed, f"{module} imports {each.name} in line {each.line}"


@pytest.mark.parametrize("module", [name for name in modules() if name != "vmm.inspect.ptrace_import"])
def test_nothing_is_imported_by_a_computed_name(module: str) -> None:
    """What this file reads is all there is."""
    for node in ast.walk(tree(modules()[module])):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        assert name not in ("import_module", "__import__"), f"{module} imports by a computed name: {ast.unparse(node)}"


# -- what stands nowhere ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", all_python_files())
def test_there_is_no_pickle(path: str) -> None:
    body = all_python_files()[path]
    for each in imports(body, "", frozenset()):
        assert each.name.split(".")[0] not in PICKLES, f"{path} imports {each.name} in line {each.line}"
    for node in ast.walk(body):
        assert not (isinstance(node, ast.keyword) and node.arg == "allow_pickle"), f"{path} allows pickles"


@pytest.mark.parametrize("module", [name for name in modules() if is_in(name, "devices")])
def test_devices_assert_nothing(module: str) -> None:
    lines = [node.lineno for node in ast.walk(tree(modules()[module])) if isinstance(node, ast.Assert)]
    assert lines == [], f"{module} asserts: what it asserts may be the guest's data"


def test_the_distribution_installs_exactly_four_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = [path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    chosen = {name for name in folders if any(fnmatch(name, pattern) for pattern in patterns)}
    assert chosen == set(PACKAGES)


# -- the checker itself ----------------------------------------------------------------------------------------------


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
import a.b, c as d
from e import f, g
from . import h
from .i import j
from .. import k
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from l import m
else:
    import n
def late():
    if True:
        import o.p
"""
    known = frozenset({"e.f", "x.y.h", "x.k"})
    found = {(each.name, each.only_types) for each in imports(ast.parse(source), "x.y", known)}
    expected = {"a.b", "c", "e.f", "e", "x.y.h", "x.y.i", "x.k", "typing", "n", "o.p"}
    assert found == {(name, False) for name in expected} | {("l", True)}


def test_the_layer_table_is_read_as_written() -> None:
    text = "| layer | modules |\n| L0 | `a/b.py`, `c/{d,e}.py` (why) |\n| L7 | `a/f/`, `g/` |\n"
    assert layer_table(text) == {"a.b": 0, "c.d": 0, "c.e": 0, "a.f": 7, "g": 7}
    with pytest.raises(ValueError, match=r"^a\.b stands in two rows$"):
        layer_table("| L0 | `a/b.py` |\n| L1 | `a/b.py` |\n")


def test_the_table_covers_the_house() -> None:
    assert layer_of("devices.memory") == 0
    assert layer_of("devices.virtio.balloon.pages") == 4
    assert layer_of("vmm.cpu.layout") == 4
    assert layer_of("vmm") is None

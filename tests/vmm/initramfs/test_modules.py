"""The order of kernel modules, from modules.dep and from .modinfo, on trees made for the purpose."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest
import zstandard

from devices.errors import ConfigError
from tests.vmm.initramfs.elf_files import ET_EXEC, elf_with_section, module_file, module_folder, out_of_reach
from vmm.initramfs.modules import ModuleTree, module_name

VIRTIO = {
    "virtio/virtio.ko": module_file("depends=virtio_ring"),
    "virtio/virtio_ring.ko": module_file("depends="),
    "virtio/virtio_balloon.ko": module_file("depends=virtio,virtio_ring"),
    "virtio/virtio_pci.ko": module_file("depends=virtio_pci_modern_dev,virtio,virtio_ring"),
    "virtio/virtio_pci_modern_dev.ko": module_file("depends="),
}


def compress(data: bytes, suffix: str) -> bytes:
    match suffix:
        case "gz":
            return gzip.compress(data)
        case "xz":
            return lzma.compress(data)
    return zstandard.ZstdCompressor().compress(data)


def order(folder: Path, *names: str) -> list[str]:
    return [module.name for module in ModuleTree(folder).order(names)]


def test_each_module_comes_after_what_it_needs(tmp_path: Path) -> None:
    folder = module_folder(tmp_path, VIRTIO)
    assert order(folder, "virtio_balloon", "virtio_pci") == [
        "virtio_ring",
        "virtio",
        "virtio_balloon",
        "virtio_pci_modern_dev",
        "virtio_pci",
    ]


def test_a_module_asked_for_twice_comes_once(tmp_path: Path) -> None:
    assert order(module_folder(tmp_path, VIRTIO), "virtio", "virtio_ring", "virtio") == ["virtio_ring", "virtio"]


def test_modules_dep_is_believed_before_the_files(tmp_path: Path) -> None:
    folder = module_folder(tmp_path, VIRTIO)
    lines = ["kernel/virtio/virtio.ko: kernel/virtio/virtio_pci_modern_dev.ko kernel/virtio/virtio_ring.ko"]
    lines += ["kernel/virtio/virtio_ring.ko:", "kernel/virtio/virtio_pci_modern_dev.ko:"]
    (folder / "modules.dep").write_text("\n".join(lines) + "\n")
    assert order(folder, "virtio") == ["virtio_ring", "virtio_pci_modern_dev", "virtio"]


def test_an_empty_modules_dep_tells_nothing(tmp_path: Path) -> None:
    folder = module_folder(tmp_path, VIRTIO)
    (folder / "modules.dep").write_text("")
    assert order(folder, "virtio") == ["virtio_ring", "virtio"]


def test_dashes_and_underscores_are_the_same(tmp_path: Path) -> None:
    folder = module_folder(
        tmp_path, {"pvpanic-mmio.ko": module_file("depends=pv-core"), "pv_core.ko": module_file("depends=")}
    )
    assert order(folder, "pvpanic_mmio") == order(folder, "pvpanic-mmio") == ["pv_core", "pvpanic_mmio"]
    assert [module.path for module in ModuleTree(folder).order(["pvpanic_mmio"])] == [
        "kernel/pv_core.ko",
        "kernel/pvpanic-mmio.ko",
    ]


def test_soft_dependencies_come_before_and_after_where_they_are_there(tmp_path: Path) -> None:
    modules = {
        "a.ko": module_file("depends=", "softdep=pre: b missing post: c", "softdep=post: d"),
        **{f"{name}.ko": module_file("depends=") for name in "bcd"},
    }
    assert order(module_folder(tmp_path, modules), "a") == ["b", "a", "c", "d"]


def test_soft_dependencies_in_a_circle_are_no_mistake(tmp_path: Path) -> None:
    modules = {
        "a.ko": module_file("depends=", "softdep=pre: b"),
        "b.ko": module_file("depends=", "softdep=pre: a post: a"),
    }
    assert order(module_folder(tmp_path, modules), "a") == ["b", "a"]


def test_what_is_built_into_the_kernel_is_not_packed(tmp_path: Path) -> None:
    folder = module_folder(tmp_path, {"a.ko": module_file("depends=inside")})
    (folder / "modules.builtin").write_text("kernel/lib/inside.ko\n")
    assert order(folder, "a", "inside") == ["a"]


@pytest.mark.parametrize("suffix", ["gz", "xz", "zst"])
def test_compressed_modules_are_unpacked(suffix: str, tmp_path: Path) -> None:
    data = module_file("depends=")
    folder = module_folder(tmp_path, {f"drivers/a.ko.{suffix}": compress(data, suffix)})
    (module,) = ModuleTree(folder).order(["a"])
    assert (module.data, module.path) == (data, "kernel/drivers/a.ko")


@pytest.mark.parametrize("suffix", ["gz", "xz", "zst"])
@pytest.mark.parametrize("damage", ["cut off", "not compressed"])
def test_a_damaged_compressed_module_is_one_sentence(suffix: str, damage: str, tmp_path: Path) -> None:
    whole = module_file("depends=")
    data = compress(whole, suffix)[:-9] if damage == "cut off" else whole
    folder = module_folder(tmp_path, {f"a.ko.{suffix}": data})
    with pytest.raises(ConfigError, match=rf"a\.ko\.{suffix} cannot be decompressed: .+\.$"):
        ModuleTree(folder).order(["a"])


def test_the_folder_may_be_the_root_of_a_package(tmp_path: Path) -> None:
    module_folder(tmp_path, VIRTIO)
    module_folder(tmp_path / "usr-merged" / "usr", VIRTIO)
    assert order(tmp_path, "virtio") == order(tmp_path / "usr-merged", "virtio") == ["virtio_ring", "virtio"]


# -- mistakes ------------------------------------------------------------------------------------------------------


def refusal(folder: Path, *names: str) -> str:
    with pytest.raises(ConfigError) as caught:
        ModuleTree(folder).order(names)
    return str(caught.value)


def test_an_unknown_module_gets_the_nearest_name(tmp_path: Path) -> None:
    said = refusal(module_folder(tmp_path, VIRTIO), "virtio_baloon")
    assert said.startswith("There is no module 'virtio_baloon' in ")
    assert said.endswith("; did you mean 'virtio_balloon'?")


def test_a_need_that_nobody_meets_is_told_with_who_has_it(tmp_path: Path) -> None:
    said = refusal(module_folder(tmp_path, {"a.ko": module_file("depends=gone")}), "a")
    assert said.startswith("The module a needs gone, which is neither in ")


def test_a_circle_is_told_in_its_order(tmp_path: Path) -> None:
    modules = {
        "a.ko": module_file("depends=b"),
        "b.ko": module_file("depends=c"),
        "c.ko": module_file("depends=b"),
    }
    assert refusal(module_folder(tmp_path, modules), "a") == "Modules need each other in a circle: b -> c -> b."


@pytest.mark.parametrize(
    "data",
    [b"", b"no ELF at all", b"\x7fELF", module_file()[:100], elf_with_section(".text", b"x")],
    ids=["empty", "text", "magic only", "cut off", "no .modinfo"],
)
def test_a_file_that_is_no_module_is_one_sentence(data: bytes, tmp_path: Path) -> None:
    said = refusal(module_folder(tmp_path, {"a.ko": data}), "a")
    assert "a.ko is not a kernel module: " in said


def test_a_program_is_no_module(tmp_path: Path) -> None:
    data = elf_with_section(".modinfo", b"name=a\0", ET_EXEC)
    assert "is not a kernel module" in refusal(module_folder(tmp_path, {"a.ko": data}), "a")


def test_a_module_for_another_kernel_is_refused(tmp_path: Path) -> None:
    modules = {"a.ko": module_file("depends=", vermagic="5.10.0-1-old SMP ")}
    assert (
        refusal(module_folder(tmp_path, modules), "a")
        == "The module a is for the kernel 5.10.0-1-old, not for 6.1.0-1-test."
    )


def test_modules_of_two_kernels_in_a_folder_without_a_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_bytes(module_file("depends=b"))
    (tmp_path / "b.ko").write_bytes(module_file("depends=", vermagic="5.10.0-1-old SMP "))
    assert "is for the kernel" in refusal(tmp_path, "a")


def test_a_folder_with_several_kernels_asks_which(tmp_path: Path) -> None:
    module_folder(tmp_path, VIRTIO)
    module_folder(tmp_path, VIRTIO, version="6.2.0")
    assert "modules of several kernels (6.1.0-1-test, 6.2.0); name the folder of one." in refusal(tmp_path, "virtio")


def test_a_folder_without_modules_and_one_that_is_not_there_are_told_apart(tmp_path: Path) -> None:
    assert refusal(tmp_path, "a").endswith("has no kernel modules.")
    assert refusal(tmp_path / "missing", "a").endswith("does not exist.")


def test_a_module_whose_sections_no_file_can_reach_is_one_sentence(tmp_path: Path) -> None:
    folder = module_folder(tmp_path, {"a.ko": out_of_reach(module_file("depends="), table=40)})
    assert refusal(folder, "a").endswith("/a.ko is not a kernel module: it is no complete ELF file.")


def test_the_name_of_a_module_is_its_file_without_what_follows() -> None:
    assert [module_name(text) for text in ("a-b", "x/a-b.ko", "a.b.ko.xz")] == ["a_b", "a_b", "a.b"]

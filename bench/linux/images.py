"""What both boot: the cached kernel of `vmm boot debian`, and an initramfs with its balloon driver and `init`."""

from __future__ import annotations

import sys
from pathlib import Path

from vmm.debian.images import debian_images
from vmm.initramfs.bundled import BALLOON_MODULES
from vmm.initramfs.packing import Contents, pack

INIT = Path(__file__).with_name("init")


def make_images(folder: Path) -> tuple[Path, Path]:
    """Kernel and initramfs, the latter in `folder`.  Fetches the packages if no earlier run has."""
    images = debian_images(lambda line: print(line, file=sys.stderr, flush=True))
    archive = pack(
        Contents(
            busybox=images.busybox,
            kernel_modules=images.modules,
            modules=BALLOON_MODULES,
            programs=(("init", INIT.read_bytes()),),
        )
    )
    initrd = folder / "initrd"
    initrd.write_bytes(archive.to_bytes())
    return images.kernel, initrd

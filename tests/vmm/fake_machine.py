"""A machine that only has gauges: enough for whoever looks at one, and every number can be set."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from devices.errors import ConfigError
from vmm.config import make_config

if TYPE_CHECKING:
    from vmm.machine import Machine

MIB = 1 << 20
PAGES_A_MIB = 256


class FakeMachine:
    """64 MiB of RAM; the target leaves 32 MiB, 24 MiB are in the balloon, 12 MiB are backed by the host."""

    def __init__(self, *, has_balloon: bool = True, backed_bytes: int | None = 12 * MIB) -> None:
        devices = ["virtio-balloon-pci"] if has_balloon else ["virtio-rng-pci"]
        self.config = make_config("fake", devices=devices)
        self.now_ns = 1_500_000_000
        self.has_balloon = has_balloon
        self.actual_pages = 24 * PAGES_A_MIB
        self.reported_bytes = 0
        self.backed = backed_bytes
        self.board = SimpleNamespace(payload=SimpleNamespace(name="fake", kind="ELF64", entry=0x10000, doubt=""))
        self.memory = SimpleNamespace(backed_bytes=self._backed_bytes)
        self.statistics = SimpleNamespace(
            reason="ok",
            age_ns=250_000_000,
            values={"stat-free-memory": 20 * MIB, "stat-minor-faults": 1234},
            raw=((4, 20 * MIB), (3, 1234), (4660, 99)),
        )

    @property
    def balloon(self) -> Any:
        self._need_balloon()
        return SimpleNamespace(
            target_pages=32 * PAGES_A_MIB, actual_pages=self.actual_pages, reported_bytes=self.reported_bytes
        )

    @property
    def stats(self) -> Any:
        self._need_balloon()
        return SimpleNamespace(snapshot=lambda: self.statistics)

    def as_machine(self) -> Machine:
        return cast("Machine", self)

    def _need_balloon(self) -> None:
        if not self.has_balloon:
            raise ConfigError("This machine has no balloon.")

    def _backed_bytes(self) -> int:
        if self.backed is None:
            raise ConfigError("The host cannot tell.")
        return self.backed


def fake_report(**changes: Any) -> dict[str, Any]:
    """A report in the shape of `--json`."""
    report: dict[str, Any] = {
        "guest": "fake",
        "outcome": "powered-off",
        "exit_code": 0,
        "detail": "the guest powered off",
        "clock_ns": 1_500_000_000,
        "wall_s": 0.25,
        "blocks": 1234567,
        "features": {
            "offered": ["VIRTIO_F_VERSION_1"],
            "negotiated": ["VIRTIO_BALLOON_F_STATS_VQ", "VIRTIO_F_VERSION_1"],
        },
        "balloon": {
            "target_pages": 32 * PAGES_A_MIB,
            "actual_pages": 24 * PAGES_A_MIB,
            "inflated_pages": 9000,
            "deflated_pages": 2856,
            "oom_deflated_pages": 0,
            "reported_pages": 0,
            "reported_bytes": 0,
            "poisoned_pages": 0,
            "hinted_pages": 0,
            "hint_discarded_pages": 0,
            "stale_hint_pages": 0,
            "held_pages": 0,
            "discarded_bytes": 9000 * 4096,
            "bad_pfns": 0,
        },
        "memory": {
            "ram_bytes": 64 * MIB,
            "backing": "memfd",
            "host_page_bytes": 4096,
            "backed_bytes_peak": 40 * MIB,
            "backed_bytes_end": 12 * MIB,
        },
        "stats": {"reason": "ok", "age_ns": 250_000_000, "values": {"stat-free-memory": 5}, "raw": [[4, 5]]},
        "queues": [{"name": "inflateq", "size": 128, "requests": 36}],
        "console": "",
    }
    return report | changes

"""What a person holds of a running machine: the balloon's gauge and lever, and the statistics it reports.

Sizes come in two directions and every answer gives both: the RAM left to the guest, and the balloon's size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from devices.errors import ConfigError
from devices.memory import PAGE_BYTES
from devices.virtio import spec
from vmm.config import TargetStep, format_size, parse_size

if TYPE_CHECKING:
    from devices.virtio.balloon import Balloon, Statistics
    from devices.virtio.device import Notifications


class BalloonControl:
    """The host's side of one balloon.  `ram_bytes` is the machine's RAM as configured.

    Reading never changes anything; commands take effect at the machine's present virtual time.
    """

    def __init__(
        self, device: Balloon, ram_bytes: int, now_ns: Callable[[], int], carry_out: Callable[[Notifications], None]
    ) -> None:
        self._device = device
        self._ram_bytes = ram_bytes
        self._now_ns = now_ns
        self._carry_out = carry_out

    @property
    def target_pages(self) -> int:
        """The size wanted of the balloon, in 4096-byte pages (num_pages of the configuration space)."""
        return self._device.target_pages

    @property
    def actual_pages(self) -> int:
        """The size the driver says the balloon has, in pages (actual of the configuration space)."""
        return self._device.actual_pages

    @property
    def inflated_pages(self) -> int:
        """Pages that ever went into the balloon."""
        return self._device.inflated_pages

    @property
    def deflated_pages(self) -> int:
        """Pages that ever came out of it."""
        return self._device.deflated_pages

    @property
    def oom_deflated_pages(self) -> int:
        """Pages that the driver took back although the target asks for them (DEFLATE_ON_OOM)."""
        return self._device.oom_deflated_pages

    @property
    def reported_pages(self) -> int:
        """Pages that the driver ever reported free; a page counts again each time it is reported again."""
        return self._device.reported_pages

    @property
    def reported_bytes(self) -> int:
        """The same in bytes."""
        return self.reported_pages * PAGE_BYTES

    @property
    def poisoned_pages(self) -> int:
        """Reported pages that stay, since the driver expects to find its poison_val in them (PAGE_POISON)."""
        return self._device.poisoned_pages

    @property
    def hinted_pages(self) -> int:
        """Pages that the driver ever hinted to be free, each time that it was asked."""
        return self._device.hinted_pages

    @property
    def hint_discarded_pages(self) -> int:
        """Those of them that were given back to the host: the others were written since the driver was asked, or the
        host cannot tell."""
        return self._device.hint_discarded_pages

    @property
    def stale_hint_pages(self) -> int:
        """Pages that were hinted when nobody had asked, or in answer to an older question; they were ignored."""
        return self._device.stale_hint_pages

    @property
    def hint_command_id(self) -> int:
        """free_page_hint_cmd_id of the configuration space: 0 STOP, 1 DONE, from 2 on the driver is asked for hints."""
        return self._device.free_page_hint_cmd_id

    @property
    def held_pages(self) -> int:
        """Pages in the balloon that the host has not got back: its own pages are larger and not wholly in it."""
        return self._device.held_pages

    @property
    def discarded_bytes(self) -> int:
        """Bytes whose discard was asked of the host, inflated, reported or hinted."""
        return self._device.discarded_bytes

    @property
    def bad_pfns(self) -> int:
        """Page frame numbers that were not RAM, and were skipped."""
        return self._device.bad_pfns

    @property
    def guest_ram_bytes(self) -> int:
        """The RAM that the balloon leaves to the guest now."""
        return self._ram_bytes - self.actual_pages * PAGE_BYTES

    @property
    def target_ram_bytes(self) -> int:
        """The RAM that the balloon shall leave to the guest."""
        return self._ram_bytes - self.target_pages * PAGE_BYTES

    def set_target(self, ram: str | int) -> None:
        """Leave `ram` to the guest: a size such as "32M", or bytes.  ConfigError unless the machine has that much."""
        self.set_step(TargetStep(0, ram_bytes=parse_size(ram) if isinstance(ram, str) else ram))

    def set_size(self, balloon: str | int) -> None:
        """Make the balloon as large as `balloon`, a size such as "32M" or bytes."""
        self.set_step(TargetStep(0, balloon_bytes=parse_size(balloon) if isinstance(balloon, str) else balloon))

    def set_step(self, step: TargetStep) -> None:
        """Take over a target, rounded so that the guest keeps at least what it says; the step's time is ignored."""
        step.check(self._ram_bytes)
        size = self._ram_bytes - step.ram_bytes if step.ram_bytes is not None else step.balloon_bytes or 0
        self._carry_out(self._device.set_target(size // PAGE_BYTES, self._now_ns()))

    def request_stats(self) -> None:
        """Ask the driver for fresh statistics: return the buffer it left with us."""
        self._carry_out(self._device.request_stats(self._now_ns()))

    def set_polling_interval(self, interval_ns: int) -> None:
        """Ask by ourselves every `interval_ns` of guest time, first at once; 0 stops it."""
        self._carry_out(self._device.set_polling_interval(interval_ns, self._now_ns()))

    def start_hinting(self, *, acknowledge: bool = True) -> None:
        """Ask the driver which of its pages are free, and give those back to the host.

        With `acknowledge` the driver may use them again as soon as it has named them all; without, only after
        `done_hinting`.  ConfigError when the driver cannot be asked."""
        if obstacle := self._device.hinting_obstacle:
            raise ConfigError(f"Hinting cannot be started: {obstacle}.")
        self._carry_out(self._device.start_hinting(self._now_ns(), acknowledge=acknowledge))

    def ask_for_hints(self) -> None:
        """The same for a schedule: where the driver cannot be asked, an event says so and the run goes on."""
        self._carry_out(self._device.start_hinting(self._now_ns()))

    def stop_hinting(self) -> None:
        """Have the driver pause; it keeps what it has named out of use.  ConfigError when it cannot be told."""
        if absence := self._device.hinting_absence:
            raise ConfigError(f"Hinting cannot be stopped: {absence}.")
        self._carry_out(self._device.stop_hinting(self._now_ns()))

    def done_hinting(self) -> None:
        """Let the driver use what it has named again.  ConfigError when it cannot be told."""
        if absence := self._device.hinting_absence:
            raise ConfigError(f"Hinting cannot be ended: {absence}.")
        self._carry_out(self._device.done_hinting(self._now_ns()))

    @property
    def offered(self) -> list[str]:
        """The names of the features that the device offers to its driver, by the interface that the driver uses."""
        return spec.feature_names(self._device.offered_features, self._device.device_id)

    @property
    def negotiated(self) -> list[str]:
        """The names of the features that both sides agreed on; empty before negotiation is over."""
        return spec.feature_names(self._device.negotiated_features, self._device.device_id)

    def __repr__(self) -> str:
        target, actual = format_size(self.target_pages * PAGE_BYTES), format_size(self.actual_pages * PAGE_BYTES)
        return f"<Balloon {actual}, target {target}, {format_size(self.guest_ram_bytes)} left to the guest>"


class StatsView:
    """The statistics that the driver sent last, as of now."""

    def __init__(self, device: Balloon, now_ns: Callable[[], int]) -> None:
        self._device = device
        self._now_ns = now_ns

    def snapshot(self) -> Statistics:
        """All of it as one value."""
        return self._device.statistics(self._now_ns())

    @property
    def reason(self) -> str:
        """ "ok", or why there are no fresh ones: "not negotiated", "never posted", "malformed", "stale"."""
        return self.snapshot().reason

    @property
    def age_ns(self) -> int | None:
        """Guest time since they were received; None when they never were."""
        return self.snapshot().age_ns

    @property
    def values(self) -> dict[str, int]:
        """QEMU's name of each known statistic that was sent, and its value: bytes or a count."""
        return dict(self.snapshot().values)

    @property
    def raw(self) -> list[tuple[int, int]]:
        """(tag, value) of every entry, in the order sent, unknown tags too."""
        return list(self.snapshot().raw)

    def __repr__(self) -> str:
        now = self.snapshot()
        age = "" if now.age_ns is None else f", {now.age_ns / 1e9:g} s old"
        return f"<Statistics {now.reason}{age}, {len(now.raw)} values>"

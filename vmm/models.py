"""The devices a user can name, their properties, and how `-device DRIVER,property=value,…` is read.

The tables are the truth: what is parsed, what `-device DRIVER,help` and `vmm devices` print, and what a property is
when nobody names it.  Names are QEMU's where QEMU has the property.  A property that QEMU has and this version does not
is listed with the only value it can have here, so that a line written for QEMU is accepted where it means the same,
and refused in one sentence where it does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from devices.errors import ConfigError
from devices.virtio import spec
from devices.virtio.policy import POLICIES
from devices.virtio.profiles import PROFILES

Kind = Literal["name", "slot", "place", "flag", "choice", "size", "fixed"]
BusName = Literal["pci", "mmio"]

FIRST_SLOT, LAST_SLOT = 3, 31  # PCI device numbers on bus 0; lower ones are the board's own
LARGEST_QUEUE = spec.VIRTQ_MAX_SIZE
_QUEUE_SIZES = [str(1 << power) for power in range(LARGEST_QUEUE.bit_length())]
MMIO_PLACES = 4  # blocks of registers that the board has for virtio-mmio devices
DEFAULT_DEVICE = "virtio-balloon-pci,id=balloon0"
DEFAULT_MMIO_DEVICE = "virtio-balloon-device,id=balloon0"  # of a board without PCI


@dataclass(frozen=True, slots=True)
class Property:
    """One property: `default` as the user would write it; a "choice" is one of `choices`, a "size" a power of two up to
    32768, a "fixed" one can only have its default."""

    name: str
    kind: Kind
    default: str
    help: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """A kind of device: `driver` is what the user writes, `stem` begins the names given to those without an id, `bus`
    is where it is plugged in."""

    driver: str
    stem: str
    summary: str
    properties: tuple[Property, ...]
    bus: BusName = "pci"

    def find(self, name: str) -> Property | None:
        return next((prop for prop in self.properties if prop.name == name), None)


_ID_PROPERTY = Property("id", "name", "", "the device's name in every answer")
_RING = (
    Property("indirect_desc", "flag", "on", "offer VIRTIO_F_INDIRECT_DESC"),
    Property("event_idx", "flag", "on", "offer VIRTIO_F_EVENT_IDX"),
    Property("packed", "flag", "off", "offer VIRTIO_F_RING_PACKED, the packed ring"),
    Property("in_order", "flag", "off", "offer VIRTIO_F_IN_ORDER"),
    Property("queue_reset", "flag", "on", "offer VIRTIO_F_RING_RESET"),
    Property("notification-data", "flag", "off", "offer VIRTIO_F_NOTIFICATION_DATA (QEMU has no such property here)"),
    Property("notify_on_empty", "flag", "on", "offer VIRTIO_F_NOTIFY_ON_EMPTY to legacy drivers"),
    Property("any_layout", "flag", "on", "offer VIRTIO_F_ANY_LAYOUT to legacy drivers; off with a legacy device only"),
)


def _queue_size(default: str, help_: str) -> Property:
    return Property("queue-size", "size", default, f"{help_} (QEMU has no such property)")


_PCI = (
    _ID_PROPERTY,
    Property("addr", "slot", "", "PCI device number on bus 0, hexadecimal, 3 to 1f (default: the first free one)"),
    Property("disable-legacy", "flag", "on", "off: a legacy driver finds its interface too (QEMU: off on this board)"),
    Property("disable-modern", "flag", "off", "on, with disable-legacy=off: only the legacy interface"),
    *_RING,
)
_MMIO = (
    _ID_PROPERTY,
    Property(
        "slot", "place", "", f"which block of registers it gets, 0 to {MMIO_PLACES - 1} (default: the first free)"
    ),
    Property("force-legacy", "flag", "off", "on: version 1 (QEMU has this at virtio-mmio itself, where it is on)"),
    *_RING,
)
MODERN_ONLY = ("packed", "in_order", "queue_reset", "notification-data")
"""Flags of features that a legacy driver has no bits for."""
_FIXED = (Property("iommu_platform", "fixed", "off", "VIRTIO_F_ACCESS_PLATFORM"),)
_BALLOON = (
    Property("must-tell-host", "flag", "on", "offer VIRTIO_BALLOON_F_MUST_TELL_HOST (QEMU has no such property)"),
    Property("stats-vq", "flag", "on", "offer VIRTIO_BALLOON_F_STATS_VQ (QEMU has no such property)"),
    Property("deflate-on-oom", "flag", "off", "offer VIRTIO_BALLOON_F_DEFLATE_ON_OOM"),
    Property("free-page-reporting", "flag", "off", "offer VIRTIO_BALLOON_F_PAGE_REPORTING"),
    Property("free-page-hint", "flag", "off", "offer VIRTIO_BALLOON_F_FREE_PAGE_HINT"),
    Property("page-poison", "flag", "on", "offer VIRTIO_BALLOON_F_PAGE_POISON"),
    _queue_size("128", "entries of each queue; reporting_vq has never less than 32, free_page_vq than 2"),
    Property(
        "queue-numbering",
        "choice",
        "offered",
        "how queues are counted: as QEMU does, by the specification, or over what was negotiated",
        ("spec", "offered", "negotiated"),
    ),
    Property(
        "stats-format",
        "choice",
        "final",
        "how statistics are laid out: as specified, or as in the patch that proposed them",
        ("final", "v2"),
    ),
)
_POLICY = (
    Property(
        "guest-errors",
        "choice",
        "reset",
        "what becomes of a chain that breaks a rule: the device needs a reset, it comes back unread, or never",
        tuple(POLICIES),
    ),
    Property(
        "profile",
        "choice",
        "none",
        "take a driver's mistakes as that monitor does (instead of guest-errors)",
        ("none", *PROFILES),
    ),
)
_RNG = (_queue_size("64", "entries of the queue"),)
_BALLOON_SUMMARY = "memory balloon: inflate, deflate, statistics, free page hinting and reporting"
_RNG_SUMMARY = "source of random bytes"
_ON_MMIO = "; on virtio-mmio"

MODELS = (
    Model("virtio-balloon-pci", "balloon", _BALLOON_SUMMARY, (*_PCI, *_BALLOON, *_POLICY, *_FIXED)),
    Model(
        "virtio-balloon-device", "balloon", _BALLOON_SUMMARY + _ON_MMIO, (*_MMIO, *_BALLOON, *_POLICY, *_FIXED), "mmio"
    ),
    Model("virtio-rng-pci", "rng", _RNG_SUMMARY, (*_PCI, *_RNG, *_FIXED)),
    Model("virtio-rng-device", "rng", _RNG_SUMMARY + _ON_MMIO, (*_MMIO, *_RNG, *_FIXED), "mmio"),
)
_ALIASES = {"virtio-balloon": "virtio-balloon-pci", "virtio-rng": "virtio-rng-pci"}
_VALUED = ("flag", "choice", "size")  # kinds of properties that a device has if nobody names them
_FLAGS = {"on": "on", "yes": "on", "true": "on", "off": "off", "no": "off", "false": "off"}
_PLACES: dict[BusName, tuple[str, list[str], str, str]] = {
    "pci": ("addr", [f"{slot:x}" for slot in range(FIRST_SLOT, LAST_SLOT + 1)], "PCI address 0x", "PCI bus"),
    "mmio": ("slot", [str(place) for place in range(MMIO_PLACES)], "virtio-mmio slot ", "board"),
}
"""Of each bus: the property that says where, the places there are, what to call one of them, what to call the bus."""
_ID = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_SLOT = re.compile(r"(?:0x)?([0-9a-f]{1,2})(?:\.0)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """One device: `properties` are (name, value) in the order of their names: every flag of the model as "on" or "off",
    every choice and size, and where it is: "addr", its PCI device number in hexadecimal, or "slot", the number of a
    virtio-mmio device.  `is_named` says that the user chose the id."""

    driver: str
    id: str
    properties: tuple[tuple[str, str], ...] = ()
    is_named: bool = True

    @property
    def words(self) -> str:
        """What a user would write for it, with every property."""
        return ",".join((self.driver, f"id={self.id}", *(f"{name}={value}" for name, value in self.properties)))

    def flag(self, name: str) -> bool:
        """Whether the property `name` is on; KeyError when the model has no such flag."""
        given = dict(self.properties)
        if name in given:
            return given[name] == "on"
        prop = find_model(self.driver).find(name)
        if prop is None or prop.kind not in ("flag", "fixed"):
            raise KeyError(name)
        return prop.default == "on"

    def choice(self, name: str) -> str:
        """What the property `name` is; KeyError when the model has no such choice."""
        given = dict(self.properties)
        if name in given:
            return given[name]
        prop = find_model(self.driver).find(name)
        if prop is None or prop.kind != "choice":
            raise KeyError(name)
        return prop.default

    def number(self, name: str) -> int:
        """What the size `name` is; KeyError when the model has no such size."""
        prop = find_model(self.driver).find(name)
        if prop is None or prop.kind != "size":
            raise KeyError(name)
        return int(dict(self.properties).get(name, prop.default))

    @property
    def has_modern_interface(self) -> bool:
        """Whether a driver of virtio 1.0 or later finds it."""
        return not self.flag("disable-modern" if self.bus == "pci" else "force-legacy")

    @property
    def has_legacy_interface(self) -> bool:
        """Whether an older driver finds it."""
        return not self.flag("disable-legacy") if self.bus == "pci" else self.flag("force-legacy")

    @property
    def bus(self) -> BusName:
        """Where it is plugged in."""
        return find_model(self.driver).bus

    @property
    def is_balloon(self) -> bool:
        """Whether it is a memory balloon, on whichever bus."""
        return find_model(self.driver).stem == "balloon"

    @property
    def slot(self) -> int:
        """Its number on its bus: the PCI device number, or which of the virtio-mmio devices it is."""
        properties = dict(self.properties)
        return int(properties["addr"], 16) if self.bus == "pci" else int(properties["slot"])

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"00:{self.slot:02x}.0" if self.bus == "pci" else f"virtio-mmio {self.slot}"


def find_model(driver: str) -> Model:
    """The model that a user calls `driver`.  ConfigError, with the nearest name, when there is none."""
    name = _ALIASES.get(driver, driver)
    for model in MODELS:
        if model.driver == name:
            return model
    names = [model.driver for model in MODELS]
    if suggest(driver, names) is None:
        raise ConfigError(f"There is no device {driver!r}, only {', '.join(names[:-1])} and {names[-1]}.")
    raise ConfigError(f"There is no device {driver!r}{did_you_mean(driver, names)}")


def parse_devices(texts: Sequence[str]) -> tuple[DeviceConfig, ...]:
    """The devices in the order given, each with an id and a PCI address of its own.

    ConfigError for two with the same id or address, or more devices than the bus has room for.
    """
    found: list[DeviceConfig] = []
    for text in texts:
        device = parse_device(text, taken=[other.id for other in found])
        if any(other.id == device.id for other in found):
            raise ConfigError(f"Two devices must not have the same id {device.id!r}.")
        if device.is_balloon and any(other.is_balloon for other in found):
            raise ConfigError(f"A machine must not have more than one balloon; {device.id!r} is the second.")
        found.append(device)
    return tuple(_give_addresses(found))


def _give_addresses(devices: Iterable[DeviceConfig]) -> Iterable[DeviceConfig]:
    """Each device with a place: the one it asked for, or the first on its bus that nobody has or asked for."""
    devices = list(devices)
    free = {bus: _free_places(bus, [device for device in devices if device.bus == bus]) for bus in _PLACES}
    for device in devices:
        name, places, _, bus = _PLACES[device.bus]
        properties = dict(device.properties)
        if name not in properties and not free[device.bus]:
            raise ConfigError(f"The {bus} has no room for {device.id!r}: it takes {len(places)} devices.")
        if name not in properties:
            properties[name] = free[device.bus].pop(0)
        yield replace(device, properties=tuple(sorted(properties.items())))


def _free_places(bus: BusName, devices: Iterable[DeviceConfig]) -> list[str]:
    """What the `devices` on one bus did not ask for.  ConfigError where two ask for the same."""
    name, places, what, _ = _PLACES[bus]
    wanted = [dict(device.properties)[name] for device in devices if name in dict(device.properties)]
    for place in wanted:
        if wanted.count(place) > 1:
            raise ConfigError(f"Two devices must not have the same {what}{place}.")
    return [place for place in places if place not in wanted]


def parse_device(text: str, *, taken: Iterable[str] = ()) -> DeviceConfig:
    """The device that `DRIVER,property=value,…` describes, without an address unless it names one.

    Without an id it gets a name that is not in `taken`.
    """
    driver, *settings = (part.strip() for part in text.split(","))
    model = find_model(driver)
    values: dict[str, str] = {prop.name: prop.default for prop in model.properties if prop.kind in _VALUED}
    given: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        prop = model.find(name)
        if prop is None:
            found = suggest(name, [known.name for known in model.properties])
            hint = f"-device {model.driver},help lists them." if found is None else f"did you mean {found!r}?"
            raise ConfigError(f"{model.driver} has no property {name!r}; {hint}")
        given[name] = values[name] = _parse_value(model, prop, value if equals else "on")
    if (values.get("disable-legacy"), values.get("disable-modern")) == ("on", "on"):
        raise ConfigError(
            f"{model.driver}: disable-legacy and disable-modern must not both be on; no interface would be left."
        )
    if values.get("profile", "none") != "none" and values["guest-errors"] != "reset":
        raise ConfigError(
            f"{model.driver}: profile={values['profile']} says what becomes of guest errors itself; "
            f"guest-errors={values['guest-errors']} must not stand beside it."
        )
    _fit_to_interface(model, values, given)
    chosen = values.pop("id", "")
    name = chosen or _free_name(model.stem, set(taken))
    return DeviceConfig(model.driver, name, tuple(sorted(values.items())), bool(chosen))


def _fit_to_interface(model: Model, values: dict[str, str], given: Mapping[str, str]) -> None:
    """Switch off what the device's interface does not have; ConfigError where it was asked for."""
    switch = "disable-modern=on" if model.bus == "pci" else "force-legacy=on"
    is_legacy = values[switch.removesuffix("=on")] == "on"
    for name in MODERN_ONLY:
        if is_legacy and given.get(name) == "on":
            raise ConfigError(f"{model.driver}: {name}=on needs the modern interface, which {switch} takes away.")
        if is_legacy:
            values[name] = "off"
    if not is_legacy and values["any_layout"] == "off":
        raise ConfigError(
            f"{model.driver}: any_layout=off needs {switch}; a device with a modern interface takes any layout."
        )


def _parse_value(model: Model, prop: Property, text: str) -> str:
    if prop.kind == "name":
        if not _ID.fullmatch(text):
            raise ConfigError(
                f"A device's id must begin with a letter and have letters, digits, -, . and _ only, not {text!r}."
            )
        return text
    if prop.kind == "slot":
        match = _SLOT.fullmatch(text)
        if match is None or not FIRST_SLOT <= int(match[1], 16) <= LAST_SLOT:
            raise ConfigError(
                f"{model.driver}: addr must be a PCI device number from 3 to 1f (hexadecimal), not {text!r}."
            )
        return f"{int(match[1], 16):x}"
    if prop.kind == "place":
        if text not in _PLACES["mmio"][1]:
            raise ConfigError(f"{model.driver}: slot must be a number from 0 to {MMIO_PLACES - 1}, not {text!r}.")
        return text
    if prop.kind == "choice":
        if text not in prop.choices:
            raise ConfigError(
                f"{model.driver}: {prop.name} must be {', '.join(prop.choices[:-1])} or {prop.choices[-1]}, "
                f"not {text!r}{did_you_mean(text, prop.choices)}"
            )
        return text
    if prop.kind == "size":
        if text not in _QUEUE_SIZES:
            raise ConfigError(
                f"{model.driver}: {prop.name} must be a power of two from 1 to {LARGEST_QUEUE}, not {text!r}."
            )
        return text
    value = _FLAGS.get(text.lower())
    if value is None:
        raise ConfigError(f"{model.driver}: {prop.name} must be on or off, not {text!r}.")
    if prop.kind == "fixed" and value != prop.default:
        raise ConfigError(f"{model.driver}: {prop.name} can only be {prop.default} in this version ({prop.help}).")
    return value


def _free_name(stem: str, taken: set[str]) -> str:
    number = 0
    while f"{stem}{number}" in taken:
        number += 1
    return f"{stem}{number}"


def suggest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `word` was probably meant to be, or None."""
    import difflib  # only when something is wrong already

    return next(iter(difflib.get_close_matches(word, list(candidates), 1, 0.6)), None)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: "; did you mean 'X'?", or "." when nothing is near."""
    found = suggest(word, candidates)
    return "." if found is None else f"; did you mean {found!r}?"

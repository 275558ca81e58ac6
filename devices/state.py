"""The state of a device as a value of plain data: what is saved, checked and put back, from one table a class.

A class that has state derives from `Stateful` and lists its attributes in `STATE`: name of the attribute -> `Kind`.
The saved value is a dict with one entry an attribute (without its leading underscore); its leaves are None, bool, int,
str and bytes, so that it fits any file format and `==` compares it.  What construction fixes (names, sizes, what is
plugged in) is no state: a value is put back into an object that was built the same way.

Putting back has two steps.  `check_state` looks at everything and changes nothing: ConfigError with one sentence that
names the place.  `restore_state` then cannot fail.  So a value that does not fit leaves the machine as it was.

Lists and buffers that others hold a reference to are changed in place.  This module knows no device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Protocol, TypeAlias

from devices.errors import ConfigError

Plain: TypeAlias = "bool | int | str | bytes | list[Plain] | dict[str, Plain] | None"
State: TypeAlias = dict[str, Plain]

_SHOWN_CHARACTERS = 40


def refuse(where: str, rule: str, value: object) -> ConfigError:
    """The sentence about the value saved for `where`, which must be as `rule` says."""
    text = repr(value[:_SHOWN_CHARACTERS] if isinstance(value, (str, bytes, list)) else value)
    shown = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
    return ConfigError(f"The saved state does not fit this machine: {where} must be {rule}, not {shown}.")


def require_fields(where: str, saved: object, names: Sequence[str]) -> Mapping[str, Any]:
    """`saved` if it is a dict with exactly these fields."""
    if not isinstance(saved, dict):
        raise refuse(where, "a table of fields", saved)
    for name in names:
        if name not in saved:
            raise ConfigError(f"The saved state does not fit this machine: {where} has no field {name!r}.")
    for name in saved:
        if name not in names:
            raise ConfigError(f"The saved state does not fit this machine: {where} has an unknown field {name!r}.")
    return saved


def require_list(where: str, saved: object, length: int | None = None) -> list[Any]:
    """`saved` if it is a list, of `length` entries if that is given."""
    if not isinstance(saved, list) or (length is not None and len(saved) != length):
        raise refuse(where, "a list" if length is None else f"a list of {length} entries", saved)
    return saved


class HasState(Protocol):
    """What `Part` needs of an object."""

    def save_state(self) -> State: ...

    def check_state(self, saved: Any, where: str) -> None: ...

    def restore_state(self, saved: Any) -> None: ...


class Kind(Protocol):
    """How the values of one attribute are saved.  `current` is the attribute's value before."""

    def save(self, current: Any) -> Plain: ...

    def check(self, current: Any, saved: Any, where: str) -> None: ...

    def restore(self, current: Any, saved: Any) -> Any: ...


Table: TypeAlias = Mapping[str, Kind]


class Stateful:
    """Something whose state is its attributes in `STATE`."""

    __slots__ = ()
    STATE: ClassVar[Table] = {}
    BESIDE: ClassVar[tuple[str, ...]] = ()
    """Fields of the saved value that the class saves, checks and puts back by itself."""

    def save_state(self) -> State:
        """The state as plain data that shares nothing with the object."""
        return {name.lstrip("_"): kind.save(getattr(self, name)) for name, kind in self.STATE.items()}

    def check_state(self, saved: Any, where: str) -> None:
        """ConfigError unless `restore_state(saved)` will work; `where` names the object in its sentence."""
        require_fields(where, saved, [*(name.lstrip("_") for name in self.STATE), *self.BESIDE])
        for name, kind in self.STATE.items():
            key = name.lstrip("_")
            kind.check(getattr(self, name), saved[key], f"{where}.{key}")

    def restore_state(self, saved: Any) -> None:
        """Take over a state that `check_state` has accepted."""
        for name, kind in self.STATE.items():
            setattr(self, name, kind.restore(getattr(self, name), saved[name.lstrip("_")]))


# -- kinds -----------------------------------------------------------------------------------------------------------


class _Leaf:
    """A value that is plain already."""

    def save(self, current: Any) -> Plain:
        plain: Plain = current
        return plain

    def restore(self, current: Any, saved: Any) -> Any:
        return saved


@dataclass(frozen=True, slots=True)
class Int(_Leaf):
    """A number from `low` to `high`."""

    low: int
    high: int

    def check(self, current: Any, saved: Any, where: str) -> None:
        if type(saved) is not int or not self.low <= saved <= self.high:
            raise refuse(where, f"a number from {self.low} to {self.high}", saved)


def uint(bits: int) -> Int:
    """A number of so many bits without a sign."""
    return Int(0, (1 << bits) - 1)


class _Flag(_Leaf):
    def check(self, current: Any, saved: Any, where: str) -> None:
        if type(saved) is not bool:
            raise refuse(where, "true or false", saved)


class _Text(_Leaf):
    def check(self, current: Any, saved: Any, where: str) -> None:
        if type(saved) is not str:
            raise refuse(where, "a text", saved)


FLAG, TEXT = _Flag(), _Text()
TIME_NS = Int(0, 1 << 80)  # a guest time, or a deadline that may lie far ahead
COUNTER = uint(64)


@dataclass(frozen=True, slots=True)
class Bytes:
    """bytes or a bytearray: of the length it has, or of at most `longest` bytes."""

    longest: int | None = None

    def save(self, current: Any) -> Plain:
        return bytes(current)

    def check(self, current: Any, saved: Any, where: str) -> None:
        if type(saved) is not bytes:
            raise refuse(where, "bytes", saved)
        if self.longest is None and len(saved) != len(current):
            raise refuse(where, f"{len(current)} bytes", f"{len(saved)} bytes")
        if self.longest is not None and len(saved) > self.longest:
            raise refuse(where, f"at most {self.longest} bytes", f"{len(saved)} bytes")

    def restore(self, current: Any, saved: Any) -> Any:
        if isinstance(current, bytearray):
            current[:] = saved  # in place: there may be views of it
            return current
        return saved


@dataclass(frozen=True, slots=True)
class Maybe:
    """None, or what `kind` says."""

    kind: Kind

    def save(self, current: Any) -> Plain:
        return None if current is None else self.kind.save(current)

    def check(self, current: Any, saved: Any, where: str) -> None:
        if saved is not None:
            self.kind.check(current, saved, where)

    def restore(self, current: Any, saved: Any) -> Any:
        return None if saved is None else self.kind.restore(current, saved)


@dataclass(frozen=True, slots=True)
class Many:
    """A list or tuple of `kind`: as long as it is, or of any length up to `longest`."""

    kind: Kind
    longest: int | None = None

    def save(self, current: Any) -> Plain:
        return [self.kind.save(each) for each in current]

    def check(self, current: Any, saved: Any, where: str) -> None:
        entries = require_list(where, saved, len(current) if self.longest is None else None)
        if self.longest is not None and len(entries) > self.longest:
            raise refuse(where, f"at most {self.longest} entries", f"{len(entries)} entries")
        for index, each in enumerate(entries):
            self.kind.check(current[index] if self.longest is None else None, each, f"{where}[{index}]")

    def restore(self, current: Any, saved: Any) -> Any:
        if self.longest is None:
            return type(current)(self.kind.restore(old, new) for old, new in zip(current, saved, strict=True))
        return (list if isinstance(current, list) else tuple)(self.kind.restore(None, each) for each in saved)


class Tuple:
    """A tuple of values of these kinds, saved as a list."""

    def __init__(self, *kinds: Kind) -> None:
        self._kinds = kinds

    def save(self, current: Any) -> Plain:
        return [kind.save(value) for kind, value in zip(self._kinds, current, strict=True)]

    def check(self, current: Any, saved: Any, where: str) -> None:
        for kind, value in zip(self._kinds, require_list(where, saved, len(self._kinds)), strict=True):
            kind.check(None, value, where)

    def restore(self, current: Any, saved: Any) -> Any:
        return tuple(kind.restore(None, value) for kind, value in zip(self._kinds, saved, strict=True))


@dataclass(frozen=True, slots=True)
class Pairs:
    """A dict, saved as a list of [key, value] in the order of its keys."""

    key: Kind
    value: Kind

    def save(self, current: Any) -> Plain:
        return [[self.key.save(key), self.value.save(current[key])] for key in sorted(current)]

    def check(self, current: Any, saved: Any, where: str) -> None:
        for index, pair in enumerate(require_list(where, saved)):
            key, value = require_list(f"{where}[{index}]", pair, 2)
            self.key.check(None, key, f"{where}[{index}]")
            self.value.check(None, value, f"{where}[{index}]")

    def restore(self, current: Any, saved: Any) -> Any:
        return {self.key.restore(None, key): self.value.restore(None, value) for key, value in saved}


class Record:
    """A value with fields of these kinds; `make` builds it from them by name and may raise ValueError."""

    def __init__(self, make: Callable[..., Any], **fields: Kind) -> None:
        self._make = make
        self._fields = fields

    def save(self, current: Any) -> Plain:
        return {name: kind.save(getattr(current, name)) for name, kind in self._fields.items()}

    def check(self, current: Any, saved: Any, where: str) -> None:
        require_fields(where, saved, list(self._fields))
        for name, kind in self._fields.items():
            kind.check(None, saved[name], f"{where}.{name}")
        try:
            self.restore(None, saved)
        except ValueError as error:
            reason = str(error).rstrip(".")
            raise ConfigError(f"The saved state does not fit this machine: {where}: {reason}.") from error

    def restore(self, current: Any, saved: Any) -> Any:
        return self._make(**{name: kind.restore(None, saved[name]) for name, kind in self._fields.items()})


class Word:
    """One of an enumeration, by its value."""

    def __init__(self, words: type[Enum]) -> None:
        self._words = words

    def save(self, current: Any) -> Plain:
        plain: Plain = current.value
        return plain

    def check(self, current: Any, saved: Any, where: str) -> None:
        known = [word.value for word in self._words]
        if saved not in known:
            raise refuse(where, "one of " + ", ".join(map(str, known)), saved)

    def restore(self, current: Any, saved: Any) -> Any:
        return self._words(saved)


class _Part:
    """An object with a state of its own, which stays the same object; or None, which stays None."""

    def save(self, current: HasState | None) -> Plain:
        return None if current is None else current.save_state()

    def check(self, current: HasState | None, saved: Any, where: str) -> None:
        if current is not None:
            current.check_state(saved, where)
        elif saved is not None:
            raise refuse(where, "absent", saved)

    def restore(self, current: HasState | None, saved: Any) -> HasState | None:
        if current is not None:
            current.restore_state(saved)
        return current


PART = _Part()

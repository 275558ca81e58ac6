"""What the tables of types, commands and events say to a client: query-qmp-schema; and arguments checked against them.

As in QEMU the names of types are not told, but numbers: only commands, events and members have names to rely on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vmm.control.qmp.errors import QmpError, wrong_type
from vmm.control.qmp.types import BUILTIN, TYPES, EnumType, ObjectType

UINT16 = (1 << 16) - 1
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1


# -- arguments ---------------------------------------------------------------------------------------------------------


def check_arguments(type_name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by the names of a command's parameters ("-" is "_" there).  QmpError for the first that is missing,
    of another kind, or unknown."""
    members = TYPES[type_name]
    if not isinstance(members, Mapping):
        raise TypeError(f"{type_name} is no object")
    checked = {}
    for member, kind in members.items():
        name = member.removeprefix("*")
        if name in given:
            checked[name.replace("-", "_")] = _check(name, kind, given[name])
        elif member == name:
            raise QmpError(f"Parameter '{name}' is missing")
    known = {member.removeprefix("*") for member in members}
    for name in given:
        if name not in known:
            raise QmpError(f"Parameter '{name}' is unexpected")
    return checked


def _check(name: str, kind: str, value: Any) -> Any:
    if kind.startswith("["):
        if not isinstance(value, list):
            raise wrong_type(name, "array")
        # QEMU has no name for a member of a list.
        return [_check("null", kind[1:-1], each) for each in value]
    if kind in ("int", "uint16"):
        return need_integer(name, value, kind)
    if kind == "str" and not isinstance(value, str):
        raise wrong_type(name, "string")
    if kind == "bool" and not isinstance(value, bool):
        raise wrong_type(name, "boolean")
    values = TYPES.get(kind)
    if isinstance(values, tuple):
        if not isinstance(value, str):
            raise wrong_type(name, "string")
        if value not in values:
            raise QmpError(f"Parameter '{name}' does not accept value '{value}'")
    return value


def need_integer(name: str, value: Any, kind: str = "int") -> int:
    """`value`, if it is one."""
    if isinstance(value, bool) or not isinstance(value, int) or not _LEAST <= value <= _MOST:
        raise wrong_type(name, "integer") if kind == "int" else QmpError(f"Parameter '{name}' expects uint64")
    if kind == "uint16" and not 0 <= value <= UINT16:
        raise QmpError(f"Parameter '{name}' expects uint16_t")
    return value


# -- the schema --------------------------------------------------------------------------------------------------------


def describe(
    commands: Mapping[str, tuple[str, str, tuple[str, ...]]], events: Mapping[str, str]
) -> list[dict[str, Any]]:
    """query-qmp-schema: each command (the types of its arguments and its answer, and its features), each event (the
    type of its data), and every type that they lead to."""
    book = _Book()
    entries: list[dict[str, Any]] = []
    for name, (arguments, returned, features) in commands.items():
        entry: dict[str, Any] = {
            "name": name,
            "meta-type": "command",
            "arg-type": book.number(arguments),
            "ret-type": book.number(returned),
        }
        entries.append(entry | ({"features": list(features)} if features else {}))
    for name, data in events.items():
        entries.append({"name": name, "meta-type": "event", "arg-type": book.number(data)})
    return entries + list(book.entries())


class _Book:
    """Numbers for types, given out as they are asked for."""

    def __init__(self) -> None:
        self._numbers: dict[str, str] = {}

    def number(self, kind: str) -> str:
        """What the type is called in the schema."""
        if kind.startswith("["):
            element = self.number(kind[1:-1])
            self._numbers.setdefault(kind, f"[{element}]")
        elif kind in BUILTIN:
            self._numbers.setdefault(kind, "int" if kind == "uint16" else kind)
        else:
            self._numbers.setdefault(kind, str(len(self._numbers)))
        return self._numbers[kind]

    def entries(self) -> Iterable[dict[str, Any]]:
        """Each type that has a number, and those of its members."""
        done: set[str] = set()
        while left := [kind for kind in self._numbers if self._numbers[kind] not in done]:
            for kind in left:
                if self._numbers[kind] not in done:
                    done.add(self._numbers[kind])
                    yield {"name": self._numbers[kind], **self._entry(kind)}

    def _entry(self, kind: str) -> dict[str, Any]:
        if kind.startswith("["):
            return {"meta-type": "array", "element-type": self.number(kind[1:-1])}
        if kind in BUILTIN:
            return {"meta-type": "builtin", "json-type": BUILTIN[kind]}
        return self._named(TYPES[kind])

    def _named(self, declared: ObjectType | EnumType) -> dict[str, Any]:
        if isinstance(declared, tuple):
            return {
                "meta-type": "enum",
                "members": [{"name": value} for value in declared],
                "values": list(declared),
            }
        members = []
        for member, kind in declared.items():
            entry: dict[str, Any] = {"name": member.removeprefix("*"), "type": self.number(kind)}
            members.append(entry | ({"default": None} if member.startswith("*") else {}))
        return {"meta-type": "object", "members": members}

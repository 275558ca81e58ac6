"""What a client is told when a command cannot be carried out."""

from __future__ import annotations

from typing import Literal

ErrorClass = Literal["GenericError", "CommandNotFound", "DeviceNotActive", "DeviceNotFound", "KVMMissingCap"]


class QmpError(Exception):
    """`desc` for people, `class_` for programs."""

    def __init__(self, desc: str, class_: ErrorClass = "GenericError") -> None:
        super().__init__(desc)
        self.desc = desc
        self.class_ = class_

    def answer(self) -> dict[str, object]:
        """The answer without the client's id."""
        return {"error": {"class": self.class_, "desc": self.desc}}


def device_not_found(name: str) -> QmpError:
    """There is nothing of that name."""
    return QmpError(f"Device '{name}' not found", "DeviceNotFound")


def wrong_type(parameter: str, expected: str) -> QmpError:
    """The parameter has a value of another kind."""
    return QmpError(f"Invalid parameter type for '{parameter}', expected: {expected}")

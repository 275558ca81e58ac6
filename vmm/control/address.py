"""Where a control protocol is served, in QEMU's words: `unix:PATH,server=on,wait=off`, `tcp:HOST:PORT`, `stdio`.

Owns that spelling.  A ConfigError is one sentence that names the value.  Whoever gives no host means loopback: nothing
here asks for a password.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from devices.errors import ConfigError

LOOPBACK = "127.0.0.1"
HIGHEST_PORT = 65535
LONGEST_PATH_BYTES = 107  # of sun_path, without the NUL
_SERVER_WORDS = {"server": ("on", ""), "wait": ("on", "off"), "nowait": ("",), "nodelay": ("on", "")}


@dataclass(frozen=True, slots=True)
class Address:
    """`kind` says which of the others count: a path, a host and a port (0: any that is free), or the standard input
    and output.  With `wait` the machine does not start before somebody is there."""

    kind: Literal["unix", "tcp", "stdio"]
    path: str = ""
    host: str = LOOPBACK
    port: int = 0
    wait: bool = False

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        return f"tcp:{self.host}:{self.port}" if self.kind == "tcp" else "stdio"


def parse_address(text: str, option: str) -> Address:
    """The address in `text`, which was given for `option`.  ConfigError when it is none."""
    place, *words = text.split(",")
    kind, _, rest = place.partition(":")
    wait = _parse_words(text, option, words)
    if place == "stdio":
        return Address("stdio", wait=wait)
    if kind == "unix" and rest:
        if len(rest.encode()) > LONGEST_PATH_BYTES:
            raise ConfigError(f"{option}: a socket's path has at most {LONGEST_PATH_BYTES} bytes, not {rest!r}.")
        return Address("unix", path=rest, wait=wait)
    if kind == "tcp":
        host, _, port = rest.rpartition(":")
        if port.isdecimal() and int(port) <= HIGHEST_PORT:
            return Address("tcp", host=host.strip("[]") or LOOPBACK, port=int(port), wait=wait)
        raise ConfigError(f"{option}: {port!r} in {text!r} is no port; write tcp:HOST:PORT, or tcp::PORT for loopback.")
    raise ConfigError(f"{option}: {text!r} is no place to serve at; write unix:PATH, tcp:HOST:PORT or stdio.")


def _parse_words(text: str, option: str, words: list[str]) -> bool:
    """Whether to wait.  QEMU waits unless it is told not to; here nobody is waited for unless it is asked for."""
    wait = False
    for word in words:
        name, _, value = word.partition("=")
        if name not in _SERVER_WORDS or value not in _SERVER_WORDS[name]:
            raise ConfigError(f"{option}: {word!r} in {text!r} is not understood; server=on and wait=on|off are.")
        wait = (name == "wait" and value == "on") or wait
    return wait

"""The same requests to QEMU itself: errors word by word, and the schema of every command that both have."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vmm
from tests.vmm.control.qmp.talk import Talk
from tests.vmm.control.running import PATIENCE_S, Raw, wait_until

QEMU = shutil.which("qemu-system-x86_64")
DEVICES = ("virtio-balloon-pci,id=balloon0", "virtio-rng-pci")
BACKEND = "/machine/peripheral/balloon0/virtio-backend"

pytestmark = [
    pytest.mark.beside_qemu,
    pytest.mark.skipif(QEMU is None, reason="QEMU is not installed"),
]


@pytest.fixture
def qemu() -> Iterator[Raw]:
    """QEMU with the same devices, halted before its first instruction, past the negotiation."""
    with tempfile.TemporaryDirectory(prefix="vmm") as folder:
        path = Path(folder) / "q"
        words = f"-S -display none -nodefaults -m 64M -name fred -qmp unix:{path},server=on,wait=off".split()
        words += [word for device in DEVICES for word in ("-device", device)]
        with subprocess.Popen([str(QEMU), *words], stderr=subprocess.DEVNULL) as process:
            wait_until(path.exists, "QEMU's socket")
            client = Raw(path)
            yield client.negotiated()
            client.close()
            process.kill()


@pytest.fixture
def ours() -> Iterator[Talk]:
    with vmm.boot("stats", memory="64M", devices=DEVICES) as machine:
        machine.pause()
        yield Talk(machine)


def hear(qemu: Raw, text: str) -> list[dict[str, Any]]:
    """All that QEMU answers to `text`; a last request says that it has come to its end."""
    qemu.socket.settimeout(PATIENCE_S)
    qemu.socket.sendall(text.encode() + b' {"execute":"query-name","id":"end"}')
    found = []
    while (message := qemu.line()).get("id") != "end":
        found.append(message)
    return found


def request(command: str, **arguments: Any) -> str:
    return json.dumps({"execute": command, "arguments": arguments})


WRONG_AND_RIGHT_SIZES: list[Any] = ["x", 0, -1, 1.5, True, None, [], 1 << 63, 1 << 70, 1 << 60, 1 << 25]
SAID = [
    "[1,2]",
    '{"execute":1}',
    '{"id":1}',
    '{"execute":"query-status","control":1,"id":9}',
    '{"execute":"query-status","arguments":3}',
    '{"execute":"nope","id":null}',
    '{"execute":"qmp_capabilities","id":{"a":[1]}}',
    '{"execute": nope}',
    "}",
    '{"a":1]',
    "x y z ",
    '{"execute":"query-balloon"  "id":3}',
    '{"execute" "x"}',
    '{"execute":"query-name",}',
    "[1,2,]",
    "[1 2]",
    "{1:2}",
    '{"a":"\\x"}',
    '{"a":01}',
    '{"a":1,"a":2}',
    "{'execute':'query-uuid'}",
    request("query-status"),
    request("query-status", x=1),
    request("query-balloon"),
    request("query-kvm", x=1),
    request("query-target"),
    request("query-memory-size-summary"),
    *(request("balloon", value=value) for value in WRONG_AND_RIGHT_SIZES),
    request("balloon"),
    request("balloon", value=1 << 25, more=1),
    request("x-query-virtio"),
    request("x-query-virtio-status", path="/machine"),
    *(request("x-query-virtio-queue-status", path=BACKEND, queue=queue) for queue in (9, 65536, -1, "x")),
    request("x-query-virtio-queue-element", path=BACKEND, queue=0),
    request("x-query-virtio-queue-element", path=BACKEND, queue=99),
    request("qom-list", path="/nope"),
    request("qom-list", path=""),
    request("qom-list", path="/machine/peripheral"),
    request("qom-list", path="/machine/peripheral-anon"),
    request("qom-list"),
    *(request("qom-get", path="balloon0", property=name) for name in ("nope", "type", "guest-stats", "virtio-backend")),
    request("qom-get", path="balloon9", property="type"),
    *(
        request("qom-set", path="balloon0", property="guest-stats-polling-interval", value=value)
        for value in (2, -2, "x", 1 << 40, 1.5)
    ),
    request("qom-get", path="balloon0", property="guest-stats-polling-interval"),
    request("qom-set", path="balloon0", property="guest-stats", value=1),
    request("qom-set", path="balloon0", property="nope", value=1),
    request("qom-set", path="balloon0", property="nope"),
    request("pmemsave", val=0, size=16, filename="/nope/x"),
    request("human-monitor-command"),
    *(
        request("human-monitor-command", **{"command-line": line})
        for line in ("info balloon", "nope", "info nope", "help nope", "balloon x", "balloon 0", "balloon 40", "")
    ),
]


def test_what_is_said_is_answered_as_qemu_answers_it(qemu: Raw, ours: Talk) -> None:
    for text in SAID:
        assert ours.hear(text) == hear(qemu, text), text


def members(by_name: dict[str, Any], kind: str) -> dict[str, tuple[Any, bool]]:
    """The members of an object of a schema: what each is, and whether it may be missing."""

    def what(kind: str) -> Any:
        entry = by_name[kind]
        if entry["meta-type"] == "array":
            return [what(entry["element-type"])]
        return entry.get("json-type", entry["meta-type"])

    if by_name[kind]["meta-type"] != "object":
        return {"": (what(kind), False)}
    return {each["name"]: (what(each["type"]), "default" in each) for each in by_name[kind]["members"]}


def test_arguments_answers_and_events_are_of_the_types_that_qemu_names(qemu: Raw, ours: Talk) -> None:
    theirs = {each["name"]: each for each in qemu.ask("query-qmp-schema")}
    own = {each["name"]: each for each in ours.ask("query-qmp-schema")}
    shared = [name for name, entry in own.items() if entry["meta-type"] in ("command", "event") and name in theirs]
    assert len(shared) > 30
    for name in shared:
        arguments = members(own, own[name]["arg-type"]), members(theirs, theirs[name]["arg-type"])
        assert arguments[0].items() <= arguments[1].items(), name
        needed = {member for member, (_, optional) in arguments[1].items() if not optional}
        assert needed <= arguments[0].keys(), name
        if "ret-type" in own[name] and name != "query-qmp-schema":
            returned = members(own, own[name]["ret-type"]), members(theirs, theirs[name]["ret-type"])
            assert returned[0].items() <= returned[1].items(), name
        assert own[name].get("features") == theirs[name].get("features") or name == "human-monitor-command", name

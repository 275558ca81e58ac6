"""The conversation as QEMU 7.2 leads it: what it was heard to answer, word by word."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.vmm.control.qmp.talk import Talk
from vmm.control.qmp import session
from vmm.control.qmp.errors import QmpError
from vmm.control.qmp.table import COMMANDS
from vmm.machine import Machine


def error(desc: str, class_: str = "GenericError") -> dict[str, Any]:
    return {"error": {"class": class_, "desc": desc}}


def test_the_greeting_names_a_version_of_qemu_and_no_capability(machine: Machine) -> None:
    greeting = Talk(machine, negotiate=False).greeting
    assert greeting["QMP"]["version"]["qemu"].keys() == {"major", "minor", "micro"}
    assert greeting["QMP"]["version"]["package"].startswith("balloon-vmm ")
    assert greeting["QMP"]["capabilities"] == []


def test_nothing_is_done_before_the_capabilities_are_agreed_on(machine: Machine) -> None:
    talk = Talk(machine, negotiate=False)
    early = error("Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound")
    assert talk.hear('{"execute":"stop"}{"execute":"nope","id":1}') == [early, {**early, "id": 1}]
    assert not machine.is_paused
    assert (
        talk.hear('{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}')[0]["error"]["class"]
        == "GenericError"
    )
    assert talk.hear('{"execute":"qmp_capabilities","id":7}') == [{"return": {}, "id": 7}]
    late = error("Capabilities negotiation is already complete, command ignored", "CommandNotFound")
    assert talk.hear('{"execute":"qmp_capabilities"}') == [late]


@pytest.mark.parametrize("identity", [7, "x", None, {"a": [1, {"b": None}]}, 1.5, [], True])
def test_the_id_comes_back_whatever_it_is(talk: Talk, identity: Any) -> None:
    assert talk.hear(json.dumps({"execute": "query-name", "id": identity})) == [
        {"return": {"name": "fred"}, "id": identity}
    ]
    assert talk.hear(json.dumps({"execute": "nope", "id": identity}))[0]["id"] == identity


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("[1,2]", error("QMP input must be a JSON object")),
        ('{"execute":1}', error("QMP input member 'execute' must be a string")),
        ('{"id":1}', {**error("QMP input lacks member 'execute'"), "id": 1}),
        ('{"execute":"query-status","control":1}', error("QMP input member 'control' is unexpected")),
        ('{"execute":"query-status","arguments":3}', error("QMP input member 'arguments' must be an object")),
        ('{"execute":"nope"}', error("The command nope has not been found", "CommandNotFound")),
        ('{"execute":"query-status","arguments":{"x":1}}', error("Parameter 'x' is unexpected")),
        ('{"execute":"balloon"}', error("Parameter 'value' is missing")),
        (
            '{"execute":"balloon","arguments":{"value":"x"}}',
            error("Invalid parameter type for 'value', expected: integer"),
        ),
        (
            '{"execute":"balloon","arguments":{"value":1.5}}',
            error("Invalid parameter type for 'value', expected: integer"),
        ),
        (
            '{"execute":"balloon","arguments":{"value":true}}',
            error("Invalid parameter type for 'value', expected: integer"),
        ),
        (
            '{"execute":"balloon","arguments":{"value":9223372036854775808}}',
            error("Invalid parameter type for 'value', expected: integer"),
        ),
        ('{"execute":"balloon","arguments":{"value":0}}', error("Parameter 'target' expects a size")),
        ('{"execute":"balloon","arguments":{"value":-1}}', error("Parameter 'target' expects a size")),
        ('{"execute":"balloon","arguments":{"value":33554432,"more":1}}', error("Parameter 'more' is unexpected")),
        ('{"execute":"qom-list","arguments":{"path":3}}', error("Invalid parameter type for 'path', expected: string")),
        ('{"execute": nope}', error("JSON parse error, invalid keyword 'nope'")),
    ],
)
def test_a_wrong_request_gets_qemus_answer_and_the_next_is_carried_out(
    talk: Talk, text: str, answer: dict[str, Any]
) -> None:
    assert talk.hear(text + '{"execute":"query-name"}') == [answer, {"return": {"name": "fred"}}]


def test_a_turn_deals_with_a_few_messages_only(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "TURN_S", 10.0)
    talk.session.received(b'{"execute":"query-name"}' * 100)
    assert len(talk.wire.take()) == session.MESSAGES_A_TURN
    assert talk.wire.work is not None
    rest = talk.hear("{}")
    assert len(rest) == 100 - session.MESSAGES_A_TURN + 1


def test_a_turn_is_over_when_its_time_is(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "TURN_S", 0.0)
    talk.session.received(b'{"execute":"query-name"}' * 3)
    assert len(talk.wire.take()) == 1


# -- what there is ---------------------------------------------------------------------------------------------------


def test_the_schema_describes_every_command_and_event_down_to_built_in_types(talk: Talk) -> None:
    schema = talk.ask("query-qmp-schema")
    by_name = {entry["name"]: entry for entry in schema}
    assert len(by_name) == len(schema)
    commands = {name for name, entry in by_name.items() if entry["meta-type"] == "command"}
    assert commands == {each["name"] for each in talk.ask("query-commands")} == set(COMMANDS)
    events = {name for name, entry in by_name.items() if entry["meta-type"] == "event"}
    assert events == {each["name"] for each in talk.ask("query-events")}
    assert {"BALLOON_CHANGE", "STOP", "RESUME", "RESET", "SHUTDOWN", "POWERDOWN", "GUEST_PANICKED"} <= events
    for entry in schema:
        needed = [entry[key] for key in ("arg-type", "ret-type", "element-type") if key in entry]
        needed += [member["type"] for member in entry.get("members", []) if entry["meta-type"] == "object"]
        assert set(needed) <= by_name.keys(), entry
    balloon = by_name[by_name["balloon"]["arg-type"]]
    assert balloon["members"] == [{"name": "value", "type": "int"}]
    assert by_name["int"] == {"name": "int", "meta-type": "builtin", "json-type": "int"}
    element = by_name[by_name["x-query-virtio-queue-element"]["arg-type"]]
    assert {"name": "index", "type": "int", "default": None} in element["members"]


def conforms(by_name: dict[str, Any], kind: str, value: Any) -> None:
    """Assert that `value` is of the type `kind` of a schema."""
    entry = by_name[kind]
    if entry["meta-type"] == "array":
        assert isinstance(value, list)
        for each in value:
            conforms(by_name, entry["element-type"], each)
    elif entry["meta-type"] == "enum":
        assert value in entry["values"]
    elif entry["meta-type"] == "object":
        members = {member["name"]: member for member in entry["members"]}
        assert value.keys() <= members.keys(), value.keys() - members.keys()
        assert {name for name, member in members.items() if "default" not in member} <= value.keys()
        for name, inner in value.items():
            conforms(by_name, members[name]["type"], inner)
    elif entry["json-type"] != "value":
        types: dict[str, Any] = {"string": str, "int": int, "boolean": bool}
        assert type(value) is types[entry["json-type"]]


@pytest.mark.parametrize(
    "name", [name for name in COMMANDS if name.startswith(("query-", "x-query-virtio", "x-vmm-st"))]
)
def test_what_a_query_answers_is_of_the_type_that_the_schema_says(talk: Talk, machine: Machine, name: str) -> None:
    machine.run("0.1s")
    path = talk.ask("x-query-virtio")[-1]["path"]
    given = {"x-query-virtio-status": {"path": path}, "x-query-virtio-queue-status": {"path": path, "queue": 0}}
    given["x-query-virtio-queue-element"] = given["x-query-virtio-queue-status"]
    answer = talk.ask(name, **given.get(name, {}))
    if name == "query-qmp-schema":
        return  # of itself it tells only what all its entries have in common
    by_name = {entry["name"]: entry for entry in talk.ask("query-qmp-schema")}
    conforms(by_name, by_name[name]["ret-type"], answer)


def test_a_command_that_fails_otherwise_is_our_mistake_and_not_hidden(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert issubclass(QmpError, Exception)
    monkeypatch.setattr(Machine, "pause", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        talk.ask("stop")

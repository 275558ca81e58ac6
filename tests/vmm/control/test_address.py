"""Where a control protocol is served: QEMU's spelling, and what is said of a wrong one."""

from __future__ import annotations

import pytest

from devices.errors import ConfigError
from vmm.control.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/q,server=on,wait=off", Address("unix", path="/run/q")),
        ("unix:q.sock,server,nowait", Address("unix", path="q.sock")),
        ("unix:/run/q,server=on,wait=on", Address("unix", path="/run/q", wait=True)),
        ("tcp::1234", Address("tcp", host="127.0.0.1", port=1234)),
        ("tcp:localhost:0,server=on", Address("tcp", host="localhost", port=0)),
        ("tcp:[::1]:4444", Address("tcp", host="::1", port=4444)),
        ("stdio", Address("stdio")),
    ],
)
def test_qemus_words_are_understood(text: str, address: Address) -> None:
    assert parse_address(text, "--qmp") == address


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "--qmp: '' is no place to serve at; write unix:PATH, tcp:HOST:PORT or stdio."),
        ("unix:", "--qmp: 'unix:' is no place to serve at; write unix:PATH, tcp:HOST:PORT or stdio."),
        ("pipe:x", "--qmp: 'pipe:x' is no place to serve at; write unix:PATH, tcp:HOST:PORT or stdio."),
        ("tcp:1234x", "--qmp: '1234x' in 'tcp:1234x' is no port; write tcp:HOST:PORT, or tcp::PORT for loopback."),
        ("tcp::65536", "--qmp: '65536' in 'tcp::65536' is no port; write tcp:HOST:PORT, or tcp::PORT for loopback."),
        ("unix:q,serve=on", "--qmp: 'serve=on' in 'unix:q,serve=on' is not understood; server=on and wait=on|off are."),
        ("unix:q,server=off", "--qmp: 'server=off' in 'unix:q,server=off' is not understood; server=on and wait="),
        ("unix:" + 108 * "q", "--qmp: a socket's path has at most 107 bytes, not 'qqqqqq"),
    ],
)
def test_anything_else_gets_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text, "--qmp")
    assert str(caught.value).startswith(sentence)

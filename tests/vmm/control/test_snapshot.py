"""`vmm snapshot` and QMP's command for it: a machine that runs, into a file, and on from there."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from tests.vmm.control.qmp.talk import Talk
from tests.vmm.control.running import Place, wait_until
from vmm.config import make_config
from vmm.machine import Machine
from vmm.snapshots import read_snapshot


def test_what_goes_on_from_the_file_is_the_run_itself(tmp_path: Path) -> None:
    config = make_config("balloon", targets="40M@0.5,60M@1.5", poll="0.5", duration="3s")
    with Machine(config) as whole, Machine(config) as cut:
        whole.run()
        cut.run("0.6s")
        found = Talk(cut).ask("x-vmm-snapshot", filename=str(tmp_path / "cut"))
        assert found == {"size": (tmp_path / "cut").stat().st_size, "time-ns": cut.now_ns}
        cut.run()
        with read_snapshot(tmp_path / "cut") as snapshot, snapshot.boot() as again:
            again.run()
            for each in (cut, again):
                assert (each.blocks, each.now_ns) == (whole.blocks, whole.now_ns)
                assert each.console == whole.console
                assert each.stats.raw == whole.stats.raw


def test_a_place_that_cannot_be_written_is_told_and_the_machine_goes_on(tmp_path: Path) -> None:
    with Machine(make_config("stats", poll="1", duration="2s")) as machine:
        machine.run("1s")
        answer = Talk(machine).answer("x-vmm-snapshot", filename=str(tmp_path / "missing" / "file"))
        assert answer["error"]["class"] == "GenericError"
        assert "cannot be written: No such file or directory" in answer["error"]["desc"]
        machine.run()
        assert machine.exit_code == 0


@pytest.fixture
def running(place: Place) -> Place:
    place.boot("stats", "--target", "48M", "--poll", "0.2", "--clock", "realtime", "--for", "10min")
    raw = place.raw().negotiated()

    def status() -> Any:
        return raw.ask("x-vmm-status")["balloon"]

    wait_until(lambda: status()["driver-ready"] and status()["actual"] == 16 << 20, "the target")
    return place


def test_the_command_writes_beside_where_it_is_called_and_restore_goes_on(running: Place, tmp_path: Path) -> None:
    done = running.vmm("snapshot", "vm", "here.snap", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("vm: here.snap is written, ")
    assert stat.S_IMODE((tmp_path / "here.snap").stat().st_mode) == 0o600
    again = running.boot("--restore", str(tmp_path / "here.snap"), "--for", "1s", "--target", "64M", name="again")
    text = running.end(again, "again")
    assert again.returncode == 0 and "outcome" in text
    assert running.vmm("ctl", "vm", "query-status").returncode == 0  # the first has gone on


def test_a_refusal_is_one_sentence_and_status_1(running: Place, tmp_path: Path) -> None:
    done = running.vmm("snapshot", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"vmm: vm: The snapshot {tmp_path} cannot be written: it is no ordinary file.\n"

"""The record of what is up: private, whole or absent, and refused where it is not ours."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from tiltyard.errors import MachineError
from tiltyard.local import state
from tiltyard.local.state import Cluster, ProcessId, Service


def _cluster(folder: Path) -> Cluster:
    return Cluster(
        id="0123abcd",
        home=str(folder),
        ready=True,
        started_at="2026-11-24T00:00:00+00:00",
        token_path=str(folder / "token"),
        temp_dir="/tmp/ty-x",
        services=(
            Service(
                name="ray",
                url="http://127.0.0.1:1",
                process=ProcessId(pid=7, started=1.5),
                log="ray.log",
                ports={"gcs": 2},
            ),
        ),
    )


def test_state_written_and_read_is_equal(tmp_path: Path) -> None:
    state.write(tmp_path, _cluster(tmp_path))
    assert state.read(tmp_path) == _cluster(tmp_path)


def test_state_file_is_for_its_owner_alone_and_leaves_no_part(tmp_path: Path) -> None:
    folder = tmp_path / "up"
    state.write(folder, _cluster(folder))
    state.write(folder, _cluster(folder))
    assert [p.name for p in folder.iterdir()] == ["cluster.json"]
    assert stat.S_IMODE(state.state_file(folder).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_state_that_was_never_written_reads_as_none(tmp_path: Path) -> None:
    assert state.read(tmp_path) is None


def test_state_after_remove_reads_as_none(tmp_path: Path) -> None:
    state.write(tmp_path, _cluster(tmp_path))
    state.remove(tmp_path)
    assert state.read(tmp_path) is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": 99}', '{"schema": 1, "services": []}', '{"schema": 1, "services": [{"pid": 1}]}'],
)
def test_state_in_another_form_is_refused_with_the_path(tmp_path: Path, text: str) -> None:
    state.state_file(tmp_path).write_text(text)
    with pytest.raises(MachineError, match=r"cluster\.json is not a state file"):
        state.read(tmp_path)


def test_state_holds_the_path_of_the_token_and_not_the_token(tmp_path: Path) -> None:
    state.write_private(tmp_path / "token", "f00d" * 16)
    state.write(tmp_path, _cluster(tmp_path))
    assert "f00d" not in state.state_file(tmp_path).read_text()
    assert json.loads(state.state_file(tmp_path).read_text())["token_path"] == str(tmp_path / "token")

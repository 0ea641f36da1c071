"""``tiltyard status``: what is printed of addresses."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from tiltyard.cli import local as command
from tiltyard.local import state
from tiltyard.local import up as cluster
from tiltyard.settings import Settings


def test_status_with_an_own_mlflow_server_hides_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = state.Service(
        name="ray", url="http://127.0.0.1:8265", process=state.ProcessId(pid=1, started=0.0), log="ray.log", ports={}
    )
    found = state.Cluster(
        id="c",
        home="/h",
        ready=True,
        started_at="2026-11-24T00:00:00+00:00",
        token_path="/h/token",
        temp_dir="/tmp/r",
        services=(ray,),
    )

    def status(_: Settings) -> tuple[state.Cluster, list[cluster.ServiceStatus]]:
        return found, [cluster.ServiceStatus(service=ray, running=True, answers=True)]

    monkeypatch.setattr(cluster, "status", status)
    monkeypatch.setenv("TILTYARD_TRACKING_URI", "https://ann:s3cret@mlflow.example")
    told = CliRunner().invoke(command.app, ["status"])
    assert told.exit_code == 0, told.output
    assert "https://ann:***@mlflow.example" in told.output
    assert "s3cret" not in told.output

"""``tiltyard status``: what is printed of addresses."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tiltyard.cli import local as command
from tiltyard.distributions import uniform
from tiltyard.experiment import Experiment, Objective, Search, Variant
from tiltyard.journal import Journal, Owner
from tiltyard.local import state
from tiltyard.local import up as cluster
from tiltyard.settings import Settings
from tiltyard.types import DatasetRef


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


def test_status_with_nothing_up_tells_of_the_sweep_that_runs_and_of_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path))
    settings = Settings.from_env()
    settings.ensure_home()
    experiment = Experiment(
        name="demo",
        variants=(Variant(name="mlp", model="mlp", space={"lr": uniform(0, 1)}),),
        datasets=(DatasetRef("wine"),),
        objective=Objective(metric="accuracy"),
        search=Search(trials=1, epochs=1),
    )
    with Journal.open(settings.journal_uri) as journal:
        claim = journal.claim("ab" * 32, experiment="demo", spec=experiment.to_json(), owner=Owner.here())
        told = CliRunner().invoke(command.app, ["status"])
        assert told.exit_code == 1
        assert "Nothing is up" in told.output
        assert "demo  key abababababab  running | 0/0 trials" in told.output
        journal.release(claim, state="stopped", summary={})
    told = CliRunner().invoke(command.app, ["status", "demo"])
    assert (told.exit_code, "demo  key abababababab  stopped" in told.output) == (0, True)
    assert "key" not in CliRunner().invoke(command.app, ["status"]).output

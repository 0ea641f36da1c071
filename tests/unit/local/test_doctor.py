"""The doctor: a healthy machine passes, each illness is named with its remedy, and the looking is real."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tiltyard.local import probe, state
from tiltyard.local.doctor import GIB, Cluster, Import, Machine, Pin, Verdict, judge
from tiltyard.settings import Settings

HEALTHY = Machine(
    python=(3, 11, 7),
    cores=8,
    memory=32 * GIB,
    memory_available=16 * GIB,
    shm=8 * GIB,
    home="/h/.tiltyard",
    home_error="",
    home_filesystem="ext4",
    disk_free=100 * GIB,
    temp_dir="/tmp",
    temp_dir_short=True,
    open_files=65_536,
    pins=(Pin(name="ray", installed="2.60.0", pinned="2.60.0", allowed="<2.61,>=2.60"),),
    imports={"torch": Import(version="2.13.0", gpus=1), "ray": Import(version="2.60.0")},
    has_nvidia_driver=True,
    ports_error="",
    loose_tokens=(),
    cluster=Cluster(),
    leftovers=(),
    other_rays=0,
    parts={"prometheus": "/usr/bin/prometheus"},
)


def test_judge_with_a_healthy_machine_finds_all_well() -> None:
    assert {f.verdict for f in judge(HEALTHY)} == {Verdict.OK}


def _pin(installed: str | None, pinned: str | None = "2.60.0") -> dict[str, Any]:
    return {"pins": (Pin(name="ray", installed=installed, pinned=pinned, allowed="<2.61,>=2.60"),)}


@pytest.mark.parametrize(
    ("illness", "verdict", "subject", "told"),
    [
        ({"python": (3, 10, 2)}, "mend", "Python", "python3.11"),
        (_pin(None), "mend", "ray", "pip install"),
        (_pin("2.50.0"), "mend", "ray", "<2.61,>=2.60"),
        (_pin("2.60.1"), "note", "ray", "2.60.0"),
        ({"imports": {"ray": Import(version=None, error="ImportError: no")}}, "mend", "import ray", "force-reinstall"),
        ({"compiles_anew": True}, "note", "Bytecode", "compileall"),
        ({"cores": 1}, "note", "CPU cores", "2 or more"),
        ({"memory_available": 3 * GIB}, "note", "Memory", "--object-store-gib"),
        ({"memory_available": 1 * GIB}, "mend", "Memory", "--object-store-gib"),
        ({"shm": GIB // 16}, "note", "/dev/shm", "--shm-size"),
        ({"shm": None}, "note", "/dev/shm", "slower"),
        ({"home_error": "Permission denied"}, "mend", "TILTYARD_HOME", "Set TILTYARD_HOME"),
        ({"home_filesystem": "nfs4"}, "mend", "TILTYARD_HOME", "PostgreSQL"),
        ({"disk_free": 3 * GIB}, "note", "Disk", "Free some"),
        ({"disk_free": GIB // 2}, "mend", "Disk", "Free some"),
        ({"temp_dir_short": False}, "mend", "Temporary folder", "TMPDIR"),
        ({"open_files": 1024}, "note", "Open files", "ulimit"),
        ({"ports_error": "none free"}, "mend", "Ports", "12 free"),
        ({"loose_tokens": (("/h/.ray/auth_token", 0o644),)}, "mend", "Token file", "chmod 600 /h/.ray/auth_token"),
        ({"cluster": Cluster(running=("ray",), ended=("mlflow",))}, "mend", "tiltyard up", "tiltyard down"),
        ({"cluster": Cluster(unreadable="bad")}, "mend", "tiltyard up", "remove the file"),
        ({"leftovers": ((77, "raylet", "/h2"),)}, "mend", "Left over", "kill 77"),
        ({"other_rays": 2}, "note", "Other Rays", "ray stop"),
        ({"imports": {"torch": Import(version="2.13.0", gpus=0)}}, "note", "GPU", "CUDA build"),
        ({"parts": {"prometheus": None}}, "note", "prometheus", "apt-get install prometheus"),
    ],
)
def test_judge_with_an_illness_names_it_and_the_remedy(
    illness: dict[str, Any], verdict: str, subject: str, told: str
) -> None:
    findings = [f for f in judge(replace(HEALTHY, **illness)) if f.verdict is not Verdict.OK]
    finding = next(f for f in findings if f.subject == subject)
    assert finding.verdict == verdict
    assert told in finding.wanted + finding.remedy
    assert finding.remedy or finding.wanted


def test_judge_with_postgres_stores_lets_the_home_lie_on_a_network_disk() -> None:
    findings = judge(replace(HEALTHY, home_filesystem="nfs4", embedded=False))
    assert {f.verdict for f in findings} == {Verdict.OK}


def test_judge_with_a_local_tag_in_a_version_takes_it_for_the_pin() -> None:
    torch = Pin(name="torch", installed="2.13.0+cpu", pinned="2.13.0", allowed="==2.13.0")
    assert {f.verdict for f in judge(replace(HEALTHY, pins=(torch,)))} == {Verdict.OK}


@pytest.mark.slow
def test_probe_of_this_machine_finds_what_the_tests_run_with(tmp_path: Path) -> None:
    machine = probe.probe(Settings.from_env({"TILTYARD_HOME": str(tmp_path / "home")}))
    assert machine.home_error == ""
    assert not (tmp_path / "home").exists(), "the doctor made a folder"
    assert {name for name, i in machine.imports.items() if i.version} == {"torch", "ray", "mlflow"}
    assert {p.name for p in machine.pins} >= {"ray", "mlflow", "torch", "typer"}
    assert all(p.installed for p in machine.pins)


def test_probe_of_an_engine_that_does_not_import_tells_the_last_line() -> None:
    results = probe._try_imports(["tiltyard_no_such_engine"])
    assert results["tiltyard_no_such_engine"].version is None
    assert "ModuleNotFoundError" in results["tiltyard_no_such_engine"].error


def test_probe_with_a_home_under_a_file_says_that_it_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "not a folder" in probe._write_error(tmp_path / "file")


def test_probe_with_a_readable_token_reports_it_and_a_private_one_not(tmp_path: Path) -> None:
    loose, private = tmp_path / "loose", tmp_path / "private"
    loose.write_text("t")
    loose.chmod(0o644)
    state.write_private(private, "t")
    assert list(probe._loose([loose, private, tmp_path / "absent"])) == [(str(loose), 0o644)]


def test_probe_with_a_record_of_an_ended_process_reports_it(tmp_path: Path) -> None:
    settings = Settings.from_env({"TILTYARD_HOME": str(tmp_path)})
    gone = state.ProcessId(pid=os.getpid(), started=1.0)
    service = state.Service(name="ray", url="", process=gone, log="")
    state.write(
        settings.cluster_state,
        state.Cluster(
            id="x", home=str(tmp_path), ready=True, started_at="", token_path="", temp_dir="", services=(service,)
        ),
    )
    assert probe._recorded(settings) == Cluster(ended=("ray",))

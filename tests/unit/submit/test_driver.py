"""What runs on the cluster: the key is claimed for its content before the job works, and a cancelled job does not begin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tiltyard.errors import KeyConflictError
from tiltyard.journal import Journal
from tiltyard.submit import driver
from tiltyard.submit.request import Request

REQUEST = Request(key="work", content="c1", job_file="job.py", args=("1",), files={"job.py": "aa"}, env={})


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")


def test_key_claimed_for_one_content_is_refused_to_another_whoever_asks(journal: Journal) -> None:
    driver.claim(journal, REQUEST.metadata, "work-1")
    driver.claim(journal, REQUEST.metadata, "work-2")
    other = Request(key="work", content="c2", job_file="job.py", args=("2",), files={"job.py": "bb"}, env={})
    with pytest.raises(KeyConflictError, match=r"by job work-1 with other content; changed: job.py; command"):
        driver.claim(journal, other.metadata, "work-1")
    assert len(journal.decisions(kind="submission")) == 1
    journal.close()


def python(tmp_path: Path, *args: str, meta: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TILTYARD_"))}
    env["TILTYARD_HOME"] = str(tmp_path)
    if meta is not None:
        env["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"metadata": meta})
    return subprocess.run(
        [sys.executable, "-m", "tiltyard.submit.driver", *args],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.slow
def test_driver_claims_runs_the_file_as_python_would_and_ends_as_it_does(tmp_path: Path, journal: Journal) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "beside.py").write_text("WORD = 'beside'")
    (tmp_path / "sub" / "job.py").write_text(
        "import sys, beside\nfrom tiltyard.who import person\nprint(__name__, sys.argv, beside.WORD, person())\n"
        "sys.exit(int(sys.argv[1]))"
    )
    meta = {**replace(REQUEST, by="ann@laptop").metadata, "job_submission_id": "work-1"}
    done = python(tmp_path, "sub/job.py", "7", meta=meta)
    assert (done.returncode, done.stdout) == (7, "__main__ ['sub/job.py', '7'] beside ann@laptop\n"), done.stderr
    claimed = journal.decisions(kind="submission", subject="work")
    assert [(d.actor, d.evidence["tiltyard.by"]) for d in claimed] == [("work-1", "ann@laptop")]
    conflict = python(
        tmp_path, "sub/job.py", "0", meta={**meta, "tiltyard.content": "c2", "job_submission_id": "work-2"}
    )
    assert (conflict.returncode, conflict.stdout) == (1, "")
    assert "with other content" in conflict.stderr
    assert "Traceback" not in conflict.stderr
    assert python(tmp_path, "none.py").returncode == 1
    assert python(tmp_path, "--cancel", "work-3", "ann@laptop").returncode == 0
    assert driver.is_cancelled(journal, "work-3")
    cancelled = python(tmp_path, "sub/job.py", "0", meta={**meta, "job_submission_id": "work-3"})
    assert (cancelled.returncode, cancelled.stdout) == (130, "")
    assert "cancelled before it began" in cancelled.stderr
    journal.close()


def test_cancel_twice_is_once(journal: Journal) -> None:
    for _ in range(2):
        driver.cancel(journal, "work-1", by="ann@laptop")
    assert len(journal.decisions(kind="cancel")) == 1
    assert not driver.is_cancelled(journal, "work-2")
    journal.close()

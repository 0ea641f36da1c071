"""Who something is done for: whoever submitted the job, else the user of this machine."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path

import pytest

from tiltyard.settings import Settings
from tiltyard.submit.preparing import prepare
from tiltyard.submit.request import META_BY, META_CONTENT
from tiltyard.who import SUBMITTED_BY_ENV, person


def test_person_is_the_submitter_of_the_job_or_the_user_of_this_machine() -> None:
    here = f"{getpass.getuser()}@{socket.gethostname()}"
    assert person({}) == person({SUBMITTED_BY_ENV: " "}) == here
    assert person({SUBMITTED_BY_ENV: "ann@laptop\n\x1b[31m"}) == "ann@laptop[31m"


def test_submitter_travels_with_what_is_submitted_and_is_no_part_of_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job.py").write_text("print(1)\n")
    monkeypatch.chdir(tmp_path)
    sent = []
    for name in ("ann@laptop", "bob@desk"):
        monkeypatch.setenv(SUBMITTED_BY_ENV, name)
        sent.append(prepare("job.py", settings=Settings.from_env(), root=tmp_path).request.metadata)
    assert [m[META_BY] for m in sent] == ["ann@laptop", "bob@desk"]
    assert sent[0][META_CONTENT] == sent[1][META_CONTENT]

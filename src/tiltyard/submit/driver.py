"""What runs on the cluster: ``python -m tiltyard.submit.driver JOB_FILE [ARGUMENTS]``.

Before the job works its key is claimed in the journal, together with the digest of its content. The journal outlives the
head: where Ray has forgotten every job, the same key with other content is still refused, and a job that was cancelled does
not start again. What an experiment has finished is the experiment's own claim (`tiltyard.sweep.engine.launch`).

``--cancel JOB_ID`` records that a job is to end, which `tiltyard.submit.ending` asks for before it tells Ray.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tiltyard.errors import KeyConflictError, SubmitError, TiltyardError
from tiltyard.journal import Journal
from tiltyard.settings import Settings, shows_tracebacks
from tiltyard.submit.packing import different
from tiltyard.submit.request import META_ARGS, META_BY, META_CONTENT, META_FILES, META_KEY, read_manifest
from tiltyard.who import SUBMITTED_BY_ENV

CANCELLED = 130
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray 2.60's job supervisor puts the metadata of a job (``ray/dashboard/modules/job/job_supervisor.py``)."""


def submission(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The metadata of the job that this process drives; empty where it is none."""
    try:
        found = json.loads(environ.get(_JOB_CONFIG, "{}"))["metadata"]
        return {str(k): str(v) for k, v in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def claim(journal: Journal, meta: Mapping[str, str], job_id: str) -> None:
    """Claims the key of a submission for its content; the first claim stands for ever.

    Args:
        journal: The cluster's.
        meta: `Request.metadata`.
        job_id: Who claims.

    Raises:
        KeyConflictError: If the key was claimed with other content; says what differs.
    """
    key, content = meta[META_KEY], meta[META_CONTENT]
    first = journal.decide(
        kind="submission",
        subject=key,
        actor=job_id,
        evidence={n: meta.get(n, "") for n in (META_CONTENT, META_FILES, META_ARGS, META_BY)},
        reasons=["submitted"],
        outcome="claimed",
        once=f"submission:{key}",
    )
    if first.evidence[META_CONTENT] == content:
        return
    files = [read_manifest(str(m.get(META_FILES, ""))) for m in (first.evidence, meta)]
    lines = different(*files)
    if first.evidence[META_ARGS] != meta.get(META_ARGS, ""):
        lines.append(f"command: was {first.evidence[META_ARGS]}, now {meta.get(META_ARGS)}")
    raise KeyConflictError(
        f"The key {key!r} was claimed in the journal by job {first.actor} with other content; "
        f"{'; '.join(lines) or 'the environment or the installed packages'}. Wanted: the same content. Submit it under another "
        "key (--key)."
    )


def cancel(journal: Journal, job_id: str, *, by: str) -> None:
    """Records that a job is to end; twice is once."""
    journal.decide(
        kind="cancel",
        subject=job_id,
        actor=by,
        evidence={},
        reasons=["asked for"],
        outcome="cancelled",
        once=f"cancel:{job_id}",
    )


def is_cancelled(journal: Journal, job_id: str) -> bool:
    """Whether that was recorded."""
    return bool(journal.decisions(kind="cancel", subject=job_id))


def main(argv: Sequence[str]) -> int:
    """Claims and runs; the exit code.

    Raises:
        TiltyardError: If the key is another's.
    """
    settings = Settings.from_env()
    settings.ensure_home()
    if len(argv) == 3 and argv[0] == "--cancel":
        with Journal.open(settings.journal_uri) as journal:
            cancel(journal, argv[1], by=argv[2])
        return 0
    if not argv or argv[0].startswith("-"):
        raise SubmitError("python -m tiltyard.submit.driver JOB_FILE [ARGUMENTS]: name a job file.")
    meta = submission()
    job_id = meta.get("job_submission_id", "")
    if META_KEY in meta:
        with Journal.open(settings.journal_uri) as journal:
            if job_id and is_cancelled(journal, job_id):
                sys.stderr.write(f"Job {job_id} was cancelled before it began; nothing is done.\n")
                return CANCELLED
            claim(journal, meta, job_id)
    if meta.get(META_BY):
        os.environ[SUBMITTED_BY_ENV] = meta[META_BY]  # what is decided and made here is this person's, not the pod's
    return run(argv[0], argv[1:])


def run(job_file: str, args: Sequence[str]) -> int:
    """Runs a job file as ``python JOB_FILE ARGUMENTS`` would; its exit code.

    Raises:
        SubmitError: If it did not travel.
    """
    if not Path(job_file).is_file():
        raise SubmitError(f"There is no {job_file} in the working directory {Path.cwd()} of this job.")
    sys.argv = [job_file, *args]
    sys.path.insert(0, str(Path(job_file).resolve().parent))
    try:
        runpy.run_path(job_file, run_name="__main__")
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return left.code or 0
        sys.stderr.write(f"{left.code}\n")
        return 1
    return 0


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except TiltyardError as error:
        if shows_tracebacks():
            raise
        sys.stderr.write(f"error: {error}\n")
        code = 1
    sys.exit(code)

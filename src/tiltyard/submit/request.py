"""What is asked of a cluster: which job file, with which files, under which key; and when two askings are the same.

The **key** names the work. An experiment's is its name and a digest of its description and its code, so a changed
experiment has another key by itself; ``--key`` takes any name instead. The **content** is what must be equal where the key
is: for ``--key`` and for other jobs the whole package, the arguments and the environment; for an experiment's own key what
the key is made of (another README changes nothing).

Each key has attempts: job ids end in ``-1``, ``-2``, ... A new one is started only where the last one failed or was
stopped, or where a person asks for it. Nothing here packs, reads or sends.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tiltyard.errors import SubmitError
from tiltyard.submit.packing import different

META_KEY, META_CONTENT, META_FILES, META_ARGS = "tiltyard.key", "tiltyard.content", "tiltyard.files", "tiltyard.command"
META_BY = "tiltyard.by"
MAX_KEY = 100
_MANIFEST_BYTES = 48_000
"""The job's metadata travels in one environment variable of the driver; Linux takes 128 KiB."""
_ID_SLUG = 24
DRIVER = "python -m tiltyard.submit.driver"
STOP_WAIT_S = 120
"""How long a driver may take to end in order once it is told; Ray's own three seconds kill a sweep that saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One job, as it is asked for."""

    key: str
    content: str
    """What must be equal for it to be the same: 64 hexadecimal characters."""
    job_file: str
    """Relative to the working directory, with ``/``."""
    args: tuple[str, ...]
    files: Mapping[str, str]
    """Of the package, `Package.digests`."""
    env: Mapping[str, str]
    by: str = ""
    """Who asks; not part of the content, so that two people who ask for the same get the same."""

    @property
    def entrypoint(self) -> str:
        """The command that the cluster runs: claims the key in the journal, then runs the file."""
        return " ".join([DRIVER, *map(shlex.quote, (self.job_file, *self.args))])

    @property
    def metadata(self) -> dict[str, str]:
        """What is kept with the job: its key, and enough to say what differs."""
        return {
            META_KEY: self.key,
            META_CONTENT: self.content,
            META_FILES: pack_manifest(self.files),
            META_ARGS: json.dumps([self.job_file, *self.args]),
            **({META_BY: self.by} if self.by else {}),
        }

    @property
    def runtime_env(self) -> dict[str, str]:
        """Environment of the driver and its workers."""
        return {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), "PYTHONUNBUFFERED": "1", **self.env}

    def id_of(self, attempt: int) -> str:
        """Job id of an attempt: letters, digits and dashes, at most 47 characters, so that a RayJob can bear it."""
        return f"{self.id_stem}-{attempt}"

    @property
    def id_stem(self) -> str:
        """Beginning of every job id of this key."""
        return stem_of(self.key)


def stem_of(key: str) -> str:
    """Beginning of the job ids of a key; two keys have two.

    >>> stem_of("first-sweep-0123456789ab")
    'first-sweep-0123456789ab-985a2345a4'
    """
    slug = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")[:_ID_SLUG].strip("-")
    slug = slug if slug[:1].isalpha() else f"job-{slug}"[:_ID_SLUG].strip("-")
    return f"{slug}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"


def attempt_of(stem: str, job_id: str) -> int | None:
    """Which attempt of a key a job id is; None where it is another's."""
    found = re.fullmatch(rf"{re.escape(stem)}-([1-9][0-9]*)", job_id)
    return int(found[1]) if found else None


def check_key(key: str) -> str:
    """A key that a person gave.

    Raises:
        SubmitError: If it is empty, too long, or has spaces or control characters.
    """
    if not 0 < len(key) <= MAX_KEY or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*", key):
        raise SubmitError(
            f"--key {key[:60]!r} has {len(key)} characters. Wanted: 1 to {MAX_KEY} letters, digits and . _ : / @ + -, "
            "beginning with a letter or digit."
        )
    return key


def content_of(*, package_digest: str, job_file: str, args: Sequence[str], env: Mapping[str, str]) -> str:
    """Digest of everything that is sent."""
    body = {"package": package_digest, "job": job_file, "args": list(args), "env": dict(env)}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def pack_manifest(files: Mapping[str, str]) -> str:
    """Digests of files as short text; of very many the names are left out and one digest of all is kept."""
    plain = json.dumps(dict(sorted(files.items())), separators=(",", ":")).encode()
    told = base64.b64encode(zlib.compress(plain, 9)).decode()
    if len(told) <= _MANIFEST_BYTES:
        return told
    digest = hashlib.sha256(plain).hexdigest()[:12]
    return pack_manifest({f"({len(files)} files)": digest})


def read_manifest(told: str) -> dict[str, str]:
    """What `pack_manifest` wrote; empty where it is no such text."""
    try:
        found = json.loads(zlib.decompress(base64.b64decode(told)))
    except (ValueError, zlib.error):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def what_differs(request: Request, metadata: Mapping[str, str]) -> list[str]:
    """How a request differs from a job that bears its key, line by line; empty where the content is the same."""
    if metadata.get(META_CONTENT) == request.content:
        return []
    now = request.metadata
    lines = different(read_manifest(metadata.get(META_FILES, "")), read_manifest(now[META_FILES]))
    if metadata.get(META_ARGS) != now[META_ARGS]:
        before = " ".join(json.loads(metadata.get(META_ARGS, "[]")))
        lines.append(f"command: was {before!r}, now {' '.join((request.job_file, *request.args))!r}")
    return lines or ["the environment or the installed packages"]


def conflict(request: Request, job_id: str, lines: Sequence[str]) -> str:
    """What is said where a key was used with other content."""
    return (
        f"The key {request.key!r} was used before, by job {job_id}, with other content; {'; '.join(lines)}. Wanted: the same "
        "content, which gives that job again. Submit it under another key (--key), or go back to what was sent."
    )

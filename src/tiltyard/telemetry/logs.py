"""Logs: lines that a person reads at a terminal, JSON where a machine collects them, with ids and without secrets.

`setup` gives the logger ``tiltyard`` its one handler (stderr). In a cluster (Kubernetes, or ``TILTYARD_LOG=json``) each line
is one JSON object; elsewhere it is text. `bound` says which experiment, trial, job or request is at work: every line
written inside bears it, in this thread or task alone.

Every line is scrubbed: secrets by value (of environment variables with a telling name, and of `secret`), by form
(``Bearer ...``, ``password=...``, passwords in URIs), and **personal columns** (`personal`): the value under such a name in a
mapping that is logged, or behind ``name=`` and ``name:`` in a text. Tables are named, never printed. What is not caught: a
value alone, in a text, without its column's name; log rows as mappings.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TextIO

from tiltyard.settings import shown

FORM_ENV = "TILTYARD_LOG"
HIDDEN = "***"
IDS = ("experiment", "trial", "pack", "job", "request", "night")
"""What lines may bear, in this order."""
_KNOWN = frozenset(IDS)
_TELLING = re.compile(r"(?:^|_)(?:token|secret|password|passwd|credential|api_?key|access_?key)(?:_|$)", re.IGNORECASE)
_BY_FORM = (
    re.compile(r"(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{6,}"),
    re.compile(
        r"(?i)([\"']?\b[\w.-]*(?:token|secret|password|passwd|api[-_]?key|access[-_]?key|authorization)[\"']?\s*[=:]\s*)"
        r"(?!(?:bearer|basic)\s)(\"[^\"]*\"|'[^']*'|[^\s,;}\])]+)"
    ),
)
_LEAST = 6
"""Letters a value needs to be hidden wherever it stands: shorter ones are words."""
_IDS: ContextVar[Mapping[str, str]] = ContextVar("tiltyard_log_ids", default=MappingProxyType({}))


class Scrubber:
    """Takes out what nobody is to read.

    Args:
        secrets: Values to hide wherever they stand; those shorter than six characters are not looked for.
        personal: Names of columns whose values are hidden.
    """

    def __init__(self, secrets: Iterable[str] = (), personal: Iterable[str] = ()) -> None:
        self._secrets: set[str] = set()
        self._personal: set[str] = set()
        self._columns: re.Pattern[str] | None = None
        for value in secrets:
            self.secret(value)
        self.personal(personal)

    def secret(self, value: str) -> None:
        """Hides a value from now on."""
        if len(value) >= _LEAST:
            self._secrets.add(value)

    def personal(self, columns: Iterable[str]) -> None:
        """Hides the values of these columns from now on."""
        news = {str(c) for c in columns} - self._personal
        self._personal |= news
        if news:
            names = "|".join(re.escape(c) for c in sorted(self._personal, key=len, reverse=True))
            value = r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s,;}\])]+"
            self._columns = re.compile(rf"(?<![\w.])([\"']?(?:{names})[\"']?\s*[=:]\s*)({value})")

    def text(self, text: str) -> str:
        """A text as it may be written."""
        for value in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(value, HIDDEN)
        text = shown(text)
        for form in _BY_FORM:
            text = form.sub(rf"\g<1>{HIDDEN}", text)
        return text if self._columns is None else self._columns.sub(rf"\g<1>{HIDDEN}", text)

    def value(self, value: Any) -> Any:
        """A value as it may be written: mappings and lists of the same shape, what is in them scrubbed."""
        if isinstance(value, str):
            return self.text(value)
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return {
                self._key(k): HIDDEN if str(k) in self._personal or _TELLING.search(str(k)) else self.value(v)
                for k, v in value.items()
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(v) for v in value]
        if isinstance(value, bytes | bytearray | memoryview):
            return f"<{len(value)} bytes>"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self.value({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
        if hasattr(value, "shape") or hasattr(value, "num_rows") or hasattr(value, "columns"):
            return f"<{type(value).__name__}>"
        return self.text(str(value))

    def _key(self, key: Any) -> Any:
        return self.text(key) if isinstance(key, str) else key


_SCRUBBER = Scrubber()


def secret(value: str) -> None:
    """Hides a value in every line of this process from now on."""
    _SCRUBBER.secret(value)


def personal(columns: Iterable[str]) -> None:
    """Hides the values of these columns in every line of this process from now on."""
    _SCRUBBER.personal(columns)


def scrubbed(text: str) -> str:
    """A text as this process may write it."""
    return _SCRUBBER.text(text)


def cleaned(error: BaseException, values: Iterable[str] = ()) -> BaseException:
    """An error, and what it came of, as this process may say it: itself with other arguments where that will do.

    Args:
        error: Of a user's code, that goes to logs and answers.
        values: Of personal columns, of the rows at work: hidden where one stands as a whole word of two letters or more, with
            or without its column's name.
    """
    return _Cleaning(values).clean(error, set())


class _Cleaning:
    def __init__(self, values: Iterable[str]) -> None:
        self._words = sorted({v for v in values if len(v) > 1}, key=len, reverse=True)

    def clean(self, error: BaseException, seen: set[int]) -> BaseException:
        seen.add(id(error))
        if self._tells(error):
            error.args = tuple(self._argument(a) for a in error.args)
        if self._tells(error):  # it words itself from elsewhere
            text = self._text(_said(error))
            return RuntimeError(f"{type(error).__name__}: {text}").with_traceback(error.__traceback__)
        notes = getattr(error, "__notes__", [])
        notes[:] = [self._text(str(n)) for n in notes]
        silent, cause, context = error.__suppress_context__, error.__cause__, error.__context__
        error.__cause__, error.__context__ = self._before(cause, seen), self._before(context, seen)
        error.__suppress_context__ = silent
        return error

    def _before(self, error: BaseException | None, seen: set[int]) -> BaseException | None:
        return error if error is None or id(error) in seen else self.clean(error, seen)

    def _tells(self, error: BaseException) -> bool:
        return self._text(_said(error)) != _said(error)

    def _argument(self, value: Any) -> Any:
        told = _said(value)
        text = self._text(told)
        return value if text == told else text

    def _text(self, told: str) -> str:
        text = scrubbed(told)
        if found := [w for w in self._words if w in text]:
            text = re.sub(rf"(?<!\w)(?:{'|'.join(map(re.escape, found))})(?!\w)", HIDDEN, text)
        return text


def _said(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # a user's error may not be able to say what it is
        return ""


_OF_PROCESS: dict[str, str] = {}


def belongs(**ids: str) -> None:
    """Every line of this process bears these ids from now on, in whatever thread: for a process that does one thing alone.

    Raises:
        KeyError: If one is none of `IDS`.
    """
    with bound(**ids):
        _OF_PROCESS.update({k: v for k, v in ids.items() if v})


class bound:  # noqa: N801 - used as a function; a class, for a generator costs a request three times as much
    """Lines that are written inside ``with bound(request="r7"):`` bear these ids, with those around; empty ones are left out.

    Raises:
        KeyError: If one is none of `IDS`.
    """

    __slots__ = ("_given", "_token")

    def __init__(self, **ids: str) -> None:
        if not _KNOWN.issuperset(ids):
            raise KeyError(f"{sorted(ids.keys() - _KNOWN)} are no ids of a log line; there are {', '.join(IDS)}")
        self._given = ids if all(ids.values()) else {k: v for k, v in ids.items() if v}

    def __enter__(self) -> None:
        self._token = _IDS.set({**_IDS.get(), **self._given})

    def __exit__(self, *_: object) -> None:
        _IDS.reset(self._token)


def ids() -> Mapping[str, str]:
    """What lines bear here."""
    return {**_OF_PROCESS, **_IDS.get()}


class Lines(logging.Formatter):
    """One line a record: JSON, or text for people.

    Args:
        as_json: Which.
        scrubber: What takes out secrets and personal values.
    """

    def __init__(self, *, as_json: bool, scrubber: Scrubber | None = None) -> None:
        super().__init__()
        self._json, self._scrub = as_json, scrubber or _SCRUBBER

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        known = {k: self._scrub.text(v) for k, v in (getattr(record, "tiltyard_ids", None) or ids()).items()}
        message = self._message(record)
        error = self._scrub.text(self.formatException(record.exc_info)) if record.exc_info else ""
        if not self._json:
            about = " ".join(f"{k}={known[k]}" for k in IDS if k in known)
            line = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.levelname.lower()}: {message}"
            return line + (f"  [{about}]" if about else "") + (f"\n{error}" if error else "")
        told: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            **{k: known[k] for k in IDS if k in known},
        }
        extra = getattr(record, "data", None)
        if extra is not None:
            told["data"] = self._scrub.value(extra)
        return json.dumps(told | ({"error": error} if error else {}), default=str)

    def _message(self, record: logging.LogRecord) -> str:
        args: Any = record.args
        if isinstance(args, Mapping):
            args = self._scrub.value(args)
        elif args:
            args = tuple(self._scrub.value(a) for a in args)
        try:
            text = str(record.msg) % args if args else str(record.msg)
        except (TypeError, ValueError, KeyError):
            text = f"{record.msg} {args}"
        return self._scrub.text(text)


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is when a line is written."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def is_json(env: Mapping[str, str] = os.environ, stream: TextIO | None = None) -> bool:
    """Whether lines are JSON: as ``TILTYARD_LOG`` says (``json`` or ``text``), else in Kubernetes and not at a terminal."""
    said = env.get(FORM_ENV, "").lower()
    if said in {"json", "text"}:
        return said == "json"
    stream = stream or sys.stderr
    return "KUBERNETES_SERVICE_HOST" in env and not stream.isatty()


def setup(*, level: int = logging.INFO, env: Mapping[str, str] = os.environ, stream: TextIO | None = None) -> None:
    """Gives the logger ``tiltyard`` its handler; called again, it changes the handler that is there."""
    for name, value in env.items():
        if _TELLING.search(name) and not name.endswith(("_PATH", "_FILE", "_ENV", "_URI", "_URL")):
            _SCRUBBER.secret(value)
    logger = logging.getLogger("tiltyard")
    for old in [h for h in logger.handlers if isinstance(h.formatter, Lines)]:
        logger.removeHandler(old)
    handler = _Stderr() if stream is None else logging.StreamHandler(stream)
    handler.setFormatter(Lines(as_json=is_json(env, stream)))
    logger.addHandler(handler)
    logger.setLevel(level)

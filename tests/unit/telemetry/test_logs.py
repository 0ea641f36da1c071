"""Log lines: readable or JSON, with ids of what is at work, and nothing in them that nobody is to read."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.telemetry import logs
from tiltyard.telemetry.logs import HIDDEN, Lines, Scrubber, bound, is_json, setup

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=30)
SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=40).filter(
    lambda s: HIDDEN not in s and not set(s) <= set("[]'\"*,warning")
)
PLAIN = st.text("abcdefghijklmnopqrstuvwxyzäöü0123456789 -", min_size=3, max_size=20).filter(lambda v: v.strip())


def line(message: str, *args: Any, scrubber: Scrubber, as_json: bool = True, data: Any = None) -> str:
    record = logging.LogRecord("tiltyard.x", logging.WARNING, __file__, 1, message, args, None)
    if len(args) == 1 and isinstance(args[0], dict):
        record.args = args[0]
    if data is not None:
        record.data = data
    return Lines(as_json=as_json, scrubber=scrubber).format(record)


@given(before=WORDS, after=WORDS, secret=SECRETS, as_json=st.booleans())
def test_a_secret_anywhere_in_a_message_an_argument_or_data_is_not_written(
    before: str, after: str, secret: str, as_json: bool
) -> None:
    scrubber = Scrubber([secret])
    assert secret not in scrubber.text(before + secret + after)
    assert secret not in str(scrubber.value({"a": [before + secret, {"b": (after, secret)}]}))
    written = line("%s and %s", before + secret, [secret], scrubber=scrubber, as_json=as_json, data={"x": secret})
    told = json.loads(written) if as_json else {"message": written}
    assert secret not in told["message"].replace("warning: ", "").partition(" ")[2]
    assert secret not in str(told.get("data", ""))


@given(
    column=st.from_regex(r"[a-z][a-z_]{2,12}", fullmatch=True).filter(lambda c: c not in {"other", "row"}),
    value=PLAIN,
    others=st.dictionaries(st.sampled_from(["width", "n"]), st.integers(0, 9), max_size=2),
)
def test_the_value_of_a_personal_column_is_not_written_however_its_row_is_logged(
    column: str, value: str, others: dict[str, int]
) -> None:
    marked = f"zz{value}zz"  # so that it is none of the other words of the line
    row = {**others, column: marked}
    scrubber = Scrubber(personal=[column])
    for written in (
        line("row %s", [row], scrubber=scrubber),
        line("row %s", json.dumps(row), scrubber=scrubber),
        line("row %s", str(row), scrubber=scrubber),
        line(f"%({column})s", row, scrubber=scrubber),
        line("bad row", scrubber=scrubber, data={"row": row}),
        line("%s", pa.Table.from_pylist([row]), scrubber=scrubber),
        line("%s", pd.DataFrame([row]), scrubber=scrubber),
        line(f"{column}={marked.replace(' ', '_')}", scrubber=scrubber),
    ):
        assert marked not in written
        assert marked.replace(" ", "_") not in written
        json.loads(written)


@pytest.mark.parametrize(
    "text",
    [
        "GET with Authorization: Bearer glsa_abcdef123456",
        "postgresql://ann:glsa_abcdef123456@db/x was away",
        "password=glsa_abcdef123456 is wrong",
        "{'api_key': 'glsa_abcdef123456'}",
        '{"GRAFANA_TOKEN": "glsa_abcdef123456"}',
        "token: glsa_abcdef123456, next",
    ],
)
def test_secrets_are_known_by_their_form_too(text: str) -> None:
    found = Scrubber().text(text)
    assert "glsa_abcdef123456" not in found
    assert HIDDEN in found


def test_ordinary_words_stay_as_they_are() -> None:
    text = "trial mlp@rings/003 of 12 diverged after 3 epochs: accuracy is 0.91; see /tmp/x, tokens were 3"
    assert Scrubber(["xy"], ["age"]).text(text) == text
    assert Scrubber(personal=["age"]).text("average: 3, age: 41") == "average: 3, age: ***"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    logger = logging.getLogger("tiltyard")
    before = logger.handlers[:], logger.level, logger.propagate
    found = io.StringIO()
    yield found
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def test_lines_bear_the_ids_of_what_is_at_work_in_this_task_alone(stream: io.StringIO) -> None:
    setup(env={"TILTYARD_LOG": "json"}, stream=stream)
    log = logging.getLogger("tiltyard.test")

    async def request(number: int) -> None:
        with bound(request=f"r{number}"):
            await asyncio.sleep(0)
            log.info("answered")

    async def both() -> None:
        await asyncio.gather(request(1), request(2))

    with bound(experiment="wine", job="wine-1"):
        with bound(trial="mlp@wine/3", experiment=""):
            log.warning("%d rows", 3)
        asyncio.run(both())
    log.info("outside")
    with pytest.raises(KeyError), bound(mood="good"):
        pass
    told = [json.loads(row) for row in stream.getvalue().splitlines()]
    assert (told[0]["experiment"], told[0]["job"], told[0]["trial"]) == ("wine", "wine-1", "mlp@wine/3")
    assert (told[0]["level"], told[0]["logger"], told[0]["message"]) == ("warning", "tiltyard.test", "3 rows")
    assert sorted((t["request"], t["experiment"]) for t in told[1:3]) == [("r1", "wine"), ("r2", "wine")]
    assert not set(told[3]) & set(logs.IDS)


def test_an_exception_is_one_json_line_and_readable_at_a_terminal(stream: io.StringIO) -> None:
    for form in ("json", "text"):
        setup(env={"TILTYARD_LOG": form, "DB_PASSWORD": "hunter2hunter2"}, stream=stream)
        try:
            int("no login with hunter2hunter2")
        except ValueError:
            with bound(request="r9"):
                logging.getLogger("tiltyard.test").exception("it failed")
    first, *rest = stream.getvalue().splitlines()
    told = json.loads(first)
    assert "'no login with ***'" in told["error"]
    assert told["request"] == "r9"
    assert rest[0].endswith("error: it failed  [request=r9]")
    assert rest[-1].endswith("'no login with ***'")
    assert len(logging.getLogger("tiltyard").handlers) == 1


def test_lines_are_json_in_a_cluster_and_text_at_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert is_json(pod, io.StringIO())
    assert not is_json(pod, Terminal())
    assert not is_json({}, io.StringIO())
    assert not is_json({**pod, "TILTYARD_LOG": "text"}, io.StringIO())
    assert is_json({"TILTYARD_LOG": "json"}, Terminal())


def test_a_process_that_belongs_to_a_trial_says_so_in_every_thread_and_what_is_bound_inside_goes_before() -> None:
    code = (
        "import logging, threading; from tiltyard.telemetry import logs\n"
        "logs.setup(env={'TILTYARD_LOG': 'text'}); logs.belongs(experiment='e', trial='t1', job='')\n"
        "say = logging.getLogger('tiltyard.users').warning\n"
        "one = threading.Thread(target=say, args=('there',)); one.start(); one.join()\n"
        "with logs.bound(trial='t2'): say('inside'); assert logs.ids() == {'experiment': 'e', 'trial': 't2'}\n"
        "say('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    told = [line.split(": ", 1)[1] for line in done.stderr.splitlines()]
    assert told == [
        "there  [experiment=e trial=t1]",
        "inside  [experiment=e trial=t2]",
        "after  [experiment=e trial=t1]",
    ]


class WordedElsewhereError(Exception):
    """A user's, whose text is none of its arguments."""

    def __init__(self, row: dict[str, str]) -> None:
        super().__init__()
        self.row = row

    def __str__(self) -> str:
        return f"what of {self.row['name']}?"


@given(name=st.text("abcdefghijklmnopqrstuvwxyz ", min_size=6, max_size=20).filter(lambda n: n.strip() == n))
def test_a_users_error_about_a_row_is_said_without_its_personal_values_alone_or_in_what_it_came_of(name: str) -> None:
    marked = f"zz{name}zz"
    errors = [ValueError(f"no such {marked}"), KeyError(marked), WordedElsewhereError({"name": marked})]
    for error in errors:
        error.add_note(f"while at {marked}")
        error.__cause__ = RuntimeError("before", {"name": marked})
        found = logs.cleaned(error, [marked, "z"])
        assert isinstance(found, RuntimeError if isinstance(error, WordedElsewhereError) else type(error))
        text = "".join(traceback.format_exception(found))
        assert marked not in text
        assert HIDDEN in str(found)


def test_an_error_that_names_nobody_is_left_as_it_is() -> None:
    error = OSError(2, "no such file")
    assert logs.cleaned(error, ["Ann", "2", ""]) is error
    assert error.args == (2, "no such file")

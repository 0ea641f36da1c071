"""What the journal promises, on SQLite and on PostgreSQL alike."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from tiltyard.errors import FencedError, JournalError
from tiltyard.journal import CellScore, Claim, Journal, Owner, TrialRow, TrialUpdate
from tiltyard.money import Seconds

KEY = "k" * 64
ELSEWHERE = Owner(host="some-other-host", pid=1, started=1.0)


def claim(journal: Journal, key: str = KEY, owner: Owner | None = None, lease_s: float = 60.0) -> Claim:
    return journal.claim(key, experiment="demo", spec="{}", owner=owner or Owner.here(), lease_s=lease_s)


def trial(cell: str, index: int = 0, **changes: Any) -> TrialRow:
    row = TrialRow(
        cell=cell,
        key=KEY,
        group="mlp@digits",
        index=index,
        variant="mlp",
        model="mlp",
        dataset="digits",
        dataset_version=1,
        config={"hidden": (64, (3, 2)), "lr": 0.1, "nested": None},
        seed=2**31 - 1,
        data_seed=0,
    )
    return replace(row, **changes)


def score(cell: str, epoch: int = 3, value: float = 0.5, **changes: Any) -> CellScore:
    row = CellScore(
        cell=cell, epoch=epoch, metrics={"accuracy": value}, storage_uri="/s", pack_id="p", attempt=1, seconds=0.25
    )
    return replace(row, **changes)


def start(journal: Journal, by: Claim, cells: tuple[str, ...] = ("a", "b")) -> Any:
    return journal.start_attempt(by, "mlp@digits/r0/0", rung=0, cells=cells, device_kind="cpu", layout={"members": 2})


def decide(journal: Journal, n: int = 0, once: str | None = None, **changes: Any) -> Any:
    told = {"evidence": {"n": n, "half": 0.5}, "reasons": ["because", "é"], "outcome": "kept", **changes}
    return journal.decide(kind="rung", subject=f"group-{n}", actor="halving", once=once, **told)


@contextmanager
def living_process() -> Iterator[Owner]:
    """Another process on this machine, and how it would call itself."""
    process = subprocess.Popen(["sleep", "60"])
    owner = Owner.here()
    try:
        yield replace(owner, pid=process.pid, started=psutil.Process(process.pid).create_time())
    finally:
        process.kill()
        process.wait()


def at_once(number: int, work: Callable[[int], Any]) -> list[Any]:
    """Results of ``work(0)`` .. ``work(number - 1)``, all let go at the same moment."""
    gate = threading.Barrier(number)

    def one(i: int) -> Any:
        gate.wait(timeout=30)
        return work(i)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


# -- claims -----------------------------------------------------------------------------------------------------------


def test_claim_of_a_new_key_is_new_and_recorded(journal: Journal) -> None:
    got = claim(journal)
    assert (got.outcome, got.fence) == ("new", 1)
    found = journal.launch(KEY)
    assert found is not None
    assert (found.state, found.experiment, found.launch_id) == ("running", "demo", got.launch_id)
    assert journal.launch("other") is None


def test_claim_held_by_a_living_process_names_the_holder(journal: Journal) -> None:
    with living_process() as holder:
        claim(journal, owner=holder)
        second = claim(journal)
    assert (second.outcome, second.holder) == ("held", holder)


def test_claim_of_a_dead_holder_is_taken_over_before_its_lease_ends(journal: Journal) -> None:
    with living_process() as holder:
        first = claim(journal, owner=holder, lease_s=3600)
    second = claim(journal)
    assert (second.outcome, second.fence, second.launch_id) == ("taken_over", 2, first.launch_id)


def test_claim_of_a_killed_holder_that_nobody_reaped_is_taken_over(journal: Journal) -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        owner = replace(Owner.here(), pid=process.pid, started=psutil.Process(process.pid).create_time())
        claim(journal, owner=owner, lease_s=3600)
        process.kill()
        deadline = time.monotonic() + 10
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert claim(journal).outcome == "taken_over"
    finally:
        process.wait()


def test_claim_by_a_process_with_a_reused_number_is_taken_over(journal: Journal) -> None:
    claim(journal, owner=replace(Owner.here(), started=1.0), lease_s=3600)
    assert claim(journal).outcome == "taken_over"


def test_claim_from_another_host_is_held_until_its_lease_ends(journal: Journal) -> None:
    claim(journal, owner=ELSEWHERE, lease_s=3600)
    assert claim(journal).outcome == "held"
    claim(journal, key="j" * 64, owner=ELSEWHERE, lease_s=-1)
    assert claim(journal, key="j" * 64).outcome == "taken_over"


def test_claim_of_a_living_holder_on_this_host_is_held_though_its_lease_is_late(journal: Journal) -> None:
    with living_process() as holder:
        claim(journal, owner=holder, lease_s=-1)
        assert journal.holder(KEY) == holder
        second = claim(journal)
        assert (second.outcome, second.fence, second.holder) == ("held", 1, holder)
    assert journal.holder(KEY) is None
    assert claim(journal).outcome == "taken_over"


def test_renew_of_a_released_claim_does_not_bring_it_back(journal: Journal) -> None:
    journal.budgets.set("vision", limit_cpu_s=100, limit_gpu_s=None)
    got = claim(journal)
    journal.budgets.hold("vision", claim=got, pack_id="p", ask=Seconds(cpu_s=30))
    journal.release(got, state="stopped", summary={})
    journal.renew(got)
    other = claim(journal, key="o" * 64)
    journal.budgets.hold("vision", claim=other, pack_id="q", ask=Seconds(cpu_s=50))
    now = journal.budgets.get("vision")  # the hold of a claim that has a lease would still be reserved
    assert (now.reserved, now.spent) == (Seconds(cpu_s=50), Seconds(cpu_s=30))


def test_check_of_a_claim_is_content_until_it_is_taken_over(journal: Journal) -> None:
    old = claim(journal, owner=ELSEWHERE, lease_s=-1)
    journal.check(old)
    newer = claim(journal)
    with pytest.raises(FencedError, match="taken over"):
        journal.check(old)
    journal.release(newer, state="finished", summary={})
    journal.check(newer)


def test_renew_of_a_late_lease_holds_the_claim_again(journal: Journal) -> None:
    got = replace(claim(journal, owner=ELSEWHERE, lease_s=-1), lease_s=3600)
    journal.renew(got)
    assert claim(journal).outcome == "held"


def test_claim_of_a_finished_key_says_so_and_keeps_its_record(journal: Journal) -> None:
    first = claim(journal)
    journal.set_parent_run(first, "run-1")
    journal.release(first, state="finished", summary={"best": {"digits": "a"}})
    again = claim(journal)
    assert (again.outcome, again.parent_run_id, again.fence) == ("finished", "run-1", 1)
    found = journal.launch(KEY)
    assert found is not None
    assert found.summary == {"best": {"digits": "a"}}
    assert found.ended is not None


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_claim_of_an_ended_but_unfinished_key_goes_on(journal: Journal, state: str) -> None:
    first = claim(journal)
    journal.release(first, state=state, summary={})
    again = claim(journal)
    assert (again.outcome, again.launch_id, again.fence) == ("taken_over", first.launch_id, 2)
    found = journal.launch(KEY)
    assert found is not None
    assert (found.state, found.ended) == ("running", None)


def test_claim_by_eight_at_once_is_won_by_one(uri: str) -> None:
    def one(_: int) -> Claim:
        with Journal.open(uri) as mine:
            return claim(mine)

    outcomes = [got.outcome for got in at_once(8, one)]
    assert sorted(outcomes) == ["held"] * 7 + ["new"]


def test_takeover_by_eight_at_once_is_won_by_one(uri: str) -> None:
    with Journal.open(uri) as journal:
        claim(journal, owner=ELSEWHERE, lease_s=-1)

    def one(_: int) -> Claim:
        with Journal.open(uri) as mine:
            return claim(mine)

    got = at_once(8, one)
    assert sorted(g.outcome for g in got) == ["held"] * 7 + ["taken_over"]
    assert {g.fence for g in got} == {2}


def test_launches_are_listed_newest_first(journal: Journal) -> None:
    for n in range(3):
        journal.claim(f"{n}" * 64, experiment=f"e{n % 2}", spec="{}", owner=Owner.here())
    assert [found.key[0] for found in journal.launches()] == ["2", "1", "0"]
    assert [found.key[0] for found in journal.launches("e0")] == ["2", "0"]


WRITES: dict[str, Callable[[Journal, Claim], object]] = {
    "renew": lambda j, c: j.renew(c),
    "set_parent_run": lambda j, c: j.set_parent_run(c, "r"),
    "release": lambda j, c: j.release(c, state="finished", summary={}),
    "add_trials": lambda j, c: j.add_trials(c, [trial("z")]),
    "set_trial_states": lambda j, c: j.set_trial_states(c, [TrialUpdate(cell="a", state="done")]),
    "start_attempt": start,
    "decide": lambda j, c: decide(j, claim=c),
    "decide once more": lambda j, c: decide(j, 7, once="before", claim=c),
    "record_test_look": lambda j, c: j.record_test_look(KEY, "digits", ["a"], claim=c),
}


@pytest.mark.parametrize("what", WRITES)
def test_write_under_a_claim_that_was_taken_over_is_fenced(journal: Journal, what: str) -> None:
    old = claim(journal, owner=ELSEWHERE, lease_s=-1)
    journal.add_trials(old, [trial("a")])
    before = decide(journal, 7, once="before", claim=old)
    claim(journal)
    with pytest.raises(FencedError, match="taken over"):
        WRITES[what](journal, old)
    assert journal.decisions() == [before]
    assert journal.record_test_look(KEY, "digits", ["a"]) == 1
    assert [(t.cell, t.state) for t in journal.trials(KEY)] == [("a", "planned")]
    found = journal.launch(KEY)
    assert found is not None
    assert (found.state, found.parent_run_id) == ("running", None)
    assert journal.attempts(KEY) == []


# -- trials -----------------------------------------------------------------------------------------------------------


def test_trials_read_back_equal_in_the_order_of_the_plan(journal: Journal) -> None:
    rows = [trial("c", 0), trial("a", 1), trial("b", 0, group="mlp@wine", dataset="wine", score=0.25, reason="x")]
    journal.add_trials(claim(journal), rows)
    assert journal.trials(KEY) == rows


def test_add_trials_again_keeps_what_became_of_them(journal: Journal) -> None:
    got = claim(journal)
    journal.add_trials(got, [trial("a"), trial("b", 1)])
    journal.set_trial_states(got, [TrialUpdate(cell="a", state="done", epoch=9, score=0.75)])
    journal.add_trials(got, [trial("a"), trial("b", 1), trial("c", 2)])
    journal.add_trials(got, [])
    assert [(t.cell, t.state, t.epoch, t.score) for t in journal.trials(KEY)] == [
        ("a", "done", 9, 0.75),
        ("b", "planned", 0, None),
        ("c", "planned", 0, None),
    ]


def test_set_trial_states_without_epoch_and_score_keeps_the_recorded_ones(journal: Journal) -> None:
    got = claim(journal)
    journal.add_trials(got, [trial("a")])
    journal.set_trial_states(got, [TrialUpdate(cell="a", state="running", epoch=3, score=0.5)])
    journal.set_trial_states(got, [TrialUpdate(cell="a", state="failed", reason="diverged")])
    journal.set_trial_states(got, [])
    (found,) = journal.trials(KEY)
    assert (found.state, found.epoch, found.score, found.reason) == ("failed", 3, 0.5, "diverged")


def test_find_trials_by_the_beginning_of_a_cell_takes_it_literally(journal: Journal) -> None:
    journal.add_trials(claim(journal), [trial("abc"), trial("abd", 1), trial("xyz", 2)])
    assert [t.cell for t in journal.find_trials("ab")] == ["abc", "abd"]
    assert journal.find_trials("%") == []
    assert journal.find_trials("a_c") == []


# -- packs ------------------------------------------------------------------------------------------------------------


def test_finish_attempt_records_scores_and_completion(journal: Journal) -> None:
    got = claim(journal)
    attempt = start(journal, got)
    scores = [score("a", value=0.1 + 0.2), score("b", failed="diverged", metrics={})]
    journal.finish_attempt(attempt, scores=scores, metered_s=1.5, storage_uri="/s")
    assert journal.cell_scores(["a", "b", "c"]) == {("a", 3): scores[0], ("b", 3): scores[1]}
    assert journal.cell_scores(["a"], [9]) == {}
    (row,) = journal.attempts(KEY)
    assert (row.state, row.number, row.metered_s, row.storage_uri) == ("done", 1, 1.5, "/s")
    assert (row.cells, row.layout) == (("a", "b"), {"members": 2})


def test_finish_attempt_by_a_late_attempt_records_nothing(journal: Journal) -> None:
    got = claim(journal)
    late, newer = start(journal, got), start(journal, got)
    with pytest.raises(FencedError, match="newer attempt"):
        journal.finish_attempt(late, scores=[score("a", value=0.9)], metered_s=1, storage_uri="/late")
    assert journal.cell_scores(["a"]) == {}
    journal.finish_attempt(newer, scores=[score("a")], metered_s=1, storage_uri="/s")
    assert [(a.number, a.state) for a in journal.attempts(KEY)] == [(1, "fenced"), (2, "done")]
    assert journal.cell_scores(["a"])["a", 3].metrics == {"accuracy": 0.5}


def test_finish_attempt_under_an_older_claim_records_nothing(journal: Journal) -> None:
    attempt = start(journal, claim(journal, owner=ELSEWHERE, lease_s=-1))
    claim(journal)
    with pytest.raises(FencedError, match="taken over"):
        journal.finish_attempt(attempt, scores=[score("a")], metered_s=1, storage_uri="/s")
    assert journal.cell_scores(["a"]) == {}
    assert journal.attempts(KEY)[0].state == "running"


def test_finish_attempt_twice_records_the_first_alone(journal: Journal) -> None:
    attempt = start(journal, claim(journal))
    journal.finish_attempt(attempt, scores=[score("a")], metered_s=1, storage_uri="/s")
    with pytest.raises(FencedError):
        journal.finish_attempt(attempt, scores=[score("a", value=0.9), score("b")], metered_s=1, storage_uri="/t")
    assert journal.cell_scores(["a", "b"]) == {("a", 3): score("a")}


def test_record_scores_of_members_that_ended_stays_when_the_attempt_is_taken_over(journal: Journal) -> None:
    got = claim(journal)
    first = start(journal, got)
    journal.record_scores(first, [score("a")])
    assert journal.attempts(KEY)[0].state == "running"
    second = start(journal, got)
    with pytest.raises(FencedError, match="newer attempt"):
        journal.record_scores(first, [score("b", value=0.9)])
    journal.record_scores(second, [score("a", value=0.9), score("b")])
    journal.finish_attempt(second, scores=[], metered_s=1, storage_uri="/s")
    with pytest.raises(FencedError):
        journal.record_scores(second, [score("c")])
    assert journal.cell_scores(["a", "b", "c"]) == {("a", 3): score("a"), ("b", 3): score("b")}


def test_record_scores_under_an_older_claim_records_nothing(journal: Journal) -> None:
    attempt = start(journal, claim(journal, owner=ELSEWHERE, lease_s=-1))
    claim(journal)
    with pytest.raises(FencedError, match="taken over"):
        journal.record_scores(attempt, [score("a")])
    assert journal.cell_scores(["a"]) == {}


def test_finish_attempt_that_cannot_be_written_whole_writes_nothing(journal: Journal) -> None:
    attempt = start(journal, claim(journal))
    wrong: Any = [score("a"), score("b", storage_uri=None)]
    with pytest.raises(Exception, match=r"(?i)not.null"):
        journal.finish_attempt(attempt, scores=wrong, metered_s=1, storage_uri="/s")
    assert journal.cell_scores(["a", "b"]) == {}
    assert journal.attempts(KEY)[0].state == "running"


def test_finish_attempt_without_scores_records_the_completion(journal: Journal) -> None:
    journal.finish_attempt(start(journal, claim(journal)), scores=[], metered_s=1, storage_uri="/s")
    assert journal.attempts(KEY)[0].state == "done"


def test_score_of_a_cell_that_has_one_stays_the_first(journal: Journal) -> None:
    for n, key in enumerate(("1" * 64, "2" * 64)):
        got = claim(journal, key=key)
        journal.finish_attempt(start(journal, got), scores=[score("a", value=n)], metered_s=1, storage_uri="/s")
    assert journal.cell_scores(["a"])["a", 3].metrics == {"accuracy": 0.0}


def test_fail_attempt_records_the_reason_and_a_fenced_one_is_no_error(journal: Journal) -> None:
    got = claim(journal)
    first = start(journal, got)
    journal.fail_attempt(first, "out of memory", metered_s=2)
    second = start(journal, got)
    start(journal, got)
    journal.fail_attempt(second, "too late", metered_s=2)
    told = [(a.number, a.state, a.reason) for a in journal.attempts(KEY)]
    assert told == [(1, "failed", "out of memory"), (2, "fenced", None), (3, "running", None)]


def test_start_attempt_by_eight_at_once_numbers_each_and_leaves_one_running(uri: str) -> None:
    with Journal.open(uri) as journal:
        got = claim(journal)

        def one(_: int) -> int:
            with Journal.open(uri) as mine:
                return int(start(mine, got).number)

        assert sorted(at_once(8, one)) == list(range(1, 9))
        states = {a.number: a.state for a in journal.attempts(KEY)}
    assert sorted(states.values()) == ["fenced"] * 7 + ["running"]
    assert states[8] == "running"


def test_cell_scores_of_many_cells_are_all_found(journal: Journal) -> None:
    cells = [f"c{n}" for n in range(1001)]
    journal.finish_attempt(
        start(journal, claim(journal)), scores=[score(c) for c in cells], metered_s=1, storage_uri="/s"
    )
    assert len(journal.cell_scores(cells)) == 1001


# -- decisions --------------------------------------------------------------------------------------------------------


def test_decide_appends_numbered_decisions_each_naming_the_one_before(journal: Journal) -> None:
    first, second = decide(journal, 1), decide(journal, 2)
    assert (first.number, first.previous) == (1, "0" * 64)
    assert (second.number, second.previous) == (2, first.digest)
    assert journal.decisions() == [first, second]
    assert journal.decisions(subject="group-2") == [second]
    assert journal.decisions(kind="gate") == []
    assert journal.verify_decisions() == 2


def test_decide_once_a_second_time_returns_the_first(journal: Journal) -> None:
    first = decide(journal, 1, once="night/1")
    second = decide(journal, 2, once="night/1", outcome="other")
    assert second == first
    assert journal.verify_decisions() == 1


def test_decide_by_eight_at_once_keeps_the_chain_whole(uri: str) -> None:
    def one(n: int) -> None:
        with Journal.open(uri) as mine:
            for m in range(4):
                decide(mine, n, once=f"{m}" if n % 2 else None)

    at_once(8, one)
    with Journal.open(uri) as journal:
        assert journal.verify_decisions() == 4 * 4 + 4


def rows_of(uri: str) -> list[dict[str, Any]]:
    engine = create_engine(uri.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.connect() as c:
            return [dict(r) for r in c.execute(text("SELECT * FROM decisions ORDER BY number")).mappings()]
    finally:
        engine.dispose()


def change(uri: str, statement: str, **values: Any) -> None:
    engine = create_engine(uri.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.begin() as c:
            assert c.execute(text(statement), values).rowcount == 1
    finally:
        engine.dispose()


def _other(value: Any) -> Any:
    if value is None:
        return "x"
    if isinstance(value, float):
        return value + 0.001
    return value[:-1] + ("0" if value[-1] != "0" else "1")


COLUMNS = ("at", "kind", "subject", "actor", "evidence", "reasons", "outcome", "once", "previous", "digest")


@pytest.mark.parametrize("column", COLUMNS)
def test_verify_decisions_with_any_column_changed_finds_it(uri: str, column: str) -> None:
    number = 2
    with Journal.open(uri) as journal:
        for n in range(3):
            decide(journal, n, once=f"name-{n}" if n else None)
    value = _other(rows_of(uri)[number - 1][column])
    change(uri, f"UPDATE decisions SET {column} = :value WHERE number = :number", value=value, number=number)
    with Journal.open(uri) as journal, pytest.raises(JournalError, match=rf"Decision {number} "):
        journal.verify_decisions()


def test_verify_decisions_with_a_space_put_into_json_finds_it(uri: str) -> None:
    with Journal.open(uri) as journal:
        decide(journal)
    evidence = rows_of(uri)[0]["evidence"].replace(":", ": ")
    assert json.loads(evidence) == {"n": 0, "half": 0.5}
    change(uri, "UPDATE decisions SET evidence = :value", value=evidence)
    with Journal.open(uri) as journal, pytest.raises(JournalError, match="Decision 1 "):
        journal.verify_decisions()


@given(data=st.data())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_verify_decisions_with_any_byte_changed_finds_it(journal: Journal, uri: str, data: st.DataObject) -> None:
    while journal.verify_decisions() < 3:
        decide(journal, 7)
    number = data.draw(st.integers(1, 3))
    column = data.draw(st.sampled_from(["kind", "subject", "actor", "evidence", "reasons", "outcome"]))
    before = rows_of(uri)[number - 1][column]
    at = data.draw(st.integers(0, len(before) - 1))
    put = data.draw(st.characters(min_codepoint=32, max_codepoint=126).filter(lambda c: c != before[at]))
    statement = f"UPDATE decisions SET {column} = :value WHERE number = :number"
    change(uri, statement, value=before[:at] + put + before[at + 1 :], number=number)
    try:
        with pytest.raises(JournalError, match=f"Decision {number} "):
            # what is no JSON any more is found too: the rows are verified as they are stored, not as they are read
            journal.verify_decisions()
    finally:
        change(uri, statement, value=before, number=number)
    assert journal.verify_decisions() == 3


@pytest.mark.parametrize("number", [1, 2])
def test_verify_decisions_with_a_row_removed_finds_it(uri: str, number: int) -> None:
    with Journal.open(uri) as journal:
        for n in range(3):
            decide(journal, n)
    change(uri, "DELETE FROM decisions WHERE number = :number", number=number)
    with Journal.open(uri) as journal, pytest.raises(JournalError, match=f"Decision {number + 1} "):
        journal.verify_decisions()


def test_verify_decisions_with_the_end_cut_off_is_found_by_a_head_noted_earlier(uri: str) -> None:
    with Journal.open(uri) as journal:
        head = [decide(journal, n) for n in range(3)][-1].digest
        assert journal.verify_decisions(head=head) == 3
        decide(journal, 3)
        assert journal.verify_decisions(head=head) == 4
    change(uri, "DELETE FROM decisions WHERE number = 4")
    change(uri, "DELETE FROM decisions WHERE number = 3")
    with Journal.open(uri) as journal:
        assert journal.verify_decisions() == 2
        with pytest.raises(JournalError, match="cut off"):
            journal.verify_decisions(head=head)


# -- spend, watermarks, test looks ------------------------------------------------------------------------------------


def test_spend_adds_up_by_what_it_was_for(journal: Journal) -> None:
    for n in range(3):
        journal.meter(key=KEY, what="pack", wall_s=1.0 + n, cpu_s=2.0, gpu_s=0.5)
    journal.meter(key=KEY, what="driver", wall_s=4.0, cpu_s=1.0)
    journal.meter(key="other", what="pack", wall_s=100.0, cpu_s=100.0)
    spent = journal.spend(KEY)
    assert (spent.wall_s, spent.cpu_s, spent.gpu_s) == (10.0, 7.0, 1.5)
    assert spent.by_what == {"driver": 4.0, "pack": 6.0}
    assert journal.spend("nobody").wall_s == 0


def test_advance_watermark_from_another_value_changes_nothing(journal: Journal) -> None:
    assert journal.watermark("digits") is None
    assert not journal.advance_watermark("digits", "3", "4")
    assert journal.advance_watermark("digits", None, "1")
    assert not journal.advance_watermark("digits", None, "2")
    assert not journal.advance_watermark("digits", "7", "2")
    assert journal.advance_watermark("digits", "1", "2")
    assert journal.watermark("digits") == "2"


def test_advance_watermark_by_eight_at_once_moves_it_one_by_one(uri: str) -> None:
    rounds = 12

    def one(_: int) -> list[int]:
        won = []
        with Journal.open(uri) as mine:
            for n in range(rounds):
                if mine.advance_watermark("nights", None if n == 0 else str(n), str(n + 1)):
                    won.append(n)
        return won

    won = [n for wins in at_once(8, one) for n in wins]
    assert sorted(won) == list(range(rounds))
    with Journal.open(uri) as journal:
        assert journal.watermark("nights") == str(rounds)


RACER = """
import sys
from tiltyard.journal import Journal
with Journal.open(sys.argv[1]) as journal:
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(25):
        if journal.advance_watermark("nights", None if n == 0 else str(n), str(n + 1)):
            print(n)
"""


def test_advance_watermark_by_four_processes_moves_it_one_by_one(uri: str) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        for _ in range(4)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        won = [int(n) for out, _ in (r.communicate("go\n", timeout=60) for r in racers) for n in out.split()]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    assert sorted(won) == list(range(25))


def test_record_test_look_counts_by_key_and_dataset(journal: Journal) -> None:
    assert journal.record_test_look(KEY, "digits", ["a"]) == 1
    assert journal.record_test_look(KEY, "digits", ["a", "b"]) == 2
    assert journal.record_test_look(KEY, "wine", ["a"]) == 1
    assert journal.record_test_look("other", "digits", ["a"]) == 1
    assert journal.record_test_look(KEY, "digits", ["a"], claim=claim(journal)) == 3

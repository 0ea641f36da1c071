"""One job a key and content, whoever asks, however often, and whatever becomes of the head meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray_head import RayHead, serving

from tiltyard.errors import KeyConflictError, SubmitError
from tiltyard.submit.clusters import Target
from tiltyard.submit.ending import cancel
from tiltyard.submit.following import follow
from tiltyard.submit.ray_jobs import ClusterAwayError, NoSuchJobError, RayJobs
from tiltyard.submit.request import Request
from tiltyard.submit.sending import Sent, pick, send

TOKEN = "the-token-of-the-cluster"
REQUEST = Request(key="work", content="c1", job_file="job.py", args=("1",), files={"job.py": "aa"}, env={"A": "b"})


@pytest.fixture
def head() -> RayHead:
    return RayHead(token=TOKEN)


@pytest.fixture
def url(head: RayHead, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # of another cluster: must not matter
    with serving(head) as address:
        yield address


@pytest.fixture
def package(tmp_path: Path) -> Path:
    path = tmp_path / "package.zip"
    path.write_bytes(b"PK\x05\x06" + bytes(18))  # an empty zip
    return path


def target(url: str, token: str | None = TOKEN) -> Target:
    return Target(name="lab", url=url, token=token, found_in="a test")


def sent(url: str, package: Path, request: Request = REQUEST, **more: object) -> Sent:
    return send(request, package, lambda: RayJobs(target(url)), pause=lambda _: None, **more)  # type: ignore[arg-type]


def test_send_twice_is_one_job_with_its_package_env_and_key(head: RayHead, url: str, package: Path) -> None:
    first = sent(url, package)
    second = sent(url, package)
    assert (first.started, second.started, first.job_id) == (True, False, second.job_id)
    (job,) = head.jobs.values()
    assert job["metadata"]["tiltyard.key"] == "work"
    assert job["entrypoint"] == "python -m tiltyard.submit.driver job.py 1"
    assert job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "120"
    assert job["runtime_env"]["env_vars"]["A"] == "b"
    assert len(head.packages) == 1


def test_send_with_other_content_is_refused_with_what_differs(head: RayHead, url: str, package: Path) -> None:
    sent(url, package)
    other = replace(REQUEST, content="c2", files={"job.py": "bb", "more.py": "cc"}, args=("2",))
    with pytest.raises(
        KeyConflictError, match=r"changed: job.py; added: more.py; command: was 'job.py 1', now 'job.py 2'"
    ):
        sent(url, package, other)
    assert len(head.jobs) == 1


@pytest.mark.parametrize("state", ["FAILED", "STOPPED"])
def test_send_after_an_attempt_that_failed_starts_the_next(head: RayHead, url: str, package: Path, state: str) -> None:
    head_id = sent(url, package).job_id
    head.end(head_id, state)
    again = sent(url, package)
    assert again.started
    assert (head_id[-2:], again.job_id[-2:]) == ("-1", "-2")


def test_send_after_success_finds_it_and_starts_another_only_when_asked(head: RayHead, url: str, package: Path) -> None:
    head.end(sent(url, package).job_id, "SUCCEEDED")
    assert sent(url, package).state == "SUCCEEDED"
    again = sent(url, package, again=True)
    assert again.started
    assert not sent(url, package, again=True).started, "what runs is not started again"
    assert len(head.jobs) == 2


def test_many_laptops_at_once_start_one_job(head: RayHead, url: str, package: Path) -> None:
    barrier = threading.Barrier(6)

    def wait(what: str) -> None:
        if what == "GET /api/jobs/":
            barrier.wait(timeout=60)  # all have looked before any submits
        elif what.startswith("POST"):
            head.before = lambda _: None  # those that come second look again

    head.before = wait
    results: list[Sent] = []
    errors: list[Exception] = []

    def laptop() -> None:
        try:
            results.append(sent(url, package))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=laptop) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=60)
    assert errors == []
    assert len(head.jobs) == 1
    assert sum(r.started for r in results) == 1
    assert len({r.job_id for r in results}) == 1


def test_head_that_takes_the_job_and_loses_the_answer_still_starts_one(head: RayHead, url: str, package: Path) -> None:
    lost = iter([False])
    head.after = lambda what: next(lost, True) if what.startswith("POST") else True
    told: list[str] = []
    result = sent(url, package, say=told.append)
    assert not result.started, "found, as if somebody else had sent it"
    assert len(head.jobs) == 1
    assert "Asking again" in told[0]


def test_head_that_restarts_between_package_and_job_is_sent_both_again(head: RayHead, url: str, package: Path) -> None:
    def restart(what: str) -> int | None:
        if what.startswith("POST"):
            head.before = lambda _: None
            head.forget()
            return 0
        return None

    head.before = restart
    assert sent(url, package).started
    assert len(head.jobs) == 1
    assert [r.split()[0] for r in head.requests].count("PUT") == 2


@pytest.mark.slow
@given(st.lists(st.sampled_from(["fine", "hangs up", "busy", "answer lost"]), max_size=12))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_goes_wrong_on_the_way_two_laptops_end_with_one_job(tmp_path: Path, faults: list[str]) -> None:
    package = tmp_path / "package.zip"
    package.write_bytes(b"PK\x05\x06" + bytes(18))
    head, left = RayHead(token=TOKEN), iter(faults)
    fault = "fine"

    def before(_: str) -> int | None:
        nonlocal fault
        fault = next(left, "fine")
        return {"hangs up": 0, "busy": 503}.get(fault)

    head.before, head.after = before, lambda _: fault != "answer lost"
    with serving(head) as url:
        results = [sent(url, package, patience_s=1e9) for _ in range(2)]
    assert len(head.jobs) == 1
    assert {r.job_id for r in results} == set(head.jobs)
    assert not results[1].started


@pytest.mark.parametrize("code", [0, 500, 503])
def test_head_that_stays_away_is_given_up_after_the_patience(head: RayHead, url: str, package: Path, code: int) -> None:
    head.before = lambda _: code
    now = iter(range(0, 10_000, 10))
    with pytest.raises(ClusterAwayError):
        sent(url, package, clock=lambda: float(next(now)), patience_s=60.0)
    assert len(head.requests) <= 8


@pytest.mark.parametrize(("token", "said"), [("wrong", "is not its token"), (None, "none was found")])
def test_wrong_or_missing_token_is_refused_at_once_and_never_shown(
    head: RayHead, url: str, package: Path, token: str | None, said: str
) -> None:
    with pytest.raises(SubmitError, match=said) as refused:
        send(REQUEST, package, lambda: RayJobs(target(url, token)))
    assert "kubectl get secret" in str(refused.value)
    assert len(head.requests) == 1
    assert TOKEN not in str(refused.value) + repr(target(url))
    assert "wrong" not in str(refused.value)


def test_token_of_this_machines_own_ray_is_not_sent_to_another_cluster(
    head: RayHead, url: str, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    with monkeypatch.context() as env:
        env.setenv("RAY_AUTH_MODE", "token")
        env.setenv("RAY_AUTH_TOKEN", "of-my-own-ray")
        AuthenticationTokenLoader.instance().reset_cache()
        with pytest.raises(SubmitError, match="none was found"):
            send(REQUEST, package, lambda: RayJobs(target(url, None)))
    AuthenticationTokenLoader.instance().reset_cache()
    assert head.headers
    assert "of-my-own-ray" not in str(head.headers)


def test_address_of_something_that_is_no_dashboard_is_refused(head: RayHead, url: str, package: Path) -> None:
    head.answer = lambda *_: (200, "<html>")  # type: ignore[method-assign]
    with pytest.raises(SubmitError, match=r"Wanted: port 8265|did not answer"):
        sent(url, package, patience_s=0.0)


def test_pick_finds_a_job_by_id_key_or_beginning_and_says_what_there_is(head: RayHead, url: str, package: Path) -> None:
    first = sent(url, package).job_id
    head.end(first, "FAILED")
    second = sent(url, package).job_id
    sent(url, package, replace(REQUEST, key="other"))
    jobs = RayJobs(target(url)).jobs()
    assert pick(jobs, "work").id == second
    assert pick(jobs, first).id == first
    assert pick(jobs, "oth").id.startswith("other-")
    with pytest.raises(SubmitError, match=r"There is no job 'none'. The newest: other-"):
        pick(jobs, "none")
    with pytest.raises(NoSuchJobError):
        RayJobs(target(url)).job("none-1")


def test_follow_writes_every_character_once_through_a_lost_connection(head: RayHead, url: str, package: Path) -> None:
    job_id = sent(url, package).job_id
    jobs = RayJobs(target(url))
    whole = "one\ntwo\nthree\n"
    tries = iter([["one\nt"], ["one\n", "two\nth"], None])

    class Flaky:
        job = staticmethod(jobs.job)

        def logs(self, _: str) -> str:
            return whole

        def tail(self, _: str) -> Iterator[str]:
            pieces = next(tries)
            if pieces is None:
                head.end(job_id, "SUCCEEDED")
                yield from (whole[:3], whole[3:])
                return
            yield from pieces
            raise ClusterAwayError("the connection was closed")

    written: list[str] = []
    ended = follow(Flaky(), job_id, written.append, pause=lambda _: None)
    assert "".join(written) == whole
    assert ended.state == "SUCCEEDED"
    written.clear()
    follow(Flaky(), job_id, written.append, pause=lambda _: None)
    assert "".join(written) == whole, "of a job that has ended the log is read at once"


def test_follow_gives_up_on_a_cluster_that_stays_away(head: RayHead, url: str, package: Path) -> None:
    job_id = sent(url, package).job_id
    jobs = RayJobs(target(url))
    head.before = lambda _: 0
    now = iter(range(0, 10_000, 25))
    with pytest.raises(SubmitError, match="tiltyard logs -f"):
        follow(jobs, job_id, print, clock=lambda: float(next(now)), pause=lambda _: None, patience_s=60.0)


def test_cancel_records_before_it_stops_and_ends_nothing_where_it_cannot(
    head: RayHead, url: str, package: Path
) -> None:
    job_id = sent(url, package).job_id
    jobs = RayJobs(target(url))

    def fails(_: float) -> None:
        for other, job in head.jobs.items():
            if other.startswith("cancel-") and job["status"] == "PENDING":
                head.end(other, "FAILED")

    with pytest.raises(SubmitError, match="The journal could not be told"):
        cancel(jobs, jobs.job(job_id), pause=fails)
    assert head.jobs[job_id]["status"] == "PENDING"
    order: list[str] = []

    def succeeds(_: float) -> None:
        for other, job in head.jobs.items():
            if other.startswith("cancel-") and job["status"] == "PENDING":
                order.append("stop" if any("/stop" in r for r in head.requests) else "record")
                head.end(other, "SUCCEEDED")

    done = cancel(jobs, jobs.job(job_id), pause=succeeds)
    assert (order, done.job.state, done.recorded) == (["record"], "STOPPED", True)
    assert f"--cancel {job_id}" in head.jobs[f"cancel-{job_id}-2"]["entrypoint"]
    assert not cancel(jobs, jobs.job(job_id)).was_running

"""One application on the session's Ray for all files of this folder; it ends with the last test of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiltyard.testing.served import Served, Stage, json_rows, make_stage, wait

HERE = Path(__file__).parent
_up: list[Served] = []


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A registry with three models."""
    return make_stage(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="module")
def served(stage: Stage, ray_session: None) -> Served:
    """The application that `serve/champion.py` builds, behind Serve's proxy."""
    if not _up:
        _up.append(_start(stage))
    return _up[0]


def _start(stage: Stage) -> Served:
    from tiltyard.local.ports import choose
    from tiltyard.serving.client import deploy
    from tiltyard.serving.deployment import app_from_args

    port = choose(["serve"], seed=str(stage.settings.home))["serve"]
    args = {
        "models": "s.small,s.price,s.own",
        "max_replicas": "2",
        "scale_up_s": "1",
        "record_s": "0.5",
        "auth": "off",
        "poll_s": "0.2",
        "rows": "5000",
        "body_bytes": "2000000",
        "read_s": "2",
    }
    handle = deploy(app_from_args(args, stage.settings), name="champions", http=True, port=port)
    served = Served(handle, f"http://127.0.0.1:{port}", stage)
    for model in ("s.price", "s.small", "s.own"):
        wait(lambda model=model: served.ask(f"/models/{model}")[0] == 200, 60)  # type: ignore[misc]
    for _ in range(20):  # what the scrape finds later
        assert served.ask("/models/s.price/predict", json_rows(stage.price.rows.slice(1, 5)))[0] == 200
    for _ in range(3):
        assert served.ask("/models/s.price/predict", b'{"rows": [{}]}')[0] == 422
    return served


@pytest.hookimpl(tryfirst=True)  # while the session still has its Ray
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ends the application where no test of this folder follows."""
    del item
    if _up and (nextitem is None or HERE not in nextitem.path.parents):
        from ray import serve

        _up.clear()
        serve.shutdown()  # type: ignore[no-untyped-call]

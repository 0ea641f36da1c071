"""Bearer tokens: shown once, kept as a hash, scoped, ending, taken back; wrong guesses are slowed down."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tiltyard.errors import ServingError
from tiltyard.serving.tokens import DAY_S, TokenStore, WrongGuesses


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_token_is_found_by_its_text_alone_and_never_written(tmp_path: Path) -> None:
    path = tmp_path / "home" / "tokens.json"
    store = TokenStore(path)
    text, token = store.create("laptop", models=["first-sweep.*"])
    assert store.find(text) == token
    assert TokenStore(path).find(text) == token
    assert text.rpartition("_")[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    ident, secret = text.split("_")[1:]
    for wrong in ("", "x", text[:-1], text + "0", f"tyt_{ident}_{'0' * 64}", f"tyt_{'0' * 12}_{secret}", text.upper()):
        assert store.find(wrong) is None


def test_token_opens_the_models_of_its_patterns_whatever_their_alias(tmp_path: Path) -> None:
    _, token = TokenStore(tmp_path / "t").create("x", models=["a.*", "b.one"])
    assert [token.opens(m) for m in ("a.x", "a.x@candidate", "b.one@3", "b.two", "aa.x")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_token_ends_and_is_revoked_for_every_reader(tmp_path: Path) -> None:
    clock = Clock()
    store, reader = (TokenStore(tmp_path / "t", clock=clock) for _ in range(2))
    short, _ = store.create("short", days=1)
    long, token = store.create("long", days=2)
    assert reader.find(short) is not None
    clock.now += DAY_S
    assert reader.find(short) is None
    assert reader.find(long) is not None
    first = store.revoke(token.id)
    assert reader.find(long) is None
    clock.now += 5
    assert store.revoke(token.id) == first
    assert [t.state(clock.now) for t in reader.tokens()] == ["expired", "revoked"]
    with pytest.raises(ServingError, match="no token 'nobody'"):
        store.revoke("nobody")


@pytest.mark.parametrize(
    ("name", "models", "days"), [("", ["*"], 1), ("x", [], 1), ("x", [""], 1), ("x", ["*"], 0), ("x", ["*"], 1e6)]
)
def test_token_that_would_open_nothing_or_never_end_is_refused(
    name: str, models: list[str], days: float, tmp_path: Path
) -> None:
    with pytest.raises(ServingError, match="wanted a name"):
        TokenStore(tmp_path / "t").create(name, models=models, days=days)
    assert not (tmp_path / "t").exists()


def test_store_without_a_file_has_no_tokens_and_makes_none(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "none" / "t")
    assert store.tokens() == []
    assert store.find("tyt_x") is None
    assert list(tmp_path.iterdir()) == []


def test_store_with_a_damaged_file_lets_nobody_in_and_says_so(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "t")
    text, _ = store.create("x")
    (tmp_path / "t").write_text("{")
    with pytest.raises(ServingError, match="Nobody is let in"):
        store.find(text)
    with pytest.raises(ServingError, match="cannot be read"):
        store.create("y")


def test_store_written_by_many_at_once_loses_no_token(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda i: TokenStore(tmp_path / "t").create(f"n{i}")[0], range(24)))
    store = TokenStore(tmp_path / "t")
    assert all(store.find(t) for t in texts)
    assert len(store.tokens()) == 24


def test_wrong_guesses_wait_after_ten_and_may_try_again_later() -> None:
    clock = Clock()
    guesses = WrongGuesses(clock=clock)
    assert [guesses.wait_s("a") for _ in range(10)] == [0.0] * 10
    assert guesses.wait_s("a") == 60.0
    assert guesses.wait_s("b") == 0.0
    clock.now += 59.5
    assert guesses.wait_s("a") == 1.0
    clock.now += 0.5
    assert guesses.wait_s("a") == 0.0

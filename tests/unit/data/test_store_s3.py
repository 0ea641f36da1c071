"""The store on S3: a real HTTP server (moto), conditional writes and all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tiltyard.data import deletion, upkeep
from tiltyard.data.compare import compare
from tiltyard.data.export import export
from tiltyard.data.store import DatasetStore
from tiltyard.data.verify import verify
from tiltyard.data.versions import DatasetSpec
from tiltyard.errors import DataError
from tiltyard.types import Task

SPEC = DatasetSpec(task=Task.MULTICLASS, label="y", key="id")


def table(start: int, stop: int) -> pa.Table:
    numbers = np.arange(start, stop)
    return pa.table({"id": numbers, "x": np.sin(numbers).astype(np.float32), "y": numbers % 3})


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, str]]:
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    given = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    import boto3  # type: ignore[import-untyped]

    client = boto3.client(
        "s3",
        endpoint_url=given["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket="bucket")
    yield given
    server.stop()


@pytest.mark.slow
def test_store_on_s3_commits_reads_and_knows_equal_content(options: dict[str, str], tmp_path: Path) -> None:
    store = DatasetStore("s3://bucket/data", options)
    first = store.commit("toy", table(0, 100), spec=SPEC)
    assert store.commit("toy", table(0, 100)).created is False
    store.append("toy", table(100, 130))
    fresh = DatasetStore("s3://bucket/data", options)
    assert fresh.names() == ["toy"]
    assert [v.num_rows for v in fresh.history("toy")] == [100, 130]
    assert fresh.resolve("toy@1") == first.version
    local = DatasetStore(str(tmp_path))
    twin = local.commit("toy", table(0, 100), spec=SPEC).version
    assert (twin.content_digest, twin.files_digest) == (first.version.content_digest, first.version.files_digest)
    assert fresh.read("toy@1").equals(local.read("toy@1"))


def test_source_on_s3_is_read_by_uri(options: dict[str, str]) -> None:
    store = DatasetStore("s3://bucket/data", options)
    with store.root.filesystem.open_output_stream("bucket/incoming/rows.parquet") as out:
        pq.write_table(table(0, 40), out)
    assert store.commit("from-uri", "s3://bucket/incoming/", spec=SPEC).version.num_rows == 40
    with pytest.raises(DataError, match="Nothing to read"):
        store.commit("from-uri", "s3://bucket/nothing.parquet")


@pytest.mark.slow
def test_appends_of_threads_to_s3_at_once_lose_nothing(options: dict[str, str]) -> None:
    DatasetStore("s3://bucket/data", options).commit("busy", table(0, 20), spec=SPEC)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            DatasetStore("s3://bucket/data", options).append("busy", table(100 * number, 100 * number + 10))
        except BaseException as error:  # shown below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    store = DatasetStore("s3://bucket/data", options)
    assert [v.num_rows for v in store.history("busy")] == [20, 30, 40, 50, 60]
    found = sorted(store.read("busy", columns=["id"])["id"].to_pylist())
    assert found == sorted([*range(20), *(100 * n + i for n in range(1, 5) for i in range(10))])


@pytest.mark.slow
def test_life_after_the_commit_on_s3_is_as_on_a_disk(options: dict[str, str], tmp_path: Path) -> None:
    store = DatasetStore("s3://bucket/life", options)
    for stop in (20, 30, 40, 50):
        store.commit("toy", table(0, stop), spec=SPEC)
    upkeep.tag(store, "toy@2", "gold")
    upkeep.pin(store, "toy@3", reason="paper")
    assert verify(store, "toy").findings == ()
    assert upkeep.gc(store, "toy", others={}).removed == (1,)
    assert upkeep.gc(store, "toy", others={}, yes=True).removed == (1,)
    with pytest.raises(DataError, match="toy@1 was removed"):
        store.resolve("toy@1")
    done = deletion.delete(store, "toy", ["7"], models={})
    assert done.successors == {2: 5, 3: 6, 4: 7}
    fresh = DatasetStore("s3://bucket/life", options)
    assert [v.num_rows for v in fresh.history("toy")] == [29, 39, 49]
    assert fresh.resolve("toy@gold").version == 5
    place = fresh.root / "toy"
    left = {f.path.removeprefix("bucket/life/toy/") for f in place.files()}
    records = {f"versions/{n:08d}.{kind}" for n in (5, 6, 7) for kind in ("json", "md", "seal")}
    assert {p for p in left if p.startswith("versions/")} == records
    assert {p.removeprefix("table/") for p in left if p.endswith(".parquet")} == {
        f.path for v in fresh.history("toy") for f in v.files
    }
    assert compare(fresh, "toy@5", "toy@7").rows.added == 20
    assert export(fresh, "toy", str(tmp_path / "out"))[0].num_rows == 49
    assert verify(fresh, "toy").findings == ()
    file = place / "table" / fresh.resolve("toy").files[0].path
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    (finding,) = verify(fresh, "toy").findings
    assert (finding.ref, finding.path) == ("toy@7", f"table/{fresh.resolve('toy').files[0].path}")


def test_place_of_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(DataError, match=r"gs://.*Wanted a local folder or s3://"):
        DatasetStore("gs://bucket/data")


def test_bucket_that_is_missing_is_named(options: dict[str, str]) -> None:
    store = DatasetStore("s3://no-such-bucket/data", options)
    with pytest.raises(DataError, match=r"no bucket 'no-such-bucket'.*AWS_ENDPOINT_URL"):
        store.newest()
    with pytest.raises(DataError, match=r"NoSuchBucket"):
        store.commit("toy", table(0, 10), spec=SPEC)


class _Refusing(BaseHTTPRequestHandler):
    """S3 as it answers keys that it does not know."""

    def _refuse(self) -> None:
        body = b'<?xml version="1.0"?><Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message></Error>'
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _refuse  # noqa: N815 - the base class's names

    def log_message(self, *_: object) -> None: ...


def test_keys_that_s3_does_not_know_are_told_with_what_to_look_at(options: dict[str, str]) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        refused = {**options, "AWS_ENDPOINT_URL": address, "AWS_SECRET_ACCESS_KEY": "not-to-be-told"}
        store = DatasetStore("s3://bucket/data", refused)
        for ask in (
            store.newest,
            lambda: store.resolve("toy@gold"),
            lambda: store.commit("toy", table(0, 10), spec=SPEC),
            lambda: store.commit("toy", "s3://bucket/rows.csv", spec=SPEC),
        ):
            with pytest.raises(DataError, match=r"(?i)(key|denied|privileges).*credentials") as caught:
                ask()
            assert len(str(caught.value).splitlines()) == 1
            assert "not-to-be-told" not in str(caught.value)
    finally:
        server.shutdown()
        server.server_close()


def test_sources_on_s3_are_globs_and_pictures_too(options: dict[str, str], tmp_path: Path) -> None:
    from PIL import Image

    store = DatasetStore("s3://bucket/from-s3", options)
    remote = store.root.filesystem
    for day in ("01", "02", "03"):
        with remote.open_output_stream(f"bucket/days/2026/{day}.csv") as sink:
            sink.write(f"day,x\n{day},1.5\n".encode())
    for name, tone in (("dark/a.png", 3), ("dark/b.png", 5), ("light/c.png", 250)):
        Image.new("L", (2, 2), tone).save(tmp_path / "one.png")
        with remote.open_output_stream(f"bucket/tones/{name}") as sink:
            sink.write((tmp_path / "one.png").read_bytes())
    found = {
        source: store.commit(f"d{i}", source).version.num_rows
        for i, source in enumerate(
            (
                "s3://bucket/days",
                "s3://bucket/days/*/0[12].csv",
                "s3://bucket/days/**/*.csv",
                "s3://bucket/days/2026/03.csv",
            )
        )
    }
    assert list(found.values()) == [3, 2, 3, 1]
    tones = store.read(store.commit("tones", "s3://bucket/tones").version, columns=["label", "path"])
    assert sorted(tones.to_pylist(), key=str) == [
        {"label": "dark", "path": "dark/a.png"},
        {"label": "dark", "path": "dark/b.png"},
        {"label": "light", "path": "light/c.png"},
    ]
    with pytest.raises(DataError, match="Nothing to read"):
        store.commit("none", "s3://bucket/days/*.csv")

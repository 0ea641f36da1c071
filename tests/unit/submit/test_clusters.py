"""Which cluster is meant and with what token: found, refused where others can read it, never shown."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import pytest

from tiltyard.errors import SubmitError
from tiltyard.local import state
from tiltyard.local.state import Cluster, ProcessId, Service
from tiltyard.settings import Settings
from tiltyard.submit.clusters import Target, find_target

URL = "https://ray.lab.example"


def no_kubectl(args: Sequence[str]) -> str:
    raise AssertionError(f"kubectl {args}")


class Laptop:
    """A home, its clusters file and its environment."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {"HOME": str(home), "TILTYARD_HOME": str(home / "tiltyard")}

    def clusters(self, text: str) -> None:
        folder = self.home / ".config" / "tiltyard"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "clusters.toml").write_text(text)

    def token(self, name: str, text: str, mode: int = 0o600) -> Path:
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def target(self, **more: object) -> Target:
        return find_target(Settings.from_env(self.env), env=self.env, **{"kubectl": no_kubectl, **more})  # type: ignore[arg-type]


@pytest.fixture
def laptop(tmp_path: Path) -> Laptop:
    return Laptop(tmp_path)


def test_address_and_token_of_the_environment_are_enough(laptop: Laptop) -> None:
    laptop.env |= {"TILTYARD_CLUSTER_URL": f"{URL}/", "RAY_AUTH_TOKEN": "s3cret\n"}
    found = laptop.target()
    assert (found.url, found.token, found.name) == (URL, "s3cret", "ray.lab.example")
    assert "s3cret" not in repr(found) + str(found)


def test_the_only_cluster_of_the_file_is_meant_and_of_several_one_must_be_named(laptop: Laptop) -> None:
    laptop.token("lab.token", "t1")
    laptop.clusters(f'[lab]\nurl = "{URL}"\ntoken_file = "{laptop.home}/lab.token"\n')
    assert (laptop.target().name, laptop.target().token) == ("lab", "t1")
    laptop.clusters(f'[lab]\nurl = "{URL}"\n[night]\nurl = "http://10.0.0.1:8265"\n')
    with pytest.raises(SubmitError, match=r"Which cluster.*lab, night"):
        laptop.target()
    assert laptop.target(cluster="night").is_plain
    with pytest.raises(SubmitError, match=r"no cluster 'day'.*lab, night"):
        laptop.target(cluster="day")


def test_token_of_a_secret_is_read_with_kubectl_and_its_context(laptop: Laptop) -> None:
    laptop.clusters(f'[lab]\nurl="{URL}"\nsecret="ray-token"\nnamespace="ns"\ncontext="c"\n')
    asked: list[Sequence[str]] = []

    def kubectl(args: Sequence[str]) -> str:
        asked.append(args)
        return base64.b64encode(b"from-kubernetes").decode()

    assert laptop.target(kubectl=kubectl).token == "from-kubernetes"
    assert asked == [
        ["--context=c", "--namespace=ns", "get", "secret", "ray-token", "-o", "jsonpath={.data.auth_token}"]
    ]
    with pytest.raises(SubmitError, match="has no key auth_token"):
        laptop.target(kubectl=lambda _: "")
    laptop.env["RAY_AUTH_TOKEN"] = "mine"
    assert laptop.target().token == "mine"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_token_file_that_others_can_read_is_refused(laptop: Laptop, mode: int) -> None:
    path = laptop.token("lab.token", "s3cret", mode)
    laptop.clusters(f'[lab]\nurl="{URL}"\ntoken_file="{path}"\n')
    with pytest.raises(SubmitError, match=rf"mode {mode:04o}.*chmod 600") as refused:
        laptop.target()
    assert "s3cret" not in str(refused.value)
    laptop.env["RAY_AUTH_TOKEN_PATH"] = str(path)
    with pytest.raises(SubmitError, match="chmod 600"):
        laptop.target(address=URL)


def test_rays_own_token_file_is_the_last_that_is_looked_at(laptop: Laptop) -> None:
    assert laptop.target(address=URL).token is None
    laptop.token(".ray/auth_token", "rays")
    assert laptop.target(address=URL).token == "rays"
    laptop.env["RAY_AUTH_TOKEN_PATH"] = str(laptop.token("x", " \n"))
    with pytest.raises(SubmitError, match="is empty"):
        laptop.target(address=URL)


def test_cluster_of_tiltyard_up_is_used_with_its_own_token(laptop: Laptop) -> None:
    with pytest.raises(SubmitError, match="No cluster is named and nothing is up here"):
        laptop.target()
    with pytest.raises(SubmitError, match="Nothing is up"):
        laptop.target(cluster="up")
    token = laptop.token("up.token", "ups")
    service = Service(name="ray", url="http://127.0.0.1:23456", process=ProcessId(pid=1, started=1.0), log="x")
    up = Cluster(id="1", home="h", ready=True, started_at="", token_path=str(token), temp_dir="", services=(service,))
    state.write(Settings.from_env(laptop.env).cluster_state, up)
    laptop.env["RAY_AUTH_TOKEN"] = "of another cluster"
    found = laptop.target()
    assert (found.name, found.url, found.token, found.is_plain) == ("up", "http://127.0.0.1:23456", "ups", False)
    assert laptop.target(address="http://127.0.0.1:23456/").token == "ups"
    assert laptop.target(address=URL).token == "of another cluster"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ('[lab]\nurl="ray://x:10001"\n', "Wanted: the URL of the Ray dashboard"),
        ('[lab]\nurl="https://ann:pw@x"\n', "holds a password"),
        ('[lab]\nurl="https://x"\ntoken="s"\n', "has 'token'.*name its file"),
        ("[lab\n", "cannot be read"),
        ('[lab]\nurl="https://x"\ntoken_file="/none"\n', "cannot be read"),
        ("[lab]\n", "Wanted: the URL"),
    ],
)
def test_clusters_file_that_cannot_be_right_is_refused(laptop: Laptop, file: str, said: str) -> None:
    laptop.clusters(file)
    with pytest.raises(SubmitError, match=said) as refused:
        laptop.target()
    assert "pw@" not in str(refused.value)


def test_two_addresses_are_refused(laptop: Laptop) -> None:
    with pytest.raises(SubmitError, match="two clusters"):
        laptop.target(address=URL, cluster="lab")

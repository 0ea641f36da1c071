"""What of a working directory travels: git's rules, the limit, links, secrets, and the same bytes each time."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.errors import SubmitError
from tiltyard.submit.packing import different, pack
from tiltyard.submit.private_files import private_because


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(root: Path) -> list[str]:
    return [f.name for f in pack(root).files]


TREES = {
    "rules of each folder": {
        ".gitignore": "*.log\n/data/\n!keep.log\nbuild/\n",
        "a.py": "1", "x.log": "", "keep.log": "", "data/big.csv": "", "sub/data/small.csv": "", "build/o.txt": "",
        "sub/build/o.txt": "", "sub/.gitignore": "!*.log\n*.tmp\n", "sub/y.log": "", "sub/z.tmp": "", "z.tmp": "",
    },
    "a kept file in an ignored folder stays ignored": {
        ".gitignore": "out/\n!out/wanted.txt\n", "out/wanted.txt": "", "b.py": "",
    },
    "stars, ranges and spaces": {
        ".gitignore": "**/cache\nfoo[0-9].txt\nname\\ .txt\n# comment\nq?.dat\nlogs/**/debug.txt\n",
        "c/cache/x": "", "foo1.txt": "", "fooa.txt": "", "qa.dat": "", "qaa.dat": "", "logs/a/b/debug.txt": "",
        "logs/keep.txt": "",
    },
}  # fmt: skip


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
@pytest.mark.skipif(shutil.which("git") is None, reason="needs git to compare with")
def test_pack_of_a_tree_takes_what_git_would(tree: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, **tree)
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True, env=env)
    said = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=tmp_path, check=True, env=env, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert names(tmp_path) == sorted(filter(None, said.split("\0")))


def test_pack_leaves_out_homes_environments_and_what_tiltyardignore_names(tmp_path: Path) -> None:
    write(tmp_path, **{"job.py": "", ".venv/bin/python": "", "pkg/__pycache__/a.pyc": "", "house/journal.db": "",
                       "notes/draft.md": "", ".tiltyardignore": "notes/\n", ".git/config": "secret"})  # fmt: skip
    package = pack(tmp_path, home=tmp_path / "house")
    assert [f.name for f in package.files] == [".tiltyardignore", "job.py"]


def test_pack_above_the_limit_is_refused_with_the_largest_files(tmp_path: Path) -> None:
    write(tmp_path, **{"job.py": "x", "model.bin": "b" * 3000, "sub/rows.csv": "r" * 2000})
    with pytest.raises(
        SubmitError, match=r"3 files of 4.9 KiB .* at most 4.0 KiB .* model.bin \(2.9 KiB\), sub/rows.csv"
    ):
        pack(tmp_path, limit_bytes=4096)
    assert len(pack(tmp_path, limit_bytes=5001).files) == 3


@pytest.mark.parametrize(
    "name",
    [".env", ".env.production", "conf/prod.env", "id_ed25519", "certs/server.key", ".netrc", "x/.aws/config",
     "kubeconfig", "lab.token", "auth_token", "credentials.json"],
)  # fmt: skip
def test_pack_with_a_file_named_like_a_secret_is_refused_unless_carried(name: str, tmp_path: Path) -> None:
    write(tmp_path, **{"job.py": "", name: "TOP-SECRET-VALUE"})
    with pytest.raises(SubmitError, match="looks like a secret") as refused:
        pack(tmp_path)
    assert name in str(refused.value)
    assert "TOP-SECRET-VALUE" not in str(refused.value)
    assert len(pack(tmp_path, carry=[name]).files) == 2
    (tmp_path / ".gitignore").write_text(f"/{name}\n")
    assert names(tmp_path) == [".gitignore", "job.py"]


@pytest.mark.parametrize(
    "text",
    ["key = 'AKIA" + "A" * 16 + "'", "ghp_" + "a" * 36, "hf_" + "b" * 34, "glpat-" + "c" * 20,
     "-----BEGIN RSA PRIVATE " + "KEY-----\n" + "A" * 64],
)  # fmt: skip
def test_a_file_with_a_known_token_in_it_is_private(text: str) -> None:
    assert private_because("notes.py", text.encode()) is not None


@pytest.mark.parametrize(
    ("name", "text"),
    [("tokens.py", "def token(): ..."), ("keys.md", "ssh-rsa AAAA"), (".env.example", "A="), ("environment.yaml", ""),
     ("ca.pem", "-----BEGIN CERTIFICATE-----"), ("monkey.py", ""), ("tokenizer.json", "{}")],
)  # fmt: skip
def test_a_harmless_file_is_not_private(name: str, text: str) -> None:
    assert private_because(name, text.encode()) is None


def test_a_link_outside_is_refused_and_one_inside_travels_as_a_file(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, **{"a.py": "1"})
    (root / "b.py").symlink_to(root / "a.py")
    (root / "again").symlink_to(root)
    assert names(root) == ["a.py", "b.py"]
    write(tmp_path, **{"outside.py": "2"})
    (root / "c.py").symlink_to(tmp_path / "outside.py")
    with pytest.raises(SubmitError, match=r"c.py is a link to .*outside"):
        pack(root)


def test_an_empty_folder_and_a_wrong_carry_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SubmitError, match="Nothing travels"):
        pack(tmp_path)
    write(tmp_path, **{"a.py": ""})
    with pytest.raises(SubmitError, match="no such file travels"):
        pack(tmp_path, carry=["b.env"])


def test_zip_of_the_same_files_is_the_same_bytes_whenever_they_were_touched(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(tmp_path / folder, **{"b/c.py": "3", "a.py": "1", "run.sh": "echo"})
        (tmp_path / folder / "run.sh").chmod(0o755)
    os.utime(tmp_path / "two" / "a.py", (1e9, 1e9))
    packages = [pack(tmp_path / folder) for folder in ("one", "two")]
    zips = [p.write_zip(tmp_path / f"{i}.zip").read_bytes() for i, p in enumerate(packages)]
    assert zips[0] == zips[1]
    assert packages[0].digest == packages[1].digest
    with zipfile.ZipFile(tmp_path / "0.zip") as archive:
        assert archive.namelist() == ["a.py", "b/c.py", "run.sh"]
        assert archive.getinfo("run.sh").external_attr >> 16 & 0o111


def test_digest_of_a_package_changes_with_content_name_and_executable_bit(tmp_path: Path) -> None:
    write(tmp_path, **{"a.py": "1"})
    seen = [pack(tmp_path).digest]
    (tmp_path / "a.py").write_text("2")
    seen.append(pack(tmp_path).digest)
    (tmp_path / "a.py").chmod(0o755)
    seen.append(pack(tmp_path).digest)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    seen.append(pack(tmp_path).digest)
    assert len(set(seen)) == 4


def test_zip_of_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    write(tmp_path, **{"a.py": "1"})
    package = pack(tmp_path)
    (tmp_path / "a.py").write_text("2")
    with pytest.raises(SubmitError, match="changed while it was packed"):
        package.write_zip(tmp_path / "x.zip")


FILES = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("123"))


@given(FILES, FILES)
@settings(max_examples=60)
def test_different_is_empty_exactly_where_nothing_differs(before: dict[str, str], now: dict[str, str]) -> None:
    assert (different(before, now) == []) == (before == now)

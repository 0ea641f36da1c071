"""The images of a cluster: pinned to the versions of constraints.txt, not root, and with a compiler only where it is needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "cluster" / "Dockerfile"
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) in order, continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions by the name of their stage."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            found[rest.split(" AS ")[1]] = [(name, rest)]
        elif found:
            list(found.values())[-1].append((name, rest))
    return found


def ancestors(stage: str) -> list[tuple[str, str]]:
    """Everything that a stage runs, with the stages below it."""
    body = stages()[stage]
    parent = body[0][1].split(" AS ")[0]
    return (ancestors(parent) if parent in stages() else []) + body


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_versions_of_an_image_are_those_of_the_constraints(target: str) -> None:
    named = dict(rest.split("=") for name, rest in stages()[target] if name == "ARG")
    assert set(named) == {"RAY", "TORCH", "MLFLOW"}
    for name, version in named.items():
        assert version == PINS[name.lower()], (
            f"cluster/Dockerfile ({target}) and constraints.txt differ in {name.lower()}"
        )
    checked = " ".join(rest for name, rest in stages()[target] if name == "RUN")
    assert "${RAY}" in checked, "the image looks at what was installed"
    assert "${TORCH}" in checked
    installs = [rest for name, rest in ancestors(f"installed-{target}") if name == "RUN" and " install " in rest]
    packages = [rest for rest in installs if rest.startswith("uv pip install")]
    assert len(packages) == 1
    assert "-c /build/constraints.txt" in packages[0]
    assert "boto3" in PINS, "what the image adds is pinned too"
    assert "uv==${UV}" in " ".join(installs)


def test_bases_are_pinned() -> None:
    args = dict(rest.split("=") for name, rest in instructions() if name == "ARG")
    assert re.fullmatch(r"3\.\d+\.\d+-slim-\w+", args["PYTHON"])
    assert "latest" not in DOCKERFILE.read_text()


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_image_does_not_run_as_root_and_has_a_compiler_only_for_gpus(target: str) -> None:
    body = ancestors(target)
    assert body[-1] == ("USER", "1000:100")
    installed = " ".join(rest for name, rest in body if name == "RUN")
    assert ("gcc" in installed) == (target == "gpu")
    assert "wget" in installed, "KubeRay's probes need it"


def test_context_of_the_images_leaves_everything_else_out() -> None:
    ignored = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    named = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        source
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
        if not source.startswith("--")
    }
    assert copied == named
    assert all((ROOT / name).exists() for name in copied)

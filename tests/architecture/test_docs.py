"""What the READMEs say is true: links lead somewhere, Python runs, commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tiltyard.cli import COMMANDS, load

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tiltyard"
READMES = [
    p
    for p in [*ROOT.glob("*.md"), *(p for folder in ("src", "jobs", "serve", "tests", "cluster", "dashboards")
                                    for p in (ROOT / folder).rglob("*.md"))]
    if "egg-info" not in p.as_posix()
]  # fmt: skip
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^(<!-- not run: [^\n]+ -->\n)?```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("readme", READMES, ids=relative)
def test_links_of_a_readme_lead_somewhere(readme: Path) -> None:
    targets = [a or b for a, b in LINK.findall(readme.read_text())]
    local = [t.partition("#")[0] for t in targets if "://" not in t and not t.startswith(("#", "mailto:"))]
    broken = [t for t in local if not (readme.parent / t).exists()]
    assert not broken, f"{relative(readme)} links to {broken}, which are not there"


def python_blocks() -> list[tuple[str, str]]:
    return [
        (f"{relative(readme)}#{n}", code)
        for readme in READMES
        for n, (not_run, language, code) in enumerate(BLOCK.findall(readme.read_text()))
        if language == "python" and not not_run
    ]


@pytest.mark.slow
def test_python_blocks_of_the_readmes_run_as_they_stand(tmp_path: Path) -> None:
    for n, (where, code) in enumerate(python_blocks()):
        (tmp_path / f"block{n}.py").write_text(code)
        done = subprocess.run(
            [sys.executable, f"block{n}.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, (
            f"{where} does not run. Mend it, or put the reason above it: <!-- not run: ... -->\n{done.stderr}"
        )


@pytest.mark.parametrize("readme", READMES, ids=relative)
def test_commands_of_a_readme_exist(readme: Path) -> None:
    text = readme.read_text()
    shell = "\n".join(code for _, language, code in BLOCK.findall(text) if language in {"", "sh", "bash", "console"})
    inline = "\n".join(re.findall(r"`([^`\n]+)`", text))
    told = shell + "\n" + inline
    commands = set(re.findall(r"(?:^|[\s/])tiltyard ([a-z][a-z-]*)\b", told, re.MULTILINE))
    assert not (unknown := commands - set(COMMANDS)), f"{relative(readme)} names tiltyard {sorted(unknown)}"
    targets = set(re.findall(r"\bmake ([a-z][a-z-]*)\b", told))
    known = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert not (unknown := targets - known), f"{relative(readme)} names make {sorted(unknown)}"
    jobs = set(re.findall(r"\b((?:jobs|serve)/[\w/]+\.py)\b", told))
    absent = sorted(j for j in jobs if not (ROOT / j).exists())
    assert not absent, f"{relative(readme)} names {absent}"


def test_commands_that_messages_name_exist() -> None:
    groups = {name: getattr(load(entry), "commands", {}) for name, entry in COMMANDS.items()}
    wrong = []
    for path in SOURCE.rglob("*.py"):
        for noun, verb in re.findall(r"\btiltyard ([a-z]+)(?: ([a-z]+(?:-[a-z]+)*)\b)?", path.read_text()):
            if noun in groups and groups[noun] and verb and verb not in groups[noun]:
                wrong.append(f"{path.relative_to(SOURCE)}: tiltyard {noun} {verb}")
    assert not wrong, f"a message sends people to a command that is not there: {wrong}"


@pytest.mark.parametrize("package", sorted(p.parent for p in SOURCE.glob("*/__init__.py")), ids=lambda p: p.name)
def test_every_package_opens_with_a_readme_of_a_screen(package: Path) -> None:
    readme = package / "README.md"
    assert readme.exists(), f"{relative(package)} has no README.md: what lives here, what does not, how to add one more"
    assert len(readme.read_text().splitlines()) <= 60, f"{relative(readme)} is longer than a screen"

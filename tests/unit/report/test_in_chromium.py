"""The report as a browser shows it: no error in the console, nothing wider than the window, light, dark and paper, readable."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import recorded_sweep
from chromium import Tab, chromium

from tiltyard.report.html import report

pytestmark = [pytest.mark.chromium, pytest.mark.slow]

CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = colours => {
    canvas.clearRect(0, 0, 1, 1);
    for (const c of colours) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); }
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = data => {
    const part = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * part(data[0]) + 0.7152 * part(data[1]) + 0.0722 * part(data[2]);
  };
  const behind = e => e ? [...behind(e.parentElement), getComputedStyle(e).backgroundColor] : [];
  const faint = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('svg') || e.closest('details:not([open])')) continue;
    const ground = behind(e), a = light(rgb(ground)), b = light(rgb([...ground, getComputedStyle(e).color]));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.push([e.tagName, e.className, e.textContent.trim().slice(0, 30), ratio]);
  }
  return faint;
})()
"""
"""Texts whose contrast with what lies behind them is below 4.5, the least of WCAG 2.1 AA (1.4.3)."""
UNNAMED = """
[...document.querySelectorAll('figure, table, section, nav, [role=img], [role=region]')]
  .filter(e => e.tagName === 'FIGURE' ? !e.querySelector('[role=img]')
    : e.tagName === 'TABLE' ? !e.querySelector('th') && !e.closest('details')
    : !(e.getAttribute('aria-label') || '').trim())
  .map(e => e.outerHTML.slice(0, 100))
"""
"""What a screen reader could only call a picture, a table or a part of the page."""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    program = shutil.which("chromium")
    if program is None:
        missing = "Debian's chromium is not installed: apt-get install chromium"
        if os.environ.get("TILTYARD_PARTS_REQUIRED") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    with chromium(program, tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    recorded = recorded_sweep.record(
        folder, trials=90, datasets=["rings", "moons", "a-dataset-with-a-rather-long-name"]
    )
    recorded_sweep.evaluate_champion(recorded, versions=8)
    path = folder / "report.html"
    path.write_text(report(recorded.settings)[1])
    return path


def found_wrong(tab: Tab, width: int) -> dict[str, Any]:
    return {
        "complaints": tab.complaints,
        "wider than the window": max(0, tab.value("document.documentElement.scrollWidth") - width),
        "too faint": tab.value(CONTRAST),
        "without a name": tab.value(UNNAMED),
    }


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light"), (390, "dark")])
def test_report_in_a_browser_fits_the_window_and_can_be_read(tab: Tab, page: Path, width: int, scheme: str) -> None:
    tab.window(width, scheme)
    tab.open(page)
    tab.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    wrong = found_wrong(tab, width)
    assert wrong == {"complaints": [], "wider than the window": 0, "too faint": [], "without a name": []}
    inside_figures = (
        "[...document.querySelectorAll('figure svg')].every(s => s.getBoundingClientRect().width > 200 && "
        f"s.getBoundingClientRect().right <= {width})"
    )
    assert tab.value(inside_figures) is True
    bars = "[...document.querySelectorAll('.wide-values .bar')].map(b => Math.round(b.getBoundingClientRect().width))"
    assert len(set(tab.value(bars))) == 1, "bars of one scale are of one length"
    light = tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")
    assert tab.value("[...document.querySelectorAll('svg path')].every(p => !p.getAttribute('style')?.includes('fe0'))")


def test_report_in_print_is_dark_on_white_in_any_scheme(tab: Tab, page: Path) -> None:
    tab.window(800, "dark", medium="print")
    tab.open(page)
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.value("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert tab.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert tab.value(CONTRAST) == []

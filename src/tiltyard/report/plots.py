"""Plots as SVG to stand inside a page: text stays text, colours are the page's own, so that dark and print follow it.

Every plot is drawn at the width of a phone and grows with the column it stands in. Matplotlib draws; what it writes is
cleaned of what a page does not need, and its colours are replaced by CSS variables (``--s0`` ... of the series, ``--q0``
... of a scale from worse to better, ``--ink``, ``--faint``).
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_PT, HEIGHT_PT = 360.0, 230.0
SERIES = 8
SCALE = 6
_INK, _FAINT = "#01fe01", "#01fe02"
_SERIES = tuple(f"#02fe{i:02x}" for i in range(SERIES))
_QUANTILES = tuple(f"#03fe{i:02x}" for i in range(SCALE))
_VARIABLES = (
    {_INK: "var(--ink)", _FAINT: "var(--faint)"}
    | {c: f"var(--s{i})" for i, c in enumerate(_SERIES)}
    | {c: f"var(--q{i})" for i, c in enumerate(_QUANTILES)}
)
_COLOUR = re.compile("|".join(_VARIABLES))
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "figure.edgecolor": "none",
    "text.color": _INK,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "path.simplify": True,
    "text.parse_math": False,  # a user's "$" is a dollar
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One trial's line: epochs and scores; ``series`` colours it, None leaves it in the background."""

    epochs: Sequence[int]
    scores: Sequence[float]
    stopped: bool = False
    series: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A parameter of some trials: where each value lies between 0 and 1, and what stands at which height."""

    name: str
    at: Sequence[float]
    ticks: Sequence[tuple[float, str]]
    log: bool = False


def series_of(index: int) -> str:
    """The CSS variable of a series."""
    return f"var(--s{index % SERIES})"


def curves(name: str, lines: Sequence[Curve], *, rungs: Sequence[int], metric: str) -> str:
    """Learning curves; a dot where a trial was stopped, a dotted line at each rung but the last."""
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import MaxNLocator

    with _drawing(name) as drawing:
        axes = drawing.axes()
        faint = [line for line in lines if line.series is None]
        axes.add_collection(
            LineCollection(
                [list(zip(c.epochs, c.scores, strict=True)) for c in faint], colors=_FAINT, linewidths=0.6, alpha=0.55
            )
        )
        ends = [(c.epochs[-1], c.scores[-1]) for c in faint if c.stopped]
        if ends:
            axes.plot(*zip(*ends, strict=True), ".", color=_FAINT, markersize=3)
        for c in lines:
            if c.series is not None:
                marker = "." if len(c.epochs) == 1 else None
                colour = _SERIES[c.series % SERIES]
                axes.plot(c.epochs, c.scores, marker=marker, ls="-", color=colour, lw=1.6)
        for rung in rungs[:-1]:
            axes.axvline(rung, color=_FAINT, lw=0.8, ls=":")
        low, high = _middle(
            [s for c in lines for s in c.scores], [s for c in lines if c.series is not None for s in c.scores]
        )
        axes.set_ylim(low, high)
        axes.set_xlim(left=0, right=max((c.epochs[-1] for c in lines), default=1) * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_title(f"{metric}, validation", loc="left")
        return drawing.svg()


def slices(name: str, axes_of: Sequence[Axis], standing: Sequence[float], series: Sequence[int]) -> str:
    """One panel a parameter: each trial's standing over its value, coloured by series."""
    with _drawing(name, height=150 * math.ceil(len(axes_of) / 2)) as drawing:
        panels = drawing.grid(len(axes_of), columns=2)
        for i, (panel, axis) in enumerate(zip(panels, axes_of, strict=True)):
            for which in sorted(set(series)):
                points = [(x, y) for x, y, s in zip(axis.at, standing, series, strict=True) if s == which]
                panel.plot(*zip(*points, strict=True), ".", color=_SERIES[which % SERIES], markersize=3.2, alpha=0.75)
            panel.set_title(axis.name + (" (log)" if axis.log else ""), loc="left")
            panel.set_xlim(-0.04, 1.04)
            panel.set_ylim(-0.04, 1.04)
            panel.set_xticks([at for at, _ in axis.ticks], [text for _, text in axis.ticks], fontsize=7)
            panel.set_yticks([0, 0.5, 1], ["worst", "", "best"] if i % 2 == 0 else ["", "", ""])
        return drawing.svg()


def parallel(name: str, axes_of: Sequence[Axis], standing: Sequence[float]) -> str:
    """Parallel coordinates: one line a trial over its parameters to its standing, the better the stronger."""
    from matplotlib.collections import LineCollection

    last = Axis(name="standing", at=standing, ticks=((0, "worst"), (1, "best")))
    every = [*axes_of, last]
    order = sorted(range(len(standing)), key=lambda i: standing[i])
    with _drawing(name) as drawing:
        axes = drawing.axes()
        lines = [[(x, axis.at[i]) for x, axis in enumerate(every)] for i in order]
        colours = [_QUANTILES[min(SCALE - 1, int(standing[i] * SCALE))] for i in order]
        axes.add_collection(LineCollection(lines, colors=colours, linewidths=[0.5 + 0.9 * standing[i] for i in order]))
        axes.set_xlim(-0.3, len(every) - 0.7)
        axes.set_ylim(-0.06, 1.06)
        axes.axis("off")
        for x, axis in enumerate(every):
            axes.plot([x, x], [0, 1], color=_INK, lw=0.7)
            for at, text in axis.ticks:
                axes.annotate(
                    text,
                    (x, at),
                    xytext=(-3, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center",
                    fontsize=6.5,
                    color=_INK,
                )
            axes.annotate(
                axis.name + (" (log)" if axis.log else ""),
                (x, -0.09 if x % 2 == 0 else -0.17),
                ha="center",
                va="top",
                fontsize=7.5,
                annotation_clip=False,
            )
        return drawing.svg()


def reliability(name: str, lines: Sequence[tuple[str, int, Sequence[tuple[float, float, int]]]]) -> str:
    """Calibration: how often the answer was right over how sure the model was; the dotted line is a calibrated model.

    Args:
        name: Of the plot.
        lines: Label, series, and bins: mean confidence, share that was right, rows.
    """
    with _drawing(name) as drawing:
        axes = drawing.axes()
        axes.plot([0, 1], [0, 1], color=_FAINT, lw=0.8, ls=":")
        for _, which, bins in lines:
            colour = _SERIES[which % SERIES]
            x, y, rows = zip(*bins, strict=True)
            axes.plot(x, y, color=colour, lw=1.2)
            sizes = [6 + 60 * n / max(1, sum(rows)) for n in rows]
            axes.scatter(x, y, s=sizes, color=colour, lw=0, clip_on=False)  # whole where all were right
        low = min((v for _, _, bins in lines for x, y, _ in bins for v in (x, y)), default=0.0)
        low = max(0.0, low - 0.05)
        margin = 0.02 * (1 - low)
        axes.set_xlim(low, 1 + margin)
        axes.set_ylim(low - margin, 1 + margin)
        axes.set_xlabel("how sure the model was")
        axes.set_title("share that was right", loc="left")
        return drawing.svg()


def axis_of(name: str, values: Sequence[Any], text: Callable[[Any], str] = str, *, log: bool = False) -> Axis:
    """Where values lie between 0 and 1: numbers on a line, with ``log`` on a log one, others side by side.

    A value that is missing (None) stands below the others.

    >>> axis = axis_of("lr", [0.001, 0.1, 0.01], log=True)
    >>> axis.log, [round(v, 3) for v in axis.at]
    (True, [0.0, 1.0, 0.5])
    """
    numbers = [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) == len(values) and len(set(numbers)) > 2:
        low, high = min(numbers), max(numbers)
        log = log and low > 0
        if log:
            low, high = math.log10(low), math.log10(high)
            numbers = [math.log10(v) for v in numbers]
        span = (high - low) or 1.0
        at = [(v - low) / span for v in numbers]
        shown = [10**v if log else v for v in (low, (low + high) / 2, high)]
        return Axis(name=name, at=at, ticks=[(i / 2, f"{v:.2g}") for i, v in enumerate(shown)], log=log)
    distinct = sorted({text(v) for v in values if v is not None}, key=lambda t: (len(t), t))
    distinct = (["-"] if any(v is None for v in values) else []) + distinct
    place = {t: i / max(1, len(distinct) - 1) if len(distinct) > 1 else 0.5 for i, t in enumerate(distinct)}
    step = max(1, math.ceil(len(distinct) / 6))
    return Axis(
        name=name,
        at=[place["-" if v is None else text(v)] for v in values],
        ticks=[(place[t], t if len(t) <= 9 else t[:8] + "…") for t in distinct[::step]],
    )


def _middle(values: Sequence[float], must_show: Sequence[float]) -> tuple[float, float]:
    """Limits that show most of the values and all that must be seen; a few that ran away may lie outside."""
    finite = np.array([v for v in values if math.isfinite(v)] or [0.0])
    shown = [float(v) for v in np.percentile(finite, (2, 98))] + [v for v in must_show if math.isfinite(v)]
    low, high = min(shown), max(shown)
    margin = 0.05 * ((high - low) or abs(high) or 1.0)
    return low - margin, high + margin


class _drawing:  # noqa: N801 - used as a function
    """A figure in our style, and its cleaned SVG. ``name`` makes its ids unique on a page, and the same at every drawing."""

    def __init__(self, name: str, *, height: float = HEIGHT_PT) -> None:
        self._name, self._height = re.sub(r"[^a-z0-9]+", "-", name.lower()), height

    def __enter__(self) -> _drawing:
        import matplotlib as mpl
        from matplotlib.figure import Figure

        self._context = mpl.rc_context({**_STYLE, "svg.hashsalt": self._name})
        self._context.__enter__()
        self.figure: Figure = Figure(figsize=(WIDTH_PT / 72, self._height / 72), layout="constrained")
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def axes(self) -> Axes:
        """The one panel."""
        return self.figure.add_subplot()

    def grid(self, count: int, *, columns: int) -> list[Axes]:
        """Panels in rows."""
        rows = math.ceil(count / columns)
        return [self.figure.add_subplot(rows, columns, i + 1) for i in range(count)]

    def svg(self) -> str:
        """The figure as an ``<svg>`` without a size of its own."""
        out = io.StringIO()
        with warnings.catch_warnings():  # the page's font draws the text, not the one that measures it
            warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
            nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
            self.figure.savefig(out, format="svg", metadata=nothing)
        return clean(out.getvalue(), self._name)


def clean(svg: str, name: str) -> str:
    """Matplotlib's file as part of a page: no prolog, no size, ids with a prefix, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would be the whole page's
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', svg)
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="{box[1] if box else ""}" aria-hidden="true">', svg, count=1)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\b(id="|href="#)', rf"\g<1>{name}-", svg).replace("url(#", f"url(#{name}-")
    svg = re.sub(
        rf'<g id="{name}-(?:text|line2d|[xy]tick|patch|figure|axes|matplotlib|LineCollection)[^"]*">', "<g>", svg
    )
    svg = re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = _COLOUR.sub(lambda found: _VARIABLES[found[0]], svg)
    return re.sub(r"\s*\n\s*", "\n", svg)

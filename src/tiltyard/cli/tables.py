"""What several commands share when they show datasets: tables, sizes, times, and the store of this home."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from tiltyard.settings import Settings

if TYPE_CHECKING:
    from tiltyard.data import DatasetVersion
    from tiltyard.data.store import DatasetStore

NAME = typer.Argument(help="Dataset, as NAME, NAME@VERSION or NAME@TAG.", metavar="NAME[@VERSION]")
JSON = typer.Option(False, "--json", help="Print it as JSON.")
_RIGHT = frozenset(
    {"rows", "train", "validation", "test", "size", "missing", "distinct", "columns", "version", "mean", "std"}
)


def open_store() -> DatasetStore:
    """The datasets of this home."""
    from tiltyard.data.store import DatasetStore

    return DatasetStore(Settings.from_env().data_uri)


def table(*columns: str) -> Table:
    """An empty table; columns of numbers stand to the right."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        made.add_column(name, no_wrap=True, justify="right" if name in _RIGHT else "left")
    return made


def show(*what: Any) -> None:
    """Prints texts and tables, one under the other."""
    from tiltyard.report.terminal import output

    console = output()
    for thing in what:
        console.print(thing)


def size(num_bytes: int) -> str:
    """Bytes as a person says them.

    >>> size(1_234_567)
    '1.23 MB'
    """
    amount, unit = float(num_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.3g} {unit}"


def when(version: DatasetVersion) -> str:
    """When a version was committed, to the minute, UTC."""
    return version.created_at[:16].replace("T", " ")

"""``tiltyard calibrate``: how many models step together fastest on this kind of device, measured once."""

from __future__ import annotations

import typer
from rich.console import Console

from tiltyard.progress import work
from tiltyard.settings import Settings

app = typer.Typer()


@app.command()
def calibrate(
    device: str = typer.Option("cpu", help="A torch device of this machine: cpu, cuda."),
    seconds: float = typer.Option(0.5, min=0.05, help="Of measuring each size."),
    show: bool = typer.Option(False, "--show", help="Show what sweeps would use; measure nothing."),
) -> None:
    """Measure how many models step together fastest on this machine, for sweeps that begin later.

    Changes how fast packs train, not their results. Sweeps that have begun keep the sizes that they began with. Do it
    while the machine is quiet.
    """
    from tiltyard.sweep.engine.memory import measure_sizes, sizes_of, usual_chunk

    kind = device.partition(":")[0]
    settings, console = Settings.from_env(), Console(highlight=False, soft_wrap=True)
    if not show:
        with work(f"measure packs on {device}"):
            measure_sizes(settings, device, seconds=seconds)
    sizes = sizes_of(settings, kind)
    where = (
        f"measured on {sizes['measured_on']}, {settings.sizes(kind)}" if sizes else "what is shipped; nothing measured"
    )
    console.print(f"{kind}: {usual_chunk(sizes, kind)} models of a 64-64-32-10 MLP step together ({where})")

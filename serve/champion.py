"""One Ray Serve application for the champions of any number of tasks.

Run it: ``serve run serve.champion:app models=first-sweep.wine,first-sweep.digits``; `tiltyard run` deploys it by itself.
"""

from ray.serve import Application

from tiltyard.serving.deployment import champions_app


def app(args: dict[str, str]) -> Application:
    """The application builder; loads nothing until a replica starts.

    Args:
        args: ``models``: registered models, ``NAME[@ALIAS|@VERSION]``, separated by commas.
    """
    return champions_app([name for name in args.get("models", "").split(",") if name])

"""One Ray Serve application for the champions of any number of tasks.

Here:        tiltyard serve                     (every champion in the registry, on loopback)
By hand:     serve run serve.champion:app models=first-sweep.wine,first-sweep.digits
On KubeRay:  serve/champion.yaml as the serveConfigV2 of a RayService
"""

from ray.serve import Application

from tiltyard.serving.deployment import app_from_args


def app(args: dict[str, str]) -> Application:
    """The application builder; loads nothing until a replica starts.

    Args:
        args: ``models``: registered models, ``NAME[@ALIAS|@VERSION]``, separated by commas. ``purpose``: ``traffic``, or
            ``evaluation`` for pinned versions asked by handle. ``auth``: ``on`` (default) or ``off``. ``tokens``: file of
            bearer tokens. ``min_replicas``, ``max_replicas``: of each model; ``scale_up_s``: of load before one is added.
            ``shadow``, ``canary``: challengers, ``NAME@ALIAS:SHARE`` or ``NAME@VERSION:SHARE``, until ``tiltyard models
            challenge`` says otherwise. Limits by their names in `tiltyard.serving.answers.Limits`.
    """
    return app_from_args(args)

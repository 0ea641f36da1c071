"""``python -m tiltyard.cli``: the same as ``tiltyard``."""

from tiltyard.cli import main

main()

"""Every night for digits: is there a new version, does the champion hold on it, and does a challenger do better?

Run it here:  python jobs/nightly.py, or tiltyard nightly run-now jobs/nightly.py
By cron:      15 2 * * * cd /srv/tiltyard && .venv/bin/python jobs/nightly.py >> night.log 2>&1
Twice a day:  does its work once; a second start is answered from the record
"""

from tiltyard import Night, night_main


def night() -> Night:
    """A sweep of at most one CPU-hour where no challenger is gathering evidence already."""
    return Night(
        name="digits",
        model="first-sweep.digits",
        dataset="digits",
        job="jobs/first_sweep.py",
        cpu_hours=1.0,
    )


if __name__ == "__main__":
    night_main(__file__)

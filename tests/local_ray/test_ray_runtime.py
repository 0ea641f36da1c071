"""What a driver finds of a Ray that is up."""

from __future__ import annotations

import pytest
import ray

from tiltyard.ray_address import probe

pytestmark = pytest.mark.ray


def test_probe_of_the_head_of_a_running_ray_and_of_auto_is_content(ray_session: None) -> None:
    probe(ray.get_runtime_context().gcs_address)
    probe("auto")

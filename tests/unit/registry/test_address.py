"""Names of models as people write them."""

from __future__ import annotations

import pytest

from tiltyard.registry import ModelAddress


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("first-sweep.wine", ModelAddress(name="first-sweep.wine", alias="champion")),
        ("first-sweep.wine@", ModelAddress(name="first-sweep.wine", alias="champion")),
        (" a.b@candidate ", ModelAddress(name="a.b", alias="candidate")),
        ("a.b@12", ModelAddress(name="a.b", alias=None, version=12)),
    ],
)
def test_address_of_any_form_parses_and_prints_back(text: str, wanted: ModelAddress) -> None:
    assert ModelAddress.parse(text) == wanted
    assert ModelAddress.parse(str(wanted)) == wanted

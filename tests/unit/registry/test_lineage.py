"""Lineage as registry tags and back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tiltyard.registry import Lineage

TEXT = st.text(max_size=20)
JSON = st.one_of(st.integers(-1000, 1000), st.floats(allow_nan=False, allow_infinity=False), TEXT, st.booleans())


@given(
    texts=st.lists(TEXT, min_size=8, max_size=8),
    numbers=st.lists(st.integers(0, 2**40), min_size=4, max_size=4),
    config=st.dictionaries(TEXT, JSON, max_size=4),
    environment=st.dictionaries(TEXT, TEXT, max_size=3),
)
def test_lineage_as_tags_round_trips(
    texts: list[str], numbers: list[int], config: dict[str, object], environment: dict[str, str]
) -> None:
    cell, key, experiment, variant, dataset, digest, code, run = texts
    lineage = Lineage(
        cell=cell,
        key=key,
        experiment=experiment,
        variant=variant,
        dataset=dataset,
        dataset_version=numbers[0],
        dataset_digest=digest,
        code_digest=code,
        seed=numbers[1],
        data_seed=numbers[2],
        epoch=numbers[3],
        config=config,
        parent_run_id=run,
        environment=environment,
    )
    tags = lineage.to_tags()
    assert all(isinstance(v, str) and k.startswith("tiltyard.") for k, v in tags.items())
    assert Lineage.from_tags({**tags, "somebody.else": "x", "tiltyard.bundle_digest": "y"}) == lineage
    assert Lineage(**lineage.to_dict()) == lineage

"""Stacked scoring gives every model the answers it gives alone, whatever is stacked with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tiltyard.errors import DataError
from tiltyard.registry import Bundle, read_bundle
from tiltyard.serving.stacking import Stack
from tiltyard.testing.bundles import small_bundle, small_table


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    home = tmp_path_factory.mktemp("stack")
    made = {f"mlp{seed}": small_bundle(home / f"mlp{seed}", seed=seed) for seed in range(4)}
    made |= {f"res{seed}": small_bundle(home / f"res{seed}", model="resmlp", seed=seed) for seed in range(2)}
    made["wide"] = small_bundle(home / "wide", model_args={"hidden": (16,)})
    made["trees"] = small_bundle(home / "trees", model="lightgbm")
    return {name: read_bundle(b.folder) for name, b in made.items()}


def test_stack_of_many_shapes_answers_each_model_as_it_answers_alone(bundles: dict[str, Bundle]) -> None:
    stack = Stack(bundles)
    assert stack.groups == [("mlp0", "mlp1", "mlp2", "mlp3"), ("res0", "res1"), ("wide",), ("trees",)]
    table = small_table(rows=2048 + 37, seed=5)  # more than one pass of each group
    found = stack.predict_table(table)
    assert list(found) == list(bundles)
    for name, bundle in bundles.items():
        np.testing.assert_allclose(found[name], bundle.predict_table(table).outputs, atol=1e-5, err_msg=name)


def test_stack_asked_without_a_column_names_it(bundles: dict[str, Bundle]) -> None:
    with pytest.raises(DataError, match="'colour'"):
        Stack(bundles).predict_table(small_table().drop_columns("colour"))


def test_stack_of_a_model_that_cannot_be_mapped_asks_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "branching_net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, input_shape, num_outputs):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(input_shape[0], num_outputs)\n"
        "    def forward(self, x):\n"
        "        y = self.layer(x)\n"
        "        return y if float(y.sum()) > 0 else y * 2\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made = [small_bundle(tmp_path / f"b{s}", model="branching_net:Net", seed=s) for s in range(2)]
    bundles = {str(i): read_bundle(b.folder) for i, b in enumerate(made)}
    found = Stack(bundles).predict_table(made[0].rows)
    for name, bundle in bundles.items():
        np.testing.assert_allclose(found[name], bundle.predict_table(made[0].rows).outputs, atol=1e-6)

"""Families are built from a name and arguments, and say what is wrong with either."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tiltyard.errors import ModelError
from tiltyard.models import FAMILIES, MaskedInput, build, validate_args
from tiltyard.types import Task

ARGS: dict[str, dict[str, Any]] = {"cnn": {"image": (1, 8, 8)}}


@pytest.mark.parametrize("model", sorted(FAMILIES))
@pytest.mark.parametrize("outputs", [1, 2, 7])
def test_family_maps_rows_to_outputs(model: str, outputs: int) -> None:
    with torch.random.fork_rng(devices=[]):
        module = build(model, ARGS.get(model, {}), input_shape=(64,), num_outputs=outputs)
    assert module(torch.zeros(3, 64)).shape == (3, outputs)
    validate_args(model, ARGS.get(model, {}), Task.REGRESSION, (64,), outputs)


@pytest.mark.parametrize(
    ("model", "args", "match"),
    [
        ("mlq", {}, r"No model family 'mlq'.*cnn.*lightgbm.*mlp"),
        ("mlp", {"width": 3}, r"'mlp' has no argument 'width'.*hidden"),
        ("mlp", {"hidden": ()}, r"hidden is \(\)"),
        ("mlp", {"hidden": (8, -1)}, r"hidden is \(8, -1\)"),
        ("resmlp", {"depth": 0}, r"depth 0"),
        ("mlp", {"hidden": 5}, r"hidden is 5; widths"),
        ("mlp", {"hidden": (8, True)}, r"hidden is \(8, True\)"),
        ("mlp", {"hidden": (8, 2.5)}, r"hidden is \(8, 2.5\)"),
        ("resmlp", {"width": "a"}, r"width 'a'"),
        ("resmlp", {"width": 1.5}, r"width 1.5"),
        ("cnn", {"image": (1, 7, 7)}, r"image.*\(1, 7, 7\)"),
        ("cnn", {"image": (1, -8, -8)}, r"image is \(1, -8, -8\)"),
        ("cnn", {"image": (1, 8, 8), "channels": ()}, r"channels is \(\)"),
        ("cnn", {"image": (1, 8, 8), "channels": 4}, r"channels is 4"),
        ("lightgbm", {}, r"lightgbm is no nn.Module: it is trained in rounds"),
        ("no_such_module:Model", {}, r"cannot be imported.*no_such_module"),
        ("math:pi", {}, r"is a float"),
        ("math:floor", {}, r"no argument|could not be built|gave a"),
    ],
)
def test_family_that_cannot_be_built_says_what_was_found(model: str, args: dict[str, Any], match: str) -> None:
    with pytest.raises(ModelError, match=match):
        build(model, args, input_shape=(64,), num_outputs=2)


def test_validation_leaves_the_random_state_as_it_was() -> None:
    before = torch.get_rng_state()
    validate_args("mlp", {}, Task.BINARY, (5,), 2)
    assert torch.equal(before, torch.get_rng_state())


def test_users_class_is_given_only_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "models_of_a_family_test", sys.modules[__name__])
    with torch.random.fork_rng(devices=[]):
        module = build("models_of_a_family_test:Fixed", {"bias": False}, input_shape=(5,), num_outputs=2)
    assert isinstance(module, Fixed)
    with pytest.raises(ModelError, match=r"\(2, 3\).*\(2, 2\)"):
        validate_args("models_of_a_family_test:Fixed", {}, Task.BINARY, (5,), 2)


class Fixed(nn.Linear):
    """Always 5 to 3, whatever is asked for."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__(5, 3, bias=bias)


BROKEN = """
from torch import nn
class Init(nn.Module):
    def __init__(self): super().__init__(); {}["width"]
class Bare(nn.Module):
    def forward(self, x): return x
class Forward(nn.Module):
    def __init__(self): super().__init__()
    def forward(self, x): return x.no_such_thing
class Asserts(nn.Module):
    def __init__(self): super().__init__()
    def forward(self, x): assert x.shape[1] == 7, "seven are wanted"
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("broken_user_model:Init", r"'broken_user_model:Init' could not be built with \{\}: KeyError: 'width'"),
        (
            "broken_user_model:Forward",
            r"'broken_user_model:Forward' fails on rows of shape \(5,\): AttributeError.*no_such_thing",
        ),
        ("broken_user_model:Asserts", r"'broken_user_model:Asserts' fails on rows.*AssertionError: seven are wanted"),
        ("broken_user_model:Bare", r"'broken_user_model:Bare' has no __init__ of its own"),
        ("broken_at_import:Net", r"'broken_at_import:Net' cannot be imported: ZeroDivisionError: division by zero"),
        ("script_at_import:Net", r"'script_at_import:Net' cannot be imported: SystemExit: usage: script FILE"),
        ("builtins:dict", r"'builtins:dict' does not say which arguments it takes"),
    ],
)
def test_users_model_that_fails_in_any_way_is_a_model_error_with_type_and_text(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_user_model.py").write_text(BROKEN)
    (tmp_path / "broken_at_import.py").write_text("RATIO = 1 / 0\n")
    (tmp_path / "script_at_import.py").write_text("import sys\nsys.exit('usage: script FILE')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(ModelError, match=told):
            validate_args(name, {}, Task.BINARY, (5,), 2)
    finally:
        sys.modules.pop("broken_user_model", None)


def test_masked_input_hides_what_the_mask_hides_and_keeps_the_mask() -> None:
    with torch.random.fork_rng(devices=[]):
        inner = nn.Linear(4, 2)
    model = MaskedInput(inner, torch.tensor([1.0, 0.0, 1.0, 0.0]))
    x = torch.ones(3, 4)
    changed = x.clone()
    changed[:, 1] = 9.0
    assert torch.equal(model(x), model(changed))
    assert "feature_mask" in model.state_dict()

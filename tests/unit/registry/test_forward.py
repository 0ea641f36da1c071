"""The quick pass of a bundled network answers what the module answers, or is the module."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tiltyard.models.mlp import ResidualBlock
from tiltyard.registry.forward import PACKED_ROWS, quick_forward


def _layers(kinds: list[str], width: int) -> nn.Sequential:
    made: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(width, width, bias=width % 2 == 0),
        "relu": nn.ReLU,
        "dropout": lambda: nn.Dropout(0.5),
        "norm": lambda: nn.LayerNorm(width),
        "block": lambda: ResidualBlock(width),
    }
    layers = [made[kind]() for kind in kinds]
    return nn.Sequential(nn.Flatten(), nn.Linear(6, width), *layers, nn.Linear(width, 3)).eval()


@settings(max_examples=40)
@given(
    kinds=st.lists(st.sampled_from(["linear", "relu", "dropout", "norm", "block"]), max_size=6),
    width=st.integers(1, 9),
    rows=st.sampled_from([1, PACKED_ROWS - 1, PACKED_ROWS, 200, 301]),
)
def test_quick_pass_of_any_stack_of_layers_answers_as_the_module(kinds: list[str], width: int, rows: int) -> None:
    torch.manual_seed(0)
    module = _layers(kinds, width)
    forward = quick_forward(module, input_shape=(2, 3), rows=200)
    assert forward is not module
    x = torch.randn(rows, 2, 3)
    before = x.clone()
    with torch.inference_mode():
        torch.testing.assert_close(forward(x), module(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)


class _Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_quick_pass_of_a_module_with_code_of_its_own_is_the_module() -> None:
    module = nn.Sequential(_Doubled(4, 2)).eval()
    assert quick_forward(module, input_shape=(4,), rows=100) is module


def test_quick_pass_that_would_answer_otherwise_is_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    from tiltyard.registry import forward

    module = _layers(["relu"], 4)
    monkeypatch.setattr(forward, "_run", lambda steps, x: torch.zeros(len(x), 3))
    assert quick_forward(module, input_shape=(6,), rows=100) is module


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_packed_product_without_onednn_gives_the_same_numbers(
    relu: bool, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiltyard.registry import forward

    torch.manual_seed(0)
    x, weight, bias = torch.randn(50, 7), torch.randn(5, 7), torch.randn(5) if with_bias else None
    with torch.inference_mode():
        packed = forward.packed_product(weight, bias, relu=relu, rows=64)(x)
        monkeypatch.setattr(torch.ops, "mkldnn", None)
        plain = forward.packed_product(weight, bias, relu=relu, rows=64)(x)
    torch.testing.assert_close(packed, plain)
    assert (plain < 0).any() != relu

"""How does a member's model begin? Built under the member's own seed, scaled by its own factor, to the last bit as it would alone.

The families of `tiltyard.models` begin without being built anew: which uniform numbers their layers draw, in which order,
is read off one of them, and each member's row is filled from its own seed. Whether that gives what building gives is
looked at for every pack, with one model; a user's model is built for every member.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tiltyard.errors import ModelError
from tiltyard.models import FAMILIES, MaskedInput, build
from tiltyard.training.spec import Member, PackSpec
from tiltyard.training.vmapped import Stacked, carried


def build_module(spec: PackSpec, *, seed: int, init_scale: float = 1.0) -> nn.Module:
    """One member's model, initialised under its own seed; the caller's random state is left as it was.

    Raises:
        ModelError: If it cannot be built.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also note the seed for devices that have not been started, with a stack trace, each time
        torch.default_generator.manual_seed(seed)
        return _built(spec, init_scale)


def rebuild_module(spec: PackSpec, state: Mapping[str, Tensor], *, source: str = "given") -> nn.Module:
    """The module whose ``state_dict`` this is, in eval mode: what `Pack.extract` gave, from what was saved of it.

    Args:
        spec: Of the pack it was taken from; batch size and epochs do not matter.
        state: From its ``state_dict``.
        source: Where the state is from, for the message.

    Raises:
        ModelError: If the state does not fit the model.
    """
    module = build_module(spec, seed=0)
    if MaskedInput.BUFFER in state:
        module = MaskedInput(module, torch.ones(spec.input_shape))
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ModelError(f"The parameters {source} do not fit the model {spec.model!r}: {error}") from error
    return module.eval()


class Beginning:
    """The numbers that members of a pack begin with.

    Args:
        spec: Of the pack.
        order: Names of the parameters that train.

    Raises:
        ModelError: If a user's model begins otherwise when it is built again under the same seed.
    """

    def __init__(self, spec: PackSpec, order: Sequence[str]) -> None:
        self._spec, self._order = spec, tuple(order)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)
            module = _built(spec, 1.0)
            like = _row(module, self._order)
            self._size, self._shapes = len(like), _shapes(module)
            if spec.model not in FAMILIES:
                torch.default_generator.manual_seed(1)
                _check_the_same(spec, module, _built(spec, 1.0))
            self._draws = _draws(module, self._order) if spec.model in FAMILIES else None
            if self._draws is not None:
                found = torch.empty_like(like)
                _draw(found, self._draws, seed=1, init_scale=1.0)
                if not torch.equal(found, like):
                    self._draws = None

    def rows(self, members: Sequence[Member]) -> tuple[Tensor, Stacked]:
        """Of some members: parameters ``(members, num_params)``, and what else a member carries, with one row a member.

        Raises:
            ModelError: If the shapes of a member's model are others than those of another seed.
        """
        params = torch.empty((len(members), self._size))
        extra: dict[str, list[Tensor]] = {}
        with torch.random.fork_rng(devices=[]):
            for row, member in zip(params, members, strict=True):
                if self._draws is not None:
                    _draw(row, self._draws, seed=member.seed, init_scale=member.init_scale)
                    continue
                torch.default_generator.manual_seed(member.seed)
                module = _built(self._spec, member.init_scale)
                self._check_shapes(module, member)
                row.copy_(_row(module, self._order))
                for name, value in carried(module).items():
                    extra.setdefault(name, []).append(value)
        return params, {n: torch.stack(v) for n, v in extra.items()}

    def _check_shapes(self, module: nn.Module, member: Member) -> None:
        found = _shapes(module)
        if found != self._shapes:
            name = next(n for n in sorted({*found, *self._shapes}) if found.get(n) != self._shapes.get(n))
            raise ModelError(
                f"Member {member.name[:20]!r}: under its seed {member.seed}, {name} of model {self._spec.model!r} has shape "
                f"{found.get(name)}, and under another seed {self._shapes.get(name)}: a pack is of one shape. Let shapes "
                "follow from the arguments."
            )


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: tuple(v.shape) for n, v in [*module.named_parameters(), *module.named_buffers()]}


def _check_the_same(spec: PackSpec, one: nn.Module, other: nn.Module) -> None:
    again = dict([*other.named_parameters(), *other.named_buffers()])
    for name, value in [*one.named_parameters(), *one.named_buffers()]:
        if name not in again or not torch.equal(value.nan_to_num(), again[name].nan_to_num()):
            raise ModelError(
                f"Model {spec.model!r} begins otherwise when it is built twice under the same seed: {name} differs. What is "
                "random in its __init__ must come from torch's own generator (torch.rand, nn.init), which a pack seeds."
            )


def _built(spec: PackSpec, init_scale: float) -> nn.Module:
    """A model from torch's generator as it stands."""
    module = build(spec.model, spec.model_args, input_shape=spec.input_shape, num_outputs=spec.num_outputs)
    if init_scale != 1.0:
        with torch.no_grad():
            for value in module.parameters():
                if value.ndim > 1:
                    value.mul_(init_scale)
    return module


def _row(module: nn.Module, order: Sequence[str]) -> Tensor:
    values = dict(module.named_parameters())
    return torch.cat([values[name].detach().reshape(-1) for name in order])


@dataclass(frozen=True, slots=True)
class _Draw:
    """Uniform numbers in ``(-bound, bound)``, or all of them ``value`` where there is no bound."""

    size: int
    bound: float | None
    value: float = 0.0
    scaled: bool = False


def _draws(module: nn.Module, order: Sequence[str]) -> list[_Draw] | None:
    """What the layers of a family draw, as torch initialises them (He et al. 2015); None where there is another layer."""
    found: dict[str, _Draw] = {}
    for name, layer in module.named_modules():
        if not list(layer.parameters(recurse=False)):
            continue
        weight = layer.weight
        if not isinstance(weight, Tensor):
            return None
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fan = weight[0].numel()
            bound = math.sqrt(3.0) * (math.sqrt(2.0 / (1 + math.sqrt(5.0) ** 2)) / math.sqrt(fan))
            found[f"{name}.weight"] = _Draw(weight.numel(), bound, scaled=True)
            if layer.bias is not None:
                found[f"{name}.bias"] = _Draw(layer.bias.numel(), 1 / math.sqrt(fan))
        elif isinstance(layer, nn.LayerNorm):
            found[f"{name}.weight"] = _Draw(weight.numel(), None, 1.0)
            found[f"{name}.bias"] = _Draw(weight.numel(), None, 0.0)
        else:
            return None
    return [found[n] for n in order] if list(found) == list(order) else None


def _draw(row: Tensor, draws: Sequence[_Draw], *, seed: int, init_scale: float) -> None:
    torch.default_generator.manual_seed(seed)
    for part, draw in zip(torch.split(row, [d.size for d in draws]), draws, strict=True):
        if draw.bound is None:
            part.fill_(draw.value)
            continue
        part.uniform_(-draw.bound, draw.bound)
        if draw.scaled and init_scale != 1.0:
            part.mul_(init_scale)

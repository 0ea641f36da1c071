"""What a search space is made of: one distribution per hyperparameter, as frozen values that round-trip through JSON.

Drawing from them is `tiltyard.sweep.space`'s business; these only say what is allowed.

>>> loguniform(1e-4, 1e-1)
LogUniform(low=0.0001, high=0.1)
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from typing_extensions import TypeAliasType

from tiltyard.errors import SpecError

Value = TypeAliasType("Value", "bool | int | float | str | tuple[Value, ...] | None")
"""What one hyperparameter can be: a scalar, or a tuple of them (``hidden=(64, 32)``). JSON lists become tuples."""


def _alternatives(value: Any) -> tuple[Any, ...]:
    """The values of a condition: those of a list or set (in an order that is the same in every process), or one."""
    if isinstance(value, (set, frozenset)):
        return tuple(sorted(value, key=repr))
    return tuple(value) if isinstance(value, list) else (value,)


def all_finite(value: Any) -> bool:
    """False where a value is, or holds, NaN or an infinity."""
    if isinstance(value, (list, tuple)):
        return all(all_finite(v) for v in value)
    return not isinstance(value, float) or math.isfinite(value)


class Distribution(BaseModel):
    """Base of all. ``only_if`` makes a space conditional: the parameter exists where all its conditions hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    only_if: dict[str, tuple[Value, ...]] | None = Field(default=None, repr=False)

    def when(self, **conditions: Any) -> Any:
        """The same distribution, drawn only where other parameters have the given value or one of a list of values.

        >>> uniform(0.5, 0.99).when(optimizer=["momentum", "nesterov"]).only_if
        {'optimizer': ('momentum', 'nesterov')}
        """
        wanted = {name: _alternatives(value) for name, value in conditions.items()}
        return self.model_copy(update={"only_if": {**(self.only_if or {}), **wanted}})

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """``kind`` tells the reader which distribution this is, so it is written even where only set fields are."""
        return {"kind": self.kind, **handler(self)}  # type: ignore[attr-defined]

    def __repr_args__(self) -> Any:
        return [(k, v) for k, v in super().__repr_args__() if k != "kind"]


class _Range(Distribution):
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Any:
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"the range {self.low} to {self.high} is not finite")
        if self.low >= self.high:
            raise ValueError(f"the range is reversed or empty: low {self.low} is not below high {self.high}; swap them")
        return self


class Uniform(_Range):
    """A real number between ``low`` and ``high``."""

    kind: Literal["uniform"] = "uniform"


class LogUniform(_Range):
    """A real number whose logarithm is uniform; ``low`` is above 0."""

    kind: Literal["loguniform"] = "loguniform"

    @model_validator(mode="after")
    def _positive(self) -> LogUniform:
        if self.low <= 0:
            raise ValueError(f"a log-uniform range starts above 0; found low {self.low}")
        return self


class IntUniform(Distribution):
    """A whole number from ``low`` to ``high``, both included; ``log`` draws its logarithm uniformly."""

    kind: Literal["int"] = "int"
    low: int
    high: int
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> IntUniform:
        if self.low >= self.high:
            raise ValueError(f"the range is reversed or empty: low {self.low} is not below high {self.high}; swap them")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range of whole numbers starts above 0; found low {self.low}")
        return self


class Choice(Distribution):
    """One of a list of values; the axis of a grid too."""

    kind: Literal["choice"] = "choice"
    values: tuple[Value, ...]

    @model_validator(mode="after")
    def _not_empty(self) -> Choice:
        if not self.values:
            raise ValueError("a choice among no values; give it at least one")
        if len(set(map(repr, self.values))) < len(self.values):
            raise ValueError(f"a choice lists the same value twice: {self.values}")
        if not all_finite(self.values):
            raise ValueError(f"a choice among {self.values}: NaN and infinities are no hyperparameters")
        return self


AnyDistribution = Annotated[Uniform | LogUniform | IntUniform | Choice, Field(discriminator="kind")]


def _build(cls: Any, **fields: Any) -> Any:
    try:
        return cls(**fields)
    except ValidationError as error:
        reasons = "; ".join(str(e["msg"]).removeprefix("Value error, ") for e in error.errors(include_url=False))
        raise SpecError(f"{cls.__name__}({', '.join(f'{k}={v!r}' for k, v in fields.items())}): {reasons}.") from error


def uniform(low: float, high: float) -> Uniform:
    """A real number between ``low`` and ``high``."""
    return cast(Uniform, _build(Uniform, low=low, high=high))


def loguniform(low: float, high: float) -> LogUniform:
    """A real number between ``low`` and ``high``, uniform in its logarithm."""
    return cast(LogUniform, _build(LogUniform, low=low, high=high))


def randint(low: int, high: int, *, log: bool = False) -> IntUniform:
    """A whole number from ``low`` to ``high``, both included."""
    return cast(IntUniform, _build(IntUniform, low=low, high=high, log=log))


def choice(*values: Any) -> Choice:
    """One of the values given."""
    return cast(Choice, _build(Choice, values=tuple(values)))

"""An experiment: a complete, frozen, serialisable description of a sweep.

Variants x datasets, search, objective, resources, budget. Nothing here reads a dataset, draws a configuration or starts
anything; what cannot be right whatever the data is refused while the value is built (`SpecError`), what depends on the
data is refused by `tiltyard.sweep.plan`.

The **key** of an experiment says "the same work": it is made of what was set (so that adding a field with a default
later changes no key), `MEANING` (raised only when a set field comes to mean something else), the resolved dataset
digests and the code digest (`tiltyard.codedigest`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidationError,
    model_validator,
)

from tiltyard.distributions import AnyDistribution, Choice, Distribution, Value, all_finite
from tiltyard.errors import SpecError
from tiltyard.types import METRICS, DatasetRef, Mode, check_name

MEANING = 1
"""Version of what the set fields mean. Raise it only when an experiment written earlier would now do other work."""


def _fixed(value: Any) -> Any:
    if not _is_value(value):
        raise ValueError(
            f"a hyperparameter is a number, a text, True, False, None or a tuple of those; found {type(value).__name__}"
        )
    if not all_finite(value):
        raise ValueError(f"{value!r}: NaN and infinities are no hyperparameters")
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def _is_value(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_value(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _searched(value: Any) -> Any:
    if not isinstance(value, (Distribution, dict)):
        raise ValueError(  # noqa: TRY004 - pydantic wants it so
            f"a distribution is wanted, e.g. uniform(0, 1) or choice(1, 2); found {_short(value)}. What is the same in "
            "every trial belongs in fixed"
        )
    return value


def _ref(value: Any) -> Any:
    return DatasetRef.parse(value) if isinstance(value, str) else value


Name = Annotated[str, AfterValidator(lambda name: check_name(name, "Name"))]
Ref = Annotated[DatasetRef, BeforeValidator(_ref), PlainSerializer(str)]
FixedValue = Annotated[Value, BeforeValidator(_fixed)]
MOST_TRIALS = 1_000_000
"""Trials of a search: all of them are planned before the start, so that a search always has an end."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


_nested: ContextVar[bool] = ContextVar("nested", default=False)


class _Spec(BaseModel):
    """Frozen, closed to unknown fields, and its errors are ours."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)

    def __init__(self, **data: Any) -> None:
        if _nested.get():  # pydantic puts the place of an inner error in front of it, and tries the next of a union
            super().__init__(**data)
            return
        token = _nested.set(True)
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise SpecError(explain(type(self).__name__, error)) from error
        finally:
            _nested.reset(token)


class Variant(_Spec):
    """A model family, or the user's own model or training, with its search space.

    Args:
        name: Shown in leaderboards; unique in the experiment.
        model: A family of `tiltyard.models` (``logistic``, ``mlp``, ``resmlp``, ``cnn``, ``lightgbm``, ...) or the
            import path ``package.module:Class`` of a ``torch.nn.Module`` or of a function that returns one, or
            ``train:package.module:function`` for training of your own: ``train(config, data, report)``, trained to the
            end (no early stopping unless ``Search.scheduler`` says so), ranked, but not tested or registered; or
            ``tune:package.module:name`` for a Ray Tune trainable, a function or a class, likewise.
        fixed: Hyperparameters that every trial of the variant shares.
        space: Hyperparameters that are searched.
        trials: How many of the search's trials this variant gets on each dataset; None shares out evenly what the others
            leave. Where every variant says it, the numbers are weights of the search's trials.
    """

    name: Name
    model: str = Field(min_length=1)
    fixed: dict[str, FixedValue] = {}
    space: dict[str, Annotated[AnyDistribution, BeforeValidator(_searched)]] = {}
    trials: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _apart(self) -> Variant:
        both = sorted(set(self.fixed) & set(self.space))
        if both:
            raise ValueError(f"{both} stand in fixed and in space; keep each in one")
        for name, dist in self.space.items():
            for other, wanted in (dist.only_if or {}).items():
                if other not in self.space and other not in self.fixed:
                    raise ValueError(
                        f"{name} is drawn only if {other} has some value, but {other} is neither fixed nor in space"
                    )
                options = self.space.get(other)
                never = [v for v in wanted if isinstance(options, Choice) and v not in options.values]
                if isinstance(options, Choice) and never:
                    raise ValueError(
                        f"{name} is drawn only if {other} is {never[0]!r}, which is not among its choices {options.values}"
                    )
                if other == name:
                    raise ValueError(
                        f"{name} is drawn only if {name} has some value; a condition names another parameter"
                    )
        return self


class Halving(_Spec):
    """Synchronous successive halving within each group.

    Args:
        rungs: Epochs at which the trials of a group are compared, rising; the last is the full length of training.
        keep: Share of a group's live trials that goes on after each rung but the last; at least one always does.

    Source: Jamieson & Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization".
    """

    rungs: tuple[int, ...]
    keep: float = Field(default=1 / 3, gt=0, lt=1)

    @model_validator(mode="after")
    def _rising(self) -> Halving:
        if not self.rungs or self.rungs[0] < 1 or any(a >= b for a, b in zip(self.rungs, self.rungs[1:], strict=False)):
            raise ValueError(f"rungs are epochs above 0 in rising order; found {self.rungs}")
        return self


class Hyperband(_Spec):
    """HyperBand: several halving brackets that begin at different rungs; the leaderboard compares across them.

    Args:
        max_epochs: The full length of training, where every bracket ends.
        eta: One trial of ``eta`` goes on after each rung, and each rung is ``eta`` times as long as the one before.

    Source: Li et al. 2018, "Hyperband: a novel bandit-based approach to hyperparameter optimization", JMLR 18.
    """

    max_epochs: int = Field(ge=1)
    eta: int = Field(default=3, ge=2)


def _which(value: Any) -> str:
    fields = value if isinstance(value, dict) else vars(value) if isinstance(value, BaseModel) else {}
    return _TAGS[1] if "max_epochs" in fields else _TAGS[0]


_TAGS = ("Halving", "Hyperband")
EarlyStopping = Annotated[
    Annotated[Halving, Tag(_TAGS[0])] | Annotated[Hyperband, Tag(_TAGS[1])], Discriminator(_which)
]


class Search(_Spec):
    """How configurations are chosen.

    Args:
        trials: Trials per dataset, over all variants together; each variant gets at least one, a variant without a space
            one. A grid without it is tried whole.
        algorithm: ``random``, ``sobol``, ``grid`` (every combination of the choices), or ``tpe`` (Optuna,
            a generation at a time).
        halving: `Halving`, `Hyperband` or None for no early stopping.
        epochs: Length of training where there is no halving.
        points: Configurations tried first, one mapping each, by variant name.
        generation: Trials that ``tpe`` suggests at a time for each variant on each dataset: a pack's worth. The first
            generation is drawn at random.
        finalists: How many of each dataset are scored on the test split.
        scheduler: A stock scheduler of Ray Tune for variants that train themselves (``train:...``, ``tune:...``): ``asha``
            stops the worse ones early, ``pbt`` copies the better ones (``tune:`` alone: it needs their checkpoints). What they
            do depends on the order of events, and the leaderboard says so.
        replicates: How often every finalist is trained again to the end, each time with another seed and another data
            seed, for intervals over both and for who is best. 0 or at least 2.
    """

    trials: int = Field(default=64, ge=1, le=MOST_TRIALS)
    algorithm: Literal["random", "sobol", "grid", "tpe"] = "random"
    halving: EarlyStopping | None = None
    epochs: int | None = Field(default=None, ge=1)
    points: dict[str, tuple[dict[str, FixedValue], ...]] = {}
    generation: int = Field(default=16, ge=1)
    finalists: int = Field(default=3, ge=1)
    scheduler: Literal["asha", "pbt"] | None = None
    replicates: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_length(self) -> Search:
        if self.halving is not None and self.epochs is not None:
            raise ValueError("both halving and epochs are set; the last rung is the length of training: drop epochs")
        if self.halving is None and self.epochs is None:
            raise ValueError(
                "neither halving nor epochs is set; say how long a trial trains, e.g. halving=Halving(rungs=(2, 6, 20))"
            )
        if self.replicates == 1:
            raise ValueError("replicates is 1, which has no spread; 0 (none) or at least 2 are wanted")
        return self

    @property
    def learns(self) -> bool:
        """True where later trials are chosen from what earlier ones came to."""
        return self.algorithm == "tpe"

    @property
    def max_epochs(self) -> int:
        """Epochs of a trial that is never stopped."""
        if isinstance(self.halving, Halving):
            return self.halving.rungs[-1]
        if isinstance(self.halving, Hyperband):
            return self.halving.max_epochs
        assert self.epochs is not None
        return self.epochs


class Objective(_Spec):
    """The score that ranks trials, and those that are recorded beside it. Direction follows from the metric."""

    metric: str
    mode: Mode | None = None
    also: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> Objective:
        for name in (self.metric, *self.also):
            if name not in METRICS:
                raise ValueError(f"no metric {name!r}; known: {', '.join(sorted(METRICS))}")
        if self.mode is not None and self.mode != METRICS[self.metric].mode:
            better = "larger" if self.direction is Mode.MAX else "smaller"
            raise ValueError(f"{self.metric} is better when {better}; found mode={self.mode.value!r}; drop mode")
        return self

    @property
    def direction(self) -> Mode:
        """Which way is better."""
        return METRICS[self.metric].mode

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every score that is computed, the ranking one first, each once."""
        return tuple(dict.fromkeys((self.metric, *self.also)))


class Resources(_Spec):
    """What one pack holds while it trains.

    Args:
        cpus: CPUs of a pack.
        gpus: GPUs of a pack; fractions are bookkeeping, memory is not enforced.
        pack: Members of a pack: a number, or ``auto`` (from shapes and the kind of device, never from timings).
        max_concurrent: Packs at once; None means as many as the cluster holds.
        memory_share: Share of a node's object store that resident splits may take.
    """

    cpus: Positive = 1.0
    gpus: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    pack: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    max_concurrent: int | None = Field(default=None, ge=1)
    memory_share: float = Field(default=0.5, gt=0, le=1)


SILENT_S = 4 * 3600.0
"""Where `Budget.trial_s` is not set, a trial of a user's own training that comes to no new epoch for this long is ended: one
that hangs would hold its sweep, and all that is paid for it, without an end."""


class Budget(_Spec):
    """The most that may be used; None is no limit. Reserved before a pack starts, settled after, in metered seconds.

    Args:
        wall_s: Seconds of one launch.
        trials: Trials over all variants and datasets.
        cpu_hours: CPU-hours over all launches of the same experiment.
        gpu_hours: GPU-hours over all launches of the same experiment.
        trial_s: Seconds of one trial of your own training (``train:...``, ``tune:...``); one that takes longer is ended and
            has failed. Where None, one that comes to no new epoch for `SILENT_S` (four hours) is.
        team: Whose budget is charged too; set it with ``tiltyard budget set``.
    """

    wall_s: Positive | None = None
    trials: int | None = Field(default=None, ge=1)
    cpu_hours: Positive | None = None
    gpu_hours: Positive | None = None
    trial_s: Positive | None = None
    team: Name | None = None


class Champion(_Spec):
    """What becomes of each dataset's winner.

    Args:
        alias: Alias in the registry that is moved to it.
        serve: Deploy the winners on Ray Serve after the sweep and check that the served scores equal the offline ones.
    """

    alias: Name = "champion"
    serve: bool = True


class Experiment(_Spec):
    """A whole sweep. Vary it by `with_options`, not with a second file.

    Args:
        name: Name of the MLflow experiment too.
        variants: What competes.
        datasets: On what; a reference without a version means the newest when it is planned, and is then pinned.
        objective: The score that ranks.
        search: How configurations are chosen and stopped early.
        resources: What a pack holds.
        budget: The most a launch may use.
        seed: Of the search and of every trial's initialisation and noise.
        data_seed: Of the order of rows.
        champion: What becomes of each dataset's winner; None registers nothing.
        samples: Datasets among those that ship with Tiltyard, committed first where they are missing.
        include_sensitive: Sensitive columns that the models may see.
        description: For people.
        tags: For people; on every MLflow run.

    >>> experiment = Experiment(
    ...     name="demo",
    ...     variants=[Variant(name="mlp", model="mlp", fixed={"lr": 0.01})],
    ...     datasets=[DatasetRef("digits")],
    ...     objective=Objective(metric="accuracy"),
    ...     search=Search(trials=1, epochs=2),
    ... )
    >>> Experiment.from_json(experiment.to_json()) == experiment
    True
    """

    name: Name
    variants: tuple[Variant, ...]
    datasets: tuple[Ref, ...]
    objective: Objective
    search: Search
    resources: Resources = Resources()
    budget: Budget = Budget()
    seed: int = Field(default=0, ge=0, lt=2**31)
    data_seed: int = Field(default=0, ge=0, lt=2**31)
    champion: Champion | None = None
    samples: tuple[Name, ...] = ()
    include_sensitive: tuple[str, ...] = ()
    description: str = ""
    tags: dict[str, str] = {}

    @model_validator(mode="after")
    def _coherent(self) -> Experiment:
        if not self.variants:
            raise ValueError("no variants; give at least one")
        if not self.datasets:
            raise ValueError("no datasets; give at least one")
        for what, names in (("variant", [v.name for v in self.variants]), ("dataset", [d.name for d in self.datasets])):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{what} {twice[0]!r} stands twice; give each its own name")
        unknown = sorted(set(self.search.points) - {v.name for v in self.variants})
        if unknown:
            raise ValueError(f"search.points names {unknown}, which are not variants")
        for variant in self.variants:
            alone = self.search.trials if len(self.variants) == 1 else 1
            searched = alone if variant.trials is None else variant.trials
            distinct = max(1, len(self.search.points.get(variant.name, ())))
            if not variant.space and searched > distinct and self.search.algorithm != "grid":
                raise ValueError(
                    f"variant {variant.name!r} has an empty space, yet {searched} trials were asked for; "
                    f"they would all be the same trial. Give it a space, or trials={distinct}"
                )
            if self.search.algorithm == "grid":
                rest = sorted(n for n, d in variant.space.items() if not isinstance(d, Choice))
                if rest:
                    raise ValueError(
                        f"a grid needs choices; in variant {variant.name!r} {rest} are ranges. Use choice(...)"
                    )
        return self

    def to_json(self) -> str:
        """The experiment as JSON: what was set, in declaration order."""
        return json.dumps(self.model_dump(mode="json", exclude_unset=True), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Experiment:
        """Reads what `to_json` wrote.

        Raises:
            SpecError: If the text is not JSON or not an experiment.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise SpecError(
                f"An experiment was expected as JSON, but line {error.lineno} is not: {error.msg}."
            ) from error
        if not isinstance(data, dict):
            raise SpecError(f"An experiment was expected as a JSON object; found {type(data).__name__}.")
        return cls(**data)

    def with_options(
        self, *, trials: int | None = None, datasets: Sequence[str] | None = None, seed: int | None = None
    ) -> Experiment:
        """A derived, validated copy: the few daily things that vary on the command line."""
        data = self.model_dump(mode="json", exclude_unset=True)
        if trials is not None:
            data["search"] = {**data["search"], "trials": trials}
        if datasets:
            data["datasets"] = list(datasets)
        if seed is not None:
            data["seed"] = seed
        return Experiment(**data)

    def key(self, dataset_digests: Mapping[str, str], code_digest: str) -> str:
        """The identity of the work: 64 hexadecimal characters.

        Args:
            dataset_digests: Content digest of every dataset by name, after versions were resolved.
            code_digest: From `tiltyard.codedigest`.

        Raises:
            SpecError: If a dataset's digest is missing.
        """
        missing = sorted({d.name for d in self.datasets} - set(dataset_digests))
        if missing:
            raise SpecError(f"No digest for dataset {missing[0]!r}: resolve its version before asking for the key.")
        set_fields = self.model_dump(mode="json", exclude_unset=True, exclude={"description", "tags"})
        set_fields["datasets"] = {d.name: dataset_digests[d.name] for d in self.datasets}
        return digest_of({"meaning": MEANING, "set": set_fields, "code": code_digest})


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces, no NaN)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def explain(what: str, error: ValidationError) -> str:
    """A pydantic error in our words: the field, what was found, what was wanted."""
    lines = []
    for e in error.errors(include_url=False):
        where = ".".join(str(p) for p in e["loc"] if p not in _TAGS)
        found = e.get("input")
        message = str(e["msg"]).removeprefix("Value error, ")
        if e["type"] == "extra_forbidden":
            message = "no such field; check its spelling"
        if e["type"] in {"value_error", "missing"} or isinstance(found, (dict, list)):
            lines.append(f"{where}: {message}" if where else message)
        else:
            lines.append(f"{where}: {message}; found {_short(found)}")
    return f"{what} cannot be right: " + "; ".join(lines) + "."


def _short(value: Any) -> str:
    text = repr(value) if not (isinstance(value, float) and math.isnan(value)) else "NaN"
    return text if len(text) <= 80 else text[:77] + "..."

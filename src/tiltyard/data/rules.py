"""Is a check declared in a way that could ever run? Kinds, what each takes, and of what type.

Asked when a check is declared (`tiltyard.data.versions.Check`), long before there are rows; `tiltyard.data.checks` runs
them. Pure.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiltyard.errors import SpecError


@dataclass(frozen=True, slots=True)
class Rule:
    """What a kind of check takes.

    Args:
        params: Name to what it must be: ``number``, ``bound`` (a number or an ISO date), ``list``, ``text``, ``types``
            (column name to type name) or ``flag``.
        needs: One of these must be given.
        on: ``column``, ``columns`` or ``table``.
    """

    params: Mapping[str, str] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    on: str = "table"


RULES: dict[str, Rule] = {
    "not_null": Rule(on="column"),
    "range": Rule({"min": "bound", "max": "bound"}, frozenset({"min", "max"}), on="column"),
    "allowed": Rule({"values": "list"}, frozenset({"values"}), on="column"),
    "matches": Rule({"pattern": "text"}, frozenset({"pattern"}), on="column"),
    "unique": Rule(on="columns"),
    "schema": Rule({"columns": "types", "exact": "flag"}, frozenset({"columns"})),
    "row_count": Rule({"min": "number", "max": "number"}, frozenset({"min", "max"})),
    "row_count_change": Rule({"max_drop": "number", "max_rise": "number"}, frozenset({"max_drop", "max_rise"})),
    "label_balance": Rule({"min_share": "number"}, frozenset({"min_share"})),
    "freshness": Rule({"max_age_hours": "number"}, frozenset({"max_age_hours"})),
}
_WANTED = {
    "bound": "a number, or an ISO date such as 2026-01-31",
    "number": "a number",
    "list": "a list of values",
    "text": "a text",
    "types": "an object of column name to type name",
    "flag": "true or false",
}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _is_date(value: Any) -> bool:
    try:
        dt.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


def _fits(value: Any, wanted: str) -> bool:
    match wanted:
        case "bound":
            return _is_number(value) or _is_date(value)
        case "number":
            return _is_number(value)
        case "list":
            return isinstance(value, list)
        case "text":
            return isinstance(value, str)
        case "types":
            return isinstance(value, dict) and all(isinstance(kind, str) for kind in value.values())
        case _:
            return isinstance(value, bool)


def check_declared(kind: str, column: str | None, columns: Sequence[str], params: Mapping[str, Any]) -> None:
    """Raises where a check could not be run on any rows.

    Raises:
        SpecError: If its kind is unknown, a param is unknown, missing or of the wrong type, or it names no column where it
            needs one.
    """
    rule = RULES.get(kind)
    if rule is None:
        raise SpecError(f"There is no check {kind!r}. Kinds: {', '.join(RULES)}.")
    if unknown := sorted(set(params) - set(rule.params)):
        raise SpecError(
            f"Check {kind!r} takes {', '.join(sorted(rule.params)) or 'no params'}; found {unknown[0]!r}. Leave it out."
        )
    if rule.needs and not rule.needs & set(params):
        raise SpecError(f"Check {kind!r} needs one of: {', '.join(sorted(rule.needs))}.")
    for name, value in params.items():
        if not _fits(value, rule.params[name]):
            raise SpecError(
                f"Check {kind!r} cannot use {name}={value!r}: that is {type(value).__name__}; wanted "
                f"{_WANTED[rule.params[name]]}."
            )
    if rule.on == "column" and (column is None or columns):
        raise SpecError(f"Check {kind!r} is about one column; name it: Check(kind={kind!r}, column='...').")
    if rule.on == "columns" and column is None and not columns:
        raise SpecError(f"Check {kind!r} needs a column, or columns=(...).")

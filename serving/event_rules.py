"""What an event means, by the dataset's description: is it positive, and how much does it weigh.

The same rules as at ingest, for one event at a time: an event that is accepted here must be
readable there, and count for as much.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from feature_repo.dataset import Events
from feature_repo.dataset_columns import Rule
from serving.errors import BundleError

FILE = "events.json"

Value = str | float | bool | None
Row = dict[str, Value | int]


@dataclass(frozen=True)
class EventRules:
    """The part of a dataset's description that is about events.

    Parameters
    ----------
    described
        That part.
    """

    described: Events

    @cached_property
    def kinds(self) -> dict[str, str]:
        """``number``, ``truth`` or ``text`` of every column whose value rules or weight read."""
        rules = [one for one in (self.described.positive, self.described.impressions) if one]
        kinds = {one.column: _kind(one) for one in rules if one.column is not None}
        if self.described.weight.column is not None:
            kinds[self.described.weight.column] = "number"
        if self.described.value is not None:
            kinds.setdefault(self.described.value, "number")
        kinds.pop(self.described.action.column or "", None)
        return kinds

    @cached_property
    def fields(self) -> frozenset[str]:
        """Columns that an event must bring in its ``fields``: those that nothing else fills."""
        return frozenset(self.kinds) - {self.described.value}

    def row(
        self,
        user: str,
        post: str,
        action: str | None,
        value: float | None,
        fields: Mapping[str, Any],
    ) -> Row:
        """Return an event as a row of the source, without its time.

        Raises
        ------
        ValueError
            If something that the rules read is missing or of another type; says what.
        """
        described = self.described
        row: Row = {described.user: user, described.post: post}
        if described.action.column is not None:
            if action is None:
                raise ValueError("action is missing")
            row[described.action.column] = action
        elif action not in (None, described.action.constant):
            raise ValueError(f"action must be {described.action.constant!r} or left out")
        if described.value is not None:
            row[described.value] = value
        elif value is not None:
            raise ValueError("value is not part of this dataset's events")
        unknown = sorted(set(fields) - self.fields)
        if unknown:
            raise ValueError(f"fields.{unknown[0]} is not part of this dataset's events")
        row.update(fields)
        for name, kind in self.kinds.items():
            self._check(row, name, kind)
        return row

    def _check(self, row: Row, name: str, kind: str) -> None:
        value, shown = row.get(name), "value" if name == self.described.value else f"fields.{name}"
        if value is None:
            if self._is_read(name):
                raise ValueError(f"{shown} is missing")
        elif not _IS_OF_KIND[kind](value):
            raise ValueError(f"{shown} must be a {_KIND_NAMES[kind]}")
        elif kind == "number":
            row[name] = float(value)

    def _is_read(self, name: str) -> bool:
        rules = (self.described.positive, self.described.impressions)
        return name == self.described.weight.column or any(r and r.column == name for r in rules)

    def weight(self, row: Row) -> float:
        """Return how much a row of `row` counts: 0 unless it is positive.

        Raises
        ------
        ValueError
            If it is positive and its weight is negative.
        """
        described = self.described
        if not _holds(described.positive, described.action.constant, described.action.column, row):
            return 0.0
        weight = described.weight
        if weight.column is None:
            return float(weight.constant or 0.0)
        raw = float(row[weight.column] or 0.0)
        if raw < 0:
            raise ValueError(f"fields.{weight.column} is a weight and must be at least 0")
        return math.log1p(raw) if weight.scale == "log1p" else raw

    def save(self, folder: Path) -> None:
        """Write ``events.json``."""
        text = json.dumps(self.described.model_dump(mode="json", exclude_defaults=True))
        (folder / FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "EventRules | None":
        """Read what `save` wrote; None if an older version published the bundle.

        Raises
        ------
        BundleError
            If it is unreadable.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            return cls(Events.model_validate_json(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: unreadable ({error}); publish again") from error


def _kind(rule: Rule) -> str:
    if isinstance(rule.equals, bool):
        return "truth"
    return "text" if isinstance(rule.equals, str) else "number"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_IS_OF_KIND: dict[str, Callable[[Any], bool]] = {
    "number": _is_number,
    "truth": lambda value: isinstance(value, bool),
    "text": lambda value: isinstance(value, str),
}
_KIND_NAMES = {"number": "number", "truth": "truth value", "text": "text"}


def _holds(rule: Rule, constant: str | None, action_column: str | None, row: Row) -> bool:
    if rule.every:
        return True
    if rule.actions is not None:
        return (constant if action_column is None else row[action_column]) in rule.actions
    assert rule.column is not None
    value = row.get(rule.column)
    if value is None:
        return False
    if rule.at_least is not None:
        return float(value) >= rule.at_least
    # A truth value is a number to Python, and 1 would be equal to True.
    return isinstance(value, bool) == isinstance(rule.equals, bool) and value == rule.equals

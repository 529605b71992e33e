"""What a dataset description says of single columns: times, attributes, rules, weights."""

import difflib
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

SYNTHETIC_FORMATS = ("file_order", "random_order")
"""Time formats of sources without a clock: the order of the rows is the order of the events."""

RESERVED_NAMES = frozenset(
    {
        *("user_id", "post_id", "external_id", "entity_id", "action", "value", "weight", "label"),
        *("event_time", "event_timestamp", "created_timestamp", "created", "known_time"),
        *("event_month", "event_order", "is_impression", "is_positive"),
        *("title", "text", "topics", "image", "rank", "score", "source"),
    }
)
"""Columns that the lake, Feast and the ranker use themselves: no attribute may be called so."""

_NAME = re.compile(r"[a-z](_?[a-z0-9])*")
_MAX_NAME_LENGTH = 48


def as_tuple(value: Any) -> Any:
    """Take one text for a list of one."""
    return (value,) if isinstance(value, str) else value


def as_constant(value: Any) -> Any:
    """Take a text or a number for `{ constant = … }`."""
    return {"constant": value} if isinstance(value, str | int | float) else value


def as_column(value: Any) -> Any:
    """Take a text for `{ column = … }`."""
    return {"column": value} if isinstance(value, str) else value


def check_name(name: str) -> None:
    """Raise `ValueError` unless Feast and file systems take a name as it is."""
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME_LENGTH:
        raise ValueError(
            "a name must start with a-z and hold only a-z, 0-9 and single _ between them, at most "
            f"{_MAX_NAME_LENGTH} characters; rename it (the source's spelling goes into 'column')"
        )


Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]


class Model(BaseModel):
    """A part of a description: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Attribute(Model):
    """One attribute of a user or a post, and the feature-name part that it is known by.

    In the lake `categorical` is string, `numeric` is double and `list` is list<string>.
    """

    name: str = Field(description="a name such as 'age': lower-case letters, digits, single _")
    column: str = Field(min_length=1, description="the source's column")
    type: Literal["categorical", "numeric", "list"] = Field(
        description="'categorical', 'numeric' or 'list'"
    )
    separator: str | None = Field(
        default=None,
        min_length=1,
        description="what stands between the values of a list that is held as text",
    )

    @field_validator("name")
    @classmethod
    def _usable(cls, name: str) -> str:
        check_name(name)
        if name in RESERVED_NAMES:
            raise ValueError(
                "this name is reserved for the lake's own columns; choose another, such as "
                f"'own_{name}'"
            )
        return name

    @model_validator(mode="after")
    def _separator_is_for_lists(self) -> Self:
        if self.separator is not None and self.type != "list":
            raise ValueError("'separator' belongs to type = 'list' only; remove it")
        return self


class ListColumn(Model):
    """A column of lists: parquet or JSON lists as they are, or text with a separator."""

    column: str = Field(min_length=1, description="the source's column")
    separator: str | None = Field(
        default=None, min_length=1, description="what stands between the values of a list in text"
    )


class ImageColumn(Model):
    """A post's picture: the name of a file or address, base64 text, or bytes (parquet)."""

    column: str = Field(min_length=1, description="the source's column")
    kind: Literal["path", "base64", "binary"] = Field(
        default="path", description="'path', 'base64' or 'binary'"
    )


class TimeColumn(Model):
    """A time and how it is written; `file_order` and `random_order` have no column and no clock."""

    column: str | None = Field(default=None, min_length=1, description="the source's column")
    format: str = Field(
        default="iso",
        min_length=1,
        description="'iso', 'epoch_s', 'epoch_ms', 'epoch_us', a strptime pattern such as "
        "'%d.%m.%Y %H:%M', 'file_order' or 'random_order'",
    )
    zone: str = Field(
        default="UTC",
        min_length=1,
        description="the zone of times written without one, such as 'Europe/Berlin'",
    )

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        known = ("iso", "epoch_s", "epoch_ms", "epoch_us", *SYNTHETIC_FORMATS)
        if self.format not in known and "%" not in self.format:
            near = difflib.get_close_matches(self.format, known, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ValueError(
                f"unknown time format '{self.format}'; expected {', '.join(known)} or a strptime "
                f"pattern with % in it{hint}"
            )
        if self.is_synthetic and self.column is not None:
            raise ValueError(f"format = '{self.format}' takes no column; remove 'column'")
        if not self.is_synthetic and self.column is None:
            raise ValueError(
                f"format = '{self.format}' needs 'column'; without a time column in the source, "
                "use format = 'file_order'"
            )
        return self

    @property
    def is_synthetic(self) -> bool:
        """Whether times are made up from the order of the rows."""
        return self.format in SYNTHETIC_FORMATS


class Rule(Model):
    """Which events count: all, some actions, or those whose column passes a test.

    Exactly one of `every`, `actions`, `column` + `at_least`, `column` + `equals`. A null in the
    column does not pass.
    """

    every: Literal[True] | None = Field(default=None, description="true")
    actions: Names | None = Field(default=None, min_length=1, description="a list of actions")
    column: str | None = Field(default=None, min_length=1, description="the source's column")
    at_least: float | None = Field(default=None, description="a number")
    equals: bool | int | float | str | None = Field(default=None, description="a number or a text")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = ({"every"}, {"actions"}, {"column", "at_least"}, {"column", "equals"})
        given = {key for key in type(self).model_fields if getattr(self, key) is not None}
        if given not in forms:
            raise ValueError(
                'expected one of { every = true }, { actions = ["like"] }, '
                '{ column = "rating", at_least = 4 }, { column = "target", equals = 1 }'
            )
        return self


class Action(Model):
    """What the user did: the same for all rows, or a column."""

    constant: str | None = Field(default=None, min_length=1, description="a text")
    column: str | None = Field(default=None, min_length=1, description="the source's column")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.constant is None) == (self.column is None):
            raise ValueError('expected a text such as "view", or { column = "action" }')
        return self


class Weight(Model):
    """How much a positive event counts: a number, or a column, as it is or as ln(1 + x)."""

    constant: float | None = Field(default=None, gt=0, description="a number above 0")
    column: str | None = Field(default=None, min_length=1, description="the source's column")
    scale: Literal["linear", "log1p"] = Field(default="linear", description="'linear' or 'log1p'")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.constant is None) == (self.column is None):
            raise ValueError(
                'expected a number, a column name, or { column = "plays", scale = "log1p" }'
            )
        if self.constant is not None and self.scale != "linear":
            raise ValueError("'scale' belongs to a weight column; remove it")
        return self


class Watermark(Model):
    """A column of a database table by which new rows are told from those read before."""

    column: str = Field(min_length=1, description="the source's column")
    overlap: float = Field(
        default=0.0,
        ge=0,
        description="how far before the last value the next ingest starts, for rows that are "
        "committed late: a number, or seconds if the column is a time",
    )

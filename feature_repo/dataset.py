"""The dataset description: which files hold users, posts and events, and what their columns mean.

A description is one TOML file, data and not code. Column names of a source live here once: behind
the lake every dataset has the same columns.
"""

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from feature_repo.dataset_problems import explain

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


class DatasetError(Exception):
    """A dataset description that cannot be read, or that contradicts itself.

    The only error of `feature_repo.dataset`. Its message names the file and, for every problem,
    the key, what was found, what was expected and what to do.
    """


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_constant(value: Any) -> Any:
    return {"constant": value} if isinstance(value, str | int | float) else value


def _as_column(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME_LENGTH:
        raise ValueError(
            "a name must start with a-z and hold only a-z, 0-9 and single _ between them, at most "
            f"{_MAX_NAME_LENGTH} characters; rename it (the source's spelling goes into 'column')"
        )


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Attribute(_Model):
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
        _check_name(name)
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


class ListColumn(_Model):
    """A column of lists: parquet or JSON lists as they are, or text with a separator."""

    column: str = Field(min_length=1, description="the source's column")
    separator: str | None = Field(
        default=None, min_length=1, description="what stands between the values of a list in text"
    )


class ImageColumn(_Model):
    """A post's picture: the name of a file or address, base64 text, or bytes (parquet)."""

    column: str = Field(min_length=1, description="the source's column")
    kind: Literal["path", "base64", "binary"] = Field(
        default="path", description="'path', 'base64' or 'binary'"
    )


class TimeColumn(_Model):
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


class Rule(_Model):
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


class Action(_Model):
    """What the user did: the same for all rows, or a column."""

    constant: str | None = Field(default=None, min_length=1, description="a text")
    column: str | None = Field(default=None, min_length=1, description="the source's column")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.constant is None) == (self.column is None):
            raise ValueError('expected a text such as "view", or { column = "action" }')
        return self


class Weight(_Model):
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


class Fetch(_Model):
    """A wheel of the package registry to take the files from; it is never installed."""

    package: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="a package name such as 'recbole'"
    )
    version: str = Field(
        pattern=r"^[0-9][A-Za-z0-9.+!]*$", description="an exact version such as '1.2.1'"
    )
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="the wheel's checksum: 64 lower-case hex digits"
    )
    folder: str = Field(default=".", description="the folder inside the wheel that paths start at")

    @field_validator("folder")
    @classmethod
    def _inside(cls, folder: str) -> str:
        path = PurePosixPath(folder)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError("expected a folder inside the wheel, without '/' in front or '..'")
        return folder


class Source(_Model):
    """One table of the source: its files and how they are written.

    With `header = false` columns are called "0", "1", … from the left.
    """

    path: Names = Field(
        min_length=1, description="a path, a glob such as 'events/*.csv', or a list of them"
    )
    format: Literal["csv", "jsonl", "parquet"] = Field(
        description="'csv' (any separator), 'jsonl' or 'parquet'"
    )
    separator: str = Field(
        default=",", min_length=1, max_length=1, description="one character, such as ',' or '\\t'"
    )
    header: bool = Field(default=True, description="true or false")
    encoding: str = Field(default="utf-8", min_length=1, description="such as 'utf-8' or 'cp1251'")
    quote: str = Field(
        default='"', max_length=1, description="one character, or '' if nothing is quoted"
    )
    nulls: tuple[str, ...] = Field(default=("",), description="a list of texts that mean null")

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except LookupError as error:
            raise ValueError("no such encoding; try 'utf-8', 'latin-1' or 'cp1251'") from error
        return encoding

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        only_csv = {"separator", "header", "quote", "nulls"} & self.model_fields_set
        if self.format != "csv" and only_csv:
            raise ValueError(
                f"{', '.join(sorted(only_csv))}: for format = 'csv' only; remove from this table "
                f"of format = '{self.format}'"
            )
        if self.format == "jsonl" and self.encoding.lower().replace("_", "-") != "utf-8":
            raise ValueError("JSON lines are always UTF-8; remove 'encoding', convert the file")
        if not self.header:
            named = sorted({column for column in self.columns() if not column.isdecimal()})
            if named:
                raise ValueError(
                    f'header = false, so columns are numbers from "0"; found {", ".join(named)}; '
                    "write their places, or set header = true"
                )
        return self

    def columns(self) -> tuple[str, ...]:
        """Return the source's columns that this table uses, each once, in order."""
        return tuple(dict.fromkeys(_columns_in(self)))


class EntityTable(Source):
    """What `users` and `posts` share: an id, attributes, and when a row became known."""

    id: str = Field(min_length=1, description="the column of the id")
    created: TimeColumn | None = Field(
        default=None,
        description='{ column = "…", format = "…" }: when the row became known (without it: at '
        "the dataset's first event)",
    )
    attributes: tuple[Attribute, ...] = Field(
        default=(), description='a list of { name = "…", column = "…", type = "…" }'
    )

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [attribute.name for attribute in self.attributes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"attribute names given twice: {', '.join(twice)}; rename one")
        if self.created is not None and self.created.is_synthetic:
            raise ValueError("'created' needs a real time column; remove it if there is none")
        return self


class Posts(EntityTable):
    """The posts' table: a row a post (article, film, track …)."""

    title: str | None = Field(default=None, min_length=1, description="the column of the title")
    text: Names = Field(default=(), description="the columns whose text is joined and embedded")
    topics: Annotated[ListColumn, BeforeValidator(_as_column)] | None = Field(
        default=None, description='a column, or { column = "genres", separator = "|" }'
    )
    image: Annotated[ImageColumn, BeforeValidator(_as_column)] | None = Field(
        default=None, description='a column, or { column = "photo", kind = "base64" }'
    )


class Events(Source):
    """The events' table: a row is one user, one post, one time, one action."""

    user: str = Field(min_length=1, description="the column of the user's id")
    post: str = Field(min_length=1, description="the column of the post's id")
    time: TimeColumn = Field(
        description='{ column = "…", format = "…" }, or { format = "file_order" }'
    )
    value: str | None = Field(
        default=None, min_length=1, description="the column of a number (rating, seconds, plays)"
    )
    action: Annotated[Action, BeforeValidator(_as_constant)] = Field(
        default=Action(constant="event"), description='a text, or { column = "action" }'
    )
    impressions: Rule | None = Field(
        default=None,
        description='{ every = true } or { actions = ["view"] }: the events that show that the '
        "user saw the post; absent if the source does not tell",
    )
    positive: Rule = Field(
        description='{ every = true }, { actions = ["like"] }, { column = "rating", at_least = 4 } '
        'or { column = "target", equals = 1 }: the events that are a success'
    )
    weight: Annotated[
        Weight,
        BeforeValidator(lambda one: (_as_column if isinstance(one, str) else _as_constant)(one)),
    ] = Field(default=Weight(constant=1.0), description="a number, or a column name")


class Dataset(_Model):
    """A dataset description, checked. Immutable; equal descriptions have equal fingerprints."""

    name: str = Field(
        description="such as 'my_feed': names the Feast project and the state's folder"
    )
    fetch: Fetch | None = Field(
        default=None, description="a table with package, version, sha256, folder"
    )
    users: EntityTable | None = Field(default=None, description="a table with path, format, id")
    posts: Posts | None = Field(default=None, description="a table with path, format, id")
    events: Events = Field(
        description="a table with a row for each thing a user did to a post, with path, format, "
        "user, post, time and positive. Totals per post (views, likes) do not say who liked what: "
        "nothing personal can be learned from them"
    )

    @field_validator("name")
    @classmethod
    def _usable(cls, name: str) -> str:
        _check_name(name)
        return name

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read and check a description.

        Raises
        ------
        DatasetError
            If the file cannot be read, is not TOML, or breaks a rule; all problems at once.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise DatasetError(
                f"{path}: no such dataset description; write one with `feastrank init`"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(
                f"{path}: cannot be read as UTF-8 text ({error}); expected a TOML file"
            ) from error
        return cls.parse(text, origin=str(path))

    @classmethod
    def parse(cls, text: str, origin: str = "<text>") -> Self:
        """Read a description from TOML text; `origin` is what messages call it.

        Raises
        ------
        DatasetError
            As `read`.
        """
        try:
            content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise DatasetError(
                f"{origin}: not valid TOML: {error}; write texts in quotes and backslashes doubled"
            ) from error
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise DatasetError(explain(origin, cls, error)) from error

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of the description's content.

        Comments, the order of keys and defaults that are spelled out do not change it.
        """
        content = self.model_dump(mode="json", exclude_defaults=True)
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def has_clock(self) -> bool:
        """Whether event times are real, so that windows and ages mean something."""
        return not self.events.time.is_synthetic

    @property
    def has_impressions(self) -> bool:
        """Whether an event can be an impression and not positive, so that rates mean something."""
        seen, liked = self.events.impressions, self.events.positive
        if seen is None or liked.every or seen == liked:
            return False
        if seen.actions is not None and liked.actions is not None:
            return not set(seen.actions) <= set(liked.actions)
        return True

    @property
    def has_text(self) -> bool:
        """Whether posts have a text to embed."""
        return self.posts is not None and bool(self.posts.text)

    @property
    def has_topics(self) -> bool:
        """Whether posts have topics."""
        return self.posts is not None and self.posts.topics is not None

    @property
    def has_images(self) -> bool:
        """Whether posts have pictures."""
        return self.posts is not None and self.posts.image is not None

    @property
    def user_attributes(self) -> tuple[Attribute, ...]:
        """The users' attributes, in the description's order."""
        return () if self.users is None else self.users.attributes

    @property
    def post_attributes(self) -> tuple[Attribute, ...]:
        """The posts' attributes, in the description's order."""
        return () if self.posts is None else self.posts.attributes


_COLUMN_FIELDS = ("id", "user", "post", "title", "text", "value", "column")


def _columns_in(model: BaseModel) -> Iterator[str]:
    """Yield every source column that a table and the rules inside it name."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, BaseModel):
                yield from _columns_in(part)
            elif name in _COLUMN_FIELDS and part is not None:
                yield part

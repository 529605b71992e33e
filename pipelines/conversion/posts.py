"""The table of posts with what was seen and done: read, checked, and held as arrays."""

import base64
import binascii
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.conversion.targets import SYSTEM_WEIGHTS
from pipelines.errors import ConversionError

Counts = NDArray[np.int64]
_BLOCK_BYTES = 64 << 20
# A longer text that decodes is a picture; no file system has such names.
_LONGEST_PATH = 4096


@dataclass(frozen=True)
class Columns:
    """Which column of the file is what; None: the file has no such thing.

    Attributes
    ----------
    activities
        Name and column; empty: those of `SYSTEM_WEIGHTS` that the file has.
    """

    text: str = "text"
    views: str = "views"
    activities: Mapping[str, str] | None = None
    id: str | None = None
    topic: str | None = None
    time: str | None = None
    image: str | None = None


@dataclass(frozen=True)
class Posts:
    """Posts that were seen at least once.

    Attributes
    ----------
    ids, texts
        One for each of the n posts; a missing text is "".
    views
        int64[n], at least 1.
    activities
        Counts by name, int64[n] each, between 0 and views.
    topics
        One for each post, "" where it is missing; None without such a column.
    times
        datetime64[us][n], UTC; None without such a column.
    images
        Paths or bytes, None where there is none; None without such a column.
    never_viewed
        How many posts of the file were left out because nobody saw them.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    views: Counts
    activities: dict[str, Counts]
    topics: tuple[str, ...] | None = None
    times: NDArray[np.datetime64] | None = None
    images: tuple[str | bytes | None, ...] | None = None
    never_viewed: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def rates(self, activity: str) -> NDArray[np.float64]:
        """Return an activity's count over views; float64[n]."""
        return self.activities[activity] / self.views

    def take(self, places: Sequence[int] | NDArray[np.int64]) -> "Posts":
        """Return the posts at these places, in this order."""
        chosen = np.asarray(places, dtype=np.int64)
        listed = chosen.tolist()
        return replace(
            self,
            ids=tuple(self.ids[i] for i in listed),
            texts=tuple(self.texts[i] for i in listed),
            views=self.views[chosen],
            activities={name: counts[chosen] for name, counts in self.activities.items()},
            topics=None if self.topics is None else tuple(self.topics[i] for i in listed),
            times=None if self.times is None else self.times[chosen],
            images=None if self.images is None else tuple(self.images[i] for i in listed),
        )


def read_posts(path: Path, columns: Columns, *, separator: str = ",") -> Posts:
    """Read and check the table.

    Raises
    ------
    ConversionError
        If the file cannot be read, lacks a column, or holds counts that cannot be: negative,
        missing, fractions, more activities than views; or if no post has a text or a view.
    """
    table = _read(path, separator)
    activities = _activity_columns(table, columns, path)
    named = [columns.id, columns.text, columns.views, columns.topic, columns.time, columns.image]
    for name in (*named, *activities.values()):
        if name is not None:
            _require(table, name, path)
    views = _counts(table, columns.views, path)
    counts = {name: _counts(table, column, path) for name, column in activities.items()}
    ids = [str(i) for i in (table[columns.id].to_pylist() if columns.id else range(len(table)))]
    for name, values in counts.items():
        _check_within(values, views, f"{path}, column {activities[name]}", ids)
    texts = tuple(_strings(table[columns.text], columns.text, path))
    if not any(text.strip() for text in texts):
        raise ConversionError(
            f"{path}: none of {len(texts):,} posts has a text in column {columns.text}; name the "
            f"right column with --text (there are {', '.join(table.column_names)})"
        )
    posts = Posts(
        ids=tuple(ids),
        texts=texts,
        views=views,
        activities=counts,
        topics=tuple(_strings(table[columns.topic], columns.topic, path))
        if columns.topic
        else None,
        times=_times(table[columns.time], columns.time, path) if columns.time else None,
        images=_pictures(table[columns.image]) if columns.image else None,
    )
    seen = np.flatnonzero(views > 0)
    if not len(seen):
        raise ConversionError(
            f"{path}: column {columns.views} is 0 for all {len(views):,} posts; nothing converts "
            "that nobody saw, so name the right column with --views"
        )
    return replace(posts.take(seen), never_viewed=len(views) - len(seen))


def picture(value: Any) -> str | bytes | None:
    """Return bytes as they are, decoded base64 (also as a data address), or else a path."""
    if value is None or isinstance(value, bytes):
        return value
    text = str(value).strip()
    address = text.startswith("data:") and ";base64," in text[:100]
    body = text.split(";base64,", 1)[1] if address else text
    if not address and len(text) <= _LONGEST_PATH and ("." in text[-6:] or len(text) < 64):
        return text or None
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        # Whoever decodes pictures refuses and counts it.
        return text.encode() if len(text) > _LONGEST_PATH or address else text


def _pictures(column: pa.ChunkedArray) -> tuple[str | bytes | None, ...]:
    """Decode pictures; paths among bytes become bytes, which are refused later."""
    pictures = [picture(value) for value in column.to_pylist()]
    if any(isinstance(one, bytes) for one in pictures):
        return tuple(one.encode() if isinstance(one, str) else one for one in pictures)
    return tuple(pictures)


def _read(path: Path, separator: str) -> pa.Table:
    if not path.is_file():
        raise ConversionError(f"{path}: no such file; name a CSV or parquet file with --posts")
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
        else:
            table = pa_csv.read_csv(
                path,
                pa_csv.ReadOptions(block_size=_BLOCK_BYTES),
                pa_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
                pa_csv.ConvertOptions(strings_can_be_null=True),
            )
    except (pa.ArrowException, OSError) as error:
        raise ConversionError(
            f"{path}: cannot be read ({str(error)[:300]}); expected "
            f"{'parquet' if path.suffix == '.parquet' else 'CSV separated by ' + repr(separator)}"
        ) from error
    if not len(table):
        raise ConversionError(f"{path}: has no rows; expected one for each post")
    return table


def _activity_columns(table: pa.Table, columns: Columns, path: Path) -> dict[str, str]:
    if columns.activities:
        return dict(columns.activities)
    found = {name: name for name in SYSTEM_WEIGHTS if name in table.column_names}
    if not found:
        raise ConversionError(
            f"{path}: no column of activities; expected one of {', '.join(SYSTEM_WEIGHTS)}, or "
            f"--activities with some of {', '.join(table.column_names)}"
        )
    return found


def _require(table: pa.Table, name: str, path: Path) -> None:
    there = table.column_names
    if there.count(name) == 1:
        return
    if name in there:
        raise ConversionError(f"{path}: more than one column {name}; rename one")
    near = difflib.get_close_matches(name, there, 1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "name the right one"
    if len(there) == 1:
        hint = "is the separator right (--separator)?"
    raise ConversionError(f"{path}: no column {name}; there are {', '.join(there)}; {hint}")


def _counts(table: pa.Table, name: str, path: Path) -> Counts:
    column = table[name]
    if column.null_count:
        row = int(pc.index(pc.is_null(column), pa.scalar(True)).as_py())
        raise ConversionError(
            f"{path}, column {name}: {column.null_count:,} of {len(column):,} counts are missing "
            f"(first in row {row + 1}); write 0 where nothing happened"
        )
    try:
        values: Counts = column.cast(pa.float64()).cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise ConversionError(
            f"{path}, column {name}: {str(error)[:150]}; expected whole numbers"
        ) from error
    if values.min() < 0:
        row = int(values.argmin())
        raise ConversionError(
            f"{path}, column {name}: {int((values < 0).sum()):,} of {len(values):,} counts are "
            f"negative (row {row + 1}: {values[row]:,}); expected 0 or more"
        )
    return values


def _check_within(values: Counts, views: Counts, where: str, ids: Sequence[str]) -> None:
    over = np.flatnonzero(values > views)
    if len(over):
        first = int(over[0])
        raise ConversionError(
            f"{where}: {len(over):,} of {len(values):,} posts have more of it than views (first: "
            f"post {ids[first]}, {values[first]:,} of {views[first]:,}); a rate per view needs "
            "views in which it happened, at most one a view: correct the counts, or leave the "
            "column out of --activities"
        )


def _strings(column: pa.ChunkedArray, name: str, path: Path) -> list[str]:
    if pa.types.is_null(column.type):
        return [""] * len(column)
    try:
        return ["" if value is None else value for value in column.cast(pa.string()).to_pylist()]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConversionError(
            f"{path}, column {name}: holds {column.type}, expected text ({str(error)[:100]})"
        ) from error


def _times(column: pa.ChunkedArray, name: str, path: Path) -> NDArray[np.datetime64]:
    if column.null_count:
        raise ConversionError(
            f"{path}, column {name}: {column.null_count:,} of {len(column):,} times are missing; "
            "fill them in, or leave out --time"
        )
    try:
        times: NDArray[np.datetime64] = column.cast(pa.timestamp("us", tz="UTC")).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConversionError(
            f"{path}, column {name}: {str(error)[:150]}; expected times such as "
            "2025-01-31T09:30:00Z"
        ) from error
    return times.astype("datetime64[us]")

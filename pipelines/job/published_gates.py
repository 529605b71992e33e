"""The last gates: what was written for a generation, read back before anything points to it."""

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureStore, FeatureView
from numpy.typing import NDArray

from feastpack import FeatureReader
from feastpack.lookup import fetch
from feature_repo.definitions.entities import key_of
from pipelines.candidates.interactions import positions
from pipelines.job.context import Context
from pipelines.job.gates import judge
from serving.bundle import MANIFEST, REGISTRY, Manifest, checksum
from serving.lists import unpack

SAMPLED_ENTITIES = 200
"""Entities of each view whose served values are compared; evenly spaced over the ids."""

_NEEDED = (
    *(REGISTRY, "categories.json", "popular.npz", "users.parquet", "posts.parquet"),
    *("events.json", "fresh.json"),
)
_BATCH = 2_000


def judge_files(context: Context, folder: Path, manifest: Manifest) -> None:
    """Judge a staged bundle's files; see `validation.suites.published.bundle_files`.

    Raises
    ------
    validation.gate.GateFailure
        If one is missing, empty or changed, or an index lacks posts.
    """
    from validation.suites.published import bundle_files

    there = {path.name for path in folder.iterdir()} - {MANIFEST}
    rows = []
    for name in sorted({*_NEEDED, manifest.ranker, *manifest.files, *there}):
        path = folder / name
        size = path.stat().st_size if path.exists() else 0
        as_listed = size > 0 and checksum(path) == manifest.files.get(name)
        measures = manifest.indexes.get(name)
        rows.append((name, size, as_listed, *_index_posts(folder, measures)))
    names = ("file", "bytes", "as_listed", "posts", "posts_expected")
    types = (pa.string(), pa.int64(), pa.bool_(), pa.int64(), pa.int64())
    judge(context, bundle_files(), _table(names, types, rows))


def _index_posts(folder: Path, measures: dict[str, Any] | None) -> tuple[int | None, int | None]:
    if measures is None:
        return None, None
    made_of = np.load(folder / "als_posts.npy", mmap_mode="r", allow_pickle=False)
    return int(measures["posts"]), len(made_of)


def judge_lists(context: Context, redis: Any, prefix: str, users: NDArray[np.int64]) -> None:
    """Judge every user's lists as Redis has them; see `validation.suites.published.bundle_lists`.

    Parameters
    ----------
    prefix
        What the keys of the generation's lists begin with.
    users
        The lake's users, int64.

    Raises
    ------
    validation.gate.GateFailure
        If a user has none, or a list holds a post twice, an unknown one, or no finite score.
    """
    from validation.suites.published import bundle_lists

    lake = context.workspace.lake
    posts = pq.read_table(lake / "ids" / "posts.parquet", columns=["post_id"])["post_id"].to_numpy()
    posts = np.sort(posts)
    names = ("user_id", "posts", "repeated", "unknown", "not_finite")
    parts = [pa.table({name: np.empty(0, np.int64) for name in names})]
    for start in range(0, len(users), _BATCH):
        batch = users[start : start + _BATCH]
        values = fetch(redis, [pa.array([f"{prefix}{user}" for user in batch], pa.binary())])
        stored = [value for value in values if value is not None]
        known = batch[[value is not None for value in values]]
        columns = (known, *_list_faults(stored, len(context.sources), posts))
        parts.append(pa.table(dict(zip(names, columns, strict=True))))
    table = pa.concat_tables(parts)
    references = {"users": lake / "ids" / "users.parquet"}
    judge(context, bundle_lists(context.sources, len(users)), table, references)


def _list_faults(
    values: Sequence[bytes], sources: int, posts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], ...]:
    """Count each user's listed posts, and those that are repeated in a list, unknown, not finite.

    Parameters
    ----------
    values
        Packed lists, a user each.
    posts
        The known ones, ascending.
    """
    lists = [one for value in values for one in unpack(value, sources)]
    lengths = [len(one.post_ids) for one in lists]
    of_list = np.repeat(np.arange(len(lists)), lengths)
    ids = np.concatenate([np.empty(0, np.int64), *(one.post_ids for one in lists)])
    scores = np.concatenate([np.empty(0, np.float32), *(one.scores for one in lists)])
    of_user = of_list // sources
    # A list and a post of it in one number.
    pairs = np.sort((of_list << 32) | (ids & 0xFFFFFFFF))
    again = pairs[1:][pairs[1:] == pairs[:-1]] >> 32
    found = (
        of_user,
        again // sources,
        of_user[positions(ids, posts) < 0],
        of_user[~np.isfinite(scores)],
    )
    return tuple(np.bincount(one, minlength=len(values)) for one in found)


def judge_online(
    context: Context, staged: FeatureStore, views: Sequence[FeatureView], moment: datetime
) -> None:
    """Judge the rows that were materialized; see `validation.suites.published.online`.

    Parameters
    ----------
    staged
        The feature store on the namespace that was written.
    moment
        Until when feature tables were materialized.

    Raises
    ------
    validation.gate.GateFailure
        If rows are missing, or a served value is not the feature table's latest.
    """
    from validation.suites.published import online

    reader = FeatureReader(staged, registry_ttl_seconds=None)
    try:
        rows = [_online_row(context, reader, view, moment) for view in views]
    finally:
        reader.close()
    names = ("view", "rows_expected", "rows_online", "values_compared", "values_different")
    types = (pa.string(), *(pa.int64(),) * 4, pa.string())
    judge(context, online(), _table((*names, "first_difference"), types, rows))


def _online_row(
    context: Context, reader: FeatureReader, view: FeatureView, moment: datetime
) -> tuple[Any, ...]:
    key, features = key_of(view), [feature.name for feature in view.features]
    table = context.workspace.feature_table(view.name)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(
            f"CREATE VIEW past AS SELECT * FROM read_parquet('{table}') "
            f"WHERE event_timestamp <= TIMESTAMPTZ '{moment.isoformat(sep=' ')}'"
        )
        known = connection.execute(f"SELECT DISTINCT {key} FROM past ORDER BY 1").fetchnumpy()[key]
        if not len(known):
            return view.name, 0, 0, 0, 0, None
        sample = known[:: max(1, len(known) // SAMPLED_ENTITIES)]
        connection.register("sample", pa.table({key: sample}))
        expected = connection.sql(
            f"SELECT past.* FROM past JOIN sample USING ({key}) QUALIFY row_number() OVER "
            f"(PARTITION BY {key} ORDER BY event_timestamp DESC) = 1 ORDER BY {key}"
        ).to_arrow_table()
    online = 0
    for start in range(0, len(known), _BATCH):
        times = _read(reader, view, features[:1], known[start : start + _BATCH]).event_times(
            features[0]
        )
        online += int(np.count_nonzero(~np.isnat(times)))
    served = _read(reader, view, features, sample).to_arrow()
    different, first = 0, None
    for name in features:
        pairs = zip(expected[name].to_pylist(), served[name].to_pylist(), strict=True)
        for place, (mine, theirs) in enumerate(pairs):
            if not _equal(mine, theirs):
                different += 1
                first = first or f"{key} {sample[place]}: {name} {theirs}, expected {mine}"
    return view.name, len(known), online, len(sample) * len(features), different, first


def _read(reader: FeatureReader, view: FeatureView, features: list[str], ids: Any) -> Any:
    return reader.read([f"{view.name}:{name}" for name in features], {key_of(view): ids})


def _equal(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, float) and isinstance(theirs, float) and math.isnan(mine):
        return math.isnan(theirs)
    if isinstance(mine, list) and isinstance(theirs, list):
        return len(mine) == len(theirs) and all(map(_equal, mine, theirs))
    return bool(mine == theirs)


def _table(names: Sequence[str], types: Sequence[pa.DataType], rows: list[Any]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    arrays = [pa.array(list(c), t) for c, t in zip(columns, types, strict=True)]
    return pa.table(dict(zip(names, arrays, strict=True)))

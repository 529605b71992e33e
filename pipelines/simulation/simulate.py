"""Write a simulated feed: three tables, a dataset description, and what is true of them.

::

    user_data.parquet        user_id, gender, age, country, city, exp_group, os, source
    post_text_df.parquet     post_id, text, topic
    feed_data/part-*.parquet timestamp, user_id, post_id, action, target; ordered by time
    feed.toml                the description that `feastrank run --dataset` takes
    truth/taste.npz          the taste of every user and post (see `pipelines.simulation.taste`)
    truth/moments.parquet    the moments after the cut that recommendations are asked for
    truth/truth.json         sizes, rates, the cut, HitRate@5 of the oracle and of chance
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import SimulationError
from pipelines.simulation.feed import FEED, Sessions, make_sessions, period, stream
from pipelines.simulation.posts import Posts, make_posts, read_texts
from pipelines.simulation.taste import Taste, make_taste
from pipelines.simulation.truth import SHOWN, bounds, with_liked
from pipelines.simulation.users import make_users

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is."""

_ROWS_PER_FILE = 4_000_000
_DAY_S = 86_400

FILES = {
    name: f'path = "{path}"\nformat = "parquet"'
    for name, path in (
        ("users", "user_data.parquet"),
        ("posts", "post_text_df.parquet"),
        ("events", "feed_data/part-*.parquet"),
    )
}
"""Where the description finds each table, unless it was loaded elsewhere."""

DESCRIPTION = """\
# A simulated feed; written by `feastrank simulate`, see truth/ for what is true of it.
name = "{name}"

[users]
{users}
id = "user_id"
attributes = [
    {{ name = "gender", column = "gender", type = "categorical" }},
    {{ name = "age", column = "age", type = "numeric" }},
    {{ name = "country", column = "country", type = "categorical" }},
    {{ name = "city", column = "city", type = "categorical" }},
    {{ name = "exp_group", column = "exp_group", type = "categorical" }},
    {{ name = "os", column = "os", type = "categorical" }},
    {{ name = "traffic_source", column = "source", type = "categorical" }},
]

[posts]
{posts}
id = "post_id"
text = "text"
topics = "topic"

[events]
{events}
user = "user_id"
post = "post_id"
time = {{ column = "timestamp" }}
action = {{ column = "action" }}
impressions = {{ actions = ["view"] }}
positive = {{ column = "target", equals = 1 }} # the view that led to a like
"""


@dataclass(frozen=True)
class Size:
    """What is asked for.

    Parameters
    ----------
    users, posts, views, days
        How many there are to be.
    test_days
        The last days, after the cut.
    moments
        How many moments after the cut HitRate@5 is measured on.
    seed
        Of everything random: equal sizes and seeds give equal feeds.
    """

    users: int
    posts: int
    views: int
    days: int
    test_days: int
    moments: int
    seed: int


@dataclass(frozen=True)
class SimulatedFeed:
    """Where the parts of a simulated feed lie."""

    folder: Path

    @property
    def description(self) -> Path:
        """The dataset description."""
        return self.folder / "feed.toml"

    @property
    def users(self) -> Path:
        """The table user_data."""
        return self.folder / "user_data.parquet"

    @property
    def posts(self) -> Path:
        """The table post_text_df."""
        return self.folder / "post_text_df.parquet"

    @property
    def feed(self) -> Path:
        """The folder of feed_data's files."""
        return self.folder / "feed_data"

    @property
    def truth(self) -> Path:
        """The folder of what is true."""
        return self.folder / "truth"

    @property
    def taste(self) -> Path:
        """The taste model's parameters."""
        return self.truth / "taste.npz"

    @property
    def moments(self) -> Path:
        """The moments that are asked about."""
        return self.truth / "moments.parquet"

    def facts(self) -> dict[str, Any]:
        """Read truth.json.

        Raises
        ------
        SimulationError
            If it is not there.
        """
        path = self.truth / "truth.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise SimulationError(
                f"{path}: cannot be read ({error}); write the feed with `feastrank simulate`"
            ) from error


Load = Callable[[SimulatedFeed, Progress], Mapping[str, str]]


def simulate(
    size: Size,
    folder: Path,
    name: str,
    texts_from: Path | None,
    progress: Progress,
    load: Load | None = None,
) -> dict[str, Any]:
    """Write a feed into ``folder``, replacing one that is there; return what is in truth.json.

    Parameters
    ----------
    load
        Puts the tables elsewhere too, and returns the keys of the description that say where.

    Raises
    ------
    SimulationError
        If the sizes contradict each other, or the texts cannot be used.
    """
    _check(size)
    texts = None if texts_from is None else read_texts(texts_from)
    # Each has its own numbers: the same posts, and so the same embeddings, however many users.
    of_users, of_posts, rng = np.random.default_rng(size.seed).spawn(3)
    out = SimulatedFeed(folder)
    for stale in (out.feed, out.truth):
        shutil.rmtree(stale, ignore_errors=True)
        stale.mkdir(parents=True)
    users = make_users(size.users, of_users)
    posts = make_posts(size.posts, of_posts, texts)
    taste = make_taste(users, posts, period(size.days), rng)
    sessions = make_sessions(size.users, size.views, size.days, rng)
    pq.write_table(users.table, out.users)
    pq.write_table(posts.table, out.posts)
    found = _write_feed(out, sessions, posts, taste, rng, size.views, progress)
    cut = taste.end_s - size.test_days * _DAY_S
    moments = _moments(sessions, taste, cut, size.moments, rng)
    pq.write_table(moments, out.moments)
    taste.save(out.taste)
    progress("best and random lists", 0, 1)
    limits = bounds(taste, with_liked(moments, out.feed, taste), rng)
    facts = {
        "size": vars(size),
        **found,
        "cut": datetime.fromtimestamp(cut, UTC).isoformat(),
        "moments": moments.num_rows,
        f"hit_rate_at_{SHOWN}": {who: rate.to_json() for who, rate in limits.items()},
    }
    (out.truth / "truth.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    places = FILES if load is None else load(out, progress)
    # Last: a description stands for a whole feed.
    out.description.write_text(DESCRIPTION.format(name=name, **places), encoding="utf-8")
    return facts


def _check(size: Size) -> None:
    if size.test_days >= size.days:
        raise SimulationError(
            f"simulated feed: {size.test_days} days after the cut of {size.days} days in all leave "
            "none to learn from; ask for more --days or fewer --test-days"
        )
    if size.views < size.users:
        raise SimulationError(
            f"simulated feed: {size.views:,} views of {size.users:,} users, expected at least one "
            "view a user; ask for more --views or fewer --users"
        )


def _write_feed(
    out: SimulatedFeed,
    sessions: Sessions,
    posts: Posts,
    taste: Taste,
    rng: np.random.Generator,
    views: int,
    progress: Progress,
) -> dict[str, Any]:
    """Write the feed in files of a few million rows; return views, likes, both by topic."""
    seen: Counter[int] = Counter()
    liked: Counter[int] = Counter()
    written, writer = 0, None
    try:
        for table in stream(sessions, posts, taste, rng):
            if writer is None or written // _ROWS_PER_FILE != (
                (written + table.num_rows) // _ROWS_PER_FILE
            ):
                if writer is not None:
                    writer.close()
                path = out.feed / f"part-{written // _ROWS_PER_FILE:04}-{written:012}.parquet"
                writer = pq.ParquetWriter(path, FEED, compression="zstd")
            writer.write_table(table)
            written += table.num_rows
            shown = table.filter(pc.equal(table["action"], "view"))
            topics = taste.topics[np.searchsorted(taste.post_ids, shown["post_id"].to_numpy())]
            seen.update(dict(enumerate(np.bincount(topics).tolist())))
            hits = topics[shown["target"].to_numpy() == 1]
            liked.update(dict(enumerate(np.bincount(hits).tolist())))
            progress("views", sum(seen.values()), views)
    finally:
        if writer is not None:
            writer.close()
    return {
        "views": sum(seen.values()),
        "likes": sum(liked.values()),
        "like_rate": round(sum(liked.values()) / sum(seen.values()), 5),
    }


def _moments(
    sessions: Sessions, taste: Taste, cut: int, count: int, rng: np.random.Generator
) -> pa.Table:
    """Draw visits after the cut: who, and when it begins; ordered by user and time."""
    after = np.flatnonzero(sessions.starts_s >= cut)
    if not len(after):
        raise SimulationError(
            "simulated feed: nobody visits after the cut; ask for more --views or --test-days"
        )
    chosen = rng.choice(after, min(count, len(after)), replace=False)
    pairs = np.unique(
        np.column_stack([taste.user_ids[sessions.users[chosen]], sessions.starts_s[chosen]]), axis=0
    )
    times = pa.array(pairs[:, 1] * 1_000_000).cast(FEED.field("timestamp").type)
    return pa.table({"user_id": pairs[:, 0], "timestamp": times})

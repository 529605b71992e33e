"""The command `feastrank feed`: the best posts of the whole catalogue for users at moments.

Rankers learn on impressions before the first moment that is asked about: of what a user was shown,
what he liked (also where the like is a row of its own, some time after the view). An `Affinity` is
fitted to the earlier ones; CatBoost sees its logit, all features as of the impression, hour and
month on the later ones. On the last ones, the validation, the affinity is chosen unless CatBoost
has less log loss by more than two standard errors. The affinity, fitted again on everything, then
makes a shortlist of all posts, never one that the user has liked before the moment, and the chosen
ranker orders it.
"""

import resource
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console

from feature_repo.contract import registered_contract
from feature_repo.definitions import columns as c
from pipelines.errors import MomentsError
from pipelines.job import apply as apply_step
from pipelines.job import features as features_step
from pipelines.job import ingest as ingest_step
from pipelines.job.context import Context, open_context, open_store
from pipelines.ranking.affinity import Affinity, Floats, Rows, Views
from pipelines.ranking.impressions import Inputs, attribute_matrix, content_matrix, exposure_groups
from pipelines.ranking.models import Ranker, make_ranker
from pipelines.settings import FeedSettings
from pipelines.simulation.simulate import SimulatedFeed
from pipelines.simulation.taste import Taste
from pipelines.simulation.truth import SHOWN, hit_rate, with_liked
from serving.inputs import InputEncoder

# Shares of the impressions, by time, that the affinity and CatBoost learn on; validation the rest.
_EARLIER, _LATER = 0.8, 0.95
_ROWS_A_GROUP = 5_000
_MOMENTS_AT_ONCE = 256
Ids = NDArray[np.object_]
RANKERS = ("catboost", "affinity")


@dataclass(frozen=True)
class Asked:
    """The moments: dense user ids, int64 (n,), and microseconds since 1970, int64 (n,)."""

    users: Rows
    times_us: Rows


def feed(settings: FeedSettings, console: Console) -> None:
    """Ingest and compute what is new, learn, recommend, write the lists.

    With a simulated feed, print their HitRate@5.
    """
    context = open_context(settings, console)
    if not (context.dataset.has_impressions and context.dataset.has_clock):
        raise MomentsError(
            f"{context.dataset.name}: found no impressions with a time, which rankers of a feed "
            "learn on; add `impressions` to [events] of the description"
        )
    place = settings.moments
    if place is None and settings.simulated is not None:
        place = SimulatedFeed(settings.simulated).moments
    if place is None:
        raise MomentsError("feed: pass --moments, or --simulated with the folder of simulate")
    table = pq.read_table(place, columns=["user_id", "timestamp"])
    for step in (ingest_step, features_step, apply_step):
        step.run(context)
    run = _Feed(context, settings, _asked(context, table))
    lists = run.lists()
    external = _external(context, "post")[lists]
    folder = context.workspace.root / "feed"
    folder.mkdir(parents=True, exist_ok=True)
    _write(table, external, folder / "recommendations.parquet")
    console.print(f"{folder / 'recommendations.parquet'}  {external.size:,} rows", highlight=False)
    if settings.simulated is not None:
        _print_hit_rate(settings.simulated, table, external, console)


def _external(context: Context, name: str) -> Ids:
    """Return the source's ids by dense id."""
    ids = pq.read_table(context.workspace.lake / "ids" / f"{name}s.parquet").sort_by(f"{name}_id")
    return np.asarray(ids["external_id"].to_pylist(), dtype=object)


def _asked(context: Context, table: pa.Table) -> Asked:
    known = pa.array(_external(context, "user").tolist(), pa.string())
    users = pc.index_in(table["user_id"].cast(pa.string()), known).combine_chunks()
    if users.null_count or not len(users):
        raise MomentsError(
            f"moments: {users.null_count:,} of {len(users):,} rows name a user whom the lake does "
            "not know; leave them out, or ingest the users first"
        )
    times = table["timestamp"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    return Asked(users.to_numpy().astype(np.int64), times.to_numpy())


def _write(table: pa.Table, lists: Ids, path: Path) -> None:
    rows = pa.array(np.repeat(np.arange(len(lists)), lists.shape[1]))
    ranks = np.tile(np.arange(1, lists.shape[1] + 1, dtype=np.int32), len(lists))
    posts = pa.array(lists.ravel().tolist(), pa.string())
    pq.write_table(
        table.take(rows).append_column("rank", pa.array(ranks)).append_column("post_id", posts),
        path,
    )


def _print_hit_rate(
    folder: Path,
    table: pa.Table,
    lists: Ids,
    console: Console,
) -> None:
    simulated = SimulatedFeed(folder)
    taste, facts = Taste.load(simulated.taste), simulated.facts()[f"hit_rate_at_{SHOWN}"]
    moments = with_liked(table, simulated.feed, taste)
    found = hit_rate(taste, moments, lists.astype(np.int64))
    low, high = facts["random"]["value"], facts["oracle"]["value"]
    console.print(
        f"HitRate@{SHOWN} {found.value:.4f} (standard error {found.standard_error:.4f}) at "
        f"{table.num_rows:,} moments; random {low:.4f}, oracle {high:.4f}: "
        f"{(found.value - low) / (high - low):.1%} of the way",
        highlight=False,
    )


class _Feed:
    """One run of the command."""

    def __init__(self, context: Context, settings: FeedSettings, asked: Asked) -> None:
        self.context, self.settings, self.asked = context, settings, asked
        self.started = time.monotonic()
        store = open_store(context.workspace)
        self.inputs = Inputs(store, registered_contract(store), context.sources)
        lake = context.workspace.lake
        users = pq.read_table(lake / "users").sort_by("user_id")
        self.attributes = attribute_matrix(users, context.dataset.user_attributes)
        posts = pq.read_table(lake / "posts", columns=["post_id"])["post_id"].to_numpy()
        self.post_ids = np.sort(posts)
        self.contents, self.topics = content_matrix(
            self.post_ids,
            self._vectors("post_profile", c.POST_TOPICS, context.dataset.has_topics),
            self._vectors("post_text_clusters", c.TEXT_PCA, context.dataset.has_text),
        )
        self._read()
        self.groups = exposure_groups(self.posts, self.contents[:, 1 : self.topics])

    def _vectors(self, view: str, column: str, is_there: bool) -> pa.Table | None:
        path = self.context.workspace.feature_table(view)
        return pq.read_table(path, columns=["post_id", column]) if is_there else None

    def _read(self) -> None:
        """Read the latest impressions before the first moment, and what the asked users liked."""
        events = ds.dataset(
            self.context.workspace.lake / "events", format="parquet", partitioning="hive"
        )
        cut = int(self.asked.times_us.min())
        before = ds.field("event_time") < pa.scalar(cut, pa.int64()).cast(
            pa.timestamp("us", tz="UTC")
        )
        seen = events.to_table(
            columns=["user_id", "post_id", "event_time", "is_positive"],
            filter=ds.field("is_impression") & before,
        )
        if not seen.num_rows:
            first = np.datetime64(cut, "us")
            raise MomentsError(
                f"moments: the first is at {first} UTC, and nothing was shown before it; rankers "
                "learn on earlier impressions, so ask about later moments"
            )
        seen = _with_later_likes(
            seen,
            events.to_table(
                columns=["user_id", "post_id", "event_time"],
                filter=ds.field("is_positive") & ~ds.field("is_impression") & before,
            ),
            self.context.settings.impression_label_hours,
        )
        times = seen["event_time"].cast(pa.int64()).to_numpy()
        order = np.argsort(times, kind="stable")[-self.settings.impressions :]
        self.users, self.times = seen["user_id"].to_numpy()[order], times[order]
        self.posts = np.searchsorted(self.post_ids, seen["post_id"].to_numpy()[order])
        self.liked = seen["is_positive"].to_numpy()[order].astype(np.float32)
        who = pa.array(np.unique(self.asked.users))
        self.likes = events.to_table(
            columns=["user_id", "post_id", "event_time"],
            filter=ds.field("is_positive") & ds.field("user_id").isin(who),
        ).sort_by([("user_id", "ascending"), ("event_time", "ascending")])
        self.liked_before = self._liked_before()
        self._say("impressions", f"{len(order):,} before the first moment")

    def lists(self) -> Rows:
        """Return the top posts of every moment: dense ids, (moments, 5)."""
        start, ranker, encoder, chosen = self._learn()
        model = self._affinity(slice(0, len(self.users)), start)
        self._say("affinity", "fitted on all of them")
        shortlist = self._shortlist(model)
        size = shortlist.shape[1] if chosen == "catboost" else SHOWN
        shortlist = shortlist[:, :size]
        users = np.repeat(self.asked.users, size)
        times = np.repeat(self.asked.times_us, size)
        posts = shortlist.ravel()
        scores = model.of_pairs(users, posts, _hours(times))
        if chosen == "catboost":
            matrix = self.inputs.matrix(encoder, users, self.post_ids[posts], times, scores)
            scores = ranker.predict(matrix)
        best = np.argsort(-scores.reshape(-1, size), axis=1, kind="stable")[:, :SHOWN]
        self._say("lists", f"{len(best):,} moments, {size} posts of each ordered by {chosen}")
        return self.post_ids[np.take_along_axis(shortlist, best, axis=1)]

    def _affinity(self, part: slice, start: Affinity | None = None) -> Affinity:
        views = Views(
            self.users[part], self.posts[part], _hours(self.times[part]), self.liked[part]
        )
        groups = exposure_groups(views.posts, self.contents[:, 1 : self.topics])
        return Affinity.fit(views, self.attributes, self.contents, self.topics, groups, start=start)

    def _learn(self) -> tuple[Affinity, Ranker, InputEncoder, str]:
        """Fit both rankers and compare them on validation."""
        first, second = (int(share * len(self.users)) for share in (_EARLIER, _LATER))
        model = self._affinity(slice(0, first))
        rng = np.random.default_rng(self.settings.seed)
        size = self.settings.ranker_impressions
        learnt = _drawn(np.arange(first, second), size, rng)
        judged = _drawn(np.arange(second, len(self.users)), size // 4, rng)
        rows = np.concatenate([learnt, judged])
        users, posts, times = self.users[rows], self.posts[rows], self.times[rows]
        logits = model.of_pairs(users, posts, _hours(times))
        sample = self.inputs.join(users[:20_000], self.post_ids[posts[:20_000]], times[:20_000])
        encoder = InputEncoder.fit(self.inputs.contract, sample)
        matrix = self.inputs.matrix(encoder, users, self.post_ids[posts], times, logits)
        self._say("features", f"of {len(rows):,} impressions, as of their time")
        tuned = self.context.tuned.rankers.get("catboost", {})
        ranker = make_ranker(
            "catboost", {"seed": self.settings.seed, **tuned, "objective": "Logloss"}
        )
        count = len(learnt)
        # Rows are judged one by one; groups are but what the protocol of rankers asks for.
        sizes = np.full(-(-count // _ROWS_A_GROUP), _ROWS_A_GROUP, dtype=np.int64)
        sizes[-1] -= sizes.sum() - count
        ranker.fit(
            matrix[:count], self.liked[learnt], sizes, self.inputs.names, self.inputs.categories
        )
        scores = {"catboost": ranker.predict(matrix[count:]), "affinity": logits[count:]}
        losses = {name: _log_losses(self.liked[judged], scores[name]) for name in RANKERS}
        # Lists are the few best of thousands, where whatever is guessed too high comes first: the
        # affinity, whose priors hold that down, unless trees are better by more than chance.
        gain = losses["affinity"] - losses["catboost"]
        sure = gain.mean() > 2 * gain.std() / np.sqrt(len(gain))
        chosen = "catboost" if sure else "affinity"
        told = ", ".join(f"{name} {losses[name].mean():.5f}" for name in RANKERS)
        self._say("rankers", f"log loss on validation {told}: {chosen} chosen")
        return model, ranker, encoder, chosen

    def _liked_before(self) -> list[Rows]:
        """Return the posts that each moment's user has liked before it, each once.

        Raises
        ------
        MomentsError
            If a list cannot be filled with what is left.
        """
        owners, posts = self.likes["user_id"].to_numpy(), self.likes["post_id"].to_numpy()
        posts = np.searchsorted(self.post_ids, posts)
        liked_at = self.likes["event_time"].cast(pa.int64()).to_numpy()
        low = np.searchsorted(owners, self.asked.users)
        high = np.searchsorted(owners, self.asked.users, side="right")
        found = []
        for first, last, time_us in zip(low, high, self.asked.times_us, strict=True):
            own = slice(first, last)
            found.append(np.unique(posts[own][liked_at[own] < time_us]))
        most = max(map(len, found))
        if len(self.post_ids) - most < SHOWN:
            raise MomentsError(
                f"moments: of {len(self.post_ids):,} posts a user has liked {most:,} before, which "
                f"are never shown again, so a list of {SHOWN} cannot be filled; leave him out"
            )
        return found

    def _shortlist(self, model: Affinity) -> Rows:
        """Return the best posts of each moment, best first, never one liked before it.

        As many as the settings say, or as every user has left.
        """
        users, times = self.asked.users, self.asked.times_us
        count = len(self.post_ids) - max(map(len, self.liked_before))
        count = min(self.settings.shortlist, count)
        result = np.empty((len(users), count), dtype=np.int64)
        for start in range(0, len(users), _MOMENTS_AT_ONCE):
            part = np.arange(start, min(start + _MOMENTS_AT_ONCE, len(users)))
            scores = model.of_all_posts(users[part], _hours(times[part]))
            for row, moment in enumerate(part):
                scores[row, self.liked_before[moment]] = -np.inf
            result[part] = _best(scores, count)
        return result

    def _say(self, name: str, text: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds = time.monotonic() - self.started
        self.context.console.print(
            f"[bold]{name:<12}[/] {seconds:8.1f} s  {peak:6,.0f} MB  {text}", highlight=False
        )


def _with_later_likes(seen: pa.Table, likes: pa.Table, hours: float) -> pa.Table:
    """Mark the last impression before each like that is a row of its own, if it is recent."""
    if not likes.num_rows:
        return seen
    rows = seen.append_column("row", pa.array(np.arange(seen.num_rows)))
    with duckdb.connect() as connection:
        connection.register("seen", rows)
        connection.register("likes", likes)
        found = connection.execute(
            "SELECT seen.row FROM likes ASOF JOIN seen ON likes.user_id = seen.user_id "
            "AND likes.post_id = seen.post_id AND likes.event_time >= seen.event_time "
            "WHERE likes.event_time <= seen.event_time + to_microseconds(?)",
            [round(hours * 3.6e9)],
        ).fetchnumpy()["row"]
    liked = seen["is_positive"].to_numpy().copy()
    liked[found] = True
    return seen.set_column(seen.column_names.index("is_positive"), "is_positive", pa.array(liked))


def _hours(times_us: Rows) -> Rows:
    return times_us // 3_600_000_000 % 24


def _drawn(rows: Rows, size: int, rng: np.random.Generator) -> Rows:
    return rows if len(rows) <= size else np.sort(rng.choice(rows, size, replace=False))


def _best(scores: Floats, count: int) -> Rows:
    top = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
    return np.take_along_axis(top, order, axis=1)


def _log_losses(liked: Floats, logits: Floats) -> NDArray[np.float64]:
    return np.asarray(np.logaddexp(0, logits) - liked * logits, np.float64)

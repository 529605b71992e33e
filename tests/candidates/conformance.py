"""The contract of a candidate generator as tests: subclass, and say how to make one."""

from __future__ import annotations

import datetime
import json

import numpy as np
import pyarrow as pa
import pytest

from pipelines.candidates.interactions import Interactions
from pipelines.candidates.protocol import CANDIDATES, CandidateGenerator
from pipelines.candidates.registry import load_generator
from pipelines.errors import GeneratorError

START = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
TIME = pa.timestamp("us", tz="UTC")


def events(rows, order=None):
    """Make an events table of (user_id, post_id, day, weight) rows."""
    rows = list(rows)
    users, posts, days, weights = zip(*rows, strict=True) if rows else ((), (), (), ())
    table = pa.table(
        {
            "user_id": pa.array(users, pa.int64()),
            "post_id": pa.array(posts, pa.int64()),
            "event_time": pa.array([START + datetime.timedelta(days=d) for d in days], TIME),
            "weight": pa.array(weights, pa.float64()),
        }
    )
    return table if order is None else table.append_column("event_order", pa.array(order))


def clustered_events(seed=0, users=60, posts=40, likes=10):
    """Make two groups of users who like, mostly, two groups of posts; ids are not dense."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        preferred = np.arange(posts) % 2 == user % 2
        chance = np.where(preferred, 9.0, 1.0) * (1.0 + np.arange(posts)[::-1])
        liked = rng.choice(posts, size=likes, replace=False, p=chance / chance.sum())
        rows += [(7 + 3 * user, 100 + 5 * int(post), rng.uniform(0, 30), 1.0) for post in liked]
        # A view without a like: seen, and nothing to learn from.
        rows.append((7 + 3 * user, 100 + 5 * int(rng.integers(posts)), rng.uniform(0, 30), 0.0))
    return rows


def pairs(table):
    return list(zip(table["user_id"].to_pylist(), table["post_id"].to_pylist(), strict=True))


class GeneratorConformance:
    """Every generator passes this; a subclass defines `make`."""

    def make(self) -> CandidateGenerator:
        raise NotImplementedError

    @pytest.fixture
    def interactions(self):
        return Interactions.from_table(events(clustered_events()))

    @pytest.fixture
    def generator(self, interactions):
        return self.make().fit(interactions)

    def test_is_a_generator(self):
        assert isinstance(self.make(), CandidateGenerator)

    def test_table_is_as_the_schema_says(self, generator, interactions):
        asked = interactions.user_ids[[5, 2, 9]]
        table = generator.recommend(asked, 4)
        assert table.schema.equals(CANDIDATES)
        assert table["user_id"].to_pylist() == np.repeat(asked, 4).tolist()
        assert table["rank"].to_pylist() == [1, 2, 3, 4] * 3
        assert set(table["source"].to_pylist()) == {generator.name}
        table.validate(full=True)

    def test_scores_descend_and_ties_go_to_the_lower_post(self, generator, interactions):
        table = generator.recommend(interactions.user_ids, 40)
        rows = list(
            zip(
                table["user_id"].to_pylist(),
                (-np.asarray(table["score"])).tolist(),
                table["post_id"].to_pylist(),
                strict=True,
            )
        )
        assert rows == sorted(rows)
        assert np.isfinite(table["score"]).all()

    def test_never_a_post_already_seen(self, generator, interactions):
        proposed = set(pairs(generator.recommend(interactions.user_ids, 100)))
        rows = clustered_events()
        assert proposed
        assert not proposed & {(user, post) for user, post, _, _ in rows}

    def test_seen_posts_come_back_when_asked_for(self, generator, interactions):
        proposed = set(pairs(generator.recommend(interactions.user_ids, 100, exclude_seen=False)))
        assert proposed & {(user, post) for user, post, _, _ in clustered_events()}

    def test_further_seen_pairs_are_masked_too(self):
        table = events(clustered_events())
        user = table["user_id"][0].as_py()
        first = self.make().fit(Interactions.from_table(table)).recommend([user], 5)
        seen = events((user, post, 1, 0.0) for post in first["post_id"].to_pylist()[:3])
        again = Interactions.from_table(table, seen=seen.drop_columns("weight"))
        after = self.make().fit(again).recommend([user], 5)
        assert first["post_id"].to_pylist()[3:5] == after["post_id"].to_pylist()[:2]
        assert not set(after["post_id"].to_pylist()) & set(seen["post_id"].to_pylist())

    def test_never_a_post_unknown_at_fit_time(self, interactions):
        cut = interactions.until(START + datetime.timedelta(days=3))
        generator = self.make().fit(cut)
        proposed = generator.recommend(interactions.user_ids, 100, exclude_seen=False)
        early = {post for _, post, day, weight in clustered_events() if day < 3 and weight > 0}
        assert set(proposed["post_id"].to_pylist()) <= early

    def test_the_future_changes_nothing(self, interactions):
        rows = clustered_events()
        cut = self.make().fit(interactions.until(START + datetime.timedelta(days=15)))
        past = self.make().fit(Interactions.from_table(events(r for r in rows if r[2] < 15)))
        users = interactions.user_ids
        assert cut.recommend(users, 20).equals(past.recommend(users, 20))

    def test_deterministic_under_a_seed(self, generator, interactions):
        again = self.make().fit(interactions)
        users = interactions.user_ids
        assert generator.recommend(users, 20).equals(again.recommend(users, 20))

    def test_cold_users_get_nothing_or_the_popular_list(self, generator, interactions):
        table = generator.recommend([10**12, -1], 5)
        assert table.num_rows == (10 if generator.serves_cold_users else 0)

    def test_a_user_who_only_saw_is_cold(self):
        rows = [*clustered_events(), (5, 100, 2.0, 0.0)]
        table = self.make().fit(Interactions.from_table(events(rows))).recommend([5], 5)
        assert table.num_rows == (5 if self.make().serves_cold_users else 0)
        assert 100 not in table["post_id"].to_pylist()

    def test_order_of_events_is_irrelevant(self, generator, interactions):
        rows = clustered_events()
        np.random.default_rng(1).shuffle(rows)
        rows = [(int(user), int(post), day, weight) for user, post, day, weight in rows]
        shuffled = self.make().fit(Interactions.from_table(events(rows)))
        users = interactions.user_ids
        assert generator.recommend(users, 20).equals(shuffled.recommend(users, 20))

    def test_order_of_users_is_irrelevant(self, generator, interactions):
        users = interactions.user_ids
        forward = generator.recommend(users, 10)
        backward = generator.recommend(users[::-1], 10)
        order = np.lexsort((np.asarray(backward["rank"]), np.asarray(backward["user_id"])))
        backward = backward.take(order)
        assert pairs(forward) == pairs(backward)
        # A float32 product's last bits depend on the row's place in its block; scores are near 1.
        np.testing.assert_allclose(forward["score"], backward["score"], rtol=1e-5, atol=1e-6)

    def test_a_user_named_twice_is_answered_once(self, generator, interactions):
        a, b = interactions.user_ids[:2].tolist()
        assert generator.recommend([b, a, b], 3).equals(generator.recommend([b, a], 3))

    def test_no_users(self, generator):
        assert generator.recommend([], 5).num_rows == 0
        assert generator.recommend([], 5).schema.equals(CANDIDATES)

    def test_one_user(self):
        rows = [(1, 10, 0, 1.0), (1, 11, 1, 1.0)]
        generator = self.make().fit(Interactions.from_table(events(rows)))
        assert generator.recommend([1], 5).num_rows == 0
        shown = generator.recommend([1], 5, exclude_seen=False)["post_id"].to_pylist()
        assert set(shown) <= {10, 11}

    def test_users_with_one_event(self):
        rows = clustered_events()
        first = {user: (user, post, day, weight) for user, post, day, weight in rows if weight}
        alone = [*rows, (1, 100, 3.0, 1.0), (2, 105, 3.0, 1.0)]
        for case in (list(first.values()), alone):
            interactions = Interactions.from_table(events(case))
            table = self.make().fit(interactions).recommend(interactions.user_ids, 5)
            assert not set(pairs(table)) & {(user, post) for user, post, _, _ in case}
            assert np.isfinite(table["score"]).all()

    def test_one_post(self):
        rows = [(user, 10, user, 1.0) for user in range(3)]
        generator = self.make().fit(Interactions.from_table(events(rows)))
        assert generator.recommend([0, 1, 2], 5).num_rows == 0

    def test_no_overlap_between_users(self):
        rows = [(user, 10 * user + post, post, 1.0) for user in range(4) for post in range(3)]
        generator = self.make().fit(Interactions.from_table(events(rows)))
        table = generator.recommend([0, 1], 100)
        assert not set(pairs(table)) & {(user, post) for user, post, _, _ in rows}
        assert np.isfinite(table["score"]).all()

    def test_every_post_seen(self):
        rows = [(0, post, post, 1.0) for post in range(6)]
        rows += [(1, post, post, 1.0) for post in range(3)]
        generator = self.make().fit(Interactions.from_table(events(rows)))
        assert generator.recommend([0], 5).num_rows == 0

    def test_k_beyond_the_catalogue(self, generator, interactions):
        table = generator.recommend(interactions.user_ids[:1], 10**6, exclude_seen=False)
        assert 0 < table.num_rows <= len(interactions.post_ids)
        assert len(set(table["post_id"].to_pylist())) == table.num_rows

    def test_repeated_events(self, interactions):
        rows = clustered_events()
        doubled = Interactions.from_table(events([*rows, *rows]))
        proposed = pairs(self.make().fit(doubled).recommend(doubled.user_ids, 20))
        assert len(proposed) == len(set(proposed))
        assert not set(proposed) & {(user, post) for user, post, _, _ in rows}

    def test_save_and_load(self, generator, interactions, tmp_path):
        generator.save(tmp_path / "saved")
        users = [*interactions.user_ids.tolist(), 10**12]
        for loaded in (
            type(generator).load(tmp_path / "saved"),
            load_generator(tmp_path / "saved"),
        ):
            assert loaded.settings == generator.settings
            assert loaded.recommend(users, 20).equals(generator.recommend(users, 20))
        assert {path.suffix for path in (tmp_path / "saved").iterdir()} <= {".json", ".npz"}

    def test_another_generators_folder_is_refused(self, generator, tmp_path):
        generator.save(tmp_path)
        head = json.loads((tmp_path / "generator.json").read_text())
        (tmp_path / "generator.json").write_text(json.dumps({**head, "generator": "other"}))
        with pytest.raises(GeneratorError, match="holds the generator 'other', expected"):
            type(generator).load(tmp_path)

    def test_a_truncated_state_is_refused(self, generator, tmp_path):
        generator.save(tmp_path)
        state = tmp_path / "state.npz"
        state.write_bytes(state.read_bytes()[:300])
        with pytest.raises(GeneratorError, match=r"cannot be read (?s:.*)fit the candidates again"):
            type(generator).load(tmp_path)

    def test_a_state_of_another_version_is_refused(self, generator, tmp_path):
        generator.save(tmp_path)
        with np.load(tmp_path / "state.npz") as stored:
            kept = {name: array for name, array in stored.items() if name != "warm"}
        np.savez(tmp_path / "state.npz", **kept)
        with pytest.raises(GeneratorError, match=r"also 'warm' .*fit the candidates again"):
            type(generator).load(tmp_path)

    def test_an_empty_folder_is_refused(self, generator, tmp_path):
        with pytest.raises(GeneratorError, match=r"generator\.json: cannot be read"):
            type(generator).load(tmp_path)

    def test_unfitted_is_refused(self, tmp_path):
        with pytest.raises(GeneratorError, match="not fitted; call fit or load first"):
            self.make().recommend([1], 5)
        with pytest.raises(GeneratorError, match="not fitted; call fit or load first"):
            self.make().save(tmp_path)

    def test_k_below_one_is_refused(self, generator):
        with pytest.raises(GeneratorError, match="found k = 0, expected at least 1"):
            generator.recommend([1], 0)

    def test_external_ids_are_refused(self, generator):
        with pytest.raises(GeneratorError, match=r"whole numbers .*map external ids first"):
            generator.recommend(["a"], 5)

    def test_progress_ends_at_one(self, interactions):
        done = []
        self.make().fit(interactions, progress=done.append)
        assert done == sorted(done)
        assert done[-1] == 1.0

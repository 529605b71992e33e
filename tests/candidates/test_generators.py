import datetime

import numpy as np
import pytest
import threadpoolctl

pytest.register_assert_rewrite("conformance")

from conformance import GeneratorConformance, clustered_events, events, pairs  # noqa: E402

from pipelines.candidates.als import ALS, ALSSettings  # noqa: E402
from pipelines.candidates.interactions import Interactions  # noqa: E402
from pipelines.candidates.item_to_item import ItemToItem, ItemToItemSettings  # noqa: E402
from pipelines.candidates.popular import Popular, PopularSettings  # noqa: E402
from pipelines.candidates.registry import GENERATORS, load_generator, make_generator  # noqa: E402
from pipelines.errors import GeneratorError  # noqa: E402


class TestPopular(GeneratorConformance):
    def make(self):
        return Popular()


class TestPopularOfAllTime(GeneratorConformance):
    def make(self):
        return Popular(PopularSettings(half_life_days=None))


class TestALS(GeneratorConformance):
    def make(self):
        return ALS(ALSSettings(factors=4, regularization=0.5, iterations=5, seed=3))


class TestItemToItemCosine(GeneratorConformance):
    def make(self):
        return ItemToItem()


class TestItemToItemBM25(GeneratorConformance):
    def make(self):
        return ItemToItem(ItemToItemSettings(similarity="bm25", half_life_posts=None))


def shown(table):
    return list(
        zip(table["post_id"].to_pylist(), np.round(table["score"], 4).tolist(), strict=True)
    )


class TestPopularByHand:
    # Post 1: two likes on day 0. Post 2: one on day 10. Post 3: a view only.
    rows = ((1, 1, 0, 1.0), (2, 1, 0, 1.0), (3, 2, 10, 1.0), (3, 3, 10, 0.0))

    def recommend(self, users, half_life_days):
        interactions = Interactions.from_table(events(self.rows))
        return Popular(PopularSettings(half_life_days)).fit(interactions).recommend(users, 5)

    def test_all_time_counts_likes(self):
        assert shown(self.recommend([99], None)) == [(1, 2.0), (2, 1.0)]

    def test_a_half_life_turns_the_order(self):
        # Ten days are two half-lives: 2 x 1/4.
        assert shown(self.recommend([99], 5.0)) == [(2, 1.0), (1, 0.5)]

    def test_each_user_misses_only_what_he_has_seen(self):
        table = self.recommend([1, 99, 3], None)
        assert pairs(table) == [(1, 2), (99, 1), (99, 2), (3, 1)]


class TestItemToItemByHand:
    # Users 1 and 2 like {10, 11}; user 3 likes {11, 12}; user 4 likes 10 first, then 12.
    rows = (
        (1, 10, 0, 1.0),
        (1, 11, 1, 1.0),
        (2, 10, 0, 1.0),
        (2, 11, 1, 1.0),
        (3, 11, 0, 1.0),
        (3, 12, 1, 1.0),
        (4, 10, 0, 1.0),
        (4, 12, 1, 1.0),
    )

    def fit(self, **settings):
        interactions = Interactions.from_table(events(self.rows))
        return ItemToItem(ItemToItemSettings(**settings)).fit(interactions)

    def test_cosine_of_the_columns(self):
        # Likes: 10 by {1, 2, 4}, 11 by {1, 2, 3}, 12 by {3, 4}.
        # cos(10, 11) = 2/3, cos(10, 12) = cos(11, 12) = 1/sqrt(6).
        table = self.fit().similar([11, 12], 5)
        assert table["post_id"].to_pylist() == [11, 11, 12, 12]
        assert table["similar_post_id"].to_pylist() == [10, 12, 10, 11]
        expected = [2 / 3, 6**-0.5, 6**-0.5, 6**-0.5]
        np.testing.assert_allclose(table["score"], expected, rtol=1e-6)

    def test_a_user_is_the_decayed_sum_over_his_latest_posts(self):
        # User 4's latest is 12, then 10; 11 is scored by both.
        score = self.fit(half_life_posts=1.0).recommend([4], 5)["score"].to_pylist()
        np.testing.assert_allclose(score, [6**-0.5 + 0.5 * 2 / 3], rtol=1e-6)
        score = self.fit(half_life_posts=None).recommend([4], 5)["score"].to_pylist()
        np.testing.assert_allclose(score, [6**-0.5 + 2 / 3], rtol=1e-6)
        score = self.fit(latest_posts=1).recommend([4], 5)["score"].to_pylist()
        np.testing.assert_allclose(score, [6**-0.5], rtol=1e-6)

    def test_as_many_neighbours_as_asked_for_without_itself(self):
        table = self.fit(neighbours=1).similar([10, 11, 12, 77], 5)
        assert table["post_id"].to_pylist() == [10, 11, 12]
        assert table["similar_post_id"].to_pylist()[:2] == [11, 10]
        assert self.fit().similar([], 3).num_rows == 0

    def test_a_repeated_like_counts_as_the_newest(self):
        rows = [*self.rows, (4, 10, 9, 1.0)]
        fitted = ItemToItem(ItemToItemSettings(latest_posts=1)).fit(
            Interactions.from_table(events(rows))
        )
        # The neighbours of 10, not those of 12.
        table = fitted.recommend([4], 5, exclude_seen=False)
        assert table["post_id"].to_pylist() == [12, 11]


class TestALSFindsStructure:
    def test_users_get_posts_of_their_own_group(self):
        interactions = Interactions.from_table(events(clustered_events(users=200)))
        fitted = ALS(ALSSettings(factors=4, regularization=1.0)).fit(interactions)
        found = pairs(fitted.recommend(interactions.user_ids, 3))
        own = [((user - 7) // 3) % 2 == ((post - 100) // 5) % 2 for user, post in found]
        assert np.mean(own) > 0.9

    def test_similar_posts_are_those_of_the_largest_cosine(self):
        interactions = Interactions.from_table(events(clustered_events(users=200)))
        fitted = ALS(ALSSettings(factors=4, regularization=1.0)).fit(interactions)
        table = fitted.similar(3)
        unit = fitted.post_factors / np.linalg.norm(fitted.post_factors, axis=1, keepdims=True)
        cosines = unit @ unit.T
        np.fill_diagonal(cosines, -np.inf)
        best = np.argsort(-cosines, axis=1)[:, :3]
        posts = interactions.post_ids
        assert table["post_id"].to_pylist() == np.repeat(posts, 3).tolist()
        assert table["similar_post_id"].to_pylist() == posts[best].ravel().tolist()
        assert table["rank"].to_pylist() == [1, 2, 3] * len(posts)
        expected = np.take_along_axis(cosines, best, axis=1).ravel()
        np.testing.assert_allclose(table["score"], expected, rtol=1e-5)

    def test_the_only_post_is_similar_to_none(self):
        fitted = ALS().fit(Interactions.from_table(events([(1, 5, 0, 1.0), (2, 5, 1, 1.0)])))
        assert fitted.similar(10).num_rows == 0

    def test_threads_change_nothing(self):
        interactions = Interactions.from_table(events(clustered_events(users=500)))
        first = ALS(ALSSettings(regularization=0.1)).fit(interactions)
        with threadpoolctl.threadpool_limits(1):
            again = ALS(ALSSettings(regularization=0.1)).fit(interactions)
        assert np.array_equal(first.post_factors, again.post_factors)

    def test_another_seed_gives_other_vectors(self):
        interactions = Interactions.from_table(events(clustered_events()))
        first, other = (
            ALS(ALSSettings(regularization=0.1, iterations=2, seed=seed)).fit(interactions)
            for seed in (0, 1)
        )
        assert not np.allclose(first.post_factors, other.post_factors)

    def test_vectors_solve_the_normal_equations(self):
        """The posts' vectors are the least-squares answer to the users' (paper, equation 5)."""
        interactions = Interactions.from_table(events(clustered_events()))
        settings = ALSSettings(factors=3, regularization=0.5, alpha=2.0, iterations=60)
        fitted = ALS(settings).fit(interactions)
        x = fitted._user_factors.astype(np.float64)
        confidence = np.where(interactions.matrix.toarray() > 0, 2.0, 1.0)
        liked = interactions.matrix.toarray() > 0
        for post in range(3):
            c = confidence[:, post, None]
            exact = np.linalg.solve(
                x.T @ (c * x) + 0.5 * np.eye(3), x.T @ (c[:, 0] * liked[:, post])
            )
            np.testing.assert_allclose(fitted.post_factors[post], exact, atol=2e-3)


class TestRegistry:
    def test_makes_each_by_name(self):
        for name, (kind, settings) in GENERATORS.items():
            assert isinstance(make_generator(name), kind)
            assert make_generator(name).settings == settings()
            assert kind.name == name
        assert make_generator("als", {"factors": 5}).settings == ALSSettings(factors=5)

    def test_unknown_name_and_setting_are_refused(self, tmp_path):
        with pytest.raises(GeneratorError, match="found generator 'nope', expected one of"):
            make_generator("nope")
        with pytest.raises(GeneratorError, match=r"als: found unknown settings \['depth'\]"):
            make_generator("als", {"depth": 3})
        (tmp_path / "generator.json").write_text('{"generator": "nope", "settings": {}}')
        with pytest.raises(GeneratorError, match="found generator 'nope'"):
            load_generator(tmp_path)
        (tmp_path / "generator.json").write_text("[]")
        with pytest.raises(GeneratorError, match="expected an object with the keys"):
            load_generator(tmp_path)

    @pytest.mark.parametrize(
        ("name", "settings", "message"),
        [
            ("popular", {"half_life_days": 0}, "half_life_days = 0, expected above 0"),
            ("als", {"factors": 0}, "expected factors and iterations of at least 1"),
            ("item_to_item", {"similarity": "dice"}, "expected 'cosine' or 'bm25'"),
            ("item_to_item", {"half_life_posts": 0.0}, "half_life_posts above 0"),
        ],
    )
    def test_settings_out_of_bounds_are_refused(self, name, settings, message):
        with pytest.raises(GeneratorError, match=message):
            make_generator(name, settings)


def test_until_is_strict():
    interactions = Interactions.from_table(events([(1, 10, 0, 1.0), (1, 11, 1, 1.0)]))
    day = datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)
    assert interactions.until(day).post_ids.tolist() == [10]

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

pytest.register_assert_rewrite("conformance")

from conformance import GeneratorConformance, clustered_events, events  # noqa: E402

from pipelines.candidates.bpr import BPR, BPRSettings  # noqa: E402
from pipelines.candidates.content import Content, ContentSettings  # noqa: E402
from pipelines.candidates.ease import EASE, EASESettings  # noqa: E402
from pipelines.candidates.interactions import Interactions  # noqa: E402
from pipelines.candidates.mult_vae import MultVAE, MultVAESettings  # noqa: E402
from pipelines.candidates.registry import make_generator  # noqa: E402
from pipelines.candidates.segment_popular import (  # noqa: E402
    SegmentPopular,
    SegmentPopularSettings,
)
from pipelines.candidates.sequential import Sequential, SequentialSettings  # noqa: E402
from pipelines.candidates.topics import distinct_rows, topic_matrix  # noqa: E402
from pipelines.candidates.user_knn import UserKNN, UserKNNSettings  # noqa: E402
from pipelines.candidates.word2vec import Word2Vec, Word2VecSettings  # noqa: E402
from pipelines.errors import GeneratorError  # noqa: E402


def posts_table(posts=40, topics=6, seed=0):
    """Give every post of `clustered_events` (and of the suite's small tables) topics and a text."""
    rng = np.random.default_rng(seed)
    ids = [*range(60), *(100 + 5 * post for post in range(posts))]
    # Every post has the first topic, so that nothing is at right angles to everything.
    lists = [["t0", *(f"t{t}" for t in range(1, topics) if rng.random() < 0.3)] for _ in ids]
    vectors = np.abs(rng.normal(size=(len(ids), 4))).astype(np.float32)
    return pa.table(
        {
            "post_id": pa.array(ids, pa.int64()),
            "topics": pa.array(lists, pa.list_(pa.string())),
            "post_text_embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 4),
        }
    )


def users_table(users=60):
    ids = [7 + 3 * user for user in range(users)]
    genders = [["F", "M"][user % 2] for user in range(users)]
    ages = [float(20 + user % 40) for user in range(users)]
    return pa.table({"user_id": pa.array(ids, pa.int64()), "gender": genders, "age": ages})


class TestEASE(GeneratorConformance):
    def make(self):
        return EASE(EASESettings(regularization=5.0))


class TestEASEWithTopics(GeneratorConformance):
    def make(self):
        settings = EASESettings(regularization=5.0, topic_weight=2.0, popularity_exponent=0.5)
        return EASE(settings, posts=posts_table())


class TestMultVAE(GeneratorConformance):
    def make(self):
        return MultVAE(MultVAESettings(hidden=16, latent=8, epochs=4))


class TestUserKNN(GeneratorConformance):
    def make(self):
        return UserKNN()


class TestUserKNNWithBM25(GeneratorConformance):
    def make(self):
        return UserKNN(UserKNNSettings(similarity="bm25", neighbours=20, power=2.0))


class TestSequential(GeneratorConformance):
    def make(self):
        return Sequential(SequentialSettings(regularization=2.0, popularity_exponent=0.2))


class TestWord2Vec(GeneratorConformance):
    def make(self):
        return Word2Vec(Word2VecSettings(vector_size=8, epochs=2, negative=3))


class TestContent(GeneratorConformance):
    def make(self):
        return Content(posts=posts_table())


class TestContentWithText(GeneratorConformance):
    def make(self):
        return Content(ContentSettings(text_weight=0.4, half_life_posts=3.0), posts=posts_table())


class TestSegmentPopular(GeneratorConformance):
    def make(self):
        return SegmentPopular(users=users_table())


class TestSegmentPopularByAge(GeneratorConformance):
    def make(self):
        return SegmentPopular(SegmentPopularSettings("age", 3, 10.0, None), users=users_table())


class TestBPR(GeneratorConformance):
    def make(self):
        return BPR(BPRSettings(factors=4, iterations=5))


def own_group_share(generator, interactions):
    table = generator.fit(interactions).recommend(interactions.user_ids, 3)
    users, posts = np.asarray(table["user_id"]), np.asarray(table["post_id"])
    return np.mean(((users - 7) // 3) % 2 == ((posts - 100) // 5) % 2)


@pytest.mark.parametrize(
    "generator",
    [
        EASE(EASESettings(regularization=20.0)),
        MultVAE(MultVAESettings(hidden=32, latent=8, epochs=40)),
        UserKNN(UserKNNSettings(neighbours=30)),
        Sequential(SequentialSettings(past_posts=10, past_half_life=20.0, future_posts=10)),
        Word2Vec(Word2VecSettings(vector_size=16, epochs=40, alpha=0.1)),
        BPR(BPRSettings(factors=8, iterations=150)),
    ],
    ids=lambda generator: generator.name,
)
def test_users_get_posts_of_their_own_group(generator):
    interactions = Interactions.from_table(events(clustered_events(users=300)))
    assert own_group_share(generator, interactions) > 0.8


def dense_likes(interactions):
    return (interactions.matrix > 0).toarray().astype(np.float64)


class TestEASEByHand:
    interactions = Interactions.from_table(events(clustered_events()))

    def scores(self, generator):
        table = generator.fit(self.interactions).recommend([7], 100, exclude_seen=False)
        return dict(zip(table["post_id"].to_pylist(), table["score"].to_pylist(), strict=True))

    def test_weights_solve_the_regression(self):
        """Column j of B minimises |x_j - X b|^2 + l |b|^2 with b_j = 0 (paper, equation 3)."""
        x = dense_likes(self.interactions)
        expected = np.zeros(x.shape[1])
        for j in range(x.shape[1]):
            others = np.arange(x.shape[1]) != j
            part = x[:, others]
            b = np.linalg.solve(part.T @ part + 7.0 * np.eye(part.shape[1]), part.T @ x[:, j])
            expected[j] = x[0, others] @ b
        found = self.scores(EASE(EASESettings(regularization=7.0)))
        for post, score in zip(self.interactions.post_ids.tolist(), expected, strict=True):
            assert found[post] == pytest.approx(score, abs=1e-5)

    def test_topics_are_further_rows(self):
        topics, _ = topic_matrix(posts_table(), self.interactions.post_ids)
        x = np.vstack([dense_likes(self.interactions), 3.0 * topics.T.toarray()])
        inverse = np.linalg.inv(x.T @ x + 7.0 * np.eye(x.shape[1]))
        weights = inverse / -np.diagonal(inverse)
        np.fill_diagonal(weights, 0)
        expected = x[0] @ weights
        settings = EASESettings(regularization=7.0, topic_weight=3.0)
        found = self.scores(EASE(settings, posts=posts_table()))
        for post, score in zip(self.interactions.post_ids.tolist(), expected, strict=True):
            assert found[post] == pytest.approx(score, abs=1e-5)

    def test_a_catalogue_beyond_memory_is_refused(self):
        with pytest.raises(GeneratorError, match=r"40 posts need .* GiB, the limit is 1e-06 GiB"):
            EASE(EASESettings(memory_limit_gib=1e-6)).fit(self.interactions)
        with pytest.raises(GeneratorError, match=r"sequential: 40 posts need .* GiB"):
            Sequential(SequentialSettings(memory_limit_gib=1e-6)).fit(self.interactions)

    def test_topics_without_posts_are_refused(self):
        with pytest.raises(GeneratorError, match="columns post_id and topics, found none"):
            EASE(EASESettings(topic_weight=1.0)).fit(self.interactions)


class TestUserKNNByHand:
    def test_neighbours_vote_by_cosine(self):
        # 1 likes {10, 11}; 2 likes {10, 11, 12}; 3 likes {11, 13}; 4 likes {14}.
        rows = [(1, 10), (1, 11), (2, 10), (2, 11), (2, 12), (3, 11), (3, 13), (4, 14)]
        interactions = Interactions.from_table(events((u, p, 0, 1.0) for u, p in rows))
        table = UserKNN().fit(interactions).recommend([1], 5)
        assert table["post_id"].to_pylist() == [12, 13]
        np.testing.assert_allclose(table["score"], [2 / np.sqrt(6), 1 / 2], rtol=1e-6)
        table = UserKNN(UserKNNSettings(power=2.0)).fit(interactions).recommend([1], 5)
        np.testing.assert_allclose(table["score"], [4 / 6, 1 / 4], rtol=1e-6)


class TestSequentialByHand:
    # Everybody goes 10 -> 11 -> 12; the last one is at 11 now.
    rows = (*((u, 10 + p, p, 1.0) for u in range(5) for p in range(3)), (9, 10, 0, 1.0))

    def fit(self, **settings):
        interactions = Interactions.from_table(events(self.rows))
        return Sequential(SequentialSettings(**settings)).fit(interactions)

    def test_what_followed_is_foretold(self):
        table = self.fit(past_posts=1, future_posts=1, regularization=1.0).recommend([9], 1)
        # 10 was followed by 11 five times of five: 5 / (5 + 1).
        assert table["post_id"].to_pylist() == [11]
        np.testing.assert_allclose(table["score"], [5 / 6], rtol=1e-6)

    def test_weights_solve_the_ridge_regression(self):
        fitted = self.fit(past_posts=2, past_half_life=1.0, future_posts=2, regularization=0.5)
        past = np.array([[1, 0, 0], [0.5, 1, 0]] * 5)
        future = np.array([[0, 1, 0.5], [0, 0, 1]] * 5)
        exact = np.linalg.solve(past.T @ past + 0.5 * np.eye(3), past.T @ future)
        table = fitted.recommend([9], 3, exclude_seen=False)
        by_post = dict(zip(table["post_id"].to_pylist(), table["score"].to_pylist(), strict=True))
        assert [by_post[p] for p in (10, 11, 12)] == pytest.approx(exact[0].tolist(), abs=1e-6)


class TestContentByHand:
    posts = pa.table(
        {
            "post_id": pa.array([1, 2, 3, 4, 5, 6], pa.int64()),
            "topics": [["a"], ["a"], ["a", "b"], ["b"], ["c"], []],
        }
    )
    # Everything is liked by somebody; user 1 likes post 1 and post 4.
    rows = ((1, 1, 0, 1.0), (1, 4, 1, 1.0), *((2, p, 0, 1.0) for p in range(1, 7)))

    def test_cosine_of_the_mean_topic_shares(self):
        interactions = Interactions.from_table(events(self.rows))
        table = Content(posts=self.posts).fit(interactions).recommend([1], 5)
        # Taste (1/2, 1/2, 0): along (a, b), at 45 degrees to a; c and no topics are left out.
        assert table["post_id"].to_pylist() == [3, 2]
        np.testing.assert_allclose(table["score"], [1.0, 0.5**0.5], rtol=1e-6)

    def test_recent_posts_weigh_more(self):
        interactions = Interactions.from_table(events(self.rows))
        settings = ContentSettings(half_life_posts=1.0)
        table = Content(settings, posts=self.posts).fit(interactions).recommend([1], 5)
        # Taste (1/3, 2/3, 0).
        assert table["post_id"].to_pylist() == [3, 2]
        np.testing.assert_allclose(table["score"], [3 / 10**0.5, 1 / 5**0.5], rtol=1e-6)

    def test_texts_need_embeddings(self):
        interactions = Interactions.from_table(events(self.rows))
        with pytest.raises(GeneratorError, match="no column post_text_embedding"):
            Content(ContentSettings(text_weight=0.5), posts=self.posts).fit(interactions)

    @pytest.mark.parametrize("exclude_seen", [True, False])
    @pytest.mark.parametrize("k", [1, 3, 17, 500])
    def test_by_kind_equals_scoring_every_post(self, k, exclude_seen):
        """The shortcut over distinct topic vectors changes nothing, ties included."""
        interactions = Interactions.from_table(events(clustered_events(posts=200, likes=30)))
        fitted = Content(posts=posts_table(posts=200, topics=4)).fit(interactions)
        found = fitted.recommend(interactions.user_ids, k, exclude_seen=exclude_seen)
        fitted._arrays |= {
            "texts": np.zeros((len(interactions.post_ids), 1), np.float32),
            "text_tastes": np.zeros((len(interactions.user_ids), 1), np.float32),
        }
        fitted.settings = ContentSettings(text_weight=1e-12)
        dense = fitted.recommend(interactions.user_ids, k, exclude_seen=exclude_seen)
        assert found.select(["user_id", "post_id", "rank"]).equals(
            dense.select(["user_id", "post_id", "rank"])
        )


class TestTopics:
    def test_matrix_and_distinct_rows(self):
        posts = pa.table(
            {
                "post_id": pa.array([9, 5, 7, 3], pa.int64()),
                "topics": [["b", "a", "b"], [], ["a", "b"], ["z"]],
            }
        )
        matrix, names = topic_matrix(posts, np.array([5, 7, 8, 9]))
        assert names == ["a", "b", "z"]
        assert matrix.toarray().tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 0]]
        distinct, which = distinct_rows(matrix)
        assert distinct.toarray().tolist() == [[0, 0, 0], [1, 1, 0]]
        assert which.tolist() == [0, 1, 0, 1]


class TestSegmentPopularByHand:
    users = pa.table({"user_id": pa.array([1, 2, 3], pa.int64()), "gender": ["F", "F", None]})
    rows = ((1, 10, 0, 1.0), (2, 10, 0, 1.0), (3, 11, 0, 1.0), (3, 12, 0, 1.0), (9, 11, 0, 1.0))

    def shares(self, user, prior):
        settings = SegmentPopularSettings(prior_likes=prior, half_life_days=None)
        interactions = Interactions.from_table(events(self.rows))
        fitted = SegmentPopular(settings, users=self.users).fit(interactions)
        table = fitted.recommend([user], 3, exclude_seen=False)
        return dict(zip(table["post_id"].to_pylist(), table["score"].to_pylist(), strict=True))

    def test_a_segment_has_its_own_list(self):
        assert self.shares(1, 0.0) == pytest.approx({10: 1.0, 11: 0.0, 12: 0.0})

    def test_a_prior_draws_it_to_everybodys(self):
        # (2 + 2 * 2/5) / 4, (2 * 2/5) / 4, (2 * 1/5) / 4
        assert self.shares(1, 2.0) == pytest.approx({10: 0.7, 11: 0.2, 12: 0.1})

    @pytest.mark.parametrize("user", [3, 77])
    def test_without_a_segment_everybodys_list(self, user):
        assert self.shares(user, 0.0) == pytest.approx({10: 0.4, 11: 0.4, 12: 0.2})

    def test_an_unknown_attribute_is_refused(self):
        fitted = SegmentPopular(SegmentPopularSettings("size"), users=self.users)
        with pytest.raises(GeneratorError, match=r"columns user_id and size, found \['user_id'"):
            fitted.fit(Interactions.from_table(events(self.rows)))


class TestWord2VecWithRarePosts:
    """Three users like post 10 and 11, one likes 12 and 13 only."""

    rows = [(u, p, u + p, 1.0) for u in (0, 1, 2) for p in (10, 11)] + [
        *((3, p, p, 1.0) for p in (12, 13)),
        (4, 10, 5, 1.0),
        (5, 11, 5, 1.0),
    ]

    def fitted(self, least):
        settings = Word2VecSettings(vector_size=4, epochs=3, negative=2, min_count=least)
        return Word2Vec(settings).fit(Interactions.from_table(events(self.rows)))

    def test_posts_with_fewer_likes_are_not_proposed(self):
        table = self.fitted(4).recommend([0, 3, 4, 5], 10)
        # Who liked none of the others is warm all the same.
        assert sorted(
            zip(table["user_id"].to_pylist(), table["post_id"].to_pylist(), strict=True)
        ) == [
            *((3, 10), (3, 11), (4, 11), (5, 10)),
        ]

    def test_no_post_with_so_many_is_refused(self):
        with pytest.raises(
            GeneratorError, match=r"no post of 4 has the 9 likes .* most liked has 4"
        ):
            self.fitted(9)


def test_tables_reach_the_generators_that_take_them():
    interactions = Interactions.from_table(events(clustered_events()))
    tables = {"posts": posts_table(), "users": users_table()}
    for name, settings in [
        ("ease", {"topic_weight": 1.0}),
        ("content", {}),
        ("segment_popular", {}),
        ("als", {"factors": 2}),
    ]:
        generator = make_generator(name, settings, **tables).fit(interactions)
        assert generator.recommend(interactions.user_ids[:2], 3).num_rows == 6


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ease", {"regularization": 0}, "expected regularization and memory_limit_gib above 0"),
        ("mult_vae", {"dropout": 1.0}, "dropout from 0 and below 1"),
        ("user_knn", {"similarity": "dice"}, "expected similarity 'cosine' or 'bm25'"),
        ("sequential", {"past_posts": 0}, "past_posts and future_posts of at least 1"),
        ("word2vec", {"alpha": 0}, "alpha above 0"),
        ("content", {"text_weight": 2}, "text_weight from 0 to 1"),
        ("segment_popular", {"parts": 0}, "parts of at least 1"),
        ("bpr", {"factors": 0}, "factors and iterations of at least 1"),
    ],
)
def test_settings_out_of_bounds_are_refused(name, settings, message):
    with pytest.raises(GeneratorError, match=message):
        make_generator(name, settings)


def test_heavy_libraries_are_imported_only_to_fit():
    code = (
        "import sys, pipelines.candidates.registry; "
        "print(sorted({'torch', 'gensim', 'implicit', 'optuna'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

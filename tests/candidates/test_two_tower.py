import math

import numpy as np
import pyarrow as pa
import pytest
import torch

pytest.register_assert_rewrite("conformance")

from conformance import GeneratorConformance, clustered_events, events  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from pipelines.candidates.interactions import Interactions  # noqa: E402
from pipelines.candidates.popular import Popular, PopularSettings  # noqa: E402
from pipelines.candidates.registry import load_generator, make_generator  # noqa: E402
from pipelines.candidates.tower_inputs import (  # noqa: E402
    Histories,
    Trends,
    attribute_encoder,
    encode,
    latest_posts,
    post_content,
)
from pipelines.candidates.tower_losses import (  # noqa: E402
    bayesian_personalized_ranking,
    log_inclusion,
    sampled_softmax,
    triplet,
)
from pipelines.candidates.two_tower import TwoTower, TwoTowerSettings  # noqa: E402
from pipelines.errors import GeneratorError  # noqa: E402

SMALL = {
    "factors": 8,
    "width": 8,
    "epochs": 2,
    "batch_examples": 256,
    "history_posts": 10,
    "trend_moments": 4,
    "mined_from_rank": 11,
    "device": "cpu",
}


def small(**more):
    return TwoTowerSettings(**{**SMALL, **more})


def posts_table(posts=40, seed=0):
    rng = np.random.default_rng(seed)
    ids = [*range(60), *(100 + 5 * post for post in range(posts))]
    vectors = rng.normal(size=(len(ids), 3)).astype(np.float32)
    return pa.table(
        {
            "post_id": pa.array(ids, pa.int64()),
            "topics": pa.array([["a", "b"][: i % 3] for i in ids], pa.list_(pa.string())),
            "year": pa.array([None if i % 7 == 0 else float(i) for i in ids], pa.float64()),
            "post_text_embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 3),
        }
    )


def users_table(users=60):
    ids = [7 + 3 * user for user in range(users)]
    return pa.table(
        {
            "user_id": pa.array(ids, pa.int64()),
            "gender": [["F", "M", None][user % 3] for user in range(users)],
            "age": [float(20 + user % 40) for user in range(users)],
        }
    )


class TestTwoTower(GeneratorConformance):
    def make(self):
        return TwoTower(small(), posts=posts_table(), users=users_table())


class TestTwoTowerMinedTriplets(GeneratorConformance):
    def make(self):
        chosen = small(loss="triplet", negatives="mined", mined_negatives=3, validation_share=0.0)
        return TwoTower(chosen)


class TestLossesByHand:
    positive = torch.tensor([1.0, 0.0])
    scores = torch.tensor([[1.0, 0.8, -1.0], [0.5, 0.0, 2.0]])
    negative = torch.tensor([[False, True, True], [True, False, False]])

    def test_triplet(self):
        # (0.4 - 1 + 0.8 and nothing) / 2; 0.4 - 0 + 0.5.
        loss = triplet(self.positive, self.scores, self.negative, 0.4)
        assert loss.item() == pytest.approx((0.2 / 2 + 0.9) / 2)

    def test_bpr(self):
        def pair(difference):
            return math.log1p(math.exp(-difference))

        loss = bayesian_personalized_ranking(self.positive, self.scores, self.negative)
        assert loss.item() == pytest.approx(((pair(0.2) + pair(2.0)) / 2 + pair(-0.5)) / 2)

    def test_softmax_without_correction(self):
        zero = torch.zeros(3)
        loss = sampled_softmax(self.positive, self.scores, self.negative, zero[:2], zero)
        first = -math.log(math.e / (math.e + math.exp(0.8) + math.exp(-1.0)))
        second = -math.log(1 / (1 + math.exp(0.5)))
        assert loss.item() == pytest.approx((first + second) / 2)

    def test_softmax_with_chances_of_a_half_and_a_quarter(self):
        log_q = torch.log(torch.tensor([0.5, 0.25, 1.0]))
        own = torch.log(torch.tensor([0.5, 0.25]))
        loss = sampled_softmax(self.positive, self.scores, self.negative, own, log_q)
        first = -math.log(2 * math.e / (2 * math.e + 4 * math.exp(0.8) + math.exp(-1.0)))
        second = -math.log(4 / (4 + 2 * math.exp(0.5)))
        assert loss.item() == pytest.approx((first + second) / 2)

    @pytest.mark.parametrize("loss", [lambda *a: triplet(*a, 0.4), bayesian_personalized_ranking])
    def test_no_negative_counts_as_zero(self, loss):
        nothing = torch.zeros(2, 3, dtype=torch.bool)
        assert loss(self.positive, self.scores, nothing).item() == 0.0


class TestLogQ:
    share = torch.tensor([0.5, 0.3, 0.2, 0.0])

    def test_chance_to_be_in_a_pool(self):
        found = log_inclusion(self.share, batch=2, uniform=1, posts=4).exp()
        # 1 - (1 - share)^2 (1 - 1/4)
        expected = [1 - 0.25 * 0.75, 1 - 0.49 * 0.75, 1 - 0.64 * 0.75, 0.25]
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_a_pool_of_every_post_needs_no_correction(self):
        assert log_inclusion(self.share, batch=2, uniform=4, posts=4).tolist() == [0.0] * 4

    def test_never_drawn_is_finite(self):
        assert torch.isfinite(log_inclusion(self.share, batch=2, uniform=0, posts=4)).all()

    def test_corrected_sums_estimate_the_whole_sum(self):
        """Without the correction, the mean over pools would be 30 % off or more."""
        rng = np.random.default_rng(0)
        scores = np.array([0.3, -0.5, 1.2, 0.9])
        log_q = log_inclusion(self.share, batch=2, uniform=1, posts=4).numpy()
        corrected, plain = [], []
        for _ in range(20_000):
            drawn = rng.choice(4, 2, p=[0.5, 0.3, 0.2, 0.0])
            pool = np.union1d(drawn, rng.choice(4, 1, replace=False))
            corrected.append(np.exp(scores[pool] - log_q[pool]).sum())
            plain.append(np.exp(scores[pool]).sum())
        whole = np.exp(scores).sum()
        assert np.mean(corrected) == pytest.approx(whole, rel=0.02)
        assert np.mean(plain) < 0.7 * whole


class TestTrendsByHand:
    # Half life 1 day; post 11 gets its like on the last day.
    rows = ((1, 10, 0.0, 1.0), (2, 10, 2.0, 1.0), (1, 12, 2.0, 1.0), (3, 11, 3.0, 1.0))

    def trends(self):
        return Trends.of(Interactions.from_table(events(self.rows)), 1.0, 4)

    def test_at_the_end_everything_counts(self):
        values = self.trends().values[-1]
        likes = np.array([[1 / 8 + 1 / 2, 1, 1 / 2], [2**-0.75 + 2**-0.25, 1, 2**-0.25], [2, 1, 1]])
        share = (likes + 0.1) / (likes.sum(axis=1, keepdims=True) + 0.3)
        np.testing.assert_allclose(values[:, :3].T, np.log(3 * share), rtol=1e-5)
        np.testing.assert_allclose(values[:, 3], np.log1p([3, 0, 1]) / 3, rtol=1e-5)
        assert values[:, 4].tolist() == [0, 0, 0]

    def test_a_moment_sees_only_what_was_before(self):
        trends = self.trends()
        day = 86_400_000_000
        days = (trends.times - trends.times[0]) // day
        assert days.tolist() == [0, 2, 3]
        # Before the first event nothing is known, and everything is alike.
        assert not trends.values[0].any()
        # On day 2 the only like is that of post 10.
        assert trends.values[1, :, 4].tolist() == [0, 1, 1]
        np.testing.assert_allclose(
            trends.values[1, :, 2], np.log([3 * 1.1 / 1.3, *[0.3 / 1.3] * 2])
        )

    def test_the_moment_of_a_time_is_not_after_it(self):
        trends = self.trends()
        start = trends.times[0]
        asked = np.array([start - 5, start, start + 1, trends.times[1], trends.times[2] + 9])
        assert trends.moment_of(asked).tolist() == [0, 0, 0, 1, 2]

    def test_without_a_half_life_nothing_is_told(self):
        trends = Trends.of(Interactions.from_table(events(self.rows)), None, 4)
        assert trends.values.shape == (1, 3, 0)
        assert trends.moment_of(np.array([1, 2])).tolist() == [0, 0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_later_events_do_not_change_earlier_trends(seed):
    rng = np.random.default_rng(seed)
    rows = [(int(u), 10 + int(p), float(d), 1.0) for u, p, d in rng.integers(0, 9, (30, 3))]
    rows += [(99, 10 + p, 0.0, 1.0) for p in range(9)]  # the same catalogue before and after
    whole = Trends.of(Interactions.from_table(events(rows)), 3.0, 200)
    cut = Trends.of(Interactions.from_table(events(r for r in rows if r[2] < 5)), 3.0, 200)
    moments = len(cut.times)
    assert cut.times.tolist() == whole.times[:moments].tolist()
    np.testing.assert_allclose(cut.values[:-1], whole.values[:moments], rtol=1e-4, atol=1e-5)


class TestInputsByHand:
    def test_attributes(self):
        table = pa.table(
            {
                "user_id": pa.array([3, 1, 2, 9], pa.int64()),
                "age": [10.0, None, 30.0, 999.0],
                "sex": ["f", "m", "f", "x"],
            }
        )
        ids = np.array([1, 2, 3, 4])
        encoder = attribute_encoder(table, "user_id", ids)
        # Only 1, 2 and 3 count: age has mean 20 and deviation 10, "x" is no category.
        assert encode(table, "user_id", ids, encoder).tolist() == [
            [0, 1, 0, 1],
            [1, 0, 1, 0],
            [-1, 0, 1, 0],
            [0, 1, 0, 0],  # no row: everything is null
        ]

    def test_content_of_posts(self):
        posts = pa.table(
            {
                "post_id": pa.array([1, 2], pa.int64()),
                "title": ["x", "y"],
                "topics": [["a", "b"], []],
                "post_text_embedding": pa.array([None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
            }
        )
        content = post_content(posts, np.array([1, 2]))
        # (3, 4) as a unit vector, times the root of 2.
        expected = [[0.5**0.5, 0.5**0.5, 0, 0], [0, 0, 0.6 * 2**0.5, 0.8 * 2**0.5]]
        np.testing.assert_allclose(content, expected, rtol=1e-6)
        assert post_content(None, np.array([1, 2])).shape == (2, 0)

    def test_histories_are_cut_before_a_moment(self):
        rows = [(1, 10, 0, 1.0), (1, 11, 1, 1.0), (1, 12, 2, 1.0), (2, 10, 0, 1.0)]
        interactions = Interactions.from_table(events(rows))
        histories = Histories.of(interactions, 2)
        found = histories.before(np.arange(4), histories.starts)
        assert found.tolist() == [[-1, -1], [0, -1], [1, 0], [-1, -1]]
        assert latest_posts(interactions, histories).tolist() == [[2, 1], [0, -1]]


@pytest.fixture(scope="module")
def clusters():
    return Interactions.from_table(events(clustered_events(users=150)))


@pytest.mark.parametrize(
    "chosen",
    [
        {"loss": "sampled_softmax"},
        {"loss": "sampled_softmax", "negatives": "mined", "mined_negatives": 5},
        {"loss": "bpr", "uniform_negatives": 8},
        {"loss": "bpr", "negatives": "mined", "mined_negatives": 5},
        {"loss": "triplet", "uniform_negatives": 8},
        {"loss": "triplet", "negatives": "mined", "mined_negatives": 5},
    ],
    ids=lambda chosen: "-".join(str(value) for value in chosen.values()),
)
def test_users_get_posts_of_their_own_group(clusters, chosen):
    steps = {"epochs": 20, "batch_examples": 128, "learning_rate": 0.03, "mined_from_rank": 16}
    # Popular posts of the other group must not be the easy answer.
    told = {"trend_half_life_days": None, "validation_share": 0.0}
    generator = TwoTower(small(**told, **steps, **chosen))
    table = generator.fit(clusters).recommend(clusters.user_ids, 3)
    users, posts = np.asarray(table["user_id"]), np.asarray(table["post_id"])
    assert np.mean(((users - 7) // 3) % 2 == ((posts - 100) // 5) % 2) > 0.8


def test_what_comes_next_is_learnt():
    """Everybody walks a ring of 12 posts from a start of his own: the last post tells the next."""
    rows = [
        (user, 10 + (user * 5 + step) % 12, 12 * (user % 3) + step, 1.0)
        for user in range(60)
        for step in range(6)
    ]
    interactions = Interactions.from_table(events(rows))
    chosen = small(
        epochs=40,
        learning_rate=0.03,
        history_dropout=0.0,
        validation_share=0.0,
        trend_half_life_days=None,
    )
    table = TwoTower(chosen).fit(interactions).recommend(interactions.user_ids, 1)
    expected = [10 + (user * 5 + 6) % 12 for user in table["user_id"].to_pylist()]
    assert np.mean(np.asarray(table["post_id"]) == expected) > 0.9


def test_content_alone_finds_posts_of_the_liked_topic():
    """Without weights of posts, users of one topic still get posts of that topic."""
    rng = np.random.default_rng(0)
    rows = [
        (user, 2 * int(post) + user % 2, float(day), 1.0)
        for user in range(80)
        for day, post in enumerate(rng.choice(30, 6, replace=False))
    ]
    posts = pa.table(
        {
            "post_id": pa.array(range(60), pa.int64()),
            "topics": [["even"] if post % 2 == 0 else ["odd"] for post in range(60)],
        }
    )
    chosen = small(epochs=15, learning_rate=0.03, post_ids=False, trend_half_life_days=None)
    interactions = Interactions.from_table(events(rows))
    table = TwoTower(chosen, posts=posts).fit(interactions).recommend(interactions.user_ids, 5)
    users, found = np.asarray(table["user_id"]), np.asarray(table["post_id"])
    assert np.mean(users % 2 == found % 2) > 0.95


def test_recent_likes_are_followed():
    """Whoever is asked, likes follow the fashion: the model must do so without a taste to learn."""
    rng = np.random.default_rng(0)
    rows = []
    for event in range(1500):
        day = event / 10
        post = int(day / 5) + int(rng.integers(0, 3))
        rows.append((int(rng.integers(0, 300)), 100 + post, day, 1.0))
    interactions = Interactions.from_table(events(rows))
    chosen = small(trend_half_life_days=2.0, trend_moments=50, epochs=10, learning_rate=0.03)
    found = TwoTower(chosen).fit(interactions).recommend(interactions.user_ids, 3)
    popular = Popular(PopularSettings(half_life_days=2.0)).fit(interactions)
    wanted = set(popular.recommend([10**9], 4)["post_id"].to_pylist())
    assert np.mean([post in wanted for post in found["post_id"].to_pylist()]) > 0.6


@pytest.fixture(scope="module")
def interactions():
    return Interactions.from_table(events(clustered_events()))


@pytest.fixture(scope="module")
def fitted(interactions):
    generator = TwoTower(small(history_posts=4), posts=posts_table(), users=users_table())
    return generator.fit(interactions)


class TestVectors:
    def test_dot_products_are_the_scores(self, fitted, interactions):
        post_ids, posts = fitted.post_vectors()
        users, vectors = fitted.user_vectors([*interactions.user_ids[:3], 10**9])
        assert users.tolist() == interactions.user_ids[:3].tolist()
        assert posts.dtype == vectors.dtype == np.float32
        table = fitted.recommend(users, 1, exclude_seen=False)
        best = (vectors @ posts.T).argmax(axis=1)
        assert table["post_id"].to_pylist() == post_ids[best].tolist()
        np.testing.assert_allclose(table["score"], (vectors @ posts.T).max(axis=1), rtol=1e-5)

    def test_a_fresh_history_gives_the_fitted_vector(self, fitted, interactions):
        rows = users_table().to_pylist()
        bounds = interactions.history_bounds
        for number, user in enumerate(interactions.user_ids[:9].tolist()):
            history = interactions.event_posts[bounds[number] : bounds[number + 1]]
            attributes = next(row for row in rows if row["user_id"] == user)
            vector = fitted.user_tower.vector(attributes, interactions.post_ids[history].tolist())
            np.testing.assert_allclose(vector, fitted.user_vectors([user])[1][0], atol=2e-5)

    def test_numpy_computes_what_torch_does(self, fitted, interactions):
        """The user tower in numpy and in torch, on the same weights."""
        from pipelines.candidates.tower_model import TwoTowers

        torch.manual_seed(3)
        attributes = torch.randn(5, fitted.user_tower.encoder.width)
        content = torch.from_numpy(post_content(posts_table(), interactions.post_ids))
        model = TwoTowers(small(history_posts=4, residual_blocks=2), content, 4, 5)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        weights, _ = model.exported()
        latest = np.array([[3, 2, 1, 0], [5, -1, -1, -1], [-1] * 4, [0, 0, -1, 7], [1, 2, -1, -1]])
        with torch.no_grad():
            unit, trends = model.user_vectors(torch.from_numpy(latest), attributes)
        expected = torch.cat([unit / model.temperature, trends], dim=1).numpy()
        tower = type(fitted.user_tower)(interactions.post_ids, fitted.user_tower.encoder, weights)
        np.testing.assert_allclose(tower.vectors(latest, attributes.numpy()), expected, atol=1e-4)

    def test_saved_vectors_are_equal(self, fitted, interactions, tmp_path):
        fitted.save(tmp_path)
        loaded = load_generator(tmp_path)
        np.testing.assert_array_equal(loaded.post_vectors()[1], fitted.post_vectors()[1])
        users = interactions.user_ids
        np.testing.assert_array_equal(loaded.user_vectors(users)[1], fitted.user_vectors(users)[1])
        attributes, history = {"gender": "F", "age": 33.0}, [100, 110, 105]
        np.testing.assert_array_equal(
            loaded.user_tower.vector(attributes, history),
            fitted.user_tower.vector(attributes, history),
        )
        assert loaded.validation == fitted.validation
        assert loaded.epochs == fitted.epochs

    def test_unknown_posts_and_values_change_nothing(self, fitted):
        tower = fitted.user_tower
        known = tower.vector({"age": 30.0}, [100, 110])
        np.testing.assert_array_equal(
            tower.vector({"age": 30.0, "gender": "?", "more": 1}, [100, 10**9, 110]), known
        )
        assert not np.array_equal(tower.vector({"age": 60.0}, [100, 110]), known)
        assert not np.array_equal(tower.vector({"age": 30.0}, [110, 100]), known)
        assert np.isfinite(tower.vector({}, [])).all()

    def test_only_the_latest_posts_count(self, fitted):
        tower = fitted.user_tower
        history = [100, 105, 110, 115, 120, 125]
        np.testing.assert_array_equal(tower.vector({}, history), tower.vector({}, history[-4:]))


class TestEarlyStopping:
    interactions = Interactions.from_table(events(clustered_events(users=100)))

    def fit(self, **chosen):
        return TwoTower(small(**chosen)).fit(self.interactions)

    def test_stops_when_validation_gets_no_better(self):
        fitted = self.fit(epochs=60, patience=2, learning_rate=0.05)
        best = int(np.argmax(fitted.validation))
        assert len(fitted.validation) == best + 1 + 2 < 60
        assert fitted.epochs == best + 1

    def test_is_as_if_the_number_had_been_given(self):
        stopped = self.fit(epochs=6, patience=2)
        given_so = self.fit(epochs=stopped.epochs, validation_share=0.0)
        assert given_so.validation == []
        np.testing.assert_array_equal(stopped.post_vectors()[1], given_so.post_vectors()[1])

    def test_validation_looks_at_the_latest_events_only(self):
        """Likes of the last tenth that nobody could foretell make it worse, those before do not."""
        rows = sorted(clustered_events(users=100), key=lambda row: row[2])
        cut = int(0.9 * len(rows))
        rng = np.random.default_rng(0)
        at_random = [(u, 100 + 5 * int(rng.integers(40)), d, w) for u, _, d, w in rows[cut:]]
        chosen = small(epochs=12, patience=12, learning_rate=0.03)
        usual = TwoTower(chosen).fit(Interactions.from_table(events(rows)))
        noisy = TwoTower(chosen).fit(Interactions.from_table(events([*rows[:cut], *at_random])))
        assert max(usual.validation) > 1.3 * max(noisy.validation)

    def test_too_few_events_for_a_slice_are_all_trained_on(self):
        rows = [(1, 10, 0, 1.0), (1, 11, 1, 1.0)]
        fitted = TwoTower(small()).fit(Interactions.from_table(events(rows)))
        assert fitted.validation == []
        assert fitted.epochs == 2


def test_the_gpu_is_used_if_there_is_one(clusters):
    from pipelines.candidates.tower_training import _device

    assert _device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert _device("cpu") == "cpu"
    if torch.cuda.is_available():
        on_gpu = TwoTower(small(device="cuda")).fit(clusters).post_vectors()[1]
        on_cpu = TwoTower(small(device="cpu")).fit(clusters).post_vectors()[1]
        assert on_gpu.shape == on_cpu.shape


def test_fitting_leaves_torch_as_it_was(clusters):
    torch.manual_seed(5)
    threads, before = torch.get_num_threads(), torch.get_rng_state()
    TwoTower(small(epochs=1)).fit(clusters)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"loss": "hinge"}, "found loss = 'hinge', expected one of"),
        ({"negatives": "none"}, "found negatives = 'none', expected one of"),
        ({"device": "tpu"}, "found device = 'tpu', expected one of"),
        ({"factors": 0}, "found factors = 0, expected at least 1"),
        ({"uniform_negatives": -1}, "found uniform_negatives = -1, expected at least 0"),
        ({"dropout": 1.0}, "found dropout = 1.0, expected from 0 and below 1"),
        ({"temperature": 0}, "found temperature = 0, expected above 0"),
        ({"trend_half_life_days": 0}, r"trend_half_life_days = 0, expected above 0 \(or None\)"),
        ({"user_balance": 2}, "found user_balance = 2, expected from 0 to 1"),
    ],
)
def test_settings_out_of_bounds_are_refused(chosen, message):
    with pytest.raises(GeneratorError, match=message):
        make_generator("two_tower", chosen)


def test_tables_reach_it(clusters):
    generator = make_generator("two_tower", SMALL, posts=posts_table(), users=users_table())
    fitted = generator.fit(clusters)
    assert {*fitted.user_tower.encoder.numbers, *fitted.user_tower.encoder.values} == {
        "age",
        "F",
        "M",
    }

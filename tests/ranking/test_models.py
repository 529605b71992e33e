import numpy as np
import pytest

from pipelines.errors import RankerTrainingError
from pipelines.ranking.models import (
    RANKERS,
    CatBoostRanker,
    LightGBMRanker,
    make_ranker,
    prediction_cost_us,
)
from serving.errors import RankerError
from serving.ranker import CatBoostColumns, load_ranker

# The category comes first, so that an order of CatBoost's own would show.
NAMES = ("topic_code", "signal", "noise", "sparse_signal")
CATEGORIES = (0,)
GROUPS, ROWS = 60, 20


def examples(seed=0):
    """Return matrix, labels, group sizes: signal and the topics 2 and 5 make a row relevant."""
    rng = np.random.default_rng(seed)
    n = GROUPS * ROWS
    topic = rng.integers(0, 6, n).astype(np.float32)
    signal, noise = rng.normal(size=(2, n)).astype(np.float32)
    sparse = np.where(rng.random(n) < 0.5, np.nan, signal).astype(np.float32)
    utility = signal + 2.0 * np.isin(topic, [2, 5]) + 0.3 * rng.normal(size=n)
    matrix = np.column_stack([topic, signal, noise, sparse])
    labels = (utility > np.quantile(utility, 0.8)).astype(np.float32)
    matrix[rng.random(n) < 0.05, 0] = np.nan
    return matrix, labels, np.full(GROUPS, ROWS)


@pytest.fixture(params=sorted(RANKERS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def trained():
    return {name: train(name) for name in RANKERS}


def train(name, **settings):
    matrix, labels, sizes = examples()
    ranker = make_ranker(name, {"rounds": 40, **settings})
    return ranker.fit(matrix, labels, sizes, NAMES, CATEGORIES)


def share_of_pairs_in_order(scores, labels):
    """Return how often a relevant row of a group is above an irrelevant one."""
    scores, labels = scores.reshape(GROUPS, ROWS), labels.reshape(GROUPS, ROWS)
    better = labels[:, :, None] > labels[:, None, :]
    above = scores[:, :, None] > scores[:, None, :]
    return (above & better).sum() / better.sum()


class TestEveryRanker:
    def test_learns_an_order_that_holds_on_other_rows(self, name, trained):
        matrix, labels, _ = examples(seed=1)
        scores = trained[name].predict(matrix)
        assert scores.dtype == np.float32
        assert share_of_pairs_in_order(scores, labels) > 0.9
        assert share_of_pairs_in_order(scores, labels) > 0.05 + share_of_pairs_in_order(
            matrix[:, 1], labels
        )

    def test_contributions_sum_to_the_score(self, name, trained):
        matrix = examples(seed=1)[0][:100]
        parts = trained[name].contributions(matrix)
        assert parts.shape == (100, len(NAMES) + 1)
        np.testing.assert_allclose(parts.sum(axis=1), trained[name].predict(matrix), atol=1e-5)
        # Each input's contribution is found under its own column.
        relevant = np.isin(matrix[:, 0], [2, 5])
        assert parts[relevant, 0].mean() > parts[~relevant, 0].mean() + 0.5
        assert np.corrcoef(parts[:, 1], matrix[:, 1])[0, 1] > 0.7
        assert np.ptp(parts[:, -1]) < 1e-9

    def test_importances(self, name, trained):
        shares = trained[name].importances()
        assert tuple(shares) == NAMES == trained[name].feature_names
        assert sum(shares.values()) == pytest.approx(1.0)
        assert min(shares, key=shares.get) in ("noise", "sparse_signal")
        assert shares["topic_code"] > 0.2

    def test_deterministic_whatever_the_threads(self, name, trained):
        matrix = examples(seed=1)[0]
        for threads in (1, 2):
            again = train(name, threads=threads)
            assert np.array_equal(again.predict(matrix), trained[name].predict(matrix))

    def test_save_and_load(self, name, trained, tmp_path):
        ranker = trained[name]
        path = tmp_path / f"ranker{ranker.suffix}"
        ranker.save(path)
        matrix = examples(seed=1)[0]
        for loaded in (load_ranker(path), type(ranker).load(path)):
            assert loaded.feature_names == NAMES
            assert np.array_equal(loaded.predict(matrix), ranker.predict(matrix))
            parts = ranker.contributions(matrix[:9])
            np.testing.assert_allclose(loaded.contributions(matrix[:9]), parts, atol=1e-12)
            assert loaded.importances() == pytest.approx(ranker.importances())
        with pytest.raises(RankerError, match=r"found the ending '\.bin', expected"):
            ranker.save(tmp_path / "ranker.bin")
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

    def test_each_row_is_scored_alone(self, name, trained):
        matrix = examples(seed=1)[0][:30]
        scores = trained[name].predict(matrix)
        assert np.array_equal(trained[name].predict(matrix[[7]]), scores[[7]])
        assert np.array_equal(trained[name].predict(matrix[::-1]), scores[::-1])
        assert np.array_equal(trained[name].predict(matrix.astype(np.float64)), scores)

    def test_no_rows(self, name, trained):
        assert trained[name].predict(np.empty((0, 4), np.float32)).shape == (0,)
        assert trained[name].contributions(np.empty((0, 4), np.float32)).shape == (0, 5)

    def test_nulls_and_unknown_categories_are_scored(self, name, trained):
        matrix = np.full((2, 4), np.nan, dtype=np.float32)
        matrix[1, 0] = 999
        scores = trained[name].predict(matrix)
        assert np.isfinite(scores).all()
        assert scores[0] == scores[1]

    def test_another_number_of_inputs_is_refused(self, name, trained):
        with pytest.raises(RankerError, match=r"shape \(3, 5\), expected \(n, 4\)"):
            trained[name].predict(np.zeros((3, 5), np.float32))
        with pytest.raises(RankerError, match=r"shape \(4,\), expected \(n, 4\)"):
            trained[name].contributions(np.zeros(4, np.float32))

    def test_progress_ends_at_one(self, name):
        matrix, labels, sizes = examples()
        done = []
        make_ranker(name, {"rounds": 5}).fit(matrix, labels, sizes, NAMES, progress=done.append)
        assert done == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])

    def test_untrained_is_refused(self, name):
        with pytest.raises(RankerTrainingError, match=f"{name}: not trained; call fit or load"):
            make_ranker(name).predict(np.zeros((1, 4), np.float32))

    def test_damaged_files_are_refused(self, name, trained, tmp_path):
        path = tmp_path / f"ranker{trained[name].suffix}"
        with pytest.raises(RankerError, match="ranker"):
            load_ranker(path)
        trained[name].save(path)
        whole = path.read_bytes()
        for size in (0, 10, len(whole) // 2):
            path.write_bytes(whole[:size])
            with pytest.raises(RankerError, match="publish again"):
                load_ranker(path)

    def test_prediction_cost_is_a_time(self, name, trained):
        matrix = examples()[0]
        cost = prediction_cost_us(trained[name], matrix, rows=50, repeats=5)
        assert 1 < cost < 1e6

    def test_one_group_and_tiny_sets(self, name):
        matrix = np.array([[0, 1, 0, 0], [1, 0, 0, 0]], dtype=np.float32)
        ranker = make_ranker(name, {"rounds": 3})
        ranker.fit(matrix, np.array([1, 0]), np.array([2]), NAMES, CATEGORIES)
        assert np.isfinite(ranker.predict(matrix)).all()
        assert sum(ranker.importances().values()) in (0.0, pytest.approx(1.0))


class TestWrongTrainingSets:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"labels": np.ones(1200)}, "no group of 60 has two different labels"),
            ({"labels": np.zeros(1200)}, "all are between 0 and 0"),
            ({"labels": np.repeat(np.arange(60) % 2, 20)}, "no order to learn"),
            ({"labels": np.ones(5)}, "found 1,200 rows, 5 labels"),
            ({"labels": np.full(1200, 0.5)}, r"1,200 labels are not whole .*first: row 0, 0\.5"),
            ({"labels": np.full(1200, np.nan)}, "1,200 labels are not whole numbers"),
            ({"group_sizes": np.array([5])}, "groups of 5 rows in all"),
            ({"group_sizes": np.array([0, 1200])}, "groups of 0 to 1,200 rows"),
            ({"feature_names": ["a", "a", "b", "c"]}, "3 distinct of 4 names for 4 columns"),
            ({"categorical_indices": [1]}, "the category 'signal' holds .*encode it first"),
        ],
    )
    def test_are_refused(self, name, change, message):
        matrix, labels, sizes = examples()
        arguments = {
            "labels": labels,
            "group_sizes": sizes,
            "feature_names": NAMES,
            "categorical_indices": CATEGORIES,
            **change,
        }
        with pytest.raises(RankerTrainingError, match=message):
            make_ranker(name).fit(matrix, **arguments)

    def test_settings_that_a_library_refuses(self):
        matrix, labels, sizes = examples()
        for name, settings in (("lightgbm", {"leaves": 1}), ("catboost", {"depth": 99})):
            with pytest.raises(RankerTrainingError, match=f"{name}: .*; check .*Settings"):
                make_ranker(name, settings).fit(matrix, labels, sizes, NAMES)

    def test_no_rounds_are_refused(self, name):
        with pytest.raises(RankerTrainingError, match="rounds = 0, expected at least 1"):
            make_ranker(name, {"rounds": 0})

    def test_unknown_names_are_refused(self):
        with pytest.raises(RankerTrainingError, match="found ranker 'nope', expected one of"):
            make_ranker("nope")
        with pytest.raises(RankerTrainingError, match=r"found unknown settings \['depth'\]"):
            make_ranker("lightgbm", {"depth": 3})


@pytest.mark.parametrize("objective", ["rank_xendcg", "binary"])
def test_other_objectives_of_lightgbm(objective):
    ranker = train("lightgbm", objective=objective)
    matrix, labels, _ = examples(seed=1)
    assert share_of_pairs_in_order(ranker.predict(matrix), labels) > 0.9
    parts = ranker.contributions(matrix)
    np.testing.assert_allclose(parts.sum(axis=1), ranker.predict(matrix), atol=1e-5)


@pytest.mark.parametrize("objective", ["YetiRank", "Logloss"])
def test_other_objectives_of_catboost(objective):
    ranker = train("catboost", objective=objective)
    matrix, labels, _ = examples(seed=1)
    assert share_of_pairs_in_order(ranker.predict(matrix), labels) > 0.9


def test_catboost_without_categories_or_without_numbers():
    matrix, labels, sizes = examples()
    for columns, categories in (([1, 2], []), ([0], [0])):
        part = matrix[:, columns]
        names = [NAMES[column] for column in columns]
        ranker = make_ranker("catboost", {"rounds": 5}).fit(part, labels, sizes, names, categories)
        assert ranker.contributions(part[:3]).shape == (3, len(columns) + 1)


def test_catboost_columns_go_back_where_they_came_from():
    columns = CatBoostColumns.of(["c", "x", "d", "y"], [0, 2], 3)
    # CatBoost's order: x, y, c, d; a fifth value (the mean) follows.
    values = np.array([[10.0, 20.0, 30.0, 40.0, 50.0]])
    assert columns.in_matrix_order(values).tolist() == [[30, 10, 40, 20, 50]]
    again = CatBoostColumns.from_json(columns.to_json())
    assert again.names == columns.names
    assert again.labels.tolist() == [b"0", b"1", b"2", b"3", b"missing"]


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(RankerError, match=r"ending '\.pickle', expected one of \['\.cbm', '\.txt'"):
        load_ranker(tmp_path / "ranker.pickle")


def test_classes_are_registered_under_their_names():
    assert {LightGBMRanker.name, CatBoostRanker.name} == set(RANKERS)

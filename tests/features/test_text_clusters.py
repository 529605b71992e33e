"""Clusters of posts: hand-worked cards, numbers that stay, application without a new fit."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from encoder_examples import save_encoder
from sklearn.cluster import KMeans

from pipelines.errors import FeatureError
from pipelines.features import post_text
from pipelines.features.cluster_cards import ClusterReport, cluster_report, telling_terms
from pipelines.features.embedding import local_fingerprint
from pipelines.features.text_clusters import TextClusters, clusters_for
from pipelines.features.text_encoders import TextModel

TIME = pa.timestamp("us", tz="UTC")


def blobs(rows: int, seed: int, kinds: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Points around ``kinds`` far centres, the same for every seed; and which each is of."""
    centres = np.random.default_rng(0).normal(size=(kinds, 30)) * 3
    rng = np.random.default_rng(seed)
    kind = rng.permutation(np.arange(rows) % kinds)
    points = centres[kind] + rng.normal(size=(rows, 30)) * 0.1
    return points.astype(np.float32), kind


def plane(centres: list[list[float]], **more: object) -> TextClusters:
    """Clusters in the plane, as if nothing had been centred or turned."""
    k = len(centres)
    return TextClusters(
        mean=np.zeros(2, np.float32), components=np.eye(2, dtype=np.float32),
        centres=np.array(centres, np.float32),
        **{"shares": np.full(k, 1 / k, np.float32), "encoder": "e", "fitted_before": "t", **more},
    )  # fmt: skip


def labels_of(clusters: TextClusters, points: np.ndarray) -> np.ndarray:
    return clusters.distances(clusters.reduce(points)).argmin(axis=1)


def test_numbers_are_taken_over_by_the_least_sum_of_distances():
    before = plane([[0, 0], [10, 0]])
    # The nearest centre alone would give number 0 to both.
    after = plane([[11, 0], [1, 0], [4, 9]]).like(before)
    np.testing.assert_array_equal(after.centres, [[1, 0], [11, 0], [4, 9]])
    np.testing.assert_allclose(after.shifts(before), [1, 1, np.nan])
    crossed = plane([[0.4, 0], [-8, 0]]).like(plane([[0, 0], [1, 0]]))
    # 0.4 -> 1 and -8 -> 0 costs 8.6; the other way 9.4.
    np.testing.assert_allclose(crossed.centres, [[-8, 0], [0.4, 0]])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_numbers_stay_when_the_window_moves(seed):
    early, _ = blobs(450, 5)
    all_points, _ = blobs(900, seed)
    first = clusters_for(early, None, seed=42, encoder="e", fitted_before="t1")
    moved = clusters_for(all_points, first, seed=seed, encoder="e", fitted_before="t2")
    assert moved.fitted_before == "t2"
    unmatched = TextClusters.fit(all_points, seed=seed)
    same = (labels_of(first, all_points) == labels_of(moved, all_points)).mean()
    assert same > 0.8
    # Without the matching numbers are as good as drawn.
    assert (labels_of(first, all_points) == labels_of(unmatched, all_points)).mean() < 0.3


def test_a_fit_repeated_is_the_same_whatever_was_stored():
    points, _ = blobs(300, 1)
    first = clusters_for(points, None, seed=1, encoder="e", fitted_before="t")
    shuffled = dataclasses.replace(first, centres=first.centres[::-1], shares=first.shares[::-1])
    again = clusters_for(points, shuffled, seed=1, encoder="e", fitted_before="t", refit=True)
    np.testing.assert_array_equal(again.centres, shuffled.centres)
    np.testing.assert_array_equal(again.shares, shuffled.shares)
    np.testing.assert_allclose(again.shifts(shuffled), 0, atol=1e-6)


def test_stored_clusters_are_applied_without_a_fit(tmp_path, monkeypatch):
    points, _ = blobs(300, 1)
    clusters_for(points, None, seed=1, encoder="e", fitted_before="t").save(tmp_path / "c.npz")
    stored = TextClusters.load(tmp_path / "c.npz")
    monkeypatch.setattr(KMeans, "fit", None)  # nothing is fitted
    assert clusters_for(points, stored, seed=9, encoder="e", fitted_before="t") is stored
    for changed in ({"encoder": "f"}, {"fitted_before": "u"}, {"refit": True}):
        with pytest.raises(TypeError, match="not callable"):
            clusters_for(
                points, stored, **{"seed": 1, "encoder": "e", "fitted_before": "t", **changed}
            )


def test_another_encoder_or_fewer_posts_begin_anew():
    points, _ = blobs(300, 1)
    stored = clusters_for(points, None, seed=1, encoder="e", fitted_before="t")
    other = clusters_for(points[:, :8], stored, seed=1, encoder="f", fitted_before="t")
    assert other.components.shape == (8, 8)
    few = clusters_for(points[:4], stored, seed=1, encoder="e", fitted_before="t0")
    assert few.centres.shape == (4, 4)


def test_a_damaged_or_older_file_is_told_apart(tmp_path):
    path = tmp_path / "text_clusters.npz"
    assert TextClusters.load(path) is None
    np.savez(path, mean=np.zeros(2), components=np.eye(2), centres=np.eye(2))
    assert TextClusters.load(path) is None
    path.write_bytes(b"PK")
    with pytest.raises(FeatureError, match=r"text_clusters\.npz: cannot be read .*delete the file"):
        TextClusters.load(path)


def test_terms_are_frequent_here_and_rare_elsewhere():
    texts = ["film film film bank", "film cinema bank", "bank bank profit", "bank profit the the"]
    found = telling_terms(texts, np.array([0, 0, 1, 1]), 3)
    # Counts by cluster: film 4|0, cinema 1|0, bank 2|3, profit 0|2; 7 and 5 words, 4 on average.
    # film 4/7 log(1 + 4/4) = .396, bank 2/7 log(1 + 4/5) = .168, cinema 1/7 log(5) = .230;
    # profit 2/5 log(1 + 4/2) = .439, bank 3/5 log(1 + 4/5) = .353.
    assert found == [("film", "cinema", "bank"), ("profit", "bank"), ()]
    assert telling_terms(["1 2", "..."], np.array([0, 1]), 2) == [(), ()]


def test_cards_worked_by_hand(tmp_path):
    before = plane([[0, 0], [10, 0]])
    now = plane([[0, 0], [10, 3]], shares=np.array([0.75, 0.25], np.float32))
    points = np.array([[0, 2], [0, 1], [1, 1], [10, 3], [10, 4], [9, 3]], np.float32)
    report = cluster_report(
        now, now.distances(points), ["<b>film</b> & more", "film", "film war", "bank", "b", "c"],
        ["f0", "f1", "f2", "b0", "b1", "b2"], np.array([True] * 4 + [False] * 2),
        (np.array([10, 10, 0, 5, 0, 0]), np.array([1, 3, 0, 1, 0, 0])),
        dataset="feed", previous=before,
    )  # fmt: skip
    film, bank = report.cards
    assert (film.posts, film.views, film.likes, film.like_rate) == (3, 20, 4, 0.2)
    assert (film.share_fitted, film.share_new, film.centre_shift) == (0.75, 0.0, 0.0)
    assert (bank.posts, bank.like_rate, bank.centre_shift) == (3, 0.2, 3.0)
    assert [one.post for one in film.nearest] == ["f1", "f2", "f0"]
    assert film.nearest[2].beginning == "film & more"
    assert film.nearest[0].distance == 1
    assert (report.refitted, report.new_posts, report.drift) == (True, 2, 0.75)
    assert report.like_rate == 0.2
    report.write(tmp_path)
    text = (tmp_path / "clusters.json").read_text(encoding="utf-8")
    assert ClusterReport.model_validate_json(text) == report
    page = (tmp_path / "clusters.html").read_text(encoding="utf-8")
    assert "film &amp; more" in page
    assert "75.0 % when fitted, 0.0 % of new posts" in page
    assert "20.0 % of 20 views" in page


def test_cards_without_impressions_or_new_posts():
    now = plane([[0, 0], [10, 0]])
    points = np.array([[0, 2], [0, 1]], np.float32)
    report = cluster_report(
        now, now.distances(points), ["a", "b"], ["0", "1"], np.array([True, True]), None,
        dataset="feed", previous=now,
    )  # fmt: skip
    assert (report.refitted, report.new_posts, report.drift, report.like_rate) == (
        False, 0, None, None,
    )  # fmt: skip
    assert [card.posts for card in report.cards] == [2, 0]
    assert report.cards[1].nearest == ()
    assert report.cards[0].centre_shift is None


def test_only_posts_of_the_window_are_fitted_on(tmp_path):
    model = TextModel(str(save_encoder(tmp_path / "model")))
    words = ["cat sat", "dog ran", "film war", "team won", "election bank", None, "mat far", "war"]
    times = pa.array([1, 1, 1, 2, 3, 4, 9, 9], TIME)
    posts = pa.table({"post_id": range(8), "known_time": times, "text": words})
    cut = pa.scalar(4, TIME)

    work = post_text.EmbedTexts(model, local_fingerprint(model), tmp_path / "cache")

    def made(table: pa.Table, **more: object) -> post_text.Clustered:
        texts = pa.Table.from_batches(work(table.to_batches(), {}, None))
        return post_text.cluster(texts, fit_before=cut, encoder=work.fingerprint, seed=1, **more)

    whole = made(posts)
    assert whole.table["post_id"].to_pylist() == [0, 1, 2, 3, 4, 6, 7]
    assert whole.in_window.tolist() == [True] * 5 + [False] * 2
    past = made(posts.slice(0, 6))
    np.testing.assert_array_equal(past.clusters.centres, whole.clusters.centres)
    assert past.table == whole.table.slice(0, 5)
    later = made(posts, previous=past.clusters)
    assert later.clusters is past.clusters
    assert later.table == whole.table

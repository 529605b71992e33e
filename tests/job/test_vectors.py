"""The command ``vectors``: distances by hand, and its page of a real run."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from job_runner import Job

from pipelines.candidates.interactions import Interactions
from pipelines.errors import PipelineError
from pipelines.evaluation.plots import density_plot, map_plot
from pipelines.job.vectors import pair_distances

START = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass
class Known:
    """Vectors given by hand."""

    users: dict[int, list[float]]
    posts: dict[int, list[float]]
    asked: list[int] = field(default_factory=list)

    def post_vectors(self):
        return np.array(list(self.posts)), np.array(list(self.posts.values()), "float32")

    def user_vectors(self, user_ids):
        known = [user for user in user_ids.tolist() if user in self.users]
        return np.array(known), np.array([self.users[user] for user in known], "float32")


def past(pairs: list[tuple[int, int]]) -> Interactions:
    users, posts = zip(*pairs, strict=True)
    times = [START + timedelta(hours=hour) for hour in range(len(pairs))]
    return Interactions.from_table(
        pa.table(
            {
                "user_id": pa.array(users, pa.int64()),
                "post_id": pa.array(posts, pa.int64()),
                "event_time": pa.array(times, pa.timestamp("us", tz="UTC")),
                "weight": [1.0] * len(pairs),
            }
        )
    )


def liked(pairs: list[tuple[int, int]]) -> pa.Table:
    users, posts = zip(*pairs, strict=True)
    return pa.table({"user_id": pa.array(users, pa.int64()), "post_id": pa.array(posts)})


def test_distances_by_hand():
    # User 7 looks along x and has seen 10; 20 lies along x, 30 along y: 30 is all that is left.
    known = Known({7: [2.0, 0.0]}, {10: [1.0, 1.0], 20: [3.0, 0.0], 30: [0.0, 5.0]})
    before = past([(7, 10), (8, 20), (8, 30)])
    pairs = pair_distances(known, liked([(7, 20), (9, 20)]), before, np.random.default_rng(0))
    assert pairs.users.tolist() == [7]
    np.testing.assert_allclose(pairs.liked, [0.0], atol=1e-7)
    np.testing.assert_allclose(pairs.random, [1.0], atol=1e-7)
    assert pairs.nearer()["nearer"].tolist() == [1.0]


def test_random_pairs_are_never_of_what_was_seen_or_liked():
    rng = np.random.default_rng(3)
    posts = {post: rng.normal(size=4).tolist() for post in range(12)}
    posts[5] = [9.0, 9.0, 9.0, 9.0]
    users = {user: [1.0, 1.0, 1.0, 1.0] for user in range(4)}
    everything_but_5 = [(user, post) for user in users for post in range(6, 12)]
    before = past([*everything_but_5, *((99, post) for post in range(12))])
    later = [(user, post) for user in users for post in range(5)]
    pairs = pair_distances(Known(users, posts), liked(later), before, rng)
    np.testing.assert_allclose(pairs.random, 0.0, atol=1e-6)  # post 5 is all that is left


def test_nothing_known_is_an_error():
    known = Known({7: [1.0]}, {10: [1.0]})
    with pytest.raises(PipelineError, match="raise --test-share"):
        pair_distances(known, liked([(8, 10)]), past([(7, 10)]), np.random.default_rng(0))


def test_a_density_needs_two_different_values():
    with pytest.raises(ValueError, match="random: found no two different values"):
        density_plot(
            {"liked": np.array([0.0, 1.0]), "random": np.array([1.0, 1.0])}, title="t", x_label="x"
        )


def test_rare_labels_share_a_colour():
    points = np.random.default_rng(0).normal(size=(9, 2))
    svg = map_plot(points, ["a"] * 4 + ["b"] * 4 + ["rare"], title="t", most=2)
    assert ">other<" in svg
    assert ">rare<" not in svg


def test_the_page_of_a_run(job: Job):
    outcome = job.do("vectors", "--generator", "als", "--map-posts", "50")
    assert outcome.code == 0, outcome.err
    page = (job.workspace.reports / "vectors_als.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert "liked later" in page
    assert "50 most liked posts" in page
    assert "nearer to their user than a random post" in outcome.out

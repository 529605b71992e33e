"""Real datasets in the lake: what is printed of them is there."""

from collections import Counter
from datetime import UTC, datetime

import pytest
from dataset_examples import DESCRIPTIONS, LASTFM, lake_table, movielens

from feature_repo.dataset import Dataset
from pipelines.datasets.lake import ingest


def test_movielens_is_ingested_whole(tmp_path):
    dataset, base = movielens()
    result = ingest(dataset, base, tmp_path / "lake")
    assert (result.users, result.posts, result.events) == (943, 1682, 100_000)
    assert (result.duplicates, result.orphans, result.topics) == (0, 0, 19)
    assert result.first_time == datetime(1997, 9, 20, 3, 5, 10, tzinfo=UTC)
    assert result.last_time == datetime(1998, 4, 22, 23, 10, 38, tzinfo=UTC)
    events = lake_table(tmp_path / "lake", "events")
    ratings = Counter(events["value"].to_pylist())
    assert ratings == {1.0: 6110, 2.0: 11370, 3.0: 27145, 4.0: 34174, 5.0: 21201}
    assert sum(events["is_positive"].to_pylist()) == 34174 + 21201
    assert len(set(events["event_month"].to_pylist())) == 8
    posts = lake_table(tmp_path / "lake", "posts")
    assert posts["title"][0].as_py() == "Toy Story"
    assert posts["topics"][0].as_py() == ["Animation", "Children's", "Comedy"]
    assert posts["release_year"].null_count == 2
    topics = lake_table(tmp_path / "lake", "topics").to_pylist()
    assert topics[0] == {"topic": "Drama", "topic_id": 0, "post_count": 725}


@pytest.mark.skipif(not LASTFM.exists(), reason="Last.fm is not on this machine")
def test_lastfm_is_ingested_whole(tmp_path):
    dataset = Dataset.read(DESCRIPTIONS / "lastfm_2k.toml")
    result = ingest(dataset, LASTFM, tmp_path / "lake")
    assert (result.users, result.posts, result.events) == (1892, 17632, 92834)
    posts = lake_table(tmp_path / "lake", "posts")
    assert posts["title"][0].as_py() == "MALICE MIZER"
    events = lake_table(tmp_path / "lake", "events")
    assert set(events["is_positive"].to_pylist()) == {True}
    assert set(events["event_month"].to_pylist()) == {
        "2000-01",
        "2000-02",
        "2000-03",
        "2000-04",
    }
    plays, weights = events["value"].to_pylist(), events["weight"].to_pylist()
    assert max(plays) == 352_698
    assert max(weights) == pytest.approx(12.7733686)

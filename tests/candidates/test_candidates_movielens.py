"""Known figures on real data: MovieLens-100k, ratings of at least 4, the last tenth as test."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from feature_repo.dataset import Dataset
from pipelines.candidates.interactions import Interactions
from pipelines.candidates.registry import make_generator
from pipelines.datasets.fetch import fetch

DESCRIPTION = Path(__file__).parents[2] / "feature_repo" / "datasets" / "movielens_100k.toml"


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = fetch(Dataset.read(DESCRIPTION), tmp_path_factory.mktemp("movielens"))
    ratings = pd.read_csv(folder / "ml-100k.inter", sep="\t")
    ratings.columns = ["user_id", "post_id", "rating", "seconds"]
    liked = ratings[ratings["rating"] >= 4].sort_values("seconds", kind="stable")
    cut = int(len(liked) * 0.9)
    train, test = liked[:cut], liked[cut:]
    times = pa.array((train["seconds"].to_numpy() * 1e6).astype(np.int64))
    table = pa.table(
        {
            "user_id": train["user_id"].to_numpy(),
            "post_id": train["post_id"].to_numpy(),
            "event_time": times.cast(pa.timestamp("us", tz="UTC")),
            "weight": np.ones(cut),
        }
    )
    warm = test[test["user_id"].isin(set(train["user_id"]))]
    return Interactions.from_table(table), warm.groupby("user_id")["post_id"].apply(set)


def hit_rate_at_10(split, name, settings=None):
    interactions, relevant = split
    generator = make_generator(name, settings).fit(interactions)
    top = generator.recommend(relevant.index.to_numpy(), 10).to_pandas()
    shown = top.groupby("user_id")["post_id"].apply(set)
    return np.mean([bool(shown[user] & posts) for user, posts in relevant.items()])


@pytest.mark.slow
def test_hit_rates_are_those_of_the_defaults(split):
    assert len(split[1]) == 76
    recent = hit_rate_at_10(split, "popular")
    # 43 of 76 users: a trial with other code gave the same figure.
    assert recent == pytest.approx(0.566, abs=0.02)
    assert hit_rate_at_10(split, "popular", {"half_life_days": None}) < recent - 0.1
    assert hit_rate_at_10(split, "als") == pytest.approx(0.461, abs=0.05)
    assert hit_rate_at_10(split, "item_to_item") == pytest.approx(0.421, abs=0.05)

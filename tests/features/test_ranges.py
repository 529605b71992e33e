"""Views of events computed for one range of ids after another equal those computed at once."""

from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from lake_examples import RATINGS, lake

from feature_repo.definitions.views import feature_views
from feature_repo.workspace import Workspace
from pipelines.features.build import OF_EVENTS, id_ranges, write_expressions
from pipelines.features.tables import connect, open_lake


@pytest.fixture(scope="module")
def lake_folder(tmp_path_factory):
    rng = np.random.default_rng(7)
    # One user has a third of all events, so no range of his can be small.
    users = np.where(rng.random(900) < 0.3, 5, rng.integers(0, 40, 900))
    posts, days = rng.integers(0, 60, 900), rng.integers(0, 300, 900) / 4
    liked = rng.random(900) < 0.2
    rows = zip(users.tolist(), posts.tolist(), days.tolist(), liked.tolist(), strict=True)
    tables = lake(list(rows), {post: ["a", "b"][: post % 3] for post in range(60)})
    folder = tmp_path_factory.mktemp("lake")
    for name in ("users", "posts", "events"):
        (folder / name / "all").mkdir(parents=True)
    for name in ("users", "posts"):
        pq.write_table(getattr(tables, name).to_pyarrow(), folder / name / "part.parquet")
    pq.write_table(tables.events.to_pyarrow(), folder / "events" / "all" / "part.parquet")
    pq.write_table(tables.topics.to_pyarrow(), folder / "topics.parquet")
    return folder


def test_ranges_of_ids_meet_and_hold_about_equally_many_events(lake_folder):
    tables = open_lake(connect(), lake_folder)
    ranges = id_ranges(tables, "user_id", 100)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 39
    assert all(a[1] + 1 == b[0] for a, b in pairwise(ranges))
    users = tables.events.select("user_id").to_pyarrow()["user_id"].to_numpy()
    counts = [int(((users >= first) & (users <= last)).sum()) for first, last in ranges]
    assert sum(counts) == 900
    assert sorted(counts)[-2] < 200 < 270 < max(counts) < 400


@pytest.mark.parametrize("view", OF_EVENTS)
def test_tables_do_not_depend_on_how_many_events_are_looked_at_at_once(lake_folder, tmp_path, view):
    views = [
        one for one in feature_views(RATINGS, Workspace(tmp_path, "ratings")) if one.name == view
    ]
    written = {}
    for name, at_once in (("whole", 1000), ("parts", 250)):
        tables = open_lake(backend := connect(), lake_folder)
        rows = dict(write_expressions(backend, tables, RATINGS, views, tmp_path / name, at_once))
        written[name] = pq.read_table(tmp_path / name / f"{view}.parquet")
        assert rows == {view: written[name].num_rows}
    assert pq.read_metadata(tmp_path / "parts" / f"{view}.parquet").num_row_groups > 2
    assert written["parts"].cast(written["whole"].schema).equals(written["whole"])

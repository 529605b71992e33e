import datetime

import numpy as np
import pyarrow as pa
import pytest

pytest.register_assert_rewrite("conformance")

from conformance import START, TIME, events  # noqa: E402

from pipelines.candidates.interactions import Interactions, positions  # noqa: E402
from pipelines.errors import InteractionsError  # noqa: E402

DAY_US = 86_400_000_000


def test_index_by_hand():
    rows = [(9, 50, 2, 1.0), (4, 70, 1, 0.5), (9, 30, 1, 2.0), (9, 50, 0, 3.0), (4, 30, 5, 0.0)]
    found = Interactions.from_table(events(rows))
    assert found.user_ids.tolist() == [4, 9]
    assert found.post_ids.tolist() == [30, 50, 70]
    assert found.matrix.toarray().tolist() == [[0, 0, 0.5], [2, 4, 0]]
    assert found.matrix.dtype == np.float32
    # By user, then time.
    assert found.event_users.tolist() == [0, 1, 1, 1]
    assert found.event_posts.tolist() == [2, 1, 0, 1]
    assert found.event_weights.tolist() == [0.5, 3, 2, 1]
    assert found.history_bounds.tolist() == [0, 1, 4]
    start = int(START.timestamp() * 1e6)
    assert (found.event_times - start).tolist() == [DAY_US, 0, DAY_US, 2 * DAY_US]
    assert found.latest_time - start == 2 * DAY_US


def test_a_row_of_weight_zero_is_seen_and_nothing_else():
    found = Interactions.from_table(events([(1, 10, 0, 1.0), (1, 11, 1, 0.0), (2, 11, 2, 0.0)]))
    assert found.post_ids.tolist() == [10]
    assert found.user_ids.tolist() == [1, 2]
    assert found.seen_matrix(np.array([10, 11])).toarray().tolist() == [[1, 1], [0, 1]]
    assert found.seen_matrix(found.post_ids).toarray().tolist() == [[1], [0]]


def test_further_seen_pairs_need_not_be_in_the_catalogue():
    seen = events([(1, 99, 0, 0.0), (3, 10, 0, 0.0), (1, 99, 4, 0.0)]).drop_columns("weight")
    found = Interactions.from_table(events([(1, 10, 0, 1.0)]), seen=seen)
    assert found.user_ids.tolist() == [1, 3]
    assert found.seen_posts.tolist() == [10, 99, 10]
    assert found.seen_matrix(np.array([10, 98, 99])).toarray().tolist() == [[1, 0, 1], [1, 0, 0]]


def test_until_forgets_what_is_later():
    rows = [(1, 10, 0, 1.0), (1, 11, 3, 1.0), (2, 10, 2, 0.0), (2, 10, 4, 1.0), (3, 12, 5, 1.0)]
    cut = Interactions.from_table(events(rows)).until(START + datetime.timedelta(days=3))
    assert cut.user_ids.tolist() == [1, 2]
    assert cut.post_ids.tolist() == [10]
    assert cut.seen_posts.tolist() == [10, 10]
    assert cut.matrix.toarray().tolist() == [[1], [0]]


def test_ties_in_time_follow_the_sources_order_not_the_rows():
    rows = [(1, 10, 0, 1.0), (1, 11, 0, 1.0), (1, 12, 0, 1.0)]
    found = Interactions.from_table(events(rows, order=[2, 0, 1]))
    assert found.post_ids[found.event_posts].tolist() == [11, 12, 10]
    later = found.until(START + datetime.timedelta(days=1))
    assert later.post_ids[later.event_posts].tolist() == [11, 12, 10]


def test_nanoseconds_and_other_zones_are_read():
    table = events([(1, 10, 1, 1.0)])
    time = table["event_time"].cast(pa.timestamp("ns", tz="Europe/Paris"))
    found = Interactions.from_table(table.set_column(2, "event_time", time))
    assert found.latest_time == Interactions.from_table(table).latest_time


@pytest.mark.parametrize("weight", [float("nan"), -1.0, float("inf")])
def test_wrong_weights_are_refused(weight):
    table = events([(1, 10, 0, 1.0), (1, 11, 0, weight)])
    with pytest.raises(InteractionsError, match=r"1 of 2 rows .* weight .*first: row 1"):
        Interactions.from_table(table)


def test_no_positive_is_refused():
    with pytest.raises(InteractionsError, match="found no positive event among 0 rows"):
        Interactions.from_table(events([]))
    with pytest.raises(InteractionsError, match="found no positive event among 1 rows"):
        Interactions.from_table(events([(1, 10, 0, 0.0)]))
    with pytest.raises(InteractionsError, match="found no positive event"):
        Interactions.from_table(events([(1, 10, 1, 1.0)])).until(START)


def test_wrong_tables_are_refused():
    table = events([(1, 10, 0, 1.0), (2, 10, 0, 1.0)])
    with pytest.raises(InteractionsError, match="events: no column 'weight', found"):
        Interactions.from_table(table.drop_columns("weight"))
    with pytest.raises(InteractionsError, match="seen pairs: no column 'event_time'"):
        Interactions.from_table(table, seen=table.select(["user_id", "post_id"]))
    nulls = table.set_column(1, "post_id", pa.array([1, None], pa.int64()))
    with pytest.raises(InteractionsError, match=r"null post_id \(first: row 1\)"):
        Interactions.from_table(nulls)
    naive = table.set_column(2, "event_time", table["event_time"].cast(pa.timestamp("us")))
    with pytest.raises(InteractionsError, match=r"event_time is timestamp\[us\], expected"):
        Interactions.from_table(naive)
    text = table.set_column(0, "user_id", pa.array(["a", "b"]))
    with pytest.raises(InteractionsError, match="user_id cannot be read as int64"):
        Interactions.from_table(text)
    with pytest.raises(InteractionsError, match="the time has no zone"):
        Interactions.from_table(table).until(datetime.datetime(2024, 1, 2))
    assert table["event_time"].type == TIME


def test_positions():
    assert positions(np.array([5, 1, 9, 3]), np.array([1, 5, 7])).tolist() == [1, 0, -1, -1]
    assert positions(np.array([5]), np.array([], dtype=np.int64)).tolist() == [-1]

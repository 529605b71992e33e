"""Sliding windows: a table worked by hand, and brute force over generated histories."""

import dataclasses
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lake_examples import RATINGS, START, at, lake

from feature_repo.dataset import Dataset
from pipelines.features import post_activity, user_activity, user_topic_affinity
from pipelines.features.tables import connect

WINDOWS = {"1d": 1, "7d": 7, "28d": 28, "lifetime": 10**6}


def rows_of(expression) -> list[dict]:
    return expression.to_pyarrow().to_pylist()


def test_a_single_event_enters_every_window_and_leaves_them_one_by_one():
    tables = lake([(1, 10, 0.5, True)])
    rows = sorted(
        rows_of(user_activity.compute(tables, RATINGS)), key=lambda r: r["event_timestamp"]
    )
    assert [
        (
            (r["event_timestamp"] - at(0)).days,
            r["user_event_count_1d"],
            r["user_event_count_7d"],
            r["user_event_count_28d"],
            r["user_event_count_lifetime"],
            r["user_positive_rate_7d"],
        )
        for r in rows
    ] == [(1, 1, 1, 1, 1, 1.0), (2, 0, 1, 1, 1, 1.0), (8, 0, 0, 1, 1, None), (29, 0, 0, 0, 1, None)]
    assert {r["user_last_event_unix_s"] for r in rows} == {int(at(0.5).timestamp())}


def test_an_event_at_midnight_belongs_to_the_day_that_begins():
    tables = lake([(1, 10, 1.0, True)])
    first = min(r["event_timestamp"] for r in rows_of(user_activity.compute(tables, RATINGS)))
    assert first == at(2)


def test_the_last_half_second_of_a_day_belongs_to_it():
    last = 1 - 0.4 / 86_400
    (row, *_) = sorted(
        rows_of(user_activity.compute(lake([(1, 10, last, True)]), RATINGS)),
        key=lambda r: r["event_timestamp"],
    )
    assert row["event_timestamp"] == at(1)
    assert row["user_last_event_unix_s"] == int(at(1).timestamp()) - 1


def test_counts_are_written_as_whole_numbers(tmp_path):
    backend = connect()
    of_users = user_activity.compute(lake([(1, 10, 0.5, True)]), RATINGS)
    backend.to_parquet(of_users, tmp_path / "counts.parquet")
    types = {field.name: field.type for field in pq.read_schema(tmp_path / "counts.parquet")}
    counts = {name: kind for name, kind in types.items() if "_count_" in name}
    assert len(counts) == 12
    assert set(counts.values()) == {pa.int64()}


def test_no_row_is_written_on_a_day_without_change():
    # On day 8 one event leaves the 7 day window and another enters it: the 7 day counts stay,
    # the lifetime count changes, so there is one row; on days 3 to 7 nothing happens.
    tables = lake([(1, 10, 0.0, False), (1, 11, 7.0, False)])
    days = {
        (r["event_timestamp"] - at(0)).days for r in rows_of(user_activity.compute(tables, RATINGS))
    }
    assert days == {1, 2, 8, 9, 15, 29, 36}


def test_rates_stay_below_one_where_likes_have_no_logged_impression():
    seen = Dataset.parse(
        """
        name = "seen"
        [posts]
        path = "p.csv"
        format = "csv"
        id = "id"
        topics = "topics"
        [events]
        path = "e.csv"
        format = "csv"
        user = "u"
        post = "p"
        time = { column = "t" }
        action = { column = "action" }
        impressions = { actions = ["view"] }
        positive = { actions = ["like"] }
        """
    )
    tables = lake([(1, 10, 0.5, True), (1, 11, 1.5, True), (2, 10, 1.6, False)], {10: ["a"]})
    events = tables.events.mutate(is_impression=~tables.events.is_positive)
    tables = dataclasses.replace(tables, events=events)
    for view in (user_activity, post_activity, user_topic_affinity):
        for row in rows_of(view.compute(tables, seen)):
            rates = [value for name, value in row.items() if "_rate" in name]
            flat = [v for rate in rates for v in (rate if isinstance(rate, list) else [rate])]
            assert flat
            assert all(v is None or 0 <= v <= 1 for v in flat), row
    (first,) = (
        r
        for r in rows_of(user_activity.compute(tables, seen))
        if r["user_id"] == 1 and r["event_timestamp"] == START + timedelta(days=1)
    )
    assert first["user_positive_rate_1d"] == 1.0


def test_smoothed_rate_is_the_posterior_mean_under_the_rate_of_all_posts():
    tables = lake([(1, 10, 0.1, True), (2, 11, 0.2, False), (2, 10, 1.1, True)])
    rows = {
        (r["post_id"], (r["event_timestamp"] - at(0)).days): r
        for r in rows_of(post_activity.compute(tables, RATINGS))
    }
    prior_day_1, prior_day_2 = 1 / 2, 2 / 3
    assert rows[10, 1]["post_positive_rate_smoothed_lifetime"] == pytest.approx(
        (1 + 20 * prior_day_1) / 21
    )
    assert rows[10, 2]["post_positive_rate_smoothed_lifetime"] == pytest.approx(
        (2 + 20 * prior_day_2) / 22
    )
    assert rows[10, 2]["post_first_event_unix_s"] == int(at(0.1).timestamp())


events = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.integers(10, 13),
        st.integers(0, 45 * 24).map(lambda h: h / 24),
        st.booleans(),
    ),
    min_size=1,
    max_size=25,
    unique_by=lambda e: (e[0], e[1], e[2]),
)


@settings(max_examples=25, deadline=None)
@given(events=events)
def test_values_hold_on_every_day_until_the_next_row(events):
    """Between rows nothing changes: the last row at or before any day is right on that day."""
    tables = lake(events)
    rows = sorted(
        rows_of(user_activity.compute(tables, RATINGS)), key=lambda r: r["event_timestamp"]
    )
    for user in {e[0] for e in events}:
        own = [r for r in rows if r["user_id"] == user]
        for day in range(0, 80):
            midnight = at(day)
            current = [r for r in own if r["event_timestamp"] <= midnight]
            for name, length in WINDOWS.items():
                inside = [
                    e for e in events if e[0] == user and max(0, day - length) <= int(e[2]) < day
                ]
                row = current[-1] if current else None
                assert (row[f"user_event_count_{name}"] if row else 0) == len(inside)
                assert (row[f"user_positive_count_{name}"] if row else 0) == sum(
                    e[3] for e in inside
                )
                assert (row[f"user_post_distinct_count_{name}"] if row else 0) == len(
                    {e[1] for e in inside}
                )


@settings(max_examples=10, deadline=None)
@given(events=events, later=st.integers(0, 45))
def test_later_events_change_no_earlier_row(events, later):
    cut = at(later)
    everything = lake(events)
    past = [e for e in events if at(e[2]) < cut]
    if not past:
        return
    before = lake(past)
    for module in (user_activity, post_activity):
        full = {
            tuple(sorted(r.items(), key=str))
            for r in rows_of(module.compute(everything, RATINGS))
            if r["event_timestamp"] <= cut
        }
        cut_off = {
            tuple(sorted(r.items(), key=str))
            for r in rows_of(module.compute(before, RATINGS))
            if r["event_timestamp"] <= cut
        }
        if module is user_activity:
            assert full == cut_off
        else:
            # A smoothed rate moves with the rate of all posts, which events on the cut day join.
            assert {r for r in full if dict(r)["event_timestamp"] < cut} == {
                r for r in cut_off if dict(r)["event_timestamp"] < cut
            }


def test_topic_shares_and_rates_by_hand():
    topics = {10: ["a", "b"], 11: ["b"], 12: []}
    tables = lake([(1, 10, 0.1, True), (1, 11, 0.2, False), (1, 12, 0.3, True)], topics)
    (row,) = rows_of(user_topic_affinity.compute(tables, RATINGS))
    assert row["event_timestamp"] == at(0) + timedelta(days=1)
    # Two positives: half a positive each for a and b, one for no topic.
    assert row["user_topic_positive_share"] == pytest.approx([0.25, 0.25])
    own_rate = 2 / 3
    assert row["user_topic_positive_rate"] == pytest.approx(
        [(0.5 + 5 * own_rate) / 5.5, (0.5 + 5 * own_rate) / 6.5], abs=1e-6
    )

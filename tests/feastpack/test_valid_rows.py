"""Which row was valid, and columns put in order: generated cases against the plain definition."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from feastpack.gathering import Gathering, Wanted
from feastpack.valid_rows import NO_ROW, ValidRows, slots_of

#: The second set spans so much time that key and time do not fit into one number.
TIMES = st.integers(-5, 20) | st.sampled_from([-(2**62), 2**62])
KEYS = st.tuples(st.none() | st.integers(0, 2), st.none() | st.sampled_from(["", "a"]))
ENTITIES = st.lists(st.tuples(KEYS, st.none() | TIMES), max_size=20)
HISTORY = st.lists(st.tuples(KEYS, TIMES, st.integers(-3, 3), st.integers(0, 9)), max_size=25)


def valid_rows(
    entities: list[Any], history: list[Any], ttl: int | None, late: bool, batch: int
) -> list[int]:
    """Ids (places in the history) by our algorithm, the history given in batches."""
    times = pa.chunked_array([pa.array([time for _, time in entities], pa.int64())])
    columns = [
        pa.chunked_array([pa.array([key[at] for key, _ in entities], kind)])
        for at, kind in enumerate((pa.int64(), pa.string()))
    ]
    slots = slots_of(times, columns)
    code_of = {(row["k0"], row["k1"]): row for row in slots.keys.to_pylist()}
    valid = ValidRows(slots, levels=3)
    rows = []
    for number, (key, time, created, delay) in enumerate(history):
        counts_from = time + delay if late else time
        known = code_of.get(key)
        if known is not None and counts_from <= known["latest"]:
            rows.append((known["code"], counts_from, time, created, number))
    for first in range(0, len(rows), batch):
        code, counts_from, *preference = np.array(rows[first : first + batch], np.int64).T
        valid.add(code, counts_from, preference)
    return valid.result(len(entities), ttl, in_order=not late).tolist()


def by_definition(entities: list[Any], history: list[Any], ttl: int | None, late: bool) -> Any:
    for key, time in entities:
        known = [
            (when, created, number)
            for number, (owner, when, created, delay) in enumerate(history)
            if None not in key and time is not None and owner == key
            if when + (delay if late else 0) <= time
        ]
        best = max(known, default=None)
        expired = best is not None and ttl is not None and best[0] + ttl < time
        yield NO_ROW if best is None or expired else best[2]


@given(
    entities=ENTITIES,
    history=HISTORY,
    ttl=st.none() | st.integers(0, 9) | st.just(2**80),
    late=st.booleans(),
    batch=st.integers(1, 30),
)
def test_valid_rows_are_those_of_the_definition(
    entities: list[Any], history: list[Any], ttl: int | None, late: bool, batch: int
) -> None:
    expected = list(by_definition(entities, history, ttl, late))
    assert valid_rows(entities, history, ttl, late, batch) == expected


def test_rows_of_a_view_without_entities_share_one_combination() -> None:
    times = pa.chunked_array([pa.array([3, None, 1, 2], pa.int64())])
    slots = slots_of(times, [])
    assert slots.keys.to_pylist() == [{"code": 0, "latest": 3}]
    assert slots.rows.tolist() == [2, 3, 0]
    assert slots.first_not_before(np.zeros(3, np.int64), np.array([0, 2, 3])).tolist() == [0, 1, 2]


COLUMNS = {
    "small": (pa.int8(), st.integers(-128, 127)),
    "real": (pa.float64(), st.floats(allow_nan=False)),
    "time": (pa.timestamp("us", tz="UTC"), st.integers(0, 2**40)),
    "truth": (pa.bool_(), st.booleans()),
    "text": (pa.string(), st.text(max_size=3)),
    "list": (pa.list_(pa.int64()), st.lists(st.integers(0, 9), max_size=2)),
    "price": (pa.decimal128(9, 2), st.decimals(0, 99, places=2)),
}


@given(data=st.data(), step=st.integers(1, 7))
@pytest.mark.parametrize("name", COLUMNS)
def test_columns_are_put_where_they_are_wanted(name: str, data: st.DataObject, step: int) -> None:
    kind, values = COLUMNS[name]
    given_values = data.draw(st.lists(st.none() | values, min_size=1, max_size=20))
    source = pa.array(given_values, kind)
    ids = data.draw(st.permutations(range(len(source))))
    wanted_ids = data.draw(st.lists(st.sampled_from([NO_ROW, *ids]), max_size=30))
    wanted = Wanted(np.array(wanted_ids, dtype=np.int64))
    gathering = Gathering(wanted, [kind])
    for first in range(0, len(ids), step):
        part = np.array(ids[first : first + step])
        gathering.add(part, [source.take(pa.array(part))])
    (column,) = gathering.results()
    assert gathering.filled == wanted.count_of_rows == sum(one >= 0 for one in wanted_ids)
    assert column.type == kind
    expected = source.to_pylist()
    assert column.to_pylist() == [None if one < 0 else expected[one] for one in wanted_ids]
    assert wanted.unique_ids.tolist() == sorted({one for one in wanted_ids if one >= 0})

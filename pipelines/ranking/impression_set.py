"""Ranker rows out of the impression log: vectors as served, and what the user did afterwards.

What training otherwise rebuilds by a point-in-time join was seen by the ranker once already; here
it is taken as it was. One group of rows is one logged request, as the user met it: only posts that
were shown, for nobody could like another one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.contract import Contract
from feature_repo.definitions.columns import REQUEST_TIME
from pipelines.errors import RankerTrainingError
from pipelines.evaluation.split import TimeSlice
from pipelines.ranking.training_set import GROUP_MARK, LABEL, SLICE

_TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Shown:
    """What was read of the log.

    Attributes
    ----------
    rows
        Posts that were shown, and liked or not, of requests of which at least one was liked:
        columns as `pipelines.ranking.training_set.retrieve` returns them; ``slice`` is
        that of `shown_in` and the request's id after a colon, so that a request is a group.
    requests
        Logged requests of the contract in the log.
    too_late
        Of these, how many no row was made of because they were answered with features of a later
        moment than their own, as happens where past moments are asked for.
    """

    rows: pa.Table
    requests: int
    too_late: int


def shown_in(slice_name: str) -> str:
    """Return the name of what was shown within a slice."""
    return f"shown in {slice_name}"


def read_impressions(folder: Path, contract: Contract) -> pa.Table:
    """Read what was shown under one contract, from the log's folder.

    Raises
    ------
    RankerTrainingError
        If there is nothing.
    """
    files = sorted((folder / contract.hash[:12]).glob("*.parquet"))
    if not files:
        raise RankerTrainingError(
            f"{folder}: no impressions of the ranker inputs {contract.hash[:12]} are logged; let "
            "`feastrank serve` answer with a bundle of these inputs, or train from the history"
        )
    shown = pc.is_valid(pc.field("position")) & pc.is_valid(pc.field("ranker_score"))
    facts = ["request_id", "user", "post", "materialized_until", REQUEST_TIME]
    return pq.read_table(files, columns=[*facts, *contract.names], filters=shown)


def label_impressions(
    shown: pa.Table,
    ids: tuple[pa.Table, pa.Table],
    events: pa.Table,
    parts: Sequence[tuple[str, TimeSlice]],
    label_hours: float,
    contract: Contract,
) -> Shown:
    """Label what was shown by what its user liked within so many hours.

    Parameters
    ----------
    shown
        As `read_impressions` returns it.
    ids
        The lake's tables of users and posts: ``external_id``, ``user_id`` or ``post_id``. Logged
        ids are the source's, so that a lake built anew fits too.
    events
        ``user_id``, ``post_id``, ``event_time``, ``is_positive``.
    parts
        Label slices by name. A request belongs to the slice of its moment, and events of a later
        slice do not label it: the test slice stays unseen.
    """
    moment = pc.cast(pc.multiply(shown[REQUEST_TIME], 1_000_000), _TIME)
    requests = pc.count_distinct(shown["request_id"]).as_py()
    own = shown.append_column("event_timestamp", moment)
    for table, name in zip(ids, ("user", "post"), strict=True):
        at = pc.index_in(own[name], table["external_id"])
        own = own.append_column(f"{name}_id", table[f"{name}_id"].take(at))
    own = own.filter(pc.and_(pc.is_valid(own["user_id"]), pc.is_valid(own["post_id"])))
    is_late = pc.fill_null(pc.greater(own["materialized_until"], own["event_timestamp"]), True)
    late = pc.count_distinct(own.filter(is_late)["request_id"]).as_py()
    own = own.filter(pc.invert(is_late))
    names, ends = _slices_of(own["event_timestamp"], parts)
    own = own.append_column(SLICE, names).append_column("slice_end", ends)
    own = own.filter(pc.is_valid(own[SLICE]))
    labelled = own.append_column(LABEL, _labels(own, events, label_hours))
    groups = pc.binary_join_element_wise(labelled[SLICE], labelled["request_id"], GROUP_MARK)
    labelled = labelled.set_column(labelled.column_names.index(SLICE), SLICE, groups)
    liked = pc.unique(labelled.filter(pc.equal(labelled[LABEL], 1))[SLICE])
    labelled = labelled.filter(pc.is_in(labelled[SLICE], liked))
    keys = ["user_id", "post_id", "event_timestamp", SLICE, LABEL]
    rows = labelled.select([*keys, *contract.names]).sort_by(
        [(name, "ascending") for name in (SLICE, "user_id", "post_id")]
    )
    return Shown(rows, requests, late)


def with_shown(examples: pa.Table, shown: Shown) -> pa.Table:
    """Return examples with those that were shown, sorted as all examples are.

    Raises
    ------
    RankerTrainingError
        If nothing that was shown can be learnt from.
    """
    if not shown.rows.num_rows:
        raise RankerTrainingError(
            f"impressions: {shown.requests:,} requests are logged, but none within the label "
            f"slices led to a like in time ({shown.too_late:,} were answered with features of a "
            "later moment); wait for more, raise --impression-label-hours, or train from the "
            "history"
        )
    joined = pa.concat_tables([examples, shown.rows.cast(examples.schema)])
    return joined.sort_by([(name, "ascending") for name in (SLICE, "user_id", "post_id")])


def _slices_of(
    moments: pa.ChunkedArray, parts: Sequence[tuple[str, TimeSlice]]
) -> tuple[pa.Array, pa.Array]:
    """Return name and end of the slice of each moment, null where it is in none."""
    names = np.full(len(moments), None, object)
    ends = np.full(len(moments), None, object)
    for name, part in parts:
        inside = part.contains(moments)
        names[inside], ends[inside] = shown_in(name), part.end
    return pa.array(names, pa.string()), pa.array(ends, _TIME)


def _labels(shown: pa.Table, events: pa.Table, label_hours: float) -> pa.Array:
    """Return int8: 1 where the user liked the post in time, from the request's moment on."""
    likes = events.filter(events["is_positive"]).select(["user_id", "post_id", "event_time"])
    pairs = shown.select(["user_id", "post_id", "event_timestamp", "slice_end"])
    joined = pairs.append_column("row", pa.array(np.arange(shown.num_rows))).join(
        likes, ["user_id", "post_id"], join_type="inner"
    )
    hours = pa.scalar(round(label_hours * 3.6e9), pa.duration("us"))
    in_time = (
        pc.greater_equal(joined["event_time"], joined["event_timestamp"]),
        pc.less_equal(joined["event_time"], pc.add(joined["event_timestamp"], hours)),
        pc.less(joined["event_time"], joined["slice_end"]),
    )
    hits = joined["row"].filter(pc.and_(pc.and_(in_time[0], in_time[1]), in_time[2]))
    labels = np.zeros(shown.num_rows, np.int8)
    labels[hits.to_numpy()] = 1
    return pa.array(labels)

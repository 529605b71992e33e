"""The ranker's examples: candidates of a slice, labelled, with features as of its beginning."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore
from numpy.typing import NDArray

from feature_repo.contract import Contract
from feature_repo.definitions.columns import REQUEST_TIME
from serving.inputs import InputEncoder

SLICE = "slice"
LABEL = "label"


@dataclass(frozen=True)
class Examples:
    """Encoded examples, those of one user and slice side by side.

    Parameters
    ----------
    keys
        ``user_id``, ``post_id`` int64, ``slice`` string, ``label`` int8.
    matrix
        float32 (n, inputs).
    labels
        float32 (n,), 1 where the user liked the post within the slice.
    group_sizes
        int64: how many rows each user of a slice has, in order.
    """

    keys: pa.Table
    matrix: NDArray[np.float32]
    labels: NDArray[np.float32]
    group_sizes: NDArray[np.int64]


def label_candidates(
    candidates: pa.Table, relevant: pa.Table, *, at: datetime, name: str
) -> pa.Table:
    """Turn one slice's candidates into requests with labels.

    Parameters
    ----------
    candidates
        Merged candidates: ``user_id``, ``post_id`` and score and rank columns per source.
    relevant
        ``user_id``, ``post_id`` of the positives within the slice.
    at
        The slice's beginning: features are taken as of this time.
    name
        The slice's name.

    Returns
    -------
    the candidates with ``event_timestamp``, ``request_unix_time_s``, ``slice`` and ``label``.
    """
    marked = relevant.select(["user_id", "post_id"]).group_by(["user_id", "post_id"]).aggregate([])
    marked = marked.append_column(LABEL, pa.repeat(pa.scalar(1, pa.int8()), marked.num_rows))
    joined = candidates.join(marked, ["user_id", "post_id"], join_type="left outer")
    labels = pc.fill_null(joined[LABEL], pa.scalar(0, pa.int8()))
    rows = joined.num_rows
    moment = pa.scalar(at, pa.timestamp("us", tz="UTC"))
    return (
        joined.set_column(joined.schema.get_field_index(LABEL), LABEL, labels)
        .append_column("event_timestamp", pa.repeat(moment, rows))
        .append_column(REQUEST_TIME, pa.repeat(pa.scalar(int(at.timestamp()), pa.int64()), rows))
        .append_column(SLICE, pa.repeat(name, rows))
        .sort_by([("user_id", "ascending"), ("post_id", "ascending")])
    )


def with_positives_only(requests: pa.Table) -> pa.Table:
    """Drop the users without a single label 1: no order of theirs is better than another."""
    liked = requests.filter(pc.equal(requests[LABEL], 1)).select(["user_id", SLICE])
    users = liked.group_by(["user_id", SLICE]).aggregate([])
    kept = requests.join(users, ["user_id", SLICE], join_type="left semi")
    return kept.sort_by([(n, "ascending") for n in (SLICE, "user_id", "post_id")])


def retrieve(store: FeatureStore, requests: pa.Table, contract: Contract) -> pa.Table:
    """Join features to requests, point in time, through Feast.

    Returns
    -------
    one row per request, in the order of the requests: ``user_id``, ``post_id``,
    ``event_timestamp``, ``slice``, ``label`` and the contract's inputs.
    """
    job = store.get_historical_features(
        entity_df=requests.to_pandas(), features=store.get_feature_service(contract.service)
    )
    joined = job.to_arrow()
    keys = ["user_id", "post_id", "event_timestamp", SLICE, LABEL]
    return joined.select([*keys, *contract.names]).sort_by(
        [(n, "ascending") for n in (SLICE, "user_id", "post_id")]
    )


def encode(encoder: InputEncoder, examples: pa.Table, slices: Sequence[str]) -> Examples:
    """Encode the examples of some slices; rows must be sorted by slice, user and post."""
    chosen = examples.filter(pc.is_in(examples[SLICE], pa.array(list(slices), pa.string())))
    keys = chosen.select(["user_id", "post_id", SLICE, LABEL])
    users = chosen["user_id"].to_numpy()
    names = chosen[SLICE].to_numpy()
    starts = np.flatnonzero(np.append(True, (users[1:] != users[:-1]) | (names[1:] != names[:-1])))
    sizes = np.diff(np.append(starts, len(users))) if len(users) else np.empty(0, np.int64)
    return Examples(
        keys,
        encoder.encode(chosen),
        chosen[LABEL].to_numpy().astype(np.float32),
        sizes.astype(np.int64),
    )

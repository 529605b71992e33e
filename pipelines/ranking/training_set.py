"""The ranker's examples: candidates of a slice, labelled, with features as of its beginning."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore
from numpy.typing import NDArray

from feastpack.duckdb_job import DuckDBRetrievalJob
from feature_repo.contract import Contract
from feature_repo.definitions.columns import REQUEST_TIME
from pipelines.candidates.groups import Groups, are_among
from pipelines.candidates.interactions import Ids
from serving.inputs import InputEncoder

SLICE = "slice"
LABEL = "label"
# What follows it in the name of a slice tells apart several groups of one user.
GROUP_MARK = ":"
#: Joined together: some 0.7 GB of ninety inputs. Each piece reads the feature tables anew.
ROWS_AT_ONCE = 1 << 20


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
    liked = are_among(*pairs_of(candidates), relevant)
    rows = candidates.num_rows
    moment = pa.scalar(at, pa.timestamp("us", tz="UTC"))
    return (
        candidates.append_column(LABEL, pa.array(liked.astype(np.int8)))
        .append_column("event_timestamp", pa.repeat(moment, rows))
        .append_column(REQUEST_TIME, pa.repeat(pa.scalar(int(at.timestamp()), pa.int64()), rows))
        .append_column(SLICE, pa.repeat(name, rows))
        .sort_by([("user_id", "ascending"), ("post_id", "ascending")])
    )


def with_positives_only(requests: pa.Table) -> pa.Table:
    """Drop the users without a single label 1: no order of theirs is better than another."""
    ordered = requests.sort_by([(n, "ascending") for n in (SLICE, "user_id", "post_id")])
    groups = Groups.of(np.asarray(ordered["user_id"]), np.asarray(ordered[SLICE]))
    liked = groups.having(np.asarray(ordered[LABEL]) == 1)
    return ordered.filter(pa.array(groups.spread(liked)))


def pairs_of(table: pa.Table) -> tuple[Ids, Ids]:
    """Return the columns ``user_id`` and ``post_id`` as int64 arrays."""
    return np.asarray(table["user_id"]), np.asarray(table["post_id"])


def retrieve(store: FeatureStore, requests: pa.Table, contract: Contract) -> pa.Table:
    """Join features to requests, point in time, through Feast.

    Returns
    -------
    one row per request, ordered by slice, user and post: ``user_id``, ``post_id``,
    ``event_timestamp``, ``slice``, ``label`` and the contract's inputs.
    """
    order = [(name, "ascending") for name in (SLICE, "user_id", "post_id")]
    job = store.get_historical_features(
        entity_df=requests.sort_by(order).to_pandas(),
        features=store.get_feature_service(contract.service),
    )
    wanted = ["user_id", "post_id", "event_timestamp", SLICE, LABEL, *contract.names]
    if isinstance(job, DuckDBRetrievalJob):
        # Joined piece by piece, in the order asked for: all at once it is several times larger.
        batches = job.to_record_batches(ROWS_AT_ONCE)
        return pa.Table.from_batches(batch.select(wanted) for batch in batches)
    return job.to_arrow().select(wanted).sort_by(order)


def encode(encoder: InputEncoder, examples: pa.Table, slices: Sequence[str]) -> Examples:
    """Encode the examples of some slices; rows must be sorted by slice, user and post."""
    names = [
        name
        for name in pc.unique(examples[SLICE]).to_pylist()
        if name in slices or name.partition(GROUP_MARK)[0] in slices
    ]
    chosen = examples.filter(pc.is_in(examples[SLICE], pa.array(names, pa.string())))
    keys = chosen.select(["user_id", "post_id", SLICE, LABEL])
    groups = Groups.of(np.asarray(chosen["user_id"]), np.asarray(chosen[SLICE]))
    return Examples(
        keys,
        encoder.encode(chosen),
        chosen[LABEL].to_numpy().astype(np.float32),
        groups.sizes,
    )

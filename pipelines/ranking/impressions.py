"""What a model of impressions sees: attributes of users, contents of posts, rows of a matrix."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore
from numpy.typing import NDArray

from feature_repo.contract import Contract
from feature_repo.dataset_columns import Attribute
from feature_repo.definitions import columns as c
from pipelines.ranking.affinity import Floats, Rows
from serving.inputs import InputEncoder

HOUR, MONTH, AFFINITY = "request_hour", "request_month", "affinity"
_LEAST_SHARE = 0.01
_EXPOSURES = 13
_ROW = "row"
_ROWS_A_JOIN = 100_000


def attribute_matrix(users: pa.Table, attributes: Sequence[Attribute]) -> Floats:
    """Return the attributes of users as numbers.

    Parameters
    ----------
    users
        One row a user, in the order of the result; lists are left out.

    Returns
    -------
    float32 (users, a): a constant; a column for each value that at least 1 % have; for numbers a
    column for each decile, 1 above it. All but the constant are centred.
    """
    columns = []
    for attribute in attributes:
        values = users[attribute.name]
        if attribute.type == "categorical":
            counts = values.cast(pa.string()).value_counts()
            often = counts.filter(
                pc.greater_equal(counts.field("counts"), _LEAST_SHARE * len(values))
            )
            for value in often.field("values").drop_null().sort().to_pylist():
                columns.append(pc.equal(values.cast(pa.string()), value).fill_null(False))
        elif attribute.type == "numeric":
            numbers = values.cast(pa.float64())
            deciles = pc.quantile(numbers, [q / 10 for q in range(1, 10)]).drop_null().unique()
            for decile in deciles.to_pylist():
                columns.append(pc.greater(numbers, decile).fill_null(False))
    matrix = np.ones((users.num_rows, len(columns) + 1), dtype=np.float32)
    for place, column in enumerate(columns, 1):
        matrix[:, place] = column.to_numpy(zero_copy_only=False)
        matrix[:, place] -= matrix[:, place].mean()
    return matrix


def content_matrix(
    post_ids: Rows, topics: pa.Table | None, components: pa.Table | None
) -> tuple[Floats, int]:
    """Return what posts are about, and how many of its first columns are the constant and topics.

    Parameters
    ----------
    post_ids
        Posts in the order of the result.
    topics, components
        ``post_id`` and one column of vectors; posts that are absent have zeros.

    Returns
    -------
    float32 (posts, d): a constant, topics, components scaled so that the first has variance 1.
    """
    parts = [np.ones((len(post_ids), 1), dtype=np.float32)]
    if topics is not None:
        parts.append(_vectors(post_ids, topics))
    known = sum(part.shape[1] for part in parts)
    if components is not None:
        found = _vectors(post_ids, components)
        found -= found.mean(axis=0)
        spread = found[:, 0].std()
        parts.append(found / spread if spread > 0 else found)
    return np.column_stack(parts), known


def exposure_groups(shown: Rows, topics: Floats) -> Rows:
    """Group posts by their main topic and by how often they were shown.

    How often a feed shows a post is its own judgement of the post, which says most of those that
    few impressions were seen of.

    Parameters
    ----------
    shown
        Rows of posts, one an impression.
    topics
        float32 (posts, topics); no columns: one topic.

    Returns
    -------
    int64 (posts,): from 0.
    """
    counts = np.bincount(shown, minlength=len(topics))
    edges = np.quantile(counts[counts > 0], np.linspace(0, 1, _EXPOSURES)[1:-1])
    main = topics.argmax(axis=1) if topics.shape[1] else np.zeros(len(topics), dtype=np.int64)
    groups: Rows = main * _EXPOSURES + np.searchsorted(edges, counts, side="right")
    return groups


def _vectors(post_ids: Rows, table: pa.Table) -> Floats:
    name = next(name for name in table.column_names if name != "post_id")
    table = table.filter(pc.is_valid(table[name]))
    rows = np.searchsorted(post_ids, table["post_id"].to_numpy())
    lists = table[name].combine_chunks()
    width = int(pc.max(pc.list_value_length(lists)).as_py() or 0)
    result = np.zeros((len(post_ids), width), dtype=np.float32)
    if table.num_rows:
        result[rows] = lists.flatten().to_numpy().reshape(-1, width)
    return result


@dataclass(frozen=True)
class Inputs:
    """Joins the ranker's inputs, as of each impression, and the moment to rows of a matrix.

    What candidate sources say is left out: posts were shown whether a source named them or not.
    """

    store: FeatureStore
    contract: Contract
    sources: Sequence[str]

    @property
    def kept(self) -> list[int]:
        """Places of the contract's inputs that are columns here."""
        proposed = c.candidate_inputs(self.contract.names) | {c.CANDIDATE_SOURCE_COUNT}
        return [i for i, name in enumerate(self.contract.names) if name not in proposed]

    @property
    def names(self) -> list[str]:
        """The matrix's columns."""
        return [*(self.contract.names[i] for i in self.kept), HOUR, MONTH, AFFINITY]

    @property
    def categories(self) -> list[int]:
        """Places of columns that are categories."""
        wanted = set(self.contract.category_indices)
        return [place for place, i in enumerate(self.kept) if i in wanted]

    def join(self, users: Rows, posts: Rows, times_us: Rows) -> pa.Table:
        """Return the contract's inputs through Feast, in the order given: a part of all rows."""
        rows = len(users)
        nothing = pa.nulls(rows, pa.float64())
        request = pa.table(
            {
                "user_id": users,
                "post_id": posts,
                "event_timestamp": pa.array(times_us).cast(pa.timestamp("us", tz="UTC")),
                c.REQUEST_TIME: times_us // 1_000_000,
                _ROW: np.arange(rows),
                **{c.source_score(source): nothing for source in self.sources},
                **{c.source_rank(source): nothing for source in self.sources},
            }
        )
        job = self.store.get_historical_features(
            entity_df=request.to_pandas(),
            features=self.store.get_feature_service(self.contract.service),
        )
        return job.to_arrow().sort_by(_ROW).select(self.contract.names)

    def matrix(
        self,
        encoder: InputEncoder,
        users: Rows,
        posts: Rows,
        times_us: Rows,
        affinity: NDArray[np.float32],
    ) -> Floats:
        """Return one row an impression: float32 (n, `names`), joined piece by piece."""
        result = np.empty((len(users), len(self.names)), dtype=np.float32)
        width = len(self.kept)
        for start in range(0, len(users), _ROWS_A_JOIN):
            part = slice(start, start + _ROWS_A_JOIN)
            joined = self.join(users[part], posts[part], times_us[part])
            result[part, :width] = encoder.encode(joined)[:, self.kept]
        moments = times_us.astype("datetime64[us]")
        result[:, width] = times_us // 3_600_000_000 % 24
        result[:, width + 1] = moments.astype("datetime64[M]").astype(np.int64) % 12 + 1
        result[:, width + 2] = affinity
        return result

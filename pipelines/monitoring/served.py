"""The served log: bounded draws of it, and the same features computed offline for its rows."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore

from feature_repo.contract import Contract
from feature_repo.definitions.columns import REQUEST_TIME, source_rank, source_score
from pipelines.monitoring.samples import parquet
from serving.impressions import TIME

_MEMORY = "1GB"
ROW = "row_position"


def log_folders(impressions: Path) -> list[Path]:
    """Return the folders of the log that hold files, one for each contract."""
    return sorted({file.parent for file in impressions.glob("*/*.parquet")})


def draw_requests(folder: Path, rows: int, seed: int) -> pa.Table:
    """Draw whole requests that the ranker answered, at most about so many rows, by chance."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        relation = parquet(folder / "*.parquet")
        return connection.sql(
            f"WITH requests AS (SELECT request_id, count(*) AS n FROM {relation} WHERE "
            "ranker_score IS NOT NULL GROUP BY request_id), drawn AS (SELECT request_id FROM "
            f"requests QUALIFY sum(n) OVER (ORDER BY hash(request_id, {seed}), request_id) - n < "
            f"{rows}) SELECT log.* FROM {relation} log SEMI JOIN drawn USING (request_id) "
            "ORDER BY time, request_id, post_id"
        ).to_arrow_table()


def moments(served: pa.Table) -> pa.ChunkedArray:
    """Return the moment of each row's request, but not before what was materialized for it.

    Requests are of whole seconds.
    """
    asked = pc.multiply(served[REQUEST_TIME], 1_000_000)
    until = served["materialized_until"].cast(pa.int64())
    return pc.max_element_wise(asked, until).cast(TIME)


def offline_inputs(
    store: FeatureStore,
    contract: Contract,
    sources: Sequence[str],
    served: pa.Table,
    at: pa.ChunkedArray,
) -> pa.Table:
    """Return the contract's inputs by a point-in-time join, one row per served row, in order.

    Parameters
    ----------
    at
        The moments to join at; request-time features are of the logged moment in any case.
    """
    # Nobody has a negative id: the rows of unknown users are null, as they were served.
    users = pc.fill_null(served["user_id"], -1)
    names = [name for s in sources for name in (source_score(s), source_rank(s))]
    rows = pa.table(
        {
            "user_id": users,
            "post_id": served["post_id"],
            "event_timestamp": at,
            REQUEST_TIME: served[REQUEST_TIME],
            **{name: served[name] for name in names},
            ROW: pa.array(range(served.num_rows), pa.int64()),
        }
    )
    job = store.get_historical_features(
        entity_df=rows.to_pandas(), features=store.get_feature_service(contract.service)
    )
    joined: pa.Table = job.to_arrow().sort_by(ROW).select(contract.names)
    return joined


def late_arrivals(lake: Path, known_by: datetime) -> list[Path]:
    """Return the lake's event files that came after a moment: each ingest adds files of its own."""
    files = sorted((lake / "events").glob("*/*.parquet"))
    return [file for file in files if file.stat().st_mtime > known_by.timestamp()]

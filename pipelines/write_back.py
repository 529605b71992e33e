"""The command `feastrank write-back`: a feature view's latest rows into a table of PostgreSQL."""

from pathlib import Path

import duckdb
import pyarrow as pa
from feast import FeatureView
from feast.types import from_feast_to_pyarrow_type
from rich.console import Console

from feature_repo.definitions.entities import key_of
from feature_repo.definitions.views import feature_views
from feature_repo.workspace import Workspace
from pipelines.datasets.expressions import literal, quoted
from pipelines.datasets.postgres_write import Writer
from pipelines.errors import WriteBackError
from pipelines.job.context import Context, open_context
from pipelines.settings import WriteBackSettings

_BATCH_ROWS = 1 << 14
TIME = "event_timestamp"


def write_back(settings: WriteBackSettings, console: Console) -> None:
    """Upsert the view's rows in one transaction; print how many changed."""
    context = open_context(settings, console)
    context.record("features")
    view = _view(context, settings.view)
    table = settings.table or view.name
    with duckdb.connect() as connection, Writer(settings.connection) as writer:
        rows = latest_rows(connection, context.workspace, view)
        found = writer.upsert(table, key_of(view), rows)
        writer.commit()
    made = "made, " if found.is_new else ""
    console.print(
        f"table {table}: {made}{found.rows:,} rows of {view.name} written in one transaction, "
        f"{found.changed:,} of them new or changed",
        highlight=False,
    )


def _view(context: Context, name: str) -> FeatureView:
    views = {view.name: view for view in feature_views(context.dataset, context.workspace)}
    if name not in views:
        raise WriteBackError(
            f"{context.dataset.name}: found --view {name}, expected one of {', '.join(views)}"
        )
    return views[name]


def latest_rows(
    connection: duckdb.DuckDBPyConnection, workspace: Workspace, view: FeatureView
) -> pa.RecordBatchReader:
    """Return the latest row of each user or post, under the ids of the source.

    Returns
    -------
    stream of the key (int64 if all ids of the source are whole numbers, else string),
    ``event_timestamp`` (from when the row holds) and the view's fields in its order and types.
    """
    key = key_of(view)
    ids = workspace.lake / "ids" / f"{key.removesuffix('_id')}s.parquet"
    typed = {
        TIME: pa.timestamp("us", tz="UTC"),
        **{field.name: from_feast_to_pyarrow_type(field.dtype) for field in view.features},
    }
    external = f"CAST(external_id AS {_id_type(connection, ids)})"
    connection.execute("SET TimeZone = 'UTC'")
    stream = connection.sql(
        f"SELECT {external} AS {quoted(key)}, {', '.join(f'f.{quoted(name)}' for name in typed)} "
        f"FROM read_parquet({literal(str(workspace.feature_table(view.name)))}) AS f "
        f"JOIN read_parquet({literal(str(ids))}) AS ids USING ({quoted(key)}) "
        f"QUALIFY row_number() OVER (PARTITION BY f.{quoted(key)} ORDER BY {TIME} DESC) = 1"
    ).to_arrow_reader(_BATCH_ROWS)
    schema = pa.schema([stream.schema.field(0), *typed.items()])
    return pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for batch in stream))


def _id_type(connection: duckdb.DuckDBPyConnection, ids: Path) -> str:
    """Return the type that external ids lose nothing in."""
    [whole] = connection.execute(
        "SELECT coalesce(bool_and(CAST(TRY_CAST(external_id AS BIGINT) AS VARCHAR) "
        f"IS NOT DISTINCT FROM external_id), false) FROM read_parquet({literal(str(ids))})"
    ).fetchone() or (False,)
    return "BIGINT" if whole else "VARCHAR"

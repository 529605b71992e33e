"""The simulated tables in PostgreSQL, as the real feed's lie there."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

from pipelines.datasets.postgres_write import Writer, sql_type
from pipelines.simulation.simulate import Progress, SimulatedFeed

_ROW_NUMBER = "event_id"
"""Of feed_data: ascends with time, so that later runs read only new rows."""


def load(variable: str, replace: bool, feed: SimulatedFeed, progress: Progress) -> dict[str, str]:
    """Load user_data, post_text_df and feed_data in one transaction.

    Parameters
    ----------
    variable
        The environment variable that holds the connection.
    replace
        Whether tables of these names are dropped.

    Returns
    -------
    by table of the description the keys that tell where it lies.

    Raises
    ------
    WriteBackError
        If a table is there and may not be replaced, or cannot be written.
    """
    tables = {
        "users": ("user_data", feed.users, {}),
        "posts": ("post_text_df", feed.posts, {}),
        "events": ("feed_data", feed.feed, {_ROW_NUMBER: "bigserial PRIMARY KEY"}),
    }
    places = {}
    with Writer(variable) as writer:
        for name, (table, path, more) in tables.items():
            columns = {field.name: sql_type(field) for field in ds.dataset(path).schema}
            writer.create(table, {**more, **columns}, replace=replace)
            writer.append(table, _rows(path, progress, f"{table} into PostgreSQL"))
            places[name] = f'format = "postgresql"\nconnection = "{variable}"\ntable = "{table}"'
        writer.commit()
    places["events"] += f'\nwatermark = "{_ROW_NUMBER}"'
    return places


def _rows(path: Path, progress: Progress, title: str) -> pa.RecordBatchReader:
    source = ds.dataset(path, format="parquet")
    total = source.count_rows()

    def batches() -> Iterator[pa.RecordBatch]:
        done = 0
        for batch in source.to_batches(batch_size=1 << 16, batch_readahead=2, fragment_readahead=1):
            yield batch
            done += batch.num_rows
            progress(title, done, total)

    return pa.RecordBatchReader.from_batches(source.schema, batches())

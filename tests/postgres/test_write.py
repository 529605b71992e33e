"""Rows reach a table of PostgreSQL in one transaction, or the table stays as it was."""

from collections.abc import Iterator

import pyarrow as pa
import pytest
from postgres_server import PASSWORD, READER, VARIABLE, Database

from pipelines.datasets.postgres_write import Writer
from pipelines.errors import WriteBackError

ROWS = pa.table(
    {
        "post_id": pa.array([10, 11], pa.int64()),
        "text_cluster": pa.array([3, None], pa.int64()),
        "distance": pa.array([0.5, 1.5], pa.float32()),
        "parts": pa.array([[1.0, 2.0], None], pa.list_(pa.float32())),
        "name": ["ä", None],
        "seen": pa.array([0, 1_000_000], pa.timestamp("us", tz="UTC")),
    }
)


def upsert(rows: pa.Table | pa.RecordBatchReader, table: str = "features") -> tuple[int, int, bool]:
    stream = rows.to_reader() if isinstance(rows, pa.Table) else rows
    with Writer(VARIABLE) as writer:
        found = writer.upsert(table, "post_id", stream)
        writer.commit()
    return found.rows, found.changed, found.is_new


def test_rows_are_added_changed_and_left_alone(database: Database) -> None:
    assert upsert(ROWS) == (2, 2, True)
    types = database.rows(
        "SELECT column_name::text, udt_name::text FROM information_schema.columns "
        "WHERE table_name = 'features' ORDER BY ordinal_position"
    )
    assert [kind for _, kind in types] == [
        "int8",
        "int8",
        "float4",
        "_float4",
        "text",
        "timestamptz",
    ]
    assert upsert(ROWS) == (2, 0, False)
    more = pa.concat_tables([ROWS.slice(1), ROWS.slice(0, 1)]).set_column(
        0, "post_id", pa.array([11, 12], pa.int64())
    )
    other = more.set_column(2, "distance", pa.array([9.0, 8.0], pa.float32()))
    assert upsert(other) == (2, 2, False)
    assert database.rows(
        "SELECT post_id, text_cluster, distance, parts, name FROM features ORDER BY post_id"
    ) == [
        (10, 3, 0.5, [1.0, 2.0], "ä"),
        (11, None, 9.0, None, None),
        (12, 3, 8.0, [1.0, 2.0], "ä"),
    ]


def test_a_table_of_ones_own_is_filled_by_its_types(database: Database) -> None:
    database.run(
        "CREATE SCHEMA feed; CREATE TABLE feed.posts (text varchar, distance float8, post_id int4 "
        "UNIQUE); INSERT INTO feed.posts VALUES ('kept', 7, 11)"
    )
    assert upsert(ROWS.select(["post_id", "distance"]), "feed.posts") == (2, 2, False)
    assert database.rows("SELECT * FROM feed.posts ORDER BY post_id") == [
        (None, 0.5, 10),
        ("kept", 1.5, 11),
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            "post_id bigint PRIMARY KEY",
            "table features: has no column distance float4; it has post_id",
        ),
        ("post_id bigint PRIMARY KEY, distance text", "distance is of type text, expected float4"),
        ("post_id bigint, distance real", "has no unique index on post_id alone"),
        ("post_id bigint, distance real, UNIQUE (post_id, distance)", "no unique index on post_id"),
    ],
)
def test_a_table_with_other_columns_is_refused(
    database: Database, columns: str, message: str
) -> None:
    database.run(f"CREATE TABLE features ({columns})")
    with pytest.raises(WriteBackError, match=message):
        upsert(ROWS.select(["post_id", "distance"]))
    assert database.rows("SELECT count(*) FROM features") == [(0,)]


def test_without_the_right_to_write_nothing_is_written(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    upsert(ROWS)
    database.run(f"GRANT SELECT ON features TO {READER}")
    own = database.uri.replace("//postgres@", f"//{READER}:{PASSWORD.replace('/', '%2F')}@")
    monkeypatch.setenv(VARIABLE, own)
    with pytest.raises(WriteBackError, match="permission denied for table features; GRANT") as info:
        upsert(ROWS)
    assert PASSWORD not in str(info.value)
    with pytest.raises(WriteBackError, match="permission denied for schema public; GRANT"):
        upsert(ROWS, "mine")


def test_a_connection_that_is_lost_midway_leaves_the_table_as_it_was(database: Database) -> None:
    upsert(ROWS)

    def batches() -> Iterator[pa.RecordBatch]:
        for _ in range(50):
            yield from (
                ROWS.slice(0, 1)
                .set_column(2, "distance", pa.array([7.0], pa.float32()))
                .to_batches()
            )
            database.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    with pytest.raises(WriteBackError, match=r"table features: the connection .* was lost .*again"):
        upsert(pa.RecordBatchReader.from_batches(ROWS.schema, batches()))
    assert database.rows("SELECT post_id, distance FROM features ORDER BY 1") == [
        (10, 0.5),
        (11, 1.5),
    ]


def test_rows_that_fail_midway_leave_no_table(database: Database) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        yield from ROWS.to_batches()
        raise OSError("the disk is gone")

    with pytest.raises(WriteBackError, match="the disk is gone; nothing was written"):
        upsert(pa.RecordBatchReader.from_batches(ROWS.schema, batches()))
    assert database.rows("SELECT to_regclass('features') IS NULL") == [(True,)]

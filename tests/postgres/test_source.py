"""Tables of PostgreSQL come into the lake as files do, and later runs read only what is new."""

from pathlib import Path

import duckdb
import pyarrow as pa
from postgres_server import DESCRIPTION, FEED, Database

from feature_repo.dataset import Dataset
from pipelines.datasets.lake import ingest
from pipelines.datasets.lake_state import IngestResult


def ingested(folder: Path, description: str = DESCRIPTION, **settings: bool) -> IngestResult:
    return ingest(Dataset.parse(description), folder, folder / "lake", **settings)


def lake(folder: Path, query: str) -> list[tuple[object, ...]]:
    """Run SQL over the lake's tables, given as {events}, {users}, {posts}."""
    tables = {
        name: f"read_parquet('{folder}/lake/{name}/**/*.parquet', hive_partitioning = false)"
        for name in ("events", "users", "posts")
    }
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.execute(query.format(**tables)).fetchall()


def test_three_tables_become_the_lake(database: Database, tmp_path: Path):
    database.run(FEED)
    result = ingested(tmp_path)
    assert (result.users, result.posts, result.events, result.topics) == (3, 3, 4, 2)
    assert lake(tmp_path, "SELECT user_id, age, city FROM {users} ORDER BY user_id") == [
        (0, 31.0, "Ulm"),
        (1, None, "Bonn"),
        (2, 7.5, None),
    ]
    assert lake(
        tmp_path,
        "SELECT user_id, post_id, CAST(event_time AS VARCHAR), action, is_impression, is_positive "
        "FROM {events} ORDER BY event_order",
    ) == [
        (0, 0, "2021-10-01 10:00:00+00", "view", True, True),
        (0, 0, "2021-10-01 10:00:05+00", "like", False, False),
        (1, 1, "2021-10-02 11:00:00.123456+00", "view", True, False),
        (2, 2, "2021-11-01 00:00:00+00", "view", True, False),
    ]


def test_the_next_ingest_reads_only_new_rows(database: Database, tmp_path: Path):
    database.run(FEED)
    ingested(tmp_path)
    database.run(
        'INSERT INTO feed_data ("timestamp", user_id, post_id, action, target) '
        "VALUES ('2021-11-02', 3, 10, 'view', 1)"
    )
    result = ingested(tmp_path)
    # The row at the watermark itself is read again: another may have the same value.
    assert (result.new_events, result.already_known, result.events) == (1, 1, 5)
    again = ingested(tmp_path)
    assert (again.new_events, again.already_known, again.events) == (0, 1, 5)


def test_types_without_an_arrow_type_are_read(database: Database, tmp_path: Path):
    database.run(
        "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TABLE users (id uuid, mood mood, "
        "price money, tags mood[], since timestamptz, extra jsonb); INSERT INTO users VALUES "
        "('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'sad', '1234.50', '{glad,sad}', "
        "'2020-01-01 00:00:00+02', '[\"a\", \"b\"]'); CREATE TABLE events AS SELECT id AS u, "
        "12345678901234567890::numeric AS p, date '2020-02-01' AS t FROM users"
    )
    source = 'format = "postgresql"\nconnection = "FEASTRANK_TEST_DATABASE"'
    ingested(
        tmp_path,
        f"""
        name = "odd"
        [users]
        {source}
        table = "users"
        id = "id"
        created = {{ column = "since" }}
        attributes = [
            {{ name = "mood", column = "mood", type = "categorical" }},
            {{ name = "price", column = "price", type = "numeric" }},
            {{ name = "tags", column = "tags", type = "list" }},
            {{ name = "extra", column = "extra", type = "list" }},
        ]
        [events]
        {source}
        query = "SELECT * FROM events -- all of them"
        user = "u"
        post = "p"
        time = {{ column = "t" }}
        positive = {{ every = true }}
        """,
    )
    assert lake(
        tmp_path, "SELECT mood, price, tags, extra, CAST(known_time AS VARCHAR) FROM {users}"
    ) == [("sad", 1234.5, ["glad", "sad"], ["a", "b"], "2019-12-31 22:00:00+00")]
    with duckdb.connect() as connection:
        found = connection.execute(
            f"SELECT external_id FROM read_parquet('{tmp_path}/lake/ids/*.parquet')"
        ).fetchall()
    assert set(found) == {
        ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",),
        ("12345678901234567890",),
    }


def test_a_large_table_comes_whole(database: Database, tmp_path: Path):
    rows = 300_000
    database.load(
        pa.table(
            {
                "u": pa.array(range(rows), pa.int64()),
                "p": pa.array([i % 7 for i in range(rows)], pa.int64()),
                "t": pa.array(range(rows), pa.int64()),
            }
        ),
        "clicks",
    )
    seen: list[tuple[str, int]] = []
    ingest(
        Dataset.parse(
            """
            name = "large"
            [events]
            format = "postgresql"
            connection = "FEASTRANK_TEST_DATABASE"
            table = "clicks"
            watermark = "t"
            user = "u"
            post = "p"
            time = { column = "t", format = "epoch_s" }
            positive = { every = true }
            """
        ),
        tmp_path,
        tmp_path / "lake",
        on_progress=lambda title, done, _: seen.append((title, done)),
    )
    assert lake(tmp_path, "SELECT count(*), min(user_id), max(user_id) FROM {events}") == [
        (rows, 0, rows - 1)
    ]
    assert ("reading events", rows) in seen
    assert len([title for title, _ in seen if title == "reading events"]) > 1

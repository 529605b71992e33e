"""What the tests do to a database themselves, beside the code under test."""

from types import TracebackType
from typing import Any, Self

import pyarrow as pa
from adbc_driver_postgresql import dbapi

VARIABLE = "FEASTRANK_TEST_DATABASE"
READER, PASSWORD = "reader", "s3cret/word"

FEED = """
CREATE TABLE user_data (user_id bigint PRIMARY KEY, age numeric(5, 2), city text);
INSERT INTO user_data VALUES (1, 31, 'Ulm'), (2, NULL, 'Bonn'), (3, 7.5, NULL);
CREATE TABLE post_text_df (post_id integer PRIMARY KEY, text text, topic varchar(20));
INSERT INTO post_text_df VALUES (10, 'first', 'tea'), (11, 'second', 'maps'), (12, NULL, 'tea');
CREATE TABLE feed_data (
    event_id bigserial PRIMARY KEY, "timestamp" timestamp, user_id bigint, post_id integer,
    action text, target smallint);
INSERT INTO feed_data ("timestamp", user_id, post_id, action, target) VALUES
    ('2021-10-01 10:00:00', 1, 10, 'view', 1), ('2021-10-01 10:00:05', 1, 10, 'like', 0),
    ('2021-10-02 11:00:00.123456', 2, 11, 'view', 0), ('2021-11-01 00:00:00', 3, 12, 'view', 0);
"""
DESCRIPTION = f"""
name = "feed"
[users]
format = "postgresql"
connection = "{VARIABLE}"
table = "public.user_data"
id = "user_id"
attributes = [
    {{ name = "age", column = "age", type = "numeric" }},
    {{ name = "city", column = "city", type = "categorical" }},
]
[posts]
format = "postgresql"
connection = "{VARIABLE}"
table = "public.post_text_df"
id = "post_id"
text = "text"
topics = "topic"
[events]
format = "postgresql"
connection = "{VARIABLE}"
table = "public.feed_data"
watermark = "event_id"
user = "user_id"
post = "post_id"
time = {{ column = "timestamp" }}
action = {{ column = "action" }}
impressions = {{ actions = ["view"] }}
positive = {{ column = "target", equals = 1 }}
"""


class Database:
    """A connection that commits each statement."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._connection = dbapi.connect(uri, autocommit=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()

    def run(self, statements: str) -> None:
        """Run statements, separated by semicolons."""
        for statement in statements.split(";"):
            if statement.strip():
                with self._connection.cursor() as cursor:
                    cursor.execute(statement)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return a query's rows."""
        with self._connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())

    def load(self, table: pa.Table, name: str) -> None:
        """Append a table's rows to a database table, which is made if it is not there."""
        with self._connection.cursor() as cursor:
            cursor.adbc_ingest(name, table, mode="create_append")

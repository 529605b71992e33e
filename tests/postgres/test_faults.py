"""What can go wrong with a PostgreSQL source: a clear message, and nothing half-written."""

from pathlib import Path

import pytest
from postgres_server import DESCRIPTION, FEED, PASSWORD, READER, VARIABLE, Database

from feature_repo.dataset import Dataset
from pipelines.datasets.lake import ingest
from pipelines.errors import SourceError


def run(folder: Path, description: str = DESCRIPTION) -> int:
    return ingest(Dataset.parse(description), folder, folder / "lake").events


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*.parquet")}


@pytest.mark.parametrize(
    ("login", "message"),
    [
        (f"{READER}:wrong@", "password authentication failed.*correct the user and password"),
        ("nobody:secret@", 'role "nobody" does not exist.*correct the user and password'),
    ],
)
def test_wrong_credentials(
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    login: str,
    message: str,
) -> None:
    monkeypatch.setenv(VARIABLE, database.uri.replace("postgres@", login))
    with pytest.raises(SourceError, match=message):
        run(tmp_path)
    assert files(tmp_path) == {}


def test_no_message_shows_a_password(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, database.uri.replace("postgres@", f"{READER}:{PASSWORD}@"))
    with pytest.raises(SourceError, match=f"{VARIABLE} holds no connection") as info:
        run(tmp_path)
    assert PASSWORD not in str(info.value)


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"postgresql://me:secret@/feed?host={tmp_path}")
    with pytest.raises(SourceError, match=r"no connection to PostgreSQL.*is the server running"):
        run(tmp_path)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(SourceError, match=f"{VARIABLE} is not set; it must hold the connection"):
        run(tmp_path)


def test_a_missing_table_and_a_missing_right(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.run(FEED)
    misspelt = DESCRIPTION.replace("public.feed_data", "public.feed_dta")
    with pytest.raises(
        SourceError, match=r"no table 'public.feed_dta'.*did you mean 'public.feed_"
    ):
        run(tmp_path, misspelt)
    database.run(f"GRANT SELECT ON user_data, post_text_df TO {READER}")
    login = f"{READER}:{PASSWORD.replace('/', '%2F')}@"
    monkeypatch.setenv(VARIABLE, database.uri.replace("postgres@", login))
    with pytest.raises(SourceError, match="permission denied for table feed_data; GRANT SELECT"):
        run(tmp_path)
    assert files(tmp_path / "lake") == {}


def test_a_column_that_is_dropped_or_changed_between_runs(
    database: Database, tmp_path: Path
) -> None:
    database.run(FEED)
    assert run(tmp_path) == 4
    before = files(tmp_path / "lake")
    database.run("ALTER TABLE feed_data ALTER COLUMN action TYPE integer USING length(action)")
    with pytest.raises(SourceError, match=r"column 'action' was of type text .* and is int4 now"):
        run(tmp_path)
    database.run("ALTER TABLE feed_data DROP COLUMN target")
    with pytest.raises(SourceError, match="feed_data has no column 'target'; it has 'event_id'"):
        run(tmp_path)
    assert files(tmp_path / "lake") == before


def test_a_connection_that_is_lost_while_reading(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lake is as it was, and the next run reads everything."""
    database.run(FEED)
    assert run(tmp_path) == 4
    before = files(tmp_path / "lake")
    database.run(
        "INSERT INTO feed_data (timestamp, user_id, post_id, action, target) "
        "SELECT '2021-12-01'::timestamp + i * interval '1 second', 1 + i % 3, 10 + i % 3, "
        "'view', 0 FROM generate_series(1, 200000) AS i"
    )
    seen: list[int] = []

    def kill(title: str, rows: int, _share: float) -> None:
        if title == "reading events" and not seen:
            seen.append(rows)
            database.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    with pytest.raises(SourceError, match=r"feed_data: the connection .* lost after [\d,]+ rows"):
        ingest(Dataset.parse(DESCRIPTION), tmp_path, tmp_path / "lake", on_progress=kill)
    assert seen[0] < 200_000
    assert files(tmp_path / "lake") == before
    assert run(tmp_path) == 200_004

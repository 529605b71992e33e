"""The commands around PostgreSQL: a simulated feed goes in, features come back."""

from pathlib import Path

import pytest
from postgres_server import DESCRIPTION, FEED, VARIABLE, Database

from feature_repo.dataset import Dataset
from pipelines.cli import main

SIZES = ["--users", "100", "--posts", "80", "--views", "5000", "--moments", "30"]


@pytest.mark.slow
def test_features_are_written_back_under_the_ids_of_the_source(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database.run(FEED)
    database.run("UPDATE user_data SET age = 20 + user_id, city = coalesce(city, 'Ulm')")
    description = tmp_path / "feed.toml"
    description.write_text(DESCRIPTION.replace('text = "text"\n', ""), encoding="utf-8")
    job = ["--dataset", str(description), "--home", str(tmp_path / "home")]
    write = ["write-back", *job, "--connection", VARIABLE]
    assert main([*write, "--view", "post_activity"]) == 1
    assert "the step features has not been run" in capsys.readouterr().err
    shares = ["--test-share", "0.3", "--label-slices", "2", "--slice-share", "0.2"]
    database.run(
        "INSERT INTO feed_data (timestamp, user_id, post_id, action, target) SELECT "
        "'2021-11-02'::timestamp + i * interval '1 hour', 1 + i % 3, 10 + i % 3, 'view', i % 2 "
        "FROM generate_series(1, 60) AS i"
    )
    assert main(["ingest", *job]) == 0
    assert main(["features", *job, *shares]) == 0
    assert main([*write, "--view", "post_activity", "--table", "public.features"]) == 0
    assert "table public.features: made, 3 rows of post_activity" in capsys.readouterr().out
    counts = "SELECT post_id, post_impression_count_lifetime FROM features ORDER BY post_id"
    assert database.rows(counts) == database.rows(
        "SELECT post_id, count(*) FROM feed_data WHERE action = 'view' GROUP BY 1 ORDER BY 1"
    )
    assert main([*write, "--view", "post_activity", "--table", "public.features"]) == 0
    assert "0 of them new or changed" in capsys.readouterr().out
    assert main([*write, "--view", "user_profile"]) == 0
    assert database.rows("SELECT user_id, user_city FROM user_profile ORDER BY 1") == [
        (1, "Ulm"),
        (2, "Bonn"),
        (3, "Ulm"),
    ]
    assert main([*write, "--view", "post_txt"]) == 1
    assert "found --view post_txt, expected one of user_profile" in capsys.readouterr().err


def test_a_simulated_feed_is_loaded_and_read_from_there(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate = ["simulate", "--output", str(tmp_path / "feed"), *SIZES, "--to-postgres", VARIABLE]
    assert main(simulate) == 0
    dataset = Dataset.read(tmp_path / "feed" / "feed.toml")
    assert dataset.events.table == "feed_data"
    [(views, likes, ascending)] = database.rows(
        "SELECT count(*) FILTER (WHERE action = 'view'), count(*) FILTER (WHERE action = 'like'), "
        "bool_and(ok) FROM (SELECT action, timestamp >= lag(timestamp, 1, timestamp) "
        "OVER (ORDER BY event_id) AS ok FROM feed_data) AS rows"
    )
    assert (views, ascending) == (5000, True)
    home = str(tmp_path / "home")
    job = ["--dataset", str(tmp_path / "feed" / "feed.toml"), "--home", home]
    assert main(["ingest", *job]) == 0
    assert f"{views + likes:,} events" in capsys.readouterr().out
    assert main(simulate) == 1
    assert "table user_data: is there already; pass --replace-tables" in capsys.readouterr().err
    assert main([*simulate, "--replace-tables"]) == 0
    assert database.rows("SELECT count(*) FROM user_data") == [(100,)]

"""Feast on Spark gives what feastpack gives on one machine: training sets and rows in Redis."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from equal_tables import assert_equal
from stores import SERVICE, open_store

from feastpack.errors import SparkError
from feastpack.spark_session import check_spark, spark_session
from feature_repo.definitions import columns as c

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Feast warns of what it calls experimental, and of what others have renamed.
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
BEGIN = datetime(1997, 9, 1, tzinfo=UTC)
MIDDLE = datetime(1998, 1, 15, tzinfo=UTC)
END = datetime(1998, 4, 23, tzinfo=UTC)
VIEWS = ["post_activity", "user_topic_affinity"]
ROWS = 2_000


def requests():
    """Users and posts at any time, before their first event too; some are unknown, some twice."""
    rng = np.random.default_rng(5)
    seconds = rng.integers(0, int((END - BEGIN).total_seconds()), ROWS)
    # Midnights are when values change.
    seconds[: ROWS // 4] -= seconds[: ROWS // 4] % 86_400
    times = np.datetime64(BEGIN.replace(tzinfo=None), "us") + seconds.astype("timedelta64[s]")
    table = pa.table(
        {
            "user_id": rng.integers(0, 1_000, ROWS),
            "post_id": rng.integers(0, 1_750, ROWS),
            "event_timestamp": pa.array(times).cast(pa.timestamp("us", tz="UTC")),
            c.REQUEST_TIME: times.astype("datetime64[s]").astype(np.int64),
            **{name: rng.random(ROWS) for s in c.DEFAULT_SOURCES for name in (c.source_score(s),)},
            **{
                name: rng.integers(1, 100, ROWS).astype(float)
                for s in c.DEFAULT_SOURCES
                for name in (c.source_rank(s),)
            },
        }
    )
    twice = pa.concat_tables([table, table.slice(0, 50)])
    return twice.append_column("row", pa.array(range(twice.num_rows), pa.int64()))


def test_training_sets_agree(movielens, tmp_path, redis_server):
    rows, sets = requests(), []
    for name, tables in (("spark", movielens.by_duckdb), ("here", movielens.by_duckdb)):
        store = open_store(tmp_path, tables, movielens.context, name, redis_server)
        service = store.get_feature_service(SERVICE)
        job = store.get_historical_features(entity_df=rows.to_pandas(), features=service)
        sets.append(job.to_arrow().sort_by("row"))
    spark, here = sets
    assert sorted(spark.column_names) == sorted(here.column_names)
    assert spark.num_rows == here.num_rows == rows.num_rows
    assert_equal(spark.select(here.column_names), here, ["row"])


def rows_in(client, namespace):
    keys = sorted(client.scan_iter(match=f"fp:*@{namespace}:*", count=1000))
    return {key.replace(f"@{namespace}:".encode(), b"@:"): client.get(key) for key in keys}


def materialize(movielens, folder, server, name, until=END, views=VIEWS, **online):
    store = open_store(folder, movielens.by_spark, movielens.context, name, server, **online)
    store.materialize(BEGIN, until, feature_views=views)
    return store


def test_materialized_rows_agree_though_tasks_die(movielens, tmp_path, redis_server, redis_client):
    materialize(movielens, tmp_path, redis_server, "here")
    expected = rows_in(redis_client, "here")
    assert len(expected) == 1_682 + 943
    # Every task is killed once, half of its rows written.
    dying = {"type": "dying_store.DyingOnlineStore", "deaths": 1}
    materialize(movielens, tmp_path, redis_server, "spark", **dying)
    assert rows_in(redis_client, "spark") == expected
    states = [
        redis_client.hgetall(f"fp-materialized:movielens_100k@{n}") for n in ("spark", "here")
    ]
    assert states[0] == states[1] != {}
    # A run over an older window comes late: nothing newer is replaced.
    materialize(movielens, tmp_path, redis_server, "spark", until=MIDDLE, views=VIEWS[1:])
    assert rows_in(redis_client, "spark") == expected


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_materialized_rows_agree_though_an_executor_is_killed(
    movielens, tmp_path, redis_server, redis_client
):
    materialize(movielens, tmp_path, redis_server, "here")
    job = [sys.executable, str(HERE / "cluster_job.py"), str(tmp_path)]
    job += [str(movielens.by_spark.home), redis_server.host, str(redis_server.port)]
    done = subprocess.run(job, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "ExecutorLostFailure" in done.stderr
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == sorted(VIEWS)
    assert rows_in(redis_client, "spark") == rows_in(redis_client, "here") != {}


def test_a_task_that_always_dies_is_an_error(movielens, tmp_path, redis_server, redis_client):
    dying = {"type": "dying_store.DyingOnlineStore", "deaths": 100}
    with pytest.raises(
        SparkError, match=r"(?s)user_topic_affinity: .*2 times.*raise spark\.executor\.memory"
    ):
        materialize(movielens, tmp_path, redis_server, "spark", views=VIEWS[1:], **dying)
    assert redis_client.hgetall("fp-materialized:movielens_100k@spark") == {}


def test_a_redis_that_is_gone_is_named(movielens, tmp_path, redis_server):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    address = {"connection_string": f"127.0.0.1:{port}"}
    with pytest.raises(SparkError, match=rf"post_profile: .*127\.0\.0\.1:{port}.*run it again"):
        materialize(movielens, tmp_path, redis_server, "spark", views=["post_profile"], **address)


def test_executors_elsewhere_cannot_reach_an_embedded_redis(
    movielens, tmp_path, redis_server, monkeypatch
):
    from feastpack.spark_engine import executor_config

    store = open_store(tmp_path, movielens.by_spark, movielens.context, "spark", redis_server)
    settings = store.config.online_store
    settings.connection_string = f"embedded:{tmp_path / 'redis'}"
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(SparkError, match="cannot reach the embedded Redis; set REDIS_URL"):
        executor_config(store.config, local=False)
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    assert executor_config(store.config, local=False)["online_store"]["connection_string"] == (
        redis_server.url
    )


def test_a_session_in_another_time_zone_is_refused(spark):
    spark.conf.set("spark.sql.session.timeZone", "Europe/Berlin")
    try:
        with pytest.raises(SparkError, match="timeZone Europe/Berlin"):
            spark_session({})
    finally:
        spark.conf.set("spark.sql.session.timeZone", "UTC")


def test_an_unreachable_master_is_named():
    pytest.importorskip("pyspark")
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    master = f"spark://127.0.0.1:{port}"
    before = datetime.now(UTC)
    with pytest.raises(SparkError, match=rf"no Spark master answers at {master} .*refused"):
        check_spark({"spark.master": master})
    assert datetime.now(UTC) - before < timedelta(seconds=10)
    with pytest.raises(SparkError, match=r"expected spark://host:port, found 'nowhere'"):
        check_spark({"spark.master": "spark://nowhere"})


def test_missing_java_is_named(monkeypatch, tmp_path):
    pytest.importorskip("pyspark")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SparkError, match=r"needs Java 17 .*install openjdk-17-jre-headless"):
        check_spark({"spark.master": "local[2]"})

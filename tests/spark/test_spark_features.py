"""Every feature expression gives the same table on DuckDB and on Spark."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from equal_tables import assert_declared, assert_equal
from spark_tables import context_of, make_tables

from feature_repo.contract import registered_contract
from feature_repo.definitions.entities import key_of
from pipelines.errors import FeatureError
from pipelines.features.build import EXPRESSIONS
from pipelines.job import apply, features, ingest
from pipelines.job.context import open_store
from pipelines.simulation.simulate import Size, simulate


def compare(tables):
    for view in tables.views:
        # Spark's is a folder, whose name must not be taken for a partition's.
        sides = (tables.by_spark, tables.by_duckdb)
        spark, duckdb = (
            pq.read_table(side.feature_table(view.name), partitioning=None) for side in sides
        )
        assert_declared(duckdb, view)
        assert_equal(spark, duckdb, [key_of(view), "event_timestamp"])


def test_expressions_agree_on_movielens(movielens):
    assert {view.name for view in movielens.views} == set(EXPRESSIONS)
    compare(movielens)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_expressions_agree_on_a_million_simulated_events(spark, tmp_path):
    size = Size(
        users=20_000, posts=7_023, views=1_000_000, days=75, test_days=7, moments=100, seed=1
    )
    simulate(size, tmp_path / "feed", "simulated", None, lambda *_: None)
    [description] = (tmp_path / "feed").glob("*.toml")
    context = context_of(dataset=str(description), home=tmp_path / "home")
    ingest.run(context)
    compare(make_tables(context, spark, tmp_path))


DESCRIPTION = """
name = "shown"
[posts]
path = "posts.csv"
format = "csv"
id = "post"
text = ["title"]
[events]
path = "events.csv"
format = "csv"
user = "user"
post = "post"
time = { column = "time" }
action = { column = "action" }
impressions = { actions = ["view"] }
positive = { actions = ["like"] }
"""


def test_views_that_are_python_are_refused_before_work_starts(tmp_path):
    path = tmp_path / "shown.toml"
    path.write_text(DESCRIPTION, encoding="utf-8")
    context = context_of(dataset=str(path), home=tmp_path, profile="spark")
    with pytest.raises(FeatureError, match=r"shown: post_conversion cannot run on Spark"):
        features.run(context)
    assert not context.workspace.root.exists()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_apply_registers_the_same_objects_from_another_kind_of_source(tmp_path):
    pytest.importorskip("pyspark")
    stores = []
    for profile in ("one-machine", "spark"):
        context = context_of(
            home=tmp_path / profile, profile=profile, spark_master="spark://far:7077"
        )
        apply.run(context)
        stores.append(open_store(context.workspace))
    here, spark = stores
    assert registered_contract(here).hash == registered_contract(spark).hash
    kinds = [{type(v.batch_source).__name__ for v in s.list_feature_views()} for s in stores]
    assert kinds == [{"FileSource"}, {"SparkSource"}]
    assert spark.config.offline_store.spark_conf["spark.master"] == "spark://far:7077"

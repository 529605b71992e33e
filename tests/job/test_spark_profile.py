"""The whole job under the profile spark ends where it ends on one machine."""

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from tiny_feed import make_feed

from feastpack.errors import SparkError
from feastpack.spark_session import check_spark
from pipelines.job.context import open_store
from serving.recommender import Recommender

DEFAULTS = """\
spark.ui.enabled false
spark.sql.shuffle.partitions 2
spark.sql.codegen.wholeStage false
spark.log.level ERROR
"""


def table(job, view):
    path = job.workspace.feature_table(view)
    found = ds.dataset(path, format="parquet").to_table().to_pandas()
    return found.sort_values(list(found.columns[:2]), ignore_index=True)


def answers(job):
    recommender = Recommender(job.workspace.bundles, open_store(job.workspace))
    told = [recommender.recommend(user, 10) for user in ("u000", "u013", "u039")]
    return [[one.post for one in answer.recommendations] for answer in told]


def scores(job):
    files = sorted((job.workspace.root / "scores").glob("*.parquet"))
    return pa.concat_tables(pq.read_table(path) for path in files)


@pytest.fixture
def spark_defaults(tmp_path, monkeypatch):
    try:
        check_spark({})
    except SparkError as error:
        pytest.skip(str(error))
    (tmp_path / "spark-defaults.conf").write_text(DEFAULTS, encoding="utf-8")
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:The spark data source API:RuntimeWarning")
def test_the_whole_job_on_spark_gives_the_same_answers(job, new_job, spark_defaults):
    on_spark = new_job(make_feed())
    done = on_spark.spawn("run", "--profile", "spark", "--spark-master", "local[2,4]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "type: feastpack.SparkArrowOfflineStore"
        in on_spark.workspace.feature_store_yaml.read_text(encoding="utf-8")
    )
    for view in ("user_activity", "post_activity", "user_topic_affinity", "post_profile"):
        one, other = table(on_spark, view), table(job, view)
        assert (on_spark.workspace.feature_table(view)).is_dir()
        assert list(one.columns) == list(other.columns)
        for name in one.columns:
            if one[name].dtype == object:
                assert list(map(repr, one[name])) == list(map(repr, other[name])), name
            elif one[name].dtype.kind == "f":
                np.testing.assert_allclose(one[name], other[name], rtol=1e-9, err_msg=name)
            else:
                assert (one[name] == other[name]).all(), name
    assert answers(on_spark) == answers(job)
    flags = ("--profile", "spark", "--spark-master", "local[2,4]", "--shards", "3")
    flags = (*flags, "--users-per-batch", "10")
    scored = on_spark.spawn("score", *flags)
    assert scored.returncode == 0, scored.stdout + scored.stderr
    assert "3 shards, 0 of them finished before; 40 users ranked" in scored.stdout
    assert job.do("score", "--users-per-batch", "10").code == 0
    one, other = (scores(side) for side in (on_spark, job))
    assert one.drop(["score"]) == other.drop(["score"])
    np.testing.assert_allclose(one["score"], other["score"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_texts_are_embedded_on_spark_as_here(new_job, spark_defaults):
    feed = make_feed("texts")
    described = feed.description.replace('title = "title"', 'title = "title"\ntext = ["title"]')
    feed = feed.with_(description=described)
    here, on_spark = new_job(feed), new_job(feed)
    assert here.do("ingest").code == here.do("features").code == 0
    assert on_spark.spawn("ingest").returncode == 0
    flags = ("--profile", "spark", "--spark-master", "local[2,4]", "--python-views", "here")
    done = on_spark.spawn("features", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "120 new texts embedded" in done.stdout
    assert len(list(on_spark.workspace.feature_table("post_text").iterdir())) == 8
    for view in ("post_text", "post_text_clusters"):
        one, other = table(on_spark, view), table(here, view)
        assert one["post_id"].tolist() == other["post_id"].tolist() == list(range(120))
    one, other = (np.stack(table(j, "post_text")["post_text_embedding"]) for j in (on_spark, here))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)

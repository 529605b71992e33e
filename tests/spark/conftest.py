"""One local Spark for all tests of this folder, and MovieLens-100k in a lake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from spark_tables import SMALL, Tables, context_of, make_tables

from feastpack.errors import SparkError
from feastpack.spark_session import check_spark, spark_session
from pipelines.job import ingest
from pipelines.job.profile import spark_settings
from pipelines.settings import JobSettings


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """A session of two threads, in which a task may fail once."""
    conf = spark_settings(JobSettings(profile="spark", spark_master="local[2,2]")) | SMALL
    try:
        check_spark(conf)
    except SparkError as error:
        pytest.skip(str(error))
    session = spark_session(conf)
    session.sparkContext.addPyFile(str(Path(__file__).with_name("dying_store.py")))
    yield session
    session.stop()


@pytest.fixture(scope="session")
def movielens(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    folder = tmp_path_factory.mktemp("movielens")
    context = context_of(home=folder / "home")
    ingest.run(context)
    return make_tables(context, spark, folder)

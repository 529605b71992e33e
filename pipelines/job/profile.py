"""Where a job's heavy work runs: on one machine, or on Spark.

A profile is a configuration of Feast, ``feature_store.yaml`` or ``feature_store.spark.yaml``, of
which `feastrank apply` writes the dataset's own. Nothing else of a job depends on it but the
backend of the feature expressions.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ibis
import yaml

from feastpack.spark_session import check_spark, spark_session
from feature_repo.definitions.views import feature_views
from pipelines.errors import FeatureError
from pipelines.features.build import CLUSTERS_VIEW, EMBEDDINGS, EXPRESSIONS
from pipelines.features.tables import connect, connect_spark
from pipelines.job.context import FEATURE_REPO, Context
from pipelines.settings import JobSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_CONFIGURATIONS = {"one-machine": "feature_store.yaml", "spark": "feature_store.spark.yaml"}
_WHERE_REDIS_IS = r"(?m)^(  # REDIS_URL .*\n)?  connection_string: embedded:.*$"


def configuration_template(settings: JobSettings) -> str:
    """Return the text of the profile's configuration, with the master and Redis asked for."""
    path = FEATURE_REPO / _CONFIGURATIONS[settings.profile]
    text = path.read_text(encoding="utf-8")
    master = f"    spark.master: {yaml.safe_dump(settings.spark_master).splitlines()[0]}"
    text = re.sub(r"(?m)^    spark\.master: .*$", lambda _: master, text)
    if settings.redis_cluster is None:
        return text
    lines = {
        "redis_type": "redis_cluster",
        "connection_string": json.dumps(settings.redis_cluster),
        "wait_for_replicas": settings.wait_for_replicas,
    }
    cluster = "\n".join(f"  {name}: {value}" for name, value in lines.items())
    return re.sub(_WHERE_REDIS_IS, lambda _: cluster, text)


def spark_settings(settings: JobSettings) -> dict[str, str]:
    """Return Spark's settings of the profile spark."""
    configuration: dict[str, Any] = yaml.safe_load(configuration_template(settings))
    return dict(configuration["offline_store"]["spark_conf"])


def require_profile(context: Context) -> None:
    """Say before any work what the profile cannot do for this dataset, or here.

    Raises
    ------
    FeatureError
        If a view cannot be computed on Spark, and is not to be computed here.
    feastpack.errors.SparkError
        If PySpark or Java is missing, or the master does not answer.
    """
    settings = context.settings
    if settings.profile != "spark":
        return
    views = [view.name for view in feature_views(context.dataset, context.workspace)]
    # Clusters take vectors that are there already, which is little beside making them.
    elsewhere = (*EXPRESSIONS, *EMBEDDINGS, CLUSTERS_VIEW)
    python = [name for name in views if name not in elsewhere]
    if python and settings.python_views == "refuse":
        raise FeatureError(
            f"{context.dataset.name}: {', '.join(python)} cannot run on Spark: what computes "
            "them is Python on one machine, not an expression; pass --python-views here to "
            "compute them on this one, or leave impressions out of the description"
        )
    check_spark(spark_settings(settings))


def expression_backend(settings: JobSettings, spill: Path) -> ibis.BaseBackend:
    """Return what the feature expressions run on.

    Parameters
    ----------
    spill
        Folder that DuckDB may use as memory; it is removed with the backend.

    Raises
    ------
    feastpack.errors.SparkError
        If Spark cannot be started.
    """
    if settings.profile == "spark":
        return connect_spark(spark_of(settings))
    return connect(spill=spill)


def spark_of(settings: JobSettings) -> "SparkSession":
    """Return the session of the profile spark.

    Raises
    ------
    feastpack.errors.SparkError
        If Spark cannot be started.
    """
    return spark_session(spark_settings(settings))

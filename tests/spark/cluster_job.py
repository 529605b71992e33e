"""Materialize on a cluster of two executors, each a process of its own, one of which is killed."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent
# Run as a script from the repository's root.
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from spark_tables import SMALL, context_of  # noqa: E402
from stores import open_store  # noqa: E402

from feastpack.spark_session import spark_session  # noqa: E402
from feature_repo.workspace import Workspace  # noqa: E402
from pipelines.job.profile import spark_settings  # noqa: E402
from pipelines.settings import JobSettings  # noqa: E402


def main(folder: Path, features: Path, host: str, port: int) -> None:
    """Materialize two views of the feature tables below ``features``."""
    settings = JobSettings(profile="spark", spark_master="local-cluster[2,1,1024]")
    executors = {
        "spark.executorEnv.PYTHONPATH": os.pathsep.join(sys.path[:2]),
        "spark.log.level": "WARN",
    }
    session = spark_session(spark_settings(settings) | SMALL | executors)
    context = context_of(home=folder / "home")
    marks = folder / "killed"
    marks.mkdir()
    store = open_store(
        folder,
        Workspace(features, context.dataset.name),
        context,
        "spark",
        SimpleNamespace(host=host, port=port),
        type="dying_store.DyingOnlineStore",
        executor=str(marks),
    )
    begin, end = datetime(1997, 9, 1, tzinfo=UTC), datetime(1998, 4, 23, tzinfo=UTC)
    store.materialize(begin, end, feature_views=["post_activity", "user_topic_affinity"])
    session.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))

"""Step materialize: the feature tables into Redis, through ``feast materialize``."""

from collections.abc import Mapping
from contextlib import redirect_stdout
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

from pipelines.job.context import Context, Progresses, moment_of, open_store
from pipelines.steps import StepRecord, content_key
from serving.recommender import redis_of

NAME = "materialize"


def run(context: Context) -> StepRecord:
    """Write every view's latest row per entity, as of the job's moment, to the online store."""
    features, apply = context.record("features"), context.record("apply")
    store = open_store(context.workspace)
    last_event = datetime.fromisoformat(context.record("ingest").facts["last_time"])
    first_event = datetime.fromisoformat(context.record("ingest").facts["first_time"])
    moment = moment_of(context.settings, last_event)
    # Live data is materialized afresh every run: windows move with the clock.
    live = moment != last_event and context.settings.as_of is None
    key = content_key(NAME, features.key, apply.key, moment.isoformat() if not live else None)
    redis = redis_of(store)
    marker = f"feastrank:{context.dataset.name}:materialized"

    def work(bars: Progresses) -> Mapping[str, Any]:
        # Not before it is true: a killed run leaves no marker, and the next one writes again.
        redis.delete(marker)
        views = [view.name for view in store.list_feature_views()]
        bar = bars.bar("views into Redis")
        for done, view in enumerate(views, 1):
            # Feast announces every view on standard output; the step has its own line.
            with redirect_stdout(StringIO()):
                store.materialize(first_event - timedelta(days=1), moment, feature_views=[view])
            bar(done, len(views))
        redis.set(marker, key)
        return {
            "as_of": None if live else moment.isoformat(),
            "summary": f"{len(views)} views into Redis, as of {moment:%Y-%m-%d %H:%M} UTC",
        }

    def is_there() -> bool:
        return not live and redis.get(marker) == key.encode()

    return context.step(NAME, key, [], work, is_there=is_there)

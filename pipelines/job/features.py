"""Step features: lake in, one gated parquet file per feature view out."""

import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from feast import FeatureView
from feast.types import from_feast_to_pyarrow_type

from feature_repo.definitions.entities import key_of
from feature_repo.definitions.views import feature_views
from pipelines.evaluation.split import Slices, time_slices
from pipelines.features.build import (
    CLUSTERS_FILE,
    CLUSTERS_VIEW,
    CONVERSION_VIEW,
    ClusterSettings,
    write_clusters,
    write_conversion_view,
    write_expressions,
)
from pipelines.features.cluster_cards import CLUSTERS_PAGE, ClusterReport
from pipelines.features.embedding import local_fingerprint
from pipelines.features.tables import open_lake
from pipelines.features.text_clusters import TextClusters
from pipelines.job.context import Context, Progresses
from pipelines.job.embed import embed, embedding_views, text_model_of
from pipelines.job.gates import judge
from pipelines.job.lake_gate import judge_lake
from pipelines.job.profile import expression_backend, require_profile
from pipelines.settings import JobSettings
from pipelines.steps import StepRecord, code_key, content_key

NAME = "features"


def run(context: Context) -> StepRecord:
    """Compute the feature tables, judge each by its gate, then put them into place."""
    require_profile(context)
    ingest = context.record("ingest")
    settings = context.settings
    key = content_key(
        NAME,
        ingest.key,
        text_model_of(settings).fingerprint() if context.dataset.has_text else None,
        settings.image_model if context.dataset.has_images else None,
        settings.refit_clusters,
        settings.profile,
        [settings.test_share, settings.label_slices, settings.slice_share, settings.seed],
        code_key(
            "pipelines.features",
            "pipelines.shards",
            "pipelines.job.embed",
            "pipelines.conversion",
            "feature_repo",
            "pipelines.evaluation.split",
            "validation",
        ),
    )
    outputs = [context.workspace.features]
    if context.dataset.has_text:
        outputs.append(context.workspace.reports / CLUSTERS_PAGE)

    def work(bars: Progresses) -> Mapping[str, Any]:
        judge_lake(context)
        return compute(context, bars)

    return context.step(NAME, key, outputs, work)


def read_events(lake: Path, *columns: str) -> pa.Table:
    """Read columns of all the lake's events, in the source's order."""
    events = ds.dataset(lake / "events", format="parquet", partitioning="hive")
    names = [*columns] if "event_order" in columns else [*columns, "event_order"]
    return events.to_table(columns=names).sort_by("event_order")


def slices_of(events: pa.Table, settings: JobSettings) -> Slices:
    """Cut time as the settings say; ``events`` needs event_time and is_positive."""
    return time_slices(
        events["event_time"],
        events["is_positive"],
        test_share=settings.test_share,
        slices=settings.label_slices,
        slice_share=settings.slice_share,
    )


def slices_of_lake(lake: Path, settings: JobSettings) -> Slices:
    """Cut the time of the lake's events as `slices_of` does, in memory for the positives only."""
    events = ds.dataset(lake / "events", format="parquet", partitioning="hive")
    parts = []
    for batch in events.to_batches(columns=["event_time", "is_positive"]):
        if batch.num_rows == 0:
            continue
        first, last = pc.min_max(batch["event_time"]).values()
        positive = batch["event_time"].filter(batch["is_positive"])
        # Of the others only the ends of time matter.
        ends = pa.array([first.as_py(), last.as_py()], positive.type)
        times = pa.concat_arrays([positive, ends])
        mask = pa.array(np.arange(len(times)) < len(positive))
        parts.append(pa.table({"event_time": times, "is_positive": mask}))
    return slices_of(pa.concat_tables(parts), settings)


def compute(context: Context, bars: Progresses) -> Mapping[str, Any]:
    """Compute, judge and put into place every feature table; return the step's facts."""
    workspace, settings = context.workspace, context.settings
    slices = slices_of_lake(workspace.lake, settings)
    views = feature_views(context.dataset, workspace)
    staging = workspace.root / ".features-staging"
    shutil.rmtree(staging, ignore_errors=True)
    backend = expression_backend(settings, workspace.root / ".features-spill")
    tables = open_lake(backend, workspace.lake)
    progress = bars.bar("feature views")
    rows: dict[str, int] = {}
    notes: list[str] = []
    cards: ClusterReport | None = None
    for name, count in write_expressions(
        backend, tables, context.dataset, views, staging, on_range=bars.bar("ranges of ids")
    ):
        rows[name] = count
        progress(len(rows), len(views))
    cut = pa.scalar(slices.labels[0].start, pa.timestamp("us", tz="UTC"))
    for view in embedding_views(context.dataset):
        made = embed(context, view, bars)
        made.place(staging / f"{view}.parquet", as_folder=settings.profile == "spark")
        rows[view] = made.done.rows
        notes.append(made.summary)
    if context.dataset.has_text:
        clusters = ClusterSettings(
            encoder=local_fingerprint(text_model_of(settings)),
            fit_before=cut,
            seed=settings.seed,
            ids=workspace.lake / "ids" / "posts.parquet",
            previous=TextClusters.load(workspace.features / CLUSTERS_FILE),
            refit=settings.refit_clusters,
        )
        rows[CLUSTERS_VIEW], cards = write_clusters(tables, context.dataset, clusters, staging)
    if any(view.name == CONVERSION_VIEW for view in views):
        rows[CONVERSION_VIEW] = write_conversion_view(
            tables, context.dataset, cut, settings.seed, staging
        )
    last_event = datetime.fromisoformat(context.record("ingest").facts["last_time"])
    _gate(context, views, staging, last_event)
    shutil.rmtree(workspace.features, ignore_errors=True)
    staging.rename(workspace.features)
    if cards is not None:
        cards.write(workspace.reports)
    total = sum(rows.values())
    told = [f"{len(rows)} views, {total:,} rows, gates passed", *notes]
    return {"rows": rows, "summary": "; ".join(filter(None, told))}


def _gate(context: Context, views: list[FeatureView], folder: Path, last_event: datetime) -> None:
    # great-expectations takes seconds to import, which a skipped step need not pay.
    from validation.suites.features import features

    for view in views:
        schema = pa.schema(
            [
                pa.field(key_of(view), pa.int64()),
                pa.field("event_timestamp", pa.timestamp("us", tz="UTC")),
                *(pa.field(f.name, from_feast_to_pyarrow_type(f.dtype)) for f in view.features),
            ]
        )
        suite = features(view.name, schema, [key_of(view)], last_event)
        judge(context, suite, folder / f"{view.name}.parquet")

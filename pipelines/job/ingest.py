"""Step ingest: the source to raw tables, through the raw gates, into the lake."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.datasets.fetch import fetch
from pipelines.datasets.lake import read_before, recover, write_lake
from pipelines.datasets.normalise import RawTables, read_raw
from pipelines.datasets.parts import Databases, Stamp, drained_parts
from pipelines.job.context import Bar, Context, Progresses
from pipelines.job.gates import judge
from pipelines.steps import StepRecord, code_key, content_key

NAME = "ingest"


def run(context: Context) -> StepRecord:
    """Bring the dataset into the lake, unless neither source nor description changed."""
    recover(context.workspace.lake)
    base = base_folder(context)
    key = content_key(
        NAME,
        context.dataset.fingerprint(),
        _stamps(context, base),
        context.settings.drop_orphans,
        code_key(
            "pipelines.datasets",
            "feature_repo.dataset",
            "feature_repo.dataset_columns",
            "validation",
        ),
    )
    return context.step(
        NAME, key, [context.workspace.lake], lambda bars: _ingest(context, base, bars)
    )


def base_folder(context: Context) -> Path:
    """Return the folder that relative paths of the source start at."""
    if context.settings.data is not None:
        return context.settings.data
    if context.dataset.fetch is not None:
        return fetch(
            context.dataset,
            context.workspace.downloads,
            lambda text: context.console.print(f"  {text}", highlight=False),
        )
    return context.description.parent


def _stamps(context: Context, base: Path) -> list[Stamp]:
    """Return the stamp of every file and table of the source."""
    dataset = context.dataset
    tables = {"users": dataset.users, "posts": dataset.posts, "events": dataset.events}
    stamps: list[Stamp] = []
    with Databases() as databases:
        for name, source in tables.items():
            for part in [] if source is None else databases.parts(source, name, base):
                if source is not None and source.is_database:
                    part.check_columns()
                stamps.append(part.stamp())
    stamps += [part.stamp() for part in drained_parts(dataset.events, context.workspace.drained)]
    return stamps


def _ingest(context: Context, base: Path, bars: Progresses) -> Mapping[str, Any]:
    raw_folder = context.workspace.root / ".raw"
    drawn: dict[str, Bar] = {}

    def progress(title: str, rows: int, share: float) -> None:
        bar = drawn.setdefault(title, bars.bar(title))
        bar(rows, round(rows / share) if share > 0 else rows)

    try:
        before = read_before(context.dataset, context.workspace.lake)
        drained = context.workspace.drained
        raw = read_raw(context.dataset, base, raw_folder, progress, before, drained)
        _gate(context, raw)
        result = write_lake(
            raw,
            context.workspace.lake,
            drop_orphans=context.settings.drop_orphans,
            on_progress=progress,
        )
    finally:
        shutil.rmtree(raw_folder, ignore_errors=True)
    removed = f", {result.duplicates:,} duplicates removed" if result.duplicates else ""
    orphans = f", {result.orphans:,} orphans dropped" if result.orphans else ""
    return {
        **asdict(result),
        "summary": f"{result.users:,} users, {result.posts:,} posts, {result.events:,} events "
        f"({result.new_events:,} new{removed}{orphans}), gates passed",
    }


def _gate(context: Context, raw: RawTables) -> None:
    # great-expectations takes seconds to import, which a skipped step need not pay.
    from validation.suites.raw_entities import raw_posts, raw_users
    from validation.suites.raw_events import raw_events

    now = datetime.now(UTC)
    references: dict[str, Path] = {}
    for name, table, suite in (("users", raw.users, raw_users), ("posts", raw.posts, raw_posts)):
        if table is not None:
            judge(context, suite(raw.dataset, now), table)
            references[name] = table
    if context.settings.drop_orphans:
        references.clear()
    suite = raw_events(
        raw.dataset,
        now,
        references=references,
        is_addition=raw.before.reached is not None,
    )
    judge(context, suite, raw.events, references)

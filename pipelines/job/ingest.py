"""Step ingest: the source to raw tables, through the raw gates, into the lake."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from pipelines.datasets.fetch import fetch
from pipelines.datasets.lake import read_before, recover, write_lake
from pipelines.datasets.lake_state import events_rules, last_event, read_state
from pipelines.datasets.normalise import RawTables, read_raw
from pipelines.datasets.parts import Databases, Stamp, drained_parts
from pipelines.errors import LakeError
from pipelines.job.context import Bar, Context, Progresses
from pipelines.job.gates import judge, suites_file
from pipelines.steps import StepRecord, code_key, content_key
from validation.changes import Comparison, History, Sources
from validation.written import read_suites

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuite

    from validation.expectations import Severity

NAME = "ingest"


def run(context: Context) -> StepRecord:
    """Bring the dataset into the lake, unless neither source nor description changed."""
    _begin_from_published(context)
    recover(context.workspace.lake)
    base, suites = base_folder(context), suites_file(context)
    key = content_key(
        NAME,
        context.dataset.fingerprint(),
        _stamps(context, base),
        [
            context.settings.drop_orphans,
            context.settings.quarantine_share,
            context.settings.until,
        ],
        suites.read_text(encoding="utf-8") if suites.exists() else None,
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


def _begin_from_published(context: Context) -> None:
    """Fetch what another state folder has published to object storage, if one is named."""
    mirror = context.mirror
    fetched = None if mirror is None else mirror.bring_up_to_date()
    if mirror is not None and fetched is not None:
        context.console.print(
            f"publication {fetched.number} of {mirror.url} fetched: generation "
            f"{fetched.generation} of {fetched.published}",
            highlight=False,
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

    _check_window(context)
    try:
        before = read_before(context.dataset, context.workspace.lake)
        drained = context.workspace.drained
        until = context.settings.until
        raw = read_raw(context.dataset, base, raw_folder, progress, before, drained, until)
        _check_events(context, raw)
        raw, aside = _gate(context, raw)
        result = write_lake(
            raw,
            context.workspace.lake,
            drop_orphans=context.settings.drop_orphans,
            on_progress=progress,
        )
    finally:
        shutil.rmtree(raw_folder, ignore_errors=True)
    removed = f", {result.duplicates:,} duplicates removed" if result.duplicates else ""
    set_aside = f", {aside:,} rows set aside" if aside else ""
    orphans = f", {result.orphans:,} orphans dropped" if result.orphans else ""
    return {
        **asdict(result),
        "quarantined": aside,
        "summary": f"{result.users:,} users, {result.posts:,} posts, {result.events:,} events "
        f"({result.new_events:,} new{removed}{orphans}{set_aside}), gates passed",
    }


def _check_window(context: Context) -> None:
    """Raise `LakeError` if the lake holds events after the window's end."""
    until, reached = context.settings.until, last_event(context.workspace.lake)
    if until is not None and reached is not None and reached >= until:
        raise LakeError(
            f"{context.workspace.lake}: it holds events until {reached.isoformat()}, and "
            f"--until {until.isoformat()} ends before: windows are run in order of time; to look "
            "back, use a state folder of its own (--home)"
        )


def _check_events(context: Context, raw: RawTables) -> None:
    """Raise `LakeError` if the first window is empty."""
    until, lake = context.settings.until, context.workspace.lake
    if until is None or pq.read_metadata(raw.events).num_rows or last_event(lake) is not None:
        return
    raise LakeError(
        f"dataset {context.dataset.name}: no event lies before --until {until.isoformat()}"
    )


def _gate(context: Context, raw: RawTables) -> tuple[RawTables, int]:
    """Judge the raw tables; return them without the rows set aside, and how many those are."""
    # great-expectations takes seconds to import, which a skipped step need not pay.
    from great_expectations.core import ExpectationSuite

    from validation.expectations import quarantining
    from validation.suites.raw_entities import raw_posts, raw_users
    from validation.suites.raw_events import raw_events

    now, share = datetime.now(UTC), context.settings.quarantine_share
    reviewed = read_suites(suites_file(context))
    judged: dict[str, Path] = {}
    aside = 0

    def gate(name: str, suite: "ExpectationSuite", table: Path) -> None:
        nonlocal aside
        kept = table.with_name(f"{name}-kept.parquet")
        relaxed = quarantining(suite, share)
        # What was reviewed says itself how strict it is.
        expectations = [*relaxed.expectations, *reviewed.get(suite.name, [])]
        suite = ExpectationSuite(suite.name, expectations=expectations)
        result = judge(context, suite, table, references, kept)
        judged[name] = kept if result.quarantined else table
        aside += result.quarantined

    references: dict[str, Path] = {}
    if raw.users is not None:
        gate("users", raw_users(raw.dataset, now), raw.users)
    if raw.posts is not None:
        gate("posts", raw_posts(raw.dataset, now), raw.posts)
    if not context.settings.drop_orphans:
        references |= judged
    is_addition = raw.before.reached is not None
    suite = raw_events(raw.dataset, now, references=references, is_addition=is_addition)
    gate("events", suite, raw.events)
    users, posts = judged.get("users"), judged.get("posts")
    raw = replace(raw, users=users, posts=posts, events=judged["events"])
    _gate_changes(context, raw)
    return raw, aside


def _gate_changes(context: Context, raw: RawTables) -> None:
    """Judge what the source says now against what the lake knows."""
    from validation.suites.raw_changes import changes_table, raw_changes

    lake = context.workspace.lake
    history: History = "addition" if raw.before.reached is not None else "whole"
    if not raw.dataset.has_clock or read_state(lake).get("events_rules") != events_rules(
        raw.dataset
    ):
        history = "none"
    sources = Sources(raw.events, raw.users, raw.posts)
    with Comparison(raw.dataset, sources, lake, history) as comparison:
        changes = comparison.changes()
    severity: Severity = "warn" if context.settings.accept_changes else "stop"
    if changes:
        judge(context, raw_changes(changes, severity), changes_table(changes))

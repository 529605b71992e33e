"""The command ``skew``: the served log against the offline store, feature by feature."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore
from rich.box import SIMPLE_HEAD
from rich.table import Table

from feature_repo.contract import Contract, registered_contract
from feature_repo.definitions import columns as c
from pipelines.job.context import Context, open_store
from pipelines.monitoring import causes as why
from pipelines.monitoring.causes import Causes, StoredView
from pipelines.monitoring.served import (
    draw_requests,
    late_arrivals,
    log_folders,
    moments,
    offline_inputs,
)
from pipelines.steps import write_json
from serving.bundle import MANIFEST, Manifest, checksum, read_manifest
from serving.freshness import STALE
from serving.generation import generation_contract, generation_store
from serving.impressions import FACTS
from validation.skew import (
    CAUSES,
    NOT_MATERIALIZED,
    OTHER_CONTRACT,
    STALE_DEFAULT,
    TABLE_CHANGED,
    TRANSFORM,
    UNEXPLAINED,
    FeatureSkew,
    Flags,
    SkewError,
    compare,
    merged,
)

HISTORY, RESULT = "skew.jsonl", "skew.json"
_BATCH_ROWS = 20_000


@dataclass(frozen=True)
class Skew:
    """What was found in the served log.

    Parameters
    ----------
    requests, rows
        Compared: requests that the ranker answered, and their candidates.
    generations
        The bundles that answered.
    features
        One for each input of the ranker, most faults first.
    """

    requests: int
    rows: int
    generations: Sequence[str]
    features: Sequence[FeatureSkew]

    @property
    def values(self) -> int:
        """Values compared."""
        return sum(one.rows for one in self.features)

    @property
    def causes(self) -> dict[str, int]:
        """How many values differ for which cause, most first."""
        total: dict[str, int] = {}
        for one in self.features:
            for cause, count in one.causes.items():
                total[cause] = total.get(cause, 0) + count
        return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def check(context: Context, rows: int, max_share: float) -> None:
    """Compare, keep and print.

    Raises
    ------
    SkewError
        If a larger share of a feature's values than ``max_share`` differs through a fault or for
        no known cause, or if there is nothing to compare.
    """
    found = measure(context, rows)
    _keep(context, found)
    context.console.print(_table(found))
    for cause, count in found.causes.items():
        expected, meaning = CAUSES[cause]
        mark = "[green]expected[/]" if expected else "[red]fault[/]"
        context.console.print(f"{mark} {cause}: {count:,} values; {meaning}", highlight=False)
    unexplained = found.causes.get(UNEXPLAINED, 0)
    context.console.print(
        f"{found.values:,} served values of {found.requests:,} requests compared with the offline "
        f"store; {unexplained:,} unexplained differences",
        highlight=False,
    )
    wrong = [one for one in found.features if one.faults > max_share * one.rows]
    if wrong:
        worst = "; ".join(
            f"{one.feature}: {one.faults:,} of {one.rows:,} ({_named(one)})" for one in wrong[:5]
        )
        raise SkewError(
            f"skew: {len(wrong)} of {len(found.features)} features are served otherwise than the "
            f"offline store has them: {worst}; {context.workspace.reports / RESULT} has examples"
        )


def measure(context: Context, rows: int) -> Skew:
    """Draw requests from the served log and compare each value with the offline store.

    Raises
    ------
    SkewError
        If there is nothing to compare.
    """
    folders = log_folders(context.impression_log)
    parts: dict[str, list[FeatureSkew]] = {}
    requests, compared, generations = 0, 0, []
    for folder in folders:
        drawn = draw_requests(folder, rows // len(folders), context.settings.seed)
        requests += pc.count_distinct(drawn["request_id"]).as_py()
        compared += drawn.num_rows
        for generation in pc.unique(drawn["generation"]).to_pylist():
            generations.append(generation)
            served = drawn.filter(pc.equal(drawn["generation"], generation))
            for first in range(0, served.num_rows, _BATCH_ROWS):
                batch = served.slice(first, _BATCH_ROWS).combine_chunks()
                for one in _Comparison(context, generation, batch).features():
                    parts.setdefault(one.feature, []).append(one)
    if not compared:
        raise SkewError(
            f"{context.impression_log}: no served features are logged; run `feastrank "
            "serve` with its impression log, ask it something, and run this again"
        )
    features = sorted(map(merged, parts.values()), key=lambda f: (-f.faults, f.equal - f.rows))
    return Skew(requests, compared, generations, features)


class _Comparison:
    """Served rows of one generation beside the offline store's."""

    def __init__(self, context: Context, generation: str, served: pa.Table) -> None:
        self.served, self.rows = served, served.num_rows
        self.lake = context.workspace.lake
        store = open_store(context.workspace)
        self.manifest = _manifest(context.workspace.bundles / generation)
        if self.manifest is None:
            self.store, self.contract = store, registered_contract(store)
        else:
            self.store = generation_store(
                store, context.workspace.bundles / generation, self.manifest
            )
            self.contract = generation_contract(self.store, self.manifest)
        self.is_same = served["contract_hash"][0].as_py() == self.contract.hash
        # What the ranker says, and the inputs that sources make, are called alike.
        others = {*FACTS, *self.contract.names}
        self.sources = c.sources_in(set(served.column_names) - others)
        self.at = moments(served)
        self.offline = self._joined(self.at)
        self.views = {v.view.name: v for v in _stored(self.store, self.contract)}

    def features(self) -> Iterator[FeatureSkew]:
        """Yield every logged input, compared."""
        differing = {one: self._differing(one) for one in self._names()}
        proven, suspected = self._causes(differing)
        for name in self._names():
            hours = 24.0 if name in c.DAYS_SINCE else None
            found = compare(
                name,
                self.served[name],
                self.offline[name],
                list(proven[name]),
                list(suspected[name]),
                hours,
            )
            yield found

    def _names(self) -> list[str]:
        mine = set(self.contract.names)
        logged = self.served.column_names
        # Inputs of a contract that is not kept any more are compared as far as there are any.
        return [name for name in logged[logged.index(c.REQUEST_TIME) + 1 :] if name in mine]

    def _joined(self, at: pa.ChunkedArray) -> pa.Table:
        return offline_inputs(self.store, self.contract, self.sources, self.served, at)

    def _differing(self, name: str, other: pa.Table | None = None) -> Flags:
        offline = (other or self.offline)[name]
        mine, theirs = (_values(self.served[name]), _values(offline))
        differing: Flags = ~((mine == theirs) | (_missing(mine) & _missing(theirs)))
        return differing

    def _causes(
        self, differing: Mapping[str, Flags]
    ) -> tuple[dict[str, Causes], dict[str, Causes]]:
        """Return by input the causes that are proven, and those that fit."""
        of_view = {one.name: one.view for one in self.contract.inputs}
        anything = np.flatnonzero(np.any(list(differing.values()), axis=0))
        if not len(anything):
            nothing: Causes = np.full(self.rows, None, object)
            return dict.fromkeys(differing, nothing), dict.fromkeys(differing, nothing)
        by_row = {
            name: why.row_causes(
                stored,
                self.served,
                self.at,
                np.flatnonzero(np.any([differing[n] for n in stored.inputs], axis=0))
                if stored.inputs
                else np.empty(0, np.int64),
            )
            for name, stored in self.views.items()
        }
        earlier = self._as_materialized()
        late = why.late_events(self._late_files(), self.served, self.at)
        changed = self._changed_tables()
        proven, suspected = {}, {}
        for name in differing:
            views = self._views_of(name, of_view[name])
            then: Causes = np.full(self.rows, None, object)
            if earlier is not None:
                then[differing[name] & ~self._differing(name, earlier)] = NOT_MATERIALIZED
            defaulted = [why.named(self._said(f"{STALE}{v}"), STALE_DEFAULT) for v in views]
            missing = _missing(_values(self.served[name]))
            for one in defaulted:
                one[~missing] = None
            sure = [then, *defaulted, *(by_row[v] for v in views)]
            if not self.is_same:
                sure.append(why.named(np.ones(self.rows, bool), OTHER_CONTRACT))
            proven[name] = why.combined(sure, self.rows)
            fits = [why.named(late[self.views[v].key]) for v in views]
            is_smoothed = "smoothed" in name and any(flags.any() for flags in late.values())
            if is_smoothed:
                # The mean that rates are drawn to is over all events.
                fits.append(why.named(np.ones(self.rows, bool)))
            if of_view[name] not in self.views:
                inputs = [n for v in views for n in self.views[v].inputs]
                untouched = ~np.any([differing[n] for n in inputs], axis=0) if inputs else True
                fits.append(why.named(np.full(self.rows, untouched), TRANSFORM))
            if set(views) & changed:
                fits.append(why.named(np.ones(self.rows, bool), TABLE_CHANGED))
            suspected[name] = why.combined(fits, self.rows)
        return proven, suspected

    def _as_materialized(self) -> pa.Table | None:
        """Return the inputs as of the moment that was materialized, if that is an earlier one."""
        until = self.served["materialized_until"]
        if until.null_count or pc.all(pc.equal(until, self.at)).as_py():
            return None
        return self._joined(until)

    def _views_of(self, name: str, view: str) -> list[str]:
        """Return the stored views that an input is made from."""
        if view in self.views:
            return [view]
        made_from = {c.DAYS_SINCE.get(name), c.TOPIC_MATCHES.get(name)} - {None}
        if name in c.TOPIC_MATCHES:
            made_from.add(c.POST_TOPICS)
        return [
            stored.view.name
            for stored in self.views.values()
            if made_from & {field.name for field in stored.view.features}
        ]

    def _late_files(self) -> list[Path]:
        first: datetime = pc.min(self.served["time"]).as_py()
        return late_arrivals(self.lake, first)

    def _said(self, reason: str) -> Flags:
        texts = self.served["degraded"].to_pylist()
        return np.array([reason in text.split(",") for text in texts], bool)

    def _changed_tables(self) -> set[str]:
        """Return the views whose tables are not those that the generation was made from."""
        if self.manifest is None:
            return set(self.views)
        tables = self.manifest.feature_tables
        return {
            name
            for name, stored in self.views.items()
            if checksum(Path(stored.view.batch_source.path)) != tables.get(name, {}).get("sha256")
        }


def _manifest(folder: Path) -> Manifest | None:
    return read_manifest(folder) if (folder / MANIFEST).exists() else None


def _stored(store: FeatureStore, contract: Contract) -> list[StoredView]:
    return [
        StoredView(view, [one.name for one in contract.inputs if one.view == view.name])
        for view in store.list_feature_views()
    ]


def _values(column: Any) -> np.ndarray[Any, Any]:
    if pa.types.is_string(column.type):
        return np.asarray(column.to_pylist(), object)
    return np.asarray(column.cast(pa.float64(), safe=False), np.float64)


def _missing(values: np.ndarray[Any, Any]) -> Flags:
    if values.dtype == object:
        return np.array([value is None for value in values], bool)
    missing: Flags = np.isnan(values)
    return missing


def _keep(context: Context, found: Skew) -> None:
    """Write the last result whole, and append its totals to the history."""
    reports = context.workspace.reports
    now = datetime.now(UTC).isoformat(timespec="seconds")
    head = {
        "at": now,
        "requests": found.requests,
        "values": found.values,
        "generations": found.generations,
        "causes": found.causes,
    }
    write_json(reports / RESULT, {**head, "features": [asdict(one) for one in found.features]})
    with (reports / HISTORY).open("a", encoding="utf-8") as file:
        file.write(json.dumps(head) + "\n")


def _named(one: FeatureSkew) -> str:
    names = [cause for cause in one.causes if not CAUSES[cause][0]]
    return ", ".join(names) + (f" {one.detail}" if one.detail else "")


def _table(found: Skew) -> Table:
    table = Table(
        title=f"served features of {', '.join(found.generations)} against the offline store",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("feature", no_wrap=True)
    for name in ("values", "equal", "different", "only offline", "only served", "stale", "largest"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("cause")
    shown = [one for one in found.features if one.equal < one.rows] or found.features[:3]
    for one in shown:
        largest = "-" if one.max_difference is None else f"{one.max_difference:.3g}"
        counts = (one.rows, one.equal, one.different, one.missing_online)
        rest = (one.missing_offline, one.stale)
        causes = ", ".join(one.causes) + (f" {one.detail}" if one.detail else "")
        table.add_row(one.feature, *(f"{n:,}" for n in (*counts, *rest)), largest, causes)
    if len(shown) < len(found.features):
        alike = len(found.features) - len(shown)
        table.add_row(f"{alike} more, all equal", *[""] * 8)
    return table

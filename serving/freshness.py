"""How old the served features are, and what becomes of an answer when they are too old.

The limits are tags of the feature views in the bundle's own registry, put there from the
description (`feature_repo.dataset.Freshness`). When a view was materialized stands in Redis beside
its rows, so that what Feast's own commands materialize into a published generation counts; the
registry's word holds where Redis says nothing. Ages are counted to the bundle's moment: to now for
live data, to the moment of the data otherwise.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import redis
from feast import FeatureStore, FeatureView

from feastpack.materialized import Materialized, read_materialized
from feature_repo.contract import Contract
from feature_repo.definitions import columns as c
from serving.assembly import Inputs
from serving.errors import OnlineStateError

logger = logging.getLogger(__name__)

FLAG, DEFAULT, FALLBACK = "flag", "default", "fallback"
STALE = "stale_"
CHECK_SECONDS = 10.0


@dataclass(frozen=True)
class Limits:
    """What a view's tags say, and which of the ranker's inputs depend on the view."""

    max_age_s: float | None
    max_event_age_s: float | None
    when_stale: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class ViewAge:
    """How old one view is.

    Parameters
    ----------
    view
        Its name.
    materialized, newest_event
        Until when it is materialized, and the latest event time among its rows; None: unknown.
    age_s, event_age_s
        Seconds since then, at least 0.
    limits
        What is allowed.
    is_stale
        Whether either age is greater than its limit. A view that was never materialized is as old
        as can be.
    """

    view: str
    materialized: datetime | None
    newest_event: datetime | None
    age_s: float | None
    event_age_s: float | None
    limits: Limits
    is_stale: bool


class FreshnessMonitor:
    """Knows the ages of all views of one generation; safe to use from several threads.

    Parameters
    ----------
    store
        The generation's own store.
    contract
        The ranker's inputs.
    client
        The client of the generation's Redis; asked at most every ``check_seconds``. While it does
        not answer, what was known before holds.
    namespace
        Of the generation's rows.
    moment
        Returns the moment that ages are counted to.
    """

    def __init__(
        self,
        store: FeatureStore,
        contract: Contract,
        client: Any,
        namespace: str,
        moment: Callable[[], datetime],
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        views = store.list_feature_views()
        depending = _inputs_by_view(contract, views)
        self._limits = {view.name: _limits(view, depending[view.name]) for view in views}
        self._registered = {view.name: _registered(view) for view in views}
        self._places = {name: place for place, name in enumerate(contract.names)}
        self._known: Mapping[str, Materialized] = {}
        self._client, self._project, self._namespace = client, store.project, namespace
        self._moment, self._check_seconds = moment, check_seconds
        self._guard = threading.Lock()
        self._checked = float("-inf")

    def ages(self) -> list[ViewAge]:
        """Return the age of every view, in the registry's order."""
        self._refresh()
        return [self._age(view, limits) for view, limits in self._limits.items()]

    def check(self) -> tuple[str, ...]:
        """Return why an answer is degraded by views that are too old: ``stale_<view>``.

        Raises
        ------
        OnlineStateError
            If one of them is to be answered by the fallback; its reason is the same.
        """
        stale = [one for one in self.ages() if one.is_stale]
        for one in stale:
            if one.limits.when_stale == FALLBACK:
                raise OnlineStateError(
                    f"{STALE}{one.view}",
                    f"{one.view}: materialized until {one.materialized}, newest row of "
                    f"{one.newest_event}, older than allowed; run `feastrank run`",
                )
        return tuple(f"{STALE}{one.view}" for one in stale)

    def defaulted(self, inputs: Inputs) -> Inputs:
        """Return the ranker's inputs, null where they depend on a stale view that says so."""
        names = {
            name
            for one in self.ages()
            if one.is_stale and one.limits.when_stale == DEFAULT
            for name in one.limits.inputs
        }
        if not names:
            return inputs
        matrix = inputs.matrix.copy()
        matrix[:, [self._places[name] for name in names]] = np.nan
        return Inputs(matrix, lambda: _without(inputs.table, names), inputs.event_times)

    def _age(self, view: str, limits: Limits) -> ViewAge:
        state = self._known.get(view)
        materialized = self._registered[view] if state is None else state.until
        newest = None if state is None else state.newest_event
        age, event_age = (self._seconds_since(one) for one in (materialized, newest))
        # An unknown newest event is not held against a view: rows may be from before it was noted.
        is_stale = (limits.max_age_s is not None and (age is None or age > limits.max_age_s)) or (
            limits.max_event_age_s is not None
            and event_age is not None
            and event_age > limits.max_event_age_s
        )
        return ViewAge(view, materialized, newest, age, event_age, limits, is_stale)

    def _seconds_since(self, moment: datetime | None) -> float | None:
        return None if moment is None else max(0.0, (self._moment() - moment).total_seconds())

    def _refresh(self) -> None:
        now = time.monotonic()
        # Whoever comes while another thread asks goes on with what is known.
        if now - self._checked < self._check_seconds or not self._guard.acquire(blocking=False):
            return
        try:
            self._checked = now
            self._known = read_materialized(self._client, self._project, self._namespace)
        except redis.exceptions.RedisError as error:
            logger.warning("ages of the features are not known anew: %s", error)
        finally:
            self._guard.release()


def _without(table: pa.Table, names: Iterable[str]) -> pa.Table:
    for name in names:
        place = table.schema.get_field_index(name)
        kind = table.schema.field(place).type
        table = table.set_column(place, name, pa.nulls(table.num_rows, kind))
    return table


def _limits(view: FeatureView, inputs: tuple[str, ...]) -> Limits:
    def seconds(tag: str) -> float | None:
        return 3600 * float(view.tags[tag]) if tag in view.tags else None

    when_stale = view.tags.get("when_stale", FLAG)
    return Limits(seconds("max_age_hours"), seconds("max_event_age_hours"), when_stale, inputs)


def _registered(view: FeatureView) -> datetime | None:
    until: datetime | None = view.most_recent_end_time
    if until is None:
        return None
    return until.replace(tzinfo=UTC) if until.tzinfo is None else until.astimezone(UTC)


def _inputs_by_view(contract: Contract, views: list[FeatureView]) -> dict[str, tuple[str, ...]]:
    """Return the inputs that are a view's features, or are computed from them at request time."""
    computed = {feature: (since,) for feature, since in c.DAYS_SINCE.items()} | {
        feature: (vector, c.POST_TOPICS) for feature, vector in c.TOPIC_MATCHES.items()
    }
    return {
        view.name: tuple(
            one.name
            for one in contract.inputs
            if one.view == view.name
            or {field.name for field in view.features} & set(computed.get(one.name, ()))
        )
        for view in views
    }

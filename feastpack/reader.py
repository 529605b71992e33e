"""FeatureReader: online features as numpy, Arrow and pandas, without protobuf in between."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from feast import FeatureService, FeatureStore
from feast.errors import FeastError
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL

from feastpack import ondemand
from feastpack.errors import FeastpackError, RequestError, SchemaError, UnsupportedError
from feastpack.frame import Frame, ViewRows
from feastpack.lookup import Answer, Question, ask, ask_async, ask_beside, oldest_valid
from feastpack.online import PackedRedisOnlineStore
from feastpack.plan import Plan, ViewPlan, make_plan

logger = logging.getLogger(__name__)

Features: TypeAlias = str | FeatureService | Sequence[str]
_PlanKey = tuple[str | tuple[str, ...], bool]


class _Request(NamedTuple):
    """A request's values by name: scalars, and Arrow or int64 arrays of ``length`` values."""

    scalars: dict[str, Any]
    arrays: dict[str, Any]
    length: int

    def given(self, name: str) -> Any:
        """Return one value per entity, as an Arrow array or as it was given."""
        values = self.arrays.get(name)
        return self.column(name) if values is None else values

    def column(self, name: str) -> pa.Array:
        """Return one value per entity as an Arrow array."""
        if name in self.arrays:
            values = self.arrays[name]
            return pa.array(values) if isinstance(values, np.ndarray) else values
        return pa.repeat(pa.scalar(_plain(self.scalars[name])), self.length)


class Begun(NamedTuple):
    """What :meth:`FeatureReader.begin` has read so far.

    Attributes
    ----------
    plan
        What the answers belong to.
    answers
        By position in the plan's views, one row each.
    beside
        Values of the other keys, in their order; None where there is none.
    """

    plan: Plan
    answers: dict[int, Answer]
    beside: list[bytes | None]


class FeatureReader:
    """Reads online features of many entities with one round trip to Redis.

    Safe to use from several threads. What the features are is looked up in Feast's registry
    when they are first read (or at :meth:`prepare`) and then refreshed by a thread in the
    background, never while a request waits.

    Parameters
    ----------
    store
        A feature store whose online store is PackedRedisOnlineStore.
    registry_ttl_seconds
        How often the registry is looked at again; None for never.
    dtype
        dtype of ``Frame.matrix``, float64 or float32.

    Raises
    ------
    UnsupportedError
        If the store's online store is another one.

    Examples
    --------
    >>> reader = FeatureReader(FeatureStore("feature_repo"))  # doctest: +SKIP
    >>> frame = reader.read("ranker_v1", {"user_id": 42, "post_id": [1, 2, 3]})  # doctest: +SKIP
    >>> frame.numeric_names, frame.matrix  # doctest: +SKIP
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        registry_ttl_seconds: float | None = 60.0,
        dtype: npt.DTypeLike = np.float64,
    ) -> None:
        online = store._get_provider().online_store
        if not isinstance(online, PackedRedisOnlineStore):
            raise UnsupportedError(
                f"FeatureReader reads packed rows, but the online store is "
                f"{type(online).__name__}; set online_store.type to "
                "feastpack.PackedRedisOnlineStore in feature_store.yaml and materialize"
            )
        self._store = store
        self._online = online
        self._dtype = np.dtype(dtype)
        self._honour_ttl: bool = store.config.online_store.honour_ttl
        self._plans: dict[_PlanKey, tuple[Features, Plan]] = {}
        self._stop = threading.Event()
        if registry_ttl_seconds is not None:
            arguments = (weakref.ref(self), self._stop, registry_ttl_seconds)
            threading.Thread(
                target=_keep_fresh, args=arguments, name="feature-reader", daemon=True
            ).start()
            weakref.finalize(self, self._stop.set)

    def read(
        self,
        features: Features,
        entities: Mapping[str, Any],
        request_data: Mapping[str, Any] | None = None,
        full_feature_names: bool = False,
        begun: Begun | None = None,
    ) -> Frame:
        """Read features of n entities.

        Parameters
        ----------
        features
            Name of a feature service, a feature service, or references ``view:feature``.
        entities
            By join key: one value that holds for all entities, or n values (list, numpy
            array, pandas series or Arrow array).
        request_data
            What on-demand views need of the request, in the same form.
        full_feature_names
            Whether features are called ``view__feature``.
        begun
            What :meth:`begin` returned for the same features and entities: it is not read again.

        Returns
        -------
        Frame
            n rows in the order of the entities. An entity without a row has nulls and the
            status NOT_FOUND.

        Raises
        ------
        RequestError
            If a feature, join key or request value is unknown, missing, empty or of a
            wrong type, or lengths differ.
        OnlineStoreError
            If Redis fails.
        """
        plan = self._plan(features, full_feature_names)
        request = _request(plan, entities, request_data or {})
        # Features that were changed since it began are read anew.
        known = begun.answers if begun is not None and begun.plan is plan else {}
        rest = [place for place in range(len(plan.views)) if place not in known]
        views = [plan.views[place] for place in rest]
        client = self._online.client(self._store.config)
        found = ask(client, self._questions(views, request), self._online.book)
        answers = {**known, **dict(zip(rest, found, strict=True))}
        return self._frame(plan, request, [answers[place] for place in range(len(plan.views))])

    def begin(
        self,
        features: Features,
        entities: Mapping[str, Any],
        beside: Sequence[bytes] = (),
        full_feature_names: bool = False,
    ) -> Begun:
        """Read, with one round trip, the views that some entities determine, and other keys.

        For who knows one entity of a request (the user) before the others (the posts).

        Parameters
        ----------
        features
            As of :meth:`read`.
        entities
            One value by join key; views that need other join keys are left to :meth:`read`.
        beside
            Keys of plain values that lie in the same Redis.

        Raises
        ------
        RequestError, OnlineStoreError
            As :meth:`read`.
        """
        plan = self._plan(features, full_feature_names)
        request = _Request(dict(entities), {}, 1)
        places = [
            place
            for place, view in enumerate(plan.views)
            if view.join_keys and all(name in entities for name in view.join_keys.values())
        ]
        questions = self._questions([plan.views[place] for place in places], request)
        client = self._online.client(self._store.config)
        answers, values = ask_beside(client, questions, self._online.book, beside)
        return Begun(plan, dict(zip(places, answers, strict=True)), values)

    async def read_async(
        self,
        features: Features,
        entities: Mapping[str, Any],
        request_data: Mapping[str, Any] | None = None,
        full_feature_names: bool = False,
    ) -> Frame:
        """As :meth:`read`, waiting for Redis on the running event loop."""
        plan = self._plan(features, full_feature_names)
        request = _request(plan, entities, request_data or {})
        client = self._online.async_client(self._store.config)
        answers = await ask_async(client, self._questions(plan.views, request), self._online.book)
        return self._frame(plan, request, answers)

    def prepare(self, features: Features, full_feature_names: bool = False) -> Plan:
        """Look features up in the registry ahead of the first read.

        Raises
        ------
        RequestError
            If they are unknown.
        """
        return self._plan(features, full_feature_names)

    def refresh(self) -> None:
        """Read the registry again and renew what is known of all features read so far."""
        self._store.refresh_registry()
        renewed = {
            key: (features, make_plan(self._store, features, key[1]))
            for key, (features, _) in list(self._plans.items())
        }
        self._plans = {**self._plans, **renewed}

    def close(self) -> None:
        """Stop looking at the registry in the background."""
        self._stop.set()

    def _plan(self, features: Features, full_feature_names: bool) -> Plan:
        key = _plan_key(features, full_feature_names)
        known = self._plans.get(key)
        if known is not None:
            return known[1]
        # A service object may be older than the registry: its name is what is looked up.
        wanted = features.name if isinstance(features, FeatureService) else features
        plan = make_plan(self._store, wanted, full_feature_names)
        self._plans[key] = (wanted, plan)
        return plan

    def _questions(self, views: Sequence[ViewPlan], request: _Request) -> list[Question]:
        try:
            return [self._question(view, request) for view in views]
        except (SchemaError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise RequestError(str(error)) from error

    def _question(self, view: ViewPlan, request: _Request) -> Question:
        names = view.join_keys
        shared = all(name in request.scalars for name in names.values())
        count = 1 if shared else request.length
        columns: dict[str, Any] = {
            key: [_plain(request.scalars[name])] if shared else request.given(name)
            for key, name in names.items()
        }
        if not names:
            columns[DUMMY_ENTITY_ID] = [DUMMY_ENTITY_VAL]
        keys = view.layout.keys.laid_out(columns, count)
        return Question(view.layout, keys, oldest_valid(view.layout, self._honour_ttl))

    def _frame(self, plan: Plan, request: _Request, answers: Sequence[Answer]) -> Frame:
        views = tuple(map(ViewRows, plan.views, answers))
        frame = Frame(plan, views, request.column, {}, request.length, self._dtype)
        if not plan.on_demand:
            return frame
        data = {name: request.column(name) for name in (*plan.entity_names, *plan.request_names)}
        computed: dict[str, pa.Array] = {}
        for view in plan.on_demand:
            inputs = {name: frame.arrow(name) for name in view.inputs}
            computed.update(ondemand.run(view, inputs, data, plan.full_feature_names))
        return Frame(plan, views, request.column, computed, request.length, self._dtype)


def _plan_key(features: Features, full_feature_names: bool) -> _PlanKey:
    if isinstance(features, FeatureService):
        return features.name, full_feature_names
    return features if isinstance(features, str) else tuple(features), full_feature_names


def _request(plan: Plan, entities: Mapping[str, Any], request_data: Mapping[str, Any]) -> _Request:
    given = {**entities, **request_data}
    needed = {*plan.entity_names, *plan.request_names}
    for problem, names in (
        ("missing", sorted(needed - set(given))),
        ("unknown", sorted(set(given) - needed)),
    ):
        if names:
            raise RequestError(
                f"{problem} in the request: {', '.join(names)}; these features need the join "
                f"keys {', '.join(plan.entity_names) or '(none)'} and the request data "
                f"{', '.join(plan.request_names) or '(none)'}"
            )
    scalars: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for name, value in given.items():
        if _is_scalar(value):
            scalars[name] = value
        else:
            arrays[name] = _as_array(name, value)
    lengths = {name: len(array) for name, array in arrays.items()}
    empty = [name for name, length in lengths.items() if length == 0]
    if empty:
        raise RequestError(f"no values given for {', '.join(empty)}; give at least one")
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise RequestError(f"numbers of values differ ({shown}); give one each, or a scalar")
    return _Request(scalars, arrays, next(iter(lengths.values()), 1))


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bytes | pa.Scalar) or not hasattr(value, "__len__")


def _plain(value: Any) -> Any:
    if isinstance(value, pa.Scalar):
        return value.as_py()
    return value.item() if isinstance(value, np.generic) else value


def _as_array(name: str, values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.dtype == np.int64 and values.ndim == 1:
        return values  # keys are laid out from it as it is
    try:
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise RequestError(f"values of {name} are not of one type: {error}") from error
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _keep_fresh(
    reader: weakref.ref[FeatureReader], stop: threading.Event, every_seconds: float
) -> None:
    while not stop.wait(every_seconds):
        alive = reader()
        if alive is None:
            return
        try:
            alive.refresh()
        except (FeastError, FeastpackError, OSError, ValueError, KeyError) as error:
            # Serving goes on with what it knows; the next round tries again.
            logger.warning("could not refresh the feature registry: %s", error)
        del alive

"""What a read of some features needs, worked out once from Feast's registry.

The resolution itself (feature services, projections, aliases, versions, on-demand views
and their inputs) is Feast's own function; a plan is its result in the form that a read
wants: which keys to ask for, which columns to cut out, where they go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from feast import FeatureService, FeatureStore, utils
from feast.errors import FeastError
from feast.feature_view import DUMMY_ENTITY_ID

from feastpack.errors import RequestError, UnsupportedError
from feastpack.rows import Column, Kind, RowSchema
from feastpack.values import is_text
from feastpack.views import ViewLayout, layout_of

NUMERIC = ("INT32", "INT64", "DOUBLE", "FLOAT", "BOOL")


class FeatureRead(NamedTuple):
    """A column of a view's row and the name it has in the result."""

    column: Column
    output: str


class BlockCopy(NamedTuple):
    """Neighbouring cells of one type that go to neighbouring columns of the matrix."""

    first: str
    width: int
    target: int


@dataclass(frozen=True)
class ViewPlan:
    """What to read of one view.

    Attributes
    ----------
    join_keys
        By join key of the view: the name under which the request gives its values.
    features
        What is needed of the view, on-demand views' inputs included.
    blocks
        How the requested numeric features get into the matrix.
    """

    name: str
    layout: ViewLayout
    join_keys: Mapping[str, str]
    features: tuple[FeatureRead, ...]
    blocks: tuple[BlockCopy, ...]

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The columns among ``features`` that are text."""
        return tuple(read.column.name for read in self.features if is_text(read.column))


@dataclass(frozen=True)
class OnDemandPlan:
    """An on-demand view to run.

    Attributes
    ----------
    view
        Feast's on-demand view with its projection.
    inputs
        Names of result columns that the view may see, besides join keys and request data.
    outputs
        Requested outputs by the name they have in the result.
    """

    view: Any
    inputs: tuple[str, ...]
    outputs: Mapping[str, Column]


@dataclass(frozen=True)
class Plan:
    """Everything a read needs to know; independent of the entities asked for.

    Attributes
    ----------
    names
        The requested features in the order of the request (of the service's definition).
    numeric_names
        Those that are columns of the matrix, in the same order.
    entity_names
        What a request must give values for.
    request_names
        Request data that on-demand views need.
    """

    names: tuple[str, ...]
    numeric_names: tuple[str, ...]
    views: tuple[ViewPlan, ...]
    on_demand: tuple[OnDemandPlan, ...]
    entity_names: tuple[str, ...]
    request_names: tuple[str, ...]
    full_feature_names: bool


def make_plan(
    store: FeatureStore, features: str | FeatureService | Sequence[str], full_feature_names: bool
) -> Plan:
    """Resolve features against the store's registry.

    Raises
    ------
    RequestError
        If a feature, view or service is unknown, or two features would have one name.
    UnsupportedError
        If an on-demand view aggregates, which only Feast's own path can do.
    """
    wanted: FeatureService | list[str]
    try:
        wanted = _as_feast_takes_it(store, features)
        resolved = utils._get_online_request_context(
            store.registry, store.project, wanted, full_feature_names
        )
    except (FeastError, KeyError, ValueError) as error:
        raise RequestError(f"cannot resolve {_shown(features)}: {error}") from error
    references, on_demand_views, grouped = resolved[0], resolved[1], resolved[5]
    outputs = [_output_name(ref, full_feature_names) for ref in references]
    on_demand = tuple(
        _on_demand_plan(view, references, grouped, full_feature_names)
        for view in on_demand_views
        if not view.write_to_online_store
    )
    kinds = _value_types(grouped, full_feature_names) | {
        name: column.value_type for plan in on_demand for name, column in plan.outputs.items()
    }
    names = tuple(dict.fromkeys(outputs))
    numeric = tuple(name for name in names if kinds[name] in NUMERIC)
    views = tuple(
        _view_plan(store, view, wanted_features, numeric, full_feature_names)
        for view, wanted_features in grouped
    )
    return Plan(
        names=names,
        numeric_names=numeric,
        views=views,
        on_demand=on_demand,
        entity_names=tuple(dict.fromkeys(n for view in views for n in view.join_keys.values())),
        request_names=tuple(sorted(resolved[7])),
        full_feature_names=full_feature_names,
    )


def _as_feast_takes_it(
    store: FeatureStore, features: str | FeatureService | Sequence[str]
) -> FeatureService | list[str]:
    if isinstance(features, FeatureService):
        return features
    if isinstance(features, str):
        if ":" in features:
            return [features]
        return store.registry.get_feature_service(features, store.project, allow_cache=True)
    return list(features)


def _shown(features: Any) -> str:
    if isinstance(features, FeatureService):
        return f"feature service {features.name!r}"
    if isinstance(features, str):
        return f"{'feature' if ':' in features else 'feature service'} {features!r}"
    return f"the features {', '.join(map(repr, features)) or '(none)'}"


def _output_name(reference: str, full_feature_names: bool) -> str:
    view, version, feature = utils._parse_feature_ref(reference)
    if not full_feature_names:
        return str(feature)
    return f"{view}__{feature}" if version is None else f"{view}@v{version}__{feature}"


def _name_of(view: Any, feature: str, full_feature_names: bool) -> str:
    return f"{view.projection.name_to_use()}__{feature}" if full_feature_names else feature


def _value_types(grouped: Sequence[tuple[Any, list[str]]], full: bool) -> dict[str, str]:
    return {
        _name_of(view, field.name, full): field.dtype.to_value_type().name
        for view, wanted in grouped
        for field in view.features
        if field.name in wanted
    }


def _view_plan(
    store: FeatureStore, view: Any, wanted: list[str], numeric: Sequence[str], full: bool
) -> ViewPlan:
    layout = layout_of(store.config, view)
    columns = layout.schema.columns
    unknown = [name for name in wanted if name not in columns]
    if unknown:
        raise RequestError(
            f"feature view {view.name} has no {', '.join(unknown)}; it has {', '.join(columns)}"
        )
    # The order of the row, so that what can be copied together is found together.
    features = tuple(
        FeatureRead(column, _name_of(view, column.name, full))
        for column in columns.values()
        if column.name in wanted
    )
    aliases = view.projection.join_key_map
    return ViewPlan(
        name=view.projection.name_to_use(),
        layout=layout,
        join_keys={
            name: aliases.get(name, name)
            for name, _ in layout.keys.join_keys
            if name != DUMMY_ENTITY_ID
        },
        features=features,
        blocks=_blocks(features, {name: place for place, name in enumerate(numeric)}),
    )


def _blocks(features: Sequence[FeatureRead], targets: Mapping[str, int]) -> tuple[BlockCopy, ...]:
    blocks: list[BlockCopy] = []
    end, dtype = -1, ""
    for column, output in features:
        if column.storage.kind is not Kind.FIXED or output not in targets:
            continue
        target = targets[output]
        last = blocks[-1] if blocks else None
        follows = last is not None and target == last.target + last.width
        if last is not None and follows and column.place == end and column.storage.dtype == dtype:
            blocks[-1] = last._replace(width=last.width + 1)
        else:
            blocks.append(BlockCopy(column.name, 1, target))
        dtype = column.storage.dtype
        end = column.place + np.dtype(dtype).itemsize
    return tuple(blocks)


def _on_demand_plan(
    view: Any, references: Sequence[str], grouped: Sequence[tuple[Any, list[str]]], full: bool
) -> OnDemandPlan:
    if view.aggregations:
        raise UnsupportedError(
            f"on-demand view {view.name} aggregates at request time, which FeatureReader does "
            "not do; read it with FeatureStore.get_online_features"
        )
    own_name = view.projection.name_to_use()
    requested = {
        feature
        for name, _, feature in map(utils._parse_feature_ref, references)
        if name == own_name
    }
    pairs = tuple(
        (field.name, field.dtype.to_value_type().name)
        for field in view.features
        if field.name in requested
    )
    schema = RowSchema(pairs)
    # As in Feast, a function sees only the features of the sources that it declares.
    declared = {p.name: p for p in view.source_feature_view_projections.values()}
    inputs = tuple(
        _name_of(source, feature, full)
        for source, wanted in grouped
        if source.projection.name_to_use() in declared or source.name in declared
        for feature in wanted
    )
    return OnDemandPlan(
        view=view,
        inputs=inputs,
        outputs={_name_of(view, name, full): schema.columns[name] for name, _ in pairs},
    )

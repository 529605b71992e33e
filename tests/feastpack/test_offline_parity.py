"""Generated histories and requests: our offline store against Feast's and a brute-force reading."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.repo_config import RepoConfig
from feast.types import Array, Float64, Int64, String
from hypothesis import HealthCheck, Phase, given, settings

pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")

EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
TIME = pa.timestamp("us", tz="UTC")
STOCK, OURS = "duckdb", "feastpack.AsofDuckDBOfflineStore"

#: view -> (join keys, ttl in minutes, has a created column)
VIEWS: dict[str, tuple[tuple[str, ...], int | None, bool]] = {
    "plain": (("k",), None, False),
    "short": (("k",), 5, True),
    "pair": (("k", "c"), 12, True),
    "text": (("c",), 0, True),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeatureStore]:
    folder = tmp_path_factory.mktemp("parity")
    entities = [
        Entity(name="of_k", join_keys=["k"], value_type=ValueType.INT64),
        Entity(name="of_c", join_keys=["c"], value_type=ValueType.STRING),
    ]
    by_key = {entity.join_key: entity for entity in entities}
    views = [
        FeatureView(
            name=name,
            entities=[by_key[key] for key in keys],
            ttl=None if ttl is None else timedelta(minutes=ttl),
            schema=[
                Field(name=f"{name}_value", dtype=Float64),
                Field(name=f"{name}_list", dtype=Array(Int64)),
                Field(name=f"{name}_word", dtype=String),
                *[Field(name=key, dtype=Int64 if key == "k" else String) for key in keys],
            ],
            source=FileSource(
                name=name,
                path=str(folder / f"{name}.parquet"),
                timestamp_field="at",
                created_timestamp_column="made" if created else "",
                field_mapping={"raw": f"{name}_value", "when": "at"},
            ),
        )
        for name, (keys, ttl, created) in VIEWS.items()
    ]
    found = {}
    for view in VIEWS:
        write_history(folder, view, [])
    for kind in (STOCK, OURS):
        store = FeatureStore(
            config=RepoConfig(
                project="parity",
                provider="local",
                registry=str(folder / f"registry_{len(found)}.db"),
                online_store=None,
                offline_store={"type": kind},
                entity_key_serialization_version=3,
                repo_path=folder,
            )
        )
        # Feast cannot compare a service that holds a view both with and without an alias.
        service = FeatureService(
            name="all",
            features=[
                *(view for view in views if view.name != "short"),
                views[1].with_name("own"),
                views[1].with_name("other").with_join_key_map({"k": "k_other"}),
            ],
        )
        store.apply([*entities, *views, service])
        found[kind] = store
    return found


def write_history(folder: Path, view: str, rows: list[dict[str, Any]]) -> None:
    keys, _, created = VIEWS[view]
    types = {"k": pa.int64(), "c": pa.string()}
    columns = {
        **{key: pa.array([row[key] for row in rows], types[key]) for key in keys},
        "when": pa.array([minutes(row["at"]) for row in rows], TIME),
        "raw": pa.array([row["value"] for row in rows], pa.float64()),
        f"{view}_list": pa.array([row["list"] for row in rows], pa.list_(pa.int64())),
        f"{view}_word": pa.array([row["word"] for row in rows], pa.string()),
    }
    if created:
        columns["made"] = pa.array([minutes(row["made"]) for row in rows], TIME)
    pq.write_table(pa.table(columns), folder / f"{view}.parquet")


def minutes(count: int | None) -> datetime | None:
    return None if count is None else EPOCH + timedelta(minutes=count)


def histories(view: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Rows without two that only their values tell apart: Feast leaves their order open."""
    keys, _, created = VIEWS[view]
    identity = [*keys, "at", *(["made"] if created else [])]
    row = st.fixed_dictionaries(
        {
            "k": st.none() | st.integers(0, 3),
            "c": st.none() | st.sampled_from(["", "a", "é1"]),
            "at": st.integers(0, 30),
            "made": st.none() | st.integers(0, 40),
            "value": st.none() | st.floats(-5, 5),
            "list": st.none() | st.lists(st.integers(0, 9), max_size=3),
            "word": st.none() | st.sampled_from(["", "x", "yz"]),
        }
    )
    return st.lists(row, max_size=25, unique_by=lambda row: tuple(row[name] for name in identity))


ENTITY_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "k": st.none() | st.integers(0, 4),
            "c": st.none() | st.sampled_from(["", "a", "é1", "zz"]),
            "k_other": st.none() | st.integers(0, 4),
            "at": st.integers(0, 45),
        }
    ),
    min_size=1,
    max_size=20,
)
WORLDS = st.fixed_dictionaries({view: histories(view) for view in VIEWS})


def entity_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "k": pd.array([row["k"] for row in rows], "Int64"),
            "event_timestamp": pd.Series(
                [minutes(row["at"]) for row in rows], dtype="datetime64[us, UTC]"
            ),
            "c": pd.Series([row["c"] for row in rows], dtype=object),
            "k_other": pd.array([row["k_other"] for row in rows], "Int64"),
            "row": range(len(rows)),
        }
    )


def brute_force(
    world: dict[str, list[dict[str, Any]]], rows: list[dict[str, Any]], by_created: bool
) -> dict[str, list[Any]]:
    """The definition, row by row: what was known at the time, the last of it, if not expired."""
    never = -1
    result: dict[str, list[Any]] = {}
    requests = [(name, name, {}) for name in VIEWS if name != "short"]
    requests += [("own", "short", {}), ("other", "short", {"k": "k_other"})]
    for prefix, view, renamed in requests:
        keys, ttl, created = VIEWS[view]
        for entity in rows:
            wanted = [entity[renamed.get(key, key)] for key in keys]
            known = [
                row
                for row in world[view]
                if None not in wanted
                and [row[key] for key in keys] == wanted
                and row["at"] <= entity["at"]
                and (not ttl or row["at"] + ttl >= entity["at"])
                and (
                    not (by_created and created)
                    or (row["made"] is not None and row["made"] <= entity["at"])
                )
            ]
            best = max(
                known,
                key=lambda row: (row["at"], never if row["made"] is None else row["made"]),
                default=None,
            )
            for feature in ("value", "list", "word"):
                column = result.setdefault(f"{prefix}__{view}_{feature}", [])
                column.append(best[feature] if best else None)
    return result


def check_parity(
    stores: dict[str, FeatureStore],
    world: dict[str, list[dict[str, Any]]],
    rows: list[dict[str, Any]],
    by_created: bool,
) -> None:
    for view, history in world.items():
        write_history(Path(stores[OURS].config.repo_path), view, history)
    results = {}
    for kind, store in stores.items():
        job = store.get_historical_features(
            entity_frame(rows),
            store.get_feature_service("all"),
            full_feature_names=True,
            filter_by_created_timestamp=by_created,
        )
        results[kind] = job.to_arrow()
    ours = results[OURS]
    assert ours.column("row").to_pylist() == list(range(len(rows)))
    stock = results[STOCK].sort_by("row")
    assert sorted(ours.column_names) == sorted(stock.column_names)
    for name in stock.column_names:
        assert ours.column(name).to_pylist() == stock.column(name).to_pylist(), name
        assert ours.schema.field(name).type == stock.schema.field(name).type, name
    for name, values in brute_force(world, rows, by_created).items():
        assert ours.column(name).to_pylist() == values, name


GENERATED = given(world=WORLDS, rows=ENTITY_ROWS, by_created=st.booleans())
SHARED = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


# A failure of the short test is not minimized: that takes minutes. The long one does it.
@settings(max_examples=12, phases=(Phase.explicit, Phase.generate), **SHARED)
@GENERATED
def test_same_as_feast(stores: dict[str, FeatureStore], **generated: Any) -> None:
    check_parity(stores, **generated)


@pytest.mark.slow
@settings(max_examples=300, **SHARED)
@GENERATED
def test_same_as_feast_at_length(stores: dict[str, FeatureStore], **generated: Any) -> None:
    check_parity(stores, **generated)

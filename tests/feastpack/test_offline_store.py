"""Hand-worked cases of the offline store: sources, entity rows, pulls, writes, errors."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    Field,
    FileSource,
    RequestSource,
    ValueType,
)
from feast.data_format import DeltaFormat
from feast.errors import (
    EntityTimestampInferenceException,
    FeastEntityDFMissingColumnsError,
    SavedDatasetLocationAlreadyExists,
)
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String
from offline_repository import (
    DRIVER,
    OURS,
    TIME,
    at,
    entity_rows,
    local_store,
    trip_view,
    trips,
    write,
)

from feastpack.errors import OfflineStoreError, RequestError, SchemaError, UnsupportedError

HISTORY = [(1, 0, 1.0), (1, 10, 2.0), (2, 5, 3.0), (2, 5, 4.0), (None, 0, 9.0)]
ROWS = [(2, 6), (1, 9), (1, 10), (3, 50), (None, 50), (1, 9)]
#: At equal times and without a created column the last row of the files wins.
RATINGS = [4.0, 1.0, 2.0, None, None, 1.0]


def ratings(store: FeatureStore, rows: object = None, **options: object) -> list[float | None]:
    entities = entity_rows(ROWS) if rows is None else rows
    job = store.get_historical_features(entities, ["trips:rating"], **options)
    return job.to_arrow().column("rating").to_pylist()


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return local_store(tmp_path, [DRIVER, trip_view(write(trips(HISTORY), tmp_path / "a.parquet"))])


class TestSources:
    def test_single_file(self, store: FeatureStore) -> None:
        assert ratings(store) == RATINGS

    def test_relative_path_starts_at_the_repository(self, tmp_path: Path) -> None:
        write(trips(HISTORY), tmp_path / "data" / "a.parquet")
        assert ratings(local_store(tmp_path, [DRIVER, trip_view("data/a.parquet")])) == RATINGS

    def test_relative_path_of_the_current_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(trips(HISTORY), tmp_path / "elsewhere" / "a.parquet")
        monkeypatch.chdir(tmp_path / "elsewhere")
        (tmp_path / "repo").mkdir()
        assert ratings(local_store(tmp_path / "repo", [DRIVER, trip_view("a.parquet")])) == RATINGS

    @pytest.mark.parametrize("path", ["lake", "lake/*.parquet", "lake/p?rt*.parquet"])
    def test_folders_and_globs(self, tmp_path: Path, path: str) -> None:
        for number, row in enumerate(HISTORY):
            write(trips([row]), tmp_path / "lake" / f"part{number}.parquet")
        assert ratings(local_store(tmp_path, [DRIVER, trip_view(path)])) == RATINGS

    @pytest.mark.parametrize("path", ["la[k]e*", "la[k]e*/a?.parquet"])
    def test_names_with_glob_characters(self, tmp_path: Path, path: str) -> None:
        write(trips(HISTORY), tmp_path / "la[k]e*" / "a?.parquet")
        write(trips([(1, 0, -1.0)]), tmp_path / "lake1" / "ab.parquet")
        assert ratings(local_store(tmp_path, [DRIVER, trip_view(path)])) == RATINGS

    def test_hive_partitions_are_columns(self, tmp_path: Path) -> None:
        for driver in (1, 2):
            rows = trips([row for row in HISTORY if row[0] == driver])
            part = tmp_path / "lake" / f"driver_id={driver}" / "part.parquet"
            write(rows.drop_columns(["driver_id"]), part)
        assert ratings(local_store(tmp_path, [DRIVER, trip_view("lake")])) == RATINGS

    def test_a_column_added_later_is_null_before(self, tmp_path: Path) -> None:
        write(trips([(1, 0, None)]).drop_columns(["rating"]), tmp_path / "lake" / "a.parquet")
        write(trips([(1, 5, 7.0)]), tmp_path / "lake" / "b.parquet")
        store = local_store(tmp_path, [DRIVER, trip_view("lake")])
        assert ratings(store, entity_rows([(1, 4), (1, 5)])) == [None, 7.0]

    def test_uri(self, tmp_path: Path) -> None:
        path = write(trips(HISTORY), tmp_path / "a.parquet")
        assert ratings(local_store(tmp_path, [DRIVER, trip_view(path.as_uri())])) == RATINGS

    def test_columns_named_like_duckdbs_row_numbers(self, tmp_path: Path) -> None:
        table = trips(HISTORY).append_column("file_row_number", pa.array([0] * len(HISTORY)))
        path = write(table, tmp_path / "a.parquet")
        assert ratings(local_store(tmp_path, [DRIVER, trip_view(path)])) == RATINGS

    @pytest.mark.parametrize("kind", ["timestamp[ns, tz=UTC]", "timestamp[ns]", "timestamp[ms]"])
    def test_other_timestamp_types(self, tmp_path: Path, kind: str) -> None:
        unit, zone = kind[10:12], "UTC" if "tz" in kind else None
        table = trips(HISTORY)
        times = table.column("event_timestamp").cast(pa.timestamp(unit, tz=zone))
        path = write(table.set_column(1, "event_timestamp", times), tmp_path / "a.parquet")
        assert ratings(local_store(tmp_path, [DRIVER, trip_view(path)])) == RATINGS

    def test_nanoseconds_count(self, tmp_path: Path) -> None:
        times = pa.array([1_000_000_100, 1_000_000_300], pa.timestamp("ns", tz="UTC"))
        table = pa.table({"driver_id": [1, 1], "event_timestamp": times, "rating": [1.0, 2.0]})
        view = trip_view(write(table, tmp_path / "a.parquet"), ttl=timedelta(seconds=1))
        asked = [1_000_000_099, 1_000_000_299, 1_000_000_300, 2_000_000_300, 2_000_000_301]
        rows = pa.table(
            {
                "driver_id": [1] * 5,
                "event_timestamp": pa.array(asked, pa.timestamp("ns", tz="UTC")),
            }
        )
        store = local_store(tmp_path, [DRIVER, view])
        assert ratings(store, rows) == [None, 1.0, 2.0, 2.0, None]
        assert ratings(store, rows.to_pandas()) == [None, 1.0, 2.0, 2.0, None]

    def test_missing_file(self, tmp_path: Path) -> None:
        path = write(trips(HISTORY), tmp_path / "nowhere.parquet")
        store = local_store(tmp_path, [DRIVER, trip_view(path)])
        path.unlink()
        with pytest.raises(SchemaError, match=r"found no parquet file at .*nowhere\.parquet"):
            ratings(store)

    def test_missing_column(self, tmp_path: Path) -> None:
        write(
            trips(HISTORY).rename_columns(["driver_id", "event_timestamp", "stars"]),
            path := (tmp_path / "a.parquet"),
        )
        store = local_store(tmp_path, [DRIVER, trip_view(path)])
        with pytest.raises(SchemaError, match=r"no column 'rating' among driver_id.*stars"):
            ratings(store)

    def test_other_formats_are_refused(self, tmp_path: Path) -> None:
        source = FileSource(
            name="delta",
            path="d",
            timestamp_field="event_timestamp",
            file_format=DeltaFormat(),
        )
        store = local_store(tmp_path, [DRIVER])
        view = trip_view("d", source=source)
        with pytest.raises(UnsupportedError, match="found DeltaFormat, expected a FileSource"):
            store._get_provider().offline_store.get_historical_features(
                store.config, [view], ["trips:rating"], entity_rows(ROWS), store.registry, "trips"
            )


class TestEntityRows:
    def test_pandas_arrow_and_sql_agree(self, store: FeatureStore, tmp_path: Path) -> None:
        rows = entity_rows(ROWS)
        write(rows, tmp_path / "rows.parquet")
        assert ratings(store, rows.to_pandas()) == RATINGS
        assert ratings(store, rows) == RATINGS
        assert ratings(store, "SELECT * FROM 'rows.parquet'") == RATINGS

    def test_other_columns_and_the_frame_are_left_alone(self, store: FeatureStore) -> None:
        frame = entity_rows(ROWS).to_pandas().assign(label=range(6), event_timestamp="2024-01-02")
        before = frame.copy()
        result = store.get_historical_features(frame, ["trips:rating"]).to_df()
        pd.testing.assert_frame_equal(frame, before)
        assert result["label"].tolist() == list(range(6))
        assert result["event_timestamp"].iloc[0] == pd.Timestamp("2024-01-02", tz="UTC")

    def test_the_only_time_column_is_taken(self, store: FeatureStore) -> None:
        rows = entity_rows(ROWS).rename_columns(["driver_id", "asked_at"])
        assert ratings(store, rows) == RATINGS

    def test_naive_times_are_utc_and_dates_are_midnights(self, store: FeatureStore) -> None:
        naive = entity_rows(ROWS)
        times = naive.column("event_timestamp").cast(pa.timestamp("us"))
        assert ratings(store, naive.set_column(1, "event_timestamp", times)) == RATINGS
        days = naive.column("event_timestamp").cast(pa.date32())
        assert ratings(store, naive.set_column(1, "event_timestamp", days))[1] == 1.0

    def test_no_rows(self, store: FeatureStore) -> None:
        job = store.get_historical_features(entity_rows([]), ["trips:rating"])
        assert job.to_arrow().schema.names == ["driver_id", "event_timestamp", "rating"]
        assert job.to_df().empty

    def test_period_without_entity_rows(self, store: FeatureStore) -> None:
        job = store.get_historical_features(
            None, ["trips:rating"], start_date=at(5), end_date=at(9)
        )
        assert job.to_arrow().to_pylist() == [
            {"driver_id": 2, "event_timestamp": at(9), "rating": 4.0}
        ]

    def test_entityless_view(self, tmp_path: Path) -> None:
        path = write(trips(HISTORY[:2]), tmp_path / "a.parquet")
        schema = [Field(name="rating", dtype=Float64)]
        store = local_store(tmp_path, [trip_view(path, entities=[], schema=schema)])
        times = pa.table({"event_timestamp": pa.array([at(-1), at(3), at(99)], TIME)})
        assert ratings(store, times) == [None, 1.0, 2.0]
        assert ratings(store, times.to_pandas()) == [None, 1.0, 2.0]

    def test_many_rows_and_few_rows_agree(self, store: FeatureStore) -> None:
        # DuckDB joins few rows by another algorithm.
        assert ratings(store, entity_rows(ROWS * 200)) == RATINGS * 200

    def test_missing_key(self, store: FeatureStore) -> None:
        with pytest.raises(FeastEntityDFMissingColumnsError, match="driver_id"):
            ratings(store, entity_rows(ROWS).drop_columns(["driver_id"]))

    def test_no_time_column(self, store: FeatureStore) -> None:
        with pytest.raises(EntityTimestampInferenceException, match="event_timestamp"):
            ratings(store, pa.table({"driver_id": [1]}))

    def test_text_is_not_compared_with_numbers(self, store: FeatureStore) -> None:
        rows = entity_rows(ROWS)
        text = rows.set_column(0, "driver_id", rows.column("driver_id").cast(pa.string()))
        with pytest.raises(SchemaError, match=r"'driver_id' is string in entity_df and BIGINT"):
            ratings(store, text)

    def test_a_feature_named_like_a_column(self, store: FeatureStore) -> None:
        rows = entity_rows(ROWS).append_column("rating", pa.array([7.0] * 6))
        with pytest.raises(RequestError, match="has columns with the names of features: rating"):
            ratings(store, rows)
        job = store.get_historical_features(rows, ["trips:rating"], full_feature_names=True)
        assert job.to_arrow().column("trips__rating").to_pylist() == RATINGS

    @pytest.mark.parametrize(("kind", "expected"), [("duckdb", [2.0, 2.0]), (OURS, [1.0, 2.0])])
    @pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")
    def test_an_alias_of_one_key_keeps_the_other(
        self, tmp_path: Path, kind: str, expected: list[float]
    ) -> None:
        """A difference: Feast's store then joins on the renamed key alone."""
        city = Entity(name="city", join_keys=["city"], value_type=ValueType.STRING)
        table = trips([(1, 0, 1.0), (1, 1, 2.0)]).append_column("city", pa.array(["a", "b"]))
        schema = [
            Field(name="rating", dtype=Float64),
            Field(name="driver_id", dtype=Int64),
            Field(name="city", dtype=String),
        ]
        path = write(table, tmp_path / "a.parquet")
        view = trip_view(path, entities=[DRIVER, city], schema=schema)
        alias = view.with_join_key_map({"driver_id": "rider_id"})
        service = FeatureService(name="riders", features=[alias])
        store = local_store(tmp_path, [DRIVER, city, view, service], kind)
        rows = entity_rows([(1, 5), (1, 5)]).rename_columns(["rider_id", "event_timestamp"])
        rows = rows.append_column("city", pa.array(["a", "b"]))
        job = store.get_historical_features(rows.to_pandas(), store.get_feature_service("riders"))
        assert job.to_arrow().column("rating").to_pylist() == expected

    def test_what_is_no_table(self, store: FeatureStore) -> None:
        with pytest.raises(RequestError, match="found int, expected a pandas DataFrame"):
            ratings(store, 5)

    def test_broken_sql(self, store: FeatureStore) -> None:
        with pytest.raises(OfflineStoreError, match="nothing_here"):
            ratings(store, "SELECT * FROM nothing_here")


@on_demand_feature_view(
    sources=[
        trip_view("a.parquet"),
        RequestSource(name="asked", schema=[Field(name="bonus", dtype=Float64)]),
    ],
    schema=[Field(name="with_bonus", dtype=Float64)],
)
def computed(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"with_bonus": frame["rating"] + frame["bonus"]})


class TestJobs:
    @pytest.mark.filterwarnings("ignore:On demand feature view is an experimental:RuntimeWarning")
    def test_on_demand_views_run_on_all_forms_of_the_result(self, tmp_path: Path) -> None:
        write(trips(HISTORY), tmp_path / "a.parquet")
        store = local_store(tmp_path, [DRIVER, trip_view("a.parquet"), computed])
        rows = entity_rows(ROWS[:3]).append_column("bonus", pa.array([0.5, 0.25, 0.0]))
        job = store.get_historical_features(
            rows.to_pandas(), ["trips:rating", "computed:with_bonus"]
        )
        assert job.to_df()["with_bonus"].tolist() == [4.5, 1.25, 2.0]
        streamed = pa.Table.from_batches(list(job.to_record_batches(2)))
        assert streamed.equals(job.to_arrow().combine_chunks())

    def test_more_features_than_are_read_at_once(self, tmp_path: Path) -> None:
        names = [f"f{number}" for number in range(23)]
        table = trips(HISTORY)
        for number, name in enumerate(names):
            table = table.append_column(name, pa.array([number, None, -number, number, 0]))
        schema = [Field(name=name, dtype=Int64) for name in names]
        view = trip_view(write(table, tmp_path / "a.parquet"), schema=schema)
        store = local_store(tmp_path, [DRIVER, view])
        job = store.get_historical_features(entity_rows(ROWS[:3]), [f"trips:{n}" for n in names])
        rows = zip(*(job.to_arrow().column(name).to_pylist() for name in names), strict=True)
        numbers = tuple(range(23))
        assert list(rows) == [numbers, numbers, (None,) * 23]

    def test_batches_are_the_table(self, store: FeatureStore) -> None:
        job = store.get_historical_features(entity_rows(ROWS), ["trips:rating"])
        batches = list(job.to_record_batches(4))
        assert [batch.num_rows for batch in batches] == [4, 2]
        assert pa.Table.from_batches(batches).equals(job.to_arrow().combine_chunks())
        assert job.count_rows() == 6

    def test_sql_says_what_runs(self, store: FeatureStore) -> None:
        sql = store.get_historical_features(entity_rows(ROWS), ["trips:rating"]).to_sql()
        assert "JOIN entity_keys AS e ON h.k0 = e.k0 AND h.visible <= e.latest" in sql

    def test_saved_dataset(self, tmp_path: Path) -> None:
        write(trips(HISTORY), tmp_path / "a.parquet")
        store = local_store(tmp_path, [DRIVER, trip_view("a.parquet")])
        for path in ("saved.parquet", "saved_folder"):
            job = store.get_historical_features(entity_rows(ROWS[:3]), ["trips:rating"])
            storage = SavedDatasetFileStorage(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                saved = store.create_saved_dataset(job, "kept", storage)
                again = store.get_saved_dataset("kept")
            assert saved.to_df()["rating"].tolist() == RATINGS[:3]
            assert again.to_df()["rating"].tolist() == RATINGS[:3]
            with pytest.raises(SavedDatasetLocationAlreadyExists, match=path):
                job.persist(storage)
            fewer = store.get_historical_features(entity_rows(ROWS[:1]), ["trips:rating"])
            fewer.persist(storage, allow_overwrite=True)
            assert pq.read_table(tmp_path / path).num_rows == 1
        assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]

    def test_empty_results_can_be_kept(self, store: FeatureStore, tmp_path: Path) -> None:
        job = store.get_historical_features(entity_rows([]), ["trips:rating"])
        job.persist(SavedDatasetFileStorage("none.parquet"))
        assert pq.read_schema(tmp_path / "none.parquet").names[-1] == "rating"

    def test_settings_reach_duckdb(self, tmp_path: Path) -> None:
        view = trip_view(write(trips(HISTORY), tmp_path / "a.parquet"))
        store = local_store(
            tmp_path,
            [DRIVER, view],
            memory_limit="100MB",
            temp_directory=str(tmp_path / "spill"),
            threads=1,
            batch_rows=2,
        )
        rows = "SELECT 1::BIGINT AS driver_id, now() AS event_timestamp, {} AS setting"
        settings = ["memory_limit", "temp_directory", "threads"]
        asked = [f"current_setting('{name}')::VARCHAR" for name in settings]
        job = store.get_historical_features(rows.format(f"[{', '.join(asked)}]"), ["trips:rating"])
        limit, folder, threads = job.to_arrow().column("setting").to_pylist()[0]
        assert (limit, folder, threads) == ("95.3 MiB", str(tmp_path / "spill"), "1")

    def test_refused_settings(self, tmp_path: Path) -> None:
        view = trip_view(write(trips(HISTORY), tmp_path / "a.parquet"))
        store = local_store(tmp_path, [DRIVER, view], memory_limit="much")
        with pytest.raises(OfflineStoreError, match="refused the settings"):
            ratings(store)


class TestWrites:
    def test_a_file_is_appended_to(self, store: FeatureStore) -> None:
        store.write_to_offline_store("trips", trips([(3, 20, 8.0)]).to_pandas())
        assert ratings(store) == [4.0, 1.0, 2.0, 8.0, None, 1.0]

    def test_a_folder_gets_a_file(self, tmp_path: Path) -> None:
        write(trips(HISTORY), tmp_path / "lake" / "a.parquet")
        store = local_store(tmp_path, [DRIVER, trip_view("lake")])
        store.write_to_offline_store("trips", trips([(3, 20, 8.0)]).to_pandas())
        assert len(list((tmp_path / "lake").iterdir())) == 2
        assert ratings(store) == [4.0, 1.0, 2.0, 8.0, None, 1.0]

    def test_a_partitioned_folder_gets_partitions(self, tmp_path: Path) -> None:
        part = tmp_path / "lake" / "driver_id=1" / "a.parquet"
        write(trips([(1, 0, 1.0)]).drop_columns(["driver_id"]), part)
        store = local_store(tmp_path, [DRIVER, trip_view("lake")])
        provider = store._get_provider()
        table = trips([(3, 20, 8.0)]).select(["event_timestamp", "rating", "driver_id"])
        provider.offline_store.offline_write_batch(
            store.config, store.get_feature_view("trips"), table, None
        )
        assert (tmp_path / "lake" / "driver_id=3").is_dir()
        assert ratings(store)[3] == 8.0

    def test_wrong_columns(self, store: FeatureStore) -> None:
        wrong = trips([(3, 20, 8.0)]).rename_columns(["driver_id", "event_timestamp", "stars"])
        with pytest.raises(SchemaError, match=r"incorrect columns .*'stars'"):
            store._get_provider().offline_store.offline_write_batch(
                store.config, store.get_feature_view("trips"), wrong, None
            )

    def test_globs_cannot_be_written(self, tmp_path: Path) -> None:
        write(trips(HISTORY), tmp_path / "lake" / "a.parquet")
        store = local_store(tmp_path, [DRIVER, trip_view("lake/*.parquet")])
        with pytest.raises(UnsupportedError, match="not to a URI or a glob"):
            store._get_provider().offline_store.offline_write_batch(
                store.config, store.get_feature_view("trips"), trips([(3, 20, 8.0)]), None
            )

    @pytest.mark.parametrize("partition_by", [None, ["driver_id"]])
    def test_logged_features_come_back(
        self, tmp_path: Path, partition_by: list[str] | None
    ) -> None:
        view = trip_view(write(trips(HISTORY), tmp_path / "a.parquet"))
        destination = FileLoggingDestination(path="logs", partition_by=partition_by)
        service = FeatureService(
            name="ranker", features=[view], logging_config=LoggingConfig(destination=destination)
        )
        store = local_store(tmp_path, [DRIVER, view, service])
        logs = pa.table(
            {
                "driver_id": [1, 2],
                "trips__rating": [1.0, None],
                "trips__rating__timestamp": pa.array([at(0), at(0)], TIME),
                "trips__rating__status": pa.array([2, 2], pa.int32()),
                "__log_timestamp": pa.array([at(1), at(2)], TIME),
                "__log_date": pa.array([at(1).date(), at(2).date()]),
                "__request_id": ["a", "b"],
            }
        )
        store.write_logged_features(logs, store.get_feature_service("ranker"))
        job = store._get_provider().retrieve_feature_service_logs(
            service, at(0), at(1), store.config, store.registry
        )
        found = job.to_arrow()
        assert found.column("__request_id").to_pylist() == ["a"]
        assert found.column("driver_id").to_pylist() == [1]


class TestPulls:
    def pull(self, store: FeatureStore, latest: bool, **options: object) -> pa.Table:
        offline = store._get_provider().offline_store
        method = (
            offline.pull_latest_from_table_or_query
            if latest
            else offline.pull_all_from_table_or_query
        )
        source = store.get_feature_view("trips").batch_source
        defaults = {
            "join_key_columns": ["driver_id"],
            "feature_name_columns": ["rating"],
            "timestamp_field": "event_timestamp",
            "created_timestamp_column": None,
            "start_date": at(0),
            "end_date": at(10),
        }
        return method(config=store.config, data_source=source, **{**defaults, **options}).to_arrow()

    def test_latest(self, store: FeatureStore) -> None:
        rows = self.pull(store, latest=True).to_pylist()
        assert [(row["driver_id"], row["rating"]) for row in rows] == [
            (1, 2.0),
            (2, 4.0),
            (None, 9),
        ]
        earlier = self.pull(store, latest=True, end_date=at(9)).to_pylist()
        assert (1, 1.0) in [(row["driver_id"], row["rating"]) for row in earlier]

    def test_created_times_decide_with_null_last(self, tmp_path: Path) -> None:
        table = trips([(1, 0, 1.0), (1, 0, 2.0), (1, 0, 3.0), (2, 0, 4.0)])
        made = pa.array([at(5), at(9), None, None], TIME)
        path = write(table.append_column("made", made), tmp_path / "a.parquet")
        store = local_store(tmp_path, [DRIVER, trip_view(path)])
        latest = self.pull(store, latest=True, created_timestamp_column="made")
        assert sorted(latest.column("rating").to_pylist()) == [2.0, 4.0]

    def test_all_between_two_times(self, store: FeatureStore) -> None:
        assert self.pull(store, latest=False).num_rows == 5
        between = self.pull(store, latest=False, start_date=at(1), end_date=at(5))
        assert between.column("rating").to_pylist() == [3.0, 4.0]
        assert self.pull(store, latest=False, start_date=None, end_date=None).num_rows == 5

    def test_no_feature_columns_mean_all(self, store: FeatureStore) -> None:
        everything = self.pull(store, latest=False, feature_name_columns=[])
        assert everything.column_names == ["driver_id", "event_timestamp", "rating"]

    def test_without_keys_there_is_one_latest_row(self, store: FeatureStore) -> None:
        latest = self.pull(store, latest=True, join_key_columns=[])
        assert latest.column("rating").to_pylist() == [2.0]


def test_types_of_integers_survive_nulls(tmp_path: Path) -> None:
    table = trips(HISTORY[:1]).append_column("count", pa.array([7], pa.int64()))
    view = trip_view(
        write(table, tmp_path / "a.parquet"), schema=[Field(name="count", dtype=Int64)]
    )
    store = local_store(tmp_path, [DRIVER, view])
    result = store.get_historical_features(entity_rows(ROWS), ["trips:count"]).to_arrow()
    assert result.column("count").to_pylist() == [None, 7, 7, None, None, 7]
    assert result.schema.field("count").type == pa.int64()

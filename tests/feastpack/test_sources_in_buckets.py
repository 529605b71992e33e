"""Sources and saved datasets in object storage give what the same files give on disk."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore, FileSource
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from offline_repository import DRIVER, entity_rows, local_store, trip_view, trips, write
from s3_server import BUCKET, S3Server

from feastpack.errors import OfflineStoreError, SchemaError

HISTORY = trips([(driver, minute, minute / 7) for minute in range(40) for driver in range(5)])
ROWS = entity_rows([(4, 3), (0, 39), (2, 7.5), (9, 1), (2, 7.5)])


def joined(store: FeatureStore) -> pa.Table:
    return store.get_historical_features(ROWS, ["trips:rating"]).to_arrow()


def source_at(path: str, **options: str) -> FileSource:
    return FileSource(name="trips", path=path, timestamp_field="event_timestamp", **options)


def file(folder: Path) -> str:
    write(HISTORY, folder / "trips.parquet")
    return "trips.parquet"


def folder_of_months(folder: Path) -> str:
    for month, start in ((1, 0), (2, 100)):
        write(HISTORY.slice(start, 100), folder / f"trips/month={month}/part-0.parquet")
    (folder / "trips" / "_SUCCESS").write_text("")
    return "trips"


@pytest.mark.parametrize("layout", [file, folder_of_months])
def test_a_source_in_a_bucket_is_joined_like_one_on_disk(tmp_path: Path, s3: S3Server, layout):
    name = layout(tmp_path / "disk")
    shutil.copytree(tmp_path / "disk", s3.folder / "features")
    (tmp_path / "there").mkdir()
    here = local_store(tmp_path, [DRIVER, trip_view(tmp_path / "disk" / name)])
    source = source_at(f"s3://{BUCKET}/features/{name}")
    there = local_store(tmp_path / "there", [DRIVER, trip_view("", source=source)])
    expected = joined(here)
    assert expected["rating"].null_count == 1
    assert joined(there).equals(expected)


def test_many_threads_read_one_file(tmp_path: Path, s3: S3Server):
    history = trips([(row % 97, row // 97, row / 7) for row in range(200_000)])
    path = write(history, tmp_path / "trips.parquet")
    pq.write_table(history, s3.folder / "trips.parquet", row_group_size=5_000)
    source = source_at(f"s3://{BUCKET}/trips.parquet")
    (tmp_path / "there").mkdir()
    rows = entity_rows([(driver, minute) for driver in range(97) for minute in range(0, 2000, 50)])
    here, there = (
        store.get_historical_features(rows, ["trips:rating"]).to_arrow()
        for store in (
            local_store(tmp_path, [DRIVER, trip_view(path)], threads=4),
            local_store(tmp_path / "there", [DRIVER, trip_view("", source=source)], threads=4),
        )
    )
    assert there.equals(here)


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path, s3: S3Server):
    large = pa.array([f"{row:>20000}"[::-1] for row in range(len(HISTORY))])
    wide = HISTORY.append_column("story", large)
    path = s3.folder / "wide.parquet"
    pq.write_table(wide, path, compression="none", use_dictionary=False)
    store = local_store(
        tmp_path, [DRIVER, trip_view("", source=source_at(f"s3://{BUCKET}/wide.parquet"))]
    )
    assert joined(store)["rating"].null_count == 1
    assert 0 < s3.bytes_read < path.stat().st_size / 10


def test_the_source_says_where_the_store_is(tmp_path: Path, s3: S3Server, monkeypatch):
    write(HISTORY, s3.folder / "trips.parquet")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    source = source_at(f"s3://{BUCKET}/trips.parquet", s3_endpoint_override=s3.endpoint)
    store = local_store(tmp_path, [DRIVER, trip_view("", source=source)])
    assert len(joined(store)) == len(ROWS)


def test_an_address_without_a_file_is_named(tmp_path: Path, s3: S3Server):
    source = source_at(f"s3://{BUCKET}/nowhere")
    store = local_store(tmp_path, [DRIVER, trip_view("", source=source)])
    with pytest.raises(SchemaError, match=f"found no parquet file at s3://{BUCKET}/nowhere"):
        joined(store)


def test_a_store_that_does_not_answer_is_named(tmp_path: Path, s3: S3Server):
    source = source_at(f"s3://{BUCKET}/trips.parquet")
    store = local_store(tmp_path, [DRIVER, trip_view("", source=source)])
    s3.stop()
    with pytest.raises(OfflineStoreError, match=r"'trips' \(s3://.*AWS_ENDPOINT_URL"):
        joined(store)


def test_a_saved_dataset_goes_into_a_bucket(tmp_path: Path, s3: S3Server):
    store = local_store(tmp_path, [DRIVER, trip_view(write(HISTORY, tmp_path / "trips.parquet"))])
    job = store.get_historical_features(ROWS, ["trips:rating"])
    job.persist(SavedDatasetFileStorage(f"s3://{BUCKET}/saved/answers.parquet"))
    assert pq.read_table(s3.folder / "saved" / "answers.parquet").equals(joined(store))

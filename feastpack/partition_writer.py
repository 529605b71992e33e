"""What an executor of Spark does with its partition of a view: pack it and write it to Redis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.protos.feast.core.FeatureView_pb2 import FeatureView as FeatureViewProto
from feast.repo_config import RepoConfig

#: Of what a partition reports: rows written, and the latest event time in microseconds.
REPORT = pa.schema([("rows", pa.int64()), ("newest_us", pa.int64())])
REPORT_DDL = "rows bigint, newest_us bigint"


@dataclass(frozen=True)
class PartitionWriter:
    """A function for Spark's ``mapInArrow``; the driver makes it and every executor runs it.

    A partition may be written twice, or half and then whole, by tasks that died or ran twice:
    Redis keeps the newer row, and the same row again changes nothing.

    Parameters
    ----------
    view
        The feature view, as Feast's serialised message.
    config
        Arguments of `feast.RepoConfig`; the online store's connection must hold anywhere.
    """

    view: bytes
    config: Mapping[str, Any]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Write a partition; yield one report (`REPORT`), none if it is empty.

        Batches are fetched and packed while the one before is being written.
        """
        batches = iter(batches)
        first = next(batches, None)
        if first is None:
            return
        config = RepoConfig(**self.config)
        view = FeatureView.from_proto(FeatureViewProto.FromString(self.view))
        written, newest = 0, None

        def known() -> Iterator[pa.RecordBatch]:
            nonlocal written, newest
            for batch in chain([first], batches):
                rows = rows_with_keys(batch, view)
                if rows.num_rows:
                    written += rows.num_rows
                    latest = pc.max(rows.column(event_time_of(view)).cast(pa.int64())).as_py()
                    newest = latest if newest is None else max(newest, latest)
                    yield rows

        store = get_online_store_from_config(config.online_store)
        store.online_write_arrow(config, view, known())
        if written:
            yield pa.RecordBatch.from_pydict({"rows": [written], "newest_us": [newest]}, REPORT)


def rows_with_keys(batch: pa.RecordBatch, view: FeatureView) -> pa.RecordBatch:
    """Return the rows whose join keys are all known: no request can name the others."""
    keys = [entity.name for entity in view.entity_columns if entity.name != DUMMY_ENTITY_ID]
    with_null = [key for key in keys if batch.column(key).null_count]
    for key in with_null:
        batch = batch.filter(pc.is_valid(batch.column(key)))
    return batch


def event_time_of(view: FeatureView) -> str:
    """Return the name of the event time once the source's field mapping is done."""
    name: str = view.batch_source.timestamp_field
    mapping: dict[str, str] = view.batch_source.field_mapping or {}
    return mapping.get(name, name)

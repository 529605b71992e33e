"""Answers in the form that Feast's online store interface asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from feast import utils
from feast.feature_view import DUMMY_ENTITY_ID
from feast.online_response import OnlineResponse
from feast.protos.feast.types.Value_pb2 import Value

from feastpack.columns import EPOCH
from feastpack.lookup import Answer, Question, oldest_valid
from feastpack.messages import add_vector, statuses_and_times
from feastpack.values import to_protos, to_python
from feastpack.views import ViewLayout

ReadRow = tuple[datetime | None, dict[str, Value] | None]

_KEY_FIELDS = {
    "INT64": "int64_val",
    "INT32": "int32_val",
    "UNIX_TIMESTAMP": "unix_timestamp_val",
    "STRING": "string_val",
    "BYTES": "bytes_val",
}


def read_rows(answer: Answer, features: Sequence[str] | None) -> list[ReadRow]:
    """Return rows as ``OnlineStore.online_read`` does: event time and values by feature.

    Features that the view does not have are left out; a missing row is ``(None, None)``.
    """
    rows = answer.rows
    known = rows.schema.columns
    names = [name for name in (features or known) if name in known]
    columns = [to_protos(rows, name) for name in names]
    found = rows.found.tolist()
    times = rows.event_us.tolist()
    result: list[ReadRow] = []
    for index, present in enumerate(found):
        if not present:
            result.append((None, None))
            continue
        event = EPOCH + timedelta(microseconds=times[index])
        result.append((event, {n: c[index] for n, c in zip(names, columns, strict=True)}))
    return result


@dataclass(frozen=True)
class ViewRead:
    """One view's part of a ``get_online_features`` request.

    Attributes
    ----------
    table
        Feast's feature view, with its projection.
    features
        The features wanted of it.
    question
        What to ask Redis: every entity once.
    place_of
        int (n,): which of the question's rows belongs to each of the n rows of the request.
    """

    table: Any
    features: list[str]
    question: Question
    place_of: npt.NDArray[np.int64]

    @classmethod
    def of_request(
        cls,
        layout: ViewLayout,
        table: Any,
        features: list[str],
        join_key_values: Mapping[str, list[Value]],
        join_key_of_entity: Mapping[str, str],
        honour_ttl: bool,
    ) -> ViewRead:
        """Work out the keys to read from Feast's columns of entity values.

        Raises
        ------
        KeyError
            By Feast, if values for a join key of the view are missing.
        """
        values = utils._get_table_entity_values(table, join_key_of_entity, join_key_values)
        fields = {name: _KEY_FIELDS.get(kind, "") for name, kind in layout.keys.join_keys}
        fitting = set(values) == set(fields) and all(
            value.WhichOneof("val") == fields[name]
            for name, column in values.items()
            for value in column
        )
        oldest = oldest_valid(layout, honour_ttl)
        if not fitting:
            # Missing, null or mistyped keys: Feast's own function says what is wrong.
            entities, places, count = utils._get_unique_entities(
                table, join_key_values, join_key_of_entity
            )
            keys = list(map(layout.keys.of_entity, utils._get_entity_key_protos(entities)))
            place_of = np.zeros(count, dtype=np.int64)
            for index, rows in enumerate(places):
                place_of[list(rows)] = index
            return cls(
                table, features, Question(layout, pa.array(keys, pa.binary()), oldest), place_of
            )
        columns = {
            name: [getattr(value, fields[name]) for value in column]
            for name, column in values.items()
        }
        count = len(next(iter(columns.values())))
        encoded = layout.keys.of_columns(columns, count).dictionary_encode()
        unique = encoded.dictionary
        place_of = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(table, features, Question(layout, unique, oldest), place_of)

    def output_name(self, feature: str, full_feature_names: bool) -> str:
        """Return the name that a feature has in the response."""
        if not full_feature_names:
            return feature
        return f"{self.table.projection.name_to_use()}__{feature}"

    def fill(
        self, answer: Answer, response: Any, full_feature_names: bool, with_versions: bool
    ) -> None:
        """Append the answer's columns to Feast's response message."""
        rows = answer.rows
        if with_versions:
            self._add_version(response)
        names = [self.output_name(feature, full_feature_names) for feature in self.features]
        response.metadata.feature_names.val.extend(names)
        common = statuses_and_times(rows, self.place_of)
        for feature in self.features:
            if feature in rows.schema.columns:
                add_vector(response, rows, feature, self.place_of, common)
            else:
                unknown = statuses_and_times(rows, self.place_of, known=False)
                add_vector(response, rows, None, self.place_of, unknown)

    def _add_version(self, response: Any) -> None:
        projection = self.table.projection
        name = projection.name_alias or projection.name
        metadata = response.metadata.feature_view_metadata
        if name not in [entry.name for entry in metadata]:
            version = getattr(self.table, "current_version_number", 0) or 0
            metadata.add(name=name, version=version)


class PackedOnlineResponse(OnlineResponse):  # type: ignore[misc]
    """Feast's response, whose protobuf message is made only if somebody asks for it.

    ``to_dict``, ``to_df`` and ``to_arrow`` take their values from the packed rows.
    """

    def __init__(
        self,
        entities: Any,
        reads: Sequence[ViewRead],
        answers: Sequence[Answer],
        *,
        wanted: set[str],
        full_feature_names: bool,
        with_versions: bool,
        feature_types: dict[str, Any],
    ) -> None:
        self._entities = entities
        self._reads = reads
        self._answers = answers
        self._wanted = wanted
        self._full_feature_names = full_feature_names
        self._with_versions = with_versions
        self._feature_types = feature_types

    @cached_property
    def proto(self) -> Any:
        """The ``GetOnlineFeaturesResponse`` message."""
        message = self._entities
        for read, answer in zip(self._reads, self._answers, strict=True):
            read.fill(answer, message, self._full_feature_names, self._with_versions)
        utils._drop_unneeded_columns(message, self._wanted)
        return OnlineResponse(message, self._feature_types).proto

    def to_dict(self, include_event_timestamps: bool = False) -> dict[str, Any]:
        """Return join keys and features as lists of Python values."""
        if include_event_timestamps or "proto" in self.__dict__:
            result: dict[str, Any] = super().to_dict(include_event_timestamps)
            return result
        # Join keys and request data are in the message from the start.
        columns: dict[str, Any] = {
            name: values
            for name, values in OnlineResponse.to_dict(_MessageOnly(self._entities)).items()
            if name in self._wanted and name != DUMMY_ENTITY_ID
        }
        for read, answer in zip(self._reads, self._answers, strict=True):
            known = answer.rows.schema.columns
            for feature in read.features:
                name = read.output_name(feature, self._full_feature_names)
                if name not in self._wanted:
                    continue
                values = to_python(answer.rows, feature) if feature in known else None
                columns[name] = _placed(values, read.place_of)
        return columns


class _MessageOnly:
    """As much of a response as ``OnlineResponse.to_dict`` needs."""

    def __init__(self, proto: Any) -> None:
        self.proto = proto
        self._feature_types: dict[str, Any] = {}


def _placed(values: list[Any] | None, place_of: npt.NDArray[np.int64]) -> list[Any]:
    if values is None:
        return [None] * len(place_of)
    return [values[place] for place in place_of.tolist()]

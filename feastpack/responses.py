"""Answers in the form that Feast's online store interface asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from feast import utils
from feast.protos.feast.types.Value_pb2 import Value

from feastpack.columns import EPOCH
from feastpack.lookup import Answer, Question
from feastpack.values import to_protos

ReadRow = tuple[datetime | None, dict[str, Value] | None]


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

    ``places`` says, for every unique entity, at which rows of the response it belongs;
    ``count`` is the number of rows of the response.
    """

    table: Any
    features: list[str]
    question: Question
    places: Sequence[Sequence[int]]
    count: int

    def fill(
        self, answer: Answer, response: Any, full_feature_names: bool, with_versions: bool
    ) -> None:
        """Put the answer into Feast's response message, by Feast's own function."""
        utils._populate_response_from_feature_data(
            self.features,
            read_rows(answer, self.features),
            self.places,
            response,
            full_feature_names,
            self.table,
            self.count,
            with_versions,
        )

"""What users without a history get by an attribute of theirs, such as their country.

``segments.json`` of a bundle has ``attribute`` and ``segments``: for each the ``value`` (text) or
``up_to`` (the highest number; ascending, numbers above the last belong to it), and its list, best
first, as ``post_ids`` and ``scores``. It exists if ``segment_popular`` is among the sources.
"""

import json
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from feature_repo.definitions.columns import user_attribute
from serving.bundle import Manifest
from serving.lists import SourceList

SOURCE = "segment_popular"
FILE = "segments.json"
Attributes = Mapping[str, float | str]


class Segments:
    """The lists of segments; none if the bundle has no such file."""

    def __init__(self, attribute: str | None, segments: list[dict[str, Any]]) -> None:
        self._attribute = attribute
        self._lists = [
            SourceList(np.array(one["post_ids"], np.int32), np.array(one["scores"], np.float32))
            for one in segments
        ]
        self._texts = {one["value"]: at for at, one in enumerate(segments) if "value" in one}
        self._bounds = [one["up_to"] for one in segments if "up_to" in one]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a generation's segments."""
        path = folder / FILE
        if not path.exists():
            return cls(None, [])
        described = json.loads(path.read_text(encoding="utf-8"))
        return cls(described["attribute"], described["segments"])

    def list_for(self, attributes: Attributes) -> SourceList | None:
        """Return the list of the segment that attributes belong to; None: of no known one."""
        value = attributes.get(self._attribute or "")
        if isinstance(value, str):
            at = self._texts.get(value)
            return None if at is None else self._lists[at]
        if value is None or not self._bounds:
            return None
        return self._lists[min(bisect_left(self._bounds, value), len(self._bounds) - 1)]


def write_segments(folder: Path, attribute: str, segments: list[dict[str, Any]]) -> None:
    """Write what `Segments` opens."""
    text = json.dumps({"attribute": attribute, "segments": segments})
    (folder / FILE).write_text(text, encoding="utf-8")


def with_attributes(columns: pa.Table, attributes: Attributes, manifest: Manifest) -> pa.Table:
    """Return the ranker's inputs with a stranger's attributes, as far as they are inputs.

    A number for a text, or the other way round, says nothing.
    """
    kinds = {one["name"]: one["dtype"] for one in manifest.contract["inputs"]}
    for name, value in attributes.items():
        column = user_attribute(name)
        if kinds.get(column) != ("String" if isinstance(value, str) else "Float64"):
            continue
        at = columns.column_names.index(column)
        kind = columns.schema.field(column).type
        values = pa.repeat(pa.scalar(value, kind), columns.num_rows)
        columns = columns.set_column(at, column, values)
    return columns

"""Skew: whether features as served are those that a point-in-time join gives for the same moment.

Values are equal bit for bit, or they differ and the difference has a cause. Some causes are how a
feature store works: a newer row that was not materialized yet, an event that reached the lake after
the answer. Others are faults. Which is which is in `CAUSES`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from validation.errors import ValidationError

Flags = NDArray[np.bool_]

NOT_MATERIALIZED, STALE_ROW, MISSING_ROW = "not_materialized", "stale_row", "missing_row"
LATE_EVENT, TTL, STALE_DEFAULT = "late_event", "ttl", "stale_default"
OTHER_CONTRACT, FLOAT32, TIME_ZONE = "other_contract", "float32", "time_zone"
SCALE, TRANSFORM, TABLE_CHANGED = "scale", "transform", "table_changed"
UNEXPLAINED = "unexplained"

CAUSES: Mapping[str, tuple[bool, str]] = {
    NOT_MATERIALIZED: (
        True,
        "the offline store has a newer row, from after the moment that was materialized",
    ),
    LATE_EVENT: (True, "an event of this user or post reached the lake after the answer"),
    TTL: (True, "the row is older than the view's ttl on one side"),
    STALE_DEFAULT: (True, "the view was stale and its features were served as null"),
    OTHER_CONTRACT: (True, "the answer's bundle had other inputs and is not kept any more"),
    STALE_ROW: (False, "an older row of the offline store was served than was materialized"),
    MISSING_ROW: (False, "the row should have been materialized and was not there"),
    FLOAT32: (False, "the value was rounded to 32 bits on one side"),
    TIME_ZONE: (False, "all differ by the same number of quarter hours"),
    SCALE: (False, "all differ by the same factor"),
    TRANSFORM: (
        False,
        "the stored inputs are equal: the request-time function differs, or the vectors it reads",
    ),
    TABLE_CHANGED: (False, "the feature table was computed anew since, with other values"),
    UNEXPLAINED: (False, "no cause was found"),
}
"""By cause: whether it is to be expected of a sound system, and what it means."""

_STALE = (NOT_MATERIALIZED, STALE_ROW)
_LEAST_ALIKE = 3
_EXAMPLES = 3


class SkewError(ValidationError):
    """More served values are not those of the offline store than is allowed."""


@dataclass(frozen=True)
class FeatureSkew:
    """One feature over all compared rows.

    Parameters
    ----------
    feature
        Its name.
    rows
        Values compared.
    equal
        Equal bit for bit, or null on both sides.
    different
        Values on both sides that differ, but for those that are stale.
    missing_online, missing_offline
        Null on one side only, but for those that are stale.
    stale
        Served from an older row of the offline store.
    causes
        How many of those that are not equal have which cause.
    detail
        What the causes say beyond their names: the offset, the factor.
    mean_difference, max_difference
        Of absolute differences of numbers; None where no numbers differ.
    examples
        The first: row, served, offline, cause.
    """

    feature: str
    rows: int
    equal: int
    different: int
    missing_online: int
    missing_offline: int
    stale: int
    causes: Mapping[str, int]
    detail: str
    mean_difference: float | None
    max_difference: float | None
    examples: Sequence[Mapping[str, Any]]

    @property
    def faults(self) -> int:
        """How many values differ for a cause that is not to be expected, or for none."""
        return sum(count for cause, count in self.causes.items() if not CAUSES[cause][0])


def compare(
    feature: str,
    served: pa.Array | pa.ChunkedArray,
    offline: pa.Array | pa.ChunkedArray,
    proven: Sequence[str | None],
    suspected: Sequence[str | None],
    hours_per_unit: float | None = None,
) -> FeatureSkew:
    """Compare one feature, value by value, and give each difference a cause.

    Parameters
    ----------
    served, offline
        n values each, numbers or texts; NaN is null.
    proven
        Of n rows the cause that explains a difference for sure; None: there is none.
    suspected
        The same for causes that only fit; patterns of the values come before them.
    hours_per_unit
        If the feature is a time, hours in one unit of it: 24 for days.
    """
    is_text = pa.types.is_string(served.type) or pa.types.is_string(offline.type)
    mine, theirs = _values(served, is_text), _values(offline, is_text)
    there, known = (_present(v) for v in (mine, theirs))
    equal = (~there & ~known) | (there & known & (mine == theirs))
    both = there & known & ~equal
    # Infinities are values too.
    with np.errstate(all="ignore"):
        pattern, detail = ("", "") if is_text else _pattern(mine, theirs, both, hours_per_unit)
        rounded = np.zeros_like(both) if is_text else both & _are_rounded(mine, theirs)
        gaps = np.empty(0) if is_text else np.abs(mine[both] - theirs[both])
    causes: dict[int, str] = {
        row: proven[row]
        or (pattern if both[row] else "")
        or (FLOAT32 if rounded[row] else "")
        or suspected[row]
        or UNEXPLAINED
        for row in np.flatnonzero(~equal).tolist()
    }
    stale = np.zeros(len(equal), bool)
    stale[[row for row, cause in causes.items() if cause in _STALE]] = True
    return FeatureSkew(
        feature=feature,
        rows=len(equal),
        equal=int(equal.sum()),
        different=int((both & ~stale).sum()),
        missing_online=int((~there & known & ~stale).sum()),
        missing_offline=int((there & ~known & ~stale).sum()),
        stale=int(stale.sum()),
        causes=dict(Counter(causes.values())),
        detail=detail if pattern in causes.values() else "",
        mean_difference=float(gaps.mean()) if len(gaps) else None,
        max_difference=float(gaps.max()) if len(gaps) else None,
        examples=[
            {"row": row, "served": _plain(mine[row]), "offline": _plain(theirs[row]), "cause": why}
            for row, why in list(causes.items())[:_EXAMPLES]
        ],
    )


def merged(parts: Sequence[FeatureSkew]) -> FeatureSkew:
    """Sum up one feature over several comparisons."""
    differing = [part for part in parts if part.mean_difference is not None]
    weights = [part.rows - part.equal for part in differing]
    causes: Counter[str] = Counter()
    for part in parts:
        causes.update(part.causes)
    return FeatureSkew(
        feature=parts[0].feature,
        rows=sum(part.rows for part in parts),
        equal=sum(part.equal for part in parts),
        different=sum(part.different for part in parts),
        missing_online=sum(part.missing_online for part in parts),
        missing_offline=sum(part.missing_offline for part in parts),
        stale=sum(part.stale for part in parts),
        causes=dict(causes),
        detail="; ".join(dict.fromkeys(part.detail for part in parts if part.detail)),
        mean_difference=float(
            np.average([part.mean_difference or 0.0 for part in differing], weights=weights)
        )
        if differing
        else None,
        max_difference=max((part.max_difference or 0.0 for part in differing), default=None),
        examples=[one for part in parts for one in part.examples][:_EXAMPLES],
    )


def _pattern(
    mine: NDArray[np.float64],
    theirs: NDArray[np.float64],
    both: Flags,
    hours_per_unit: float | None,
) -> tuple[str, str]:
    """Return the cause that all differences share, and how large it is."""
    a, b = mine[both], theirs[both]
    if len(a) < _LEAST_ALIKE:
        return "", ""
    if hours_per_unit is not None:
        hours = (a - b) * hours_per_unit
        first = round(4 * float(hours[0])) / 4
        # Days since a time lose some digits where the time is subtracted from the request's.
        if 0 < abs(first) <= 26 and np.allclose(hours, first, rtol=0, atol=1e-3):
            return TIME_ZONE, f"{first:+g} h"
    used = b != 0
    if used.all() and len(np.unique(b)) >= _LEAST_ALIKE:
        factors = a / b
        if np.allclose(factors, factors[0], rtol=1e-9, atol=0) and abs(factors[0] - 1) > 1e-6:
            return SCALE, f"x {factors[0]:g}"
    return "", ""


def _are_rounded(served: NDArray[np.float64], offline: NDArray[np.float64]) -> Flags:
    rounded: Flags = (offline.astype(np.float32) == served) | (served.astype(np.float32) == offline)
    return rounded


def _values(values: Any, is_text: bool) -> NDArray[Any]:
    if is_text:
        return np.asarray(values.to_pylist(), dtype=object)
    return np.asarray(values.cast(pa.float64(), safe=False), np.float64)


def _present(values: NDArray[Any]) -> Flags:
    if values.dtype == object:
        return np.array([value is not None for value in values], bool)
    present: Flags = ~np.isnan(values)
    return present


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if np.isnan(value) else float(value)
    return value

"""Impressions of a made-up generation with one source and two inputs."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from serving.answer import Choice, Scored
from serving.assembly import Inputs
from serving.bundle import Manifest
from serving.candidates import Candidates
from serving.impressions import Impression, Origin

INPUTS = [
    {"name": "user_age", "view": "user_profile", "dtype": "Float64", "is_category": False},
    {"name": "user_city", "view": "user_profile", "dtype": "String", "is_category": True},
]


@cache
def origin(contract: str = "c" * 64) -> Origin:
    facts: dict[str, Any] = dict.fromkeys(
        ("generation", "project", "created", "namespace", "ranker"), "made-up"
    )
    manifest = Manifest(
        **facts,
        contract={"service": "ranker", "inputs": INPUTS},
        contract_hash=contract,
        feature_tables={},
        sources=["popular"],
        as_of=None,
        data_window=[],
        metrics={},
        versions={},
        files={},
        materialized_until="2024-06-01T00:00:00+00:00",
    )
    return Origin(manifest, lambda posts: pa.array([f"p{post}" for post in posts.tolist()]))


def impression(
    request_id: str,
    posts: Iterable[int],
    shown: Iterable[int],
    scores: Iterable[float] | None,
    contract: str = "c" * 64,
) -> Impression:
    """Return an impression; the source proposed every second post, the last one shown is unsure."""
    post_ids, rows = np.array(list(posts)), np.array(list(shown))
    ranks = np.where(np.arange(len(post_ids)) % 2, np.nan, 1 + np.arange(len(post_ids)) // 2)
    listed = {} if scores is None else {"popular": ranks}
    count = len(post_ids)
    columns = {"user_city": ["Ulm"] * count, "user_age": [30] * count, "post_id": post_ids}
    scored = Scored(Candidates(post_ids, listed, listed))
    if scores is not None:
        scored = replace(
            scored,
            scores=np.array(list(scores), np.float32),
            inputs=Inputs(
                np.zeros((count, 2), np.float32),
                lambda: pa.table(columns),
                lambda name: np.full(count, np.datetime64("NaT"), "datetime64[us]"),
            ),
        )
    propensities = np.where((rows == 0) & (scores is not None), 0.5, 1.0)
    return Impression(
        origin=origin(contract),
        request_id=request_id,
        time_us=1_700_000_000_000_000,
        endpoint="recommend",
        user="u1",
        user_id=1,
        moment=datetime.fromtimestamp(1_700_000_000, UTC),
        degraded=(),
        choice=Choice(scored, rows, propensities, [()] * len(rows)),
    )

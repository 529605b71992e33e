"""The impression log of the service: what it says is what was answered, and what was served."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from http_service import Service, ids

from serving.impressions import CONTRACT_KEY, FACTS


def logged(service: Service) -> pa.Table:
    """Close the log; return all it wrote."""
    service.log.close()
    files = sorted(service.job.workspace.impressions.glob("*/*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])


def of(table: pa.Table, answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in table.to_pylist() if row["request_id"] == answer["request_id"]]


def test_what_was_answered_is_logged_with_all_that_the_ranker_saw(service: Service):
    recommender = service.published.current()
    manifest = recommender.manifest
    answers = [service.recommend(user, k=4) for user in ("u003", "u004", "nobody")]
    everything = service.recommend("u003", k=1000)
    table = logged(service)
    inputs = [one["name"] for one in manifest.contract["inputs"]]
    sources = [f"{source}_{what}" for source in manifest.sources for what in ("score", "rank")]
    assert table.column_names == [*FACTS, *sources, *inputs]
    assert json.loads(table.schema.metadata[CONTRACT_KEY]) == manifest.contract
    for answer in answers:
        rows = of(table, answer)
        shown = sorted((row for row in rows if row["position"]), key=lambda row: row["position"])
        assert [row["post"] for row in shown] == ids(answer)
        assert [row["ranker_score"] for row in shown] == [p["score"] for p in answer["posts"]]
        assert [row["ranker_rank"] for row in shown] == [1, 2, 3, 4]
        assert [row["propensity"] for row in shown] == [1.0] * 4
        assert {row["propensity"] for row in rows if not row["position"]} == {None}
        assert {row["user"] for row in rows} == {answer["user_id"]}
        assert {row["generation"] for row in rows} == {manifest.generation}
        assert {row["materialized_until"].isoformat() for row in rows} == {
            manifest.materialized_until
        }
    assert {row["user_id"] for row in of(table, answers[2])} == {None}
    # Shown or not, every candidate is there, with the features that were served.
    rows = of(table, answers[0])
    assert {row["post"] for row in rows} == set(ids(everything))
    served = recommender.features("u003", [row["post"] for row in rows]).select(inputs)
    for row, expected in zip(rows, served.to_pylist(), strict=True):
        assert {name: row[name] for name in inputs} == expected


def test_a_logged_row_gives_the_logged_score_again(service: Service):
    recommender = service.published.current()
    answer = service.recommend("u003", k=3)
    table = logged(service)
    matrix = recommender._encoder.encode(table)
    scores = recommender._ranker.predict(matrix)
    assert np.array_equal(scores, table["ranker_score"].to_numpy())
    assert len(of(table, answer)) == table.num_rows


def test_rank_and_degraded_answers_are_logged_too(service: Service):
    ranked = service.client.post("/rank", json={"user_id": "u003", "post_ids": ["p003", "p001"]})
    service.kill_redis()
    degraded = service.recommend("u003", k=2, exclude=[service.popular()[0]])
    table = logged(service)
    rows = of(table, ranked.json())
    assert [(row["post"], row["endpoint"]) for row in rows] == [("p001", "rank"), ("p003", "rank")]
    rows = of(table, degraded)
    assert {row["degraded"] for row in rows} == {"lists_unavailable"}
    assert {row["post"] for row in rows} == set(service.popular()[1:])
    shown = {row["position"]: row["post"] for row in rows if row["position"]}
    assert shown == {1: ids(degraded)[0], 2: ids(degraded)[1]}
    inputs = [one["name"] for one in service.published.current().manifest.contract["inputs"]]
    assert {row[name] for row in rows for name in ("ranker_score", "ranker_rank", *inputs)} == {
        None
    }
    assert {row["popular_rank"] for row in rows} == set(range(2, len(rows) + 2))


def test_metrics_tell_what_is_written_and_what_waits(service: Service):
    service.recommend("u003")
    waiting = service.metric("feastrank_impression_rows_waiting")
    assert waiting > 0
    assert logged(service).num_rows == waiting
    assert service.metric('feastrank_impressions_total{outcome="written"}') == 1
    service.recommend("u003")
    assert service.metric('feastrank_impressions_total{outcome="dropped_full"}') == 1
    assert service.metric("feastrank_impression_rows_waiting") == 0


def test_nothing_is_logged_but_whole_files(service: Service):
    service.recommend("u003")
    logged(service)
    folder: Path = service.job.workspace.impressions
    assert [path.suffix for path in folder.glob("*/*")] == [".parquet"]

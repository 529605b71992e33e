"""`feastrank lists`: the files, what they hold, and what is printed of how good they are."""

import re
import shutil
from collections.abc import Callable
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from job_runner import Job
from tiny_feed import Feed, events_alone, make_feed

from pipelines.job.context import open_store
from serving.recommender import Recommender

FILES = (
    "top_popular",
    "personal_als",
    "similar",
    "content_recommendations",
    "recommendations",
)
PERSONAL = ("personal_als", "content_recommendations", "recommendations")
OF_A_USER = ["user_id", "item_id", "score", "rank", "name"]


def rows_of(folder: Path, name: str):
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def seen_pairs(job: Job) -> set[tuple[str, str]]:
    events = (job.home / "source" / "events.csv").read_text(encoding="utf-8").splitlines()[1:]
    return {tuple(row.split(",")[:2]) for row in events}


@pytest.fixture(scope="module")
def written(first_run):
    """The files of the published job, written once."""
    published, _, copy = first_run
    shutil.rmtree(published.home, ignore_errors=True)
    shutil.copytree(copy, published.home)
    outcome = published.do("lists")
    assert outcome.code == 0, outcome.err
    yield published, outcome, published.workspace.root / "lists"
    published.close()


def test_every_file_is_written_with_its_columns_and_nothing_else_is_left(written):
    _, outcome, folder = written
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{n}.parquet" for n in FILES)
    columns = {name: pq.read_schema(folder / f"{name}.parquet").names for name in FILES}
    assert columns == {
        "top_popular": OF_A_USER[1:],
        "similar": ["item_id", "similar_item_id", "score", "rank", "name"],
        **dict.fromkeys(PERSONAL, OF_A_USER),
    }
    for name in FILES:
        assert f"{folder / name}.parquet  {len(rows_of(folder, name)):,} rows" in outcome.out


@pytest.mark.parametrize("name", PERSONAL)
def test_no_list_of_a_user_repeats_an_item_or_holds_a_seen_one(written, name):
    job, _, folder = written
    rows = rows_of(folder, name)
    pairs = [(row["user_id"], row["item_id"]) for row in rows]
    assert len(set(pairs)) == len(pairs) > 0
    assert not set(pairs) & seen_pairs(job)
    assert {user for user, _ in pairs} == {f"u{i:03}" for i in range(40)}
    for _, own in groupby(rows, key=lambda row: row["user_id"]):
        listed = list(own)
        assert [row["rank"] for row in listed] == list(range(1, len(listed) + 1))
        assert all(a["score"] >= b["score"] for a, b in pairwise(listed))


def test_names_are_the_titles_of_the_items(written):
    _, _, folder = written
    for name in FILES:
        for row in rows_of(folder, name)[:500]:
            item = row.get("similar_item_id", row["item_id"])
            assert row["name"].endswith(f" number {int(item[1:])}")


def test_the_final_list_is_what_is_answered_online(written):
    job, _, folder = written
    recommender = Recommender(job.workspace.bundles, open_store(job.workspace))
    rows = rows_of(folder, "recommendations")
    for user, own in groupby(rows, key=lambda row: row["user_id"]):
        listed = list(own)
        answer = recommender.recommend(user, 100).recommendations
        assert [row["item_id"] for row in listed] == [one.post for one in answer]
        np.testing.assert_allclose(
            [row["score"] for row in listed], [one.score for one in answer], rtol=1e-5, atol=1e-6
        )


def test_popular_is_by_score_and_similar_leaves_the_item_itself_out(written):
    _, _, folder = written
    popular = rows_of(folder, "top_popular")
    assert len(popular) == 100
    assert [row["score"] for row in popular] == sorted((r["score"] for r in popular), reverse=True)
    similar = rows_of(folder, "similar")
    assert all(row["item_id"] != row["similar_item_id"] for row in similar)
    for _, own in groupby(similar, key=lambda row: row["item_id"]):
        listed = list(own)
        assert [row["rank"] for row in listed] == list(range(1, 11))
        assert len({row["similar_item_id"] for row in listed}) == 10


def test_the_metrics_are_those_of_the_evaluation_and_it_is_said_of_what(written):
    job, outcome, _ = written
    of_report = {one["name"]: one["means"] for one in job.report()["results"]}
    shown = {
        name: [float(cell) for cell in cells.split()]
        for name, cells in re.findall(r"(?m)^ ?(\w+)((?: +[\d.]+){5})", outcome.out)
    }
    names = ("precision@5", "recall@5", "coverage@5", "coverage@100", "novelty@5")
    for name, model in (
        ("recommendations", "two_stage"),
        ("personal_als", "als"),
        ("top_popular", "popular"),
    ):
        assert shown[name] == [round(of_report[model][metric], 4) for metric in names]
    # Users like their own topic, so the list by topics beats the popular one.
    assert shown["content_recommendations"][0] > shown["top_popular"][0]
    assert "from events before the test slice only" in outcome.out


def test_files_are_written_where_told_and_a_failure_leaves_the_old_ones(job: Job, tmp_path):
    folder = tmp_path / "out"
    assert job.do("lists", "--output", str(folder)).code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (job.workspace.bundles / job.facts("publish")["generation"] / "categories.json").unlink()
    outcome = job.do("lists", "--output", str(folder))
    assert outcome.code == 1
    assert "publish again" in outcome.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_named(job: Job, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    outcome = job.do("lists", "--output", str(tmp_path / "file"))
    assert outcome.code == 1
    assert f"lists: cannot write into {tmp_path / 'file'}" in outcome.err


def test_before_a_publication_the_missing_step_is_named(job: Job):
    job.workspace.steps.joinpath("publish.json").unlink()
    outcome = job.do("lists")
    assert outcome.code == 1
    assert "the step publish has not been run; run `feastrank publish" in outcome.err


def test_settings_that_cut_another_test_slice_are_refused(job: Job):
    outcome = job.do("lists", "--test-share", "0.2")
    assert outcome.code == 1
    assert "run with another test slice than these settings have" in outcome.err


@pytest.mark.slow
def test_without_topics_and_text_the_content_list_is_left_out_with_the_reason(
    new_job: Callable[[Feed], Job],
):
    job = new_job(events_alone("likes_alone"))
    assert job.do("run").code == 0
    folder = job.workspace.root / "lists"
    folder.mkdir()
    (folder / "content_recommendations.parquet").write_bytes(b"of another dataset")
    outcome = job.do("lists")
    assert outcome.code == 0, outcome.err
    assert "names neither topics nor text" in outcome.out
    assert "content_recommendations" not in {path.stem for path in folder.iterdir()}
    columns = pq.read_schema(folder / "recommendations.parquet").names
    assert columns == ["user_id", "item_id", "score", "rank"]


@pytest.mark.slow
def test_with_text_alone_the_content_list_is_by_text(new_job: Callable[[Feed], Job]):
    feed = make_feed("text_alone")
    topics = 'topics = { column = "topics", separator = "|" }\n'
    assert topics in feed.description
    text = feed.description.replace(topics, 'text = ["title"]\n')
    job = new_job(feed.with_(description=text))
    assert job.do("run").code == 0
    outcome = job.do("lists")
    assert outcome.code == 0, outcome.err
    assert rows_of(job.workspace.root / "lists", "content_recommendations")

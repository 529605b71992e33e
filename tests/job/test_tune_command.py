"""`feastrank tune` on the tiny feed: what it looks at, writes and goes on with."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from tiny_feed import events_alone, make_feed

from feature_repo.tuned import TunedSettings
from pipelines.job.context import open_context, open_store
from pipelines.job.slices import TEST
from pipelines.job.train import TrainingFiles
from pipelines.job.tune import searched, space_of
from pipelines.job.tune_ranker import Fold, SecondStage, contract_with, folds, inputs_of
from pipelines.ranking.training_set import retrieve
from pipelines.settings import JobSettings

FLAGS = (
    *("--label-slices", "3", "--candidates-per-source", "20", "--trials", "2"),
    *("--ranker-trials", "3", "--generators", "popular,als,segment_popular"),
)


def trials(job):
    journal = job.workspace.tuning / "journal.log"
    # Operation 4 of optuna's journal makes a trial.
    return sum(json.loads(line)["op_code"] == 4 for line in journal.read_text().splitlines())


def test_folds_learn_on_what_lies_before_their_validation():
    assert folds(["a", "b", "c", "validation"], 2) == [
        Fold("validation", ("a", "b", "c")),
        Fold("c", ("a", "b")),
    ]


def test_writes_settings_and_goes_on_where_it_was_left(new_job):
    job = new_job(make_feed("sought"))
    outcome = job.do("tune", *FLAGS)
    assert outcome.code == 0, outcome.err
    found = TunedSettings.read(job.workspace.tuned)
    assert set(found.sources) <= {"popular", "als", "segment_popular"}
    assert list(found.rankers) == ["lightgbm"]
    assert found.found["validation"] == ["validation", "labels 2"]
    made = trials(job)
    assert made == 3 * 2 + 3
    again = job.do("tune", *FLAGS)
    assert trials(job) == made
    assert TunedSettings.read(job.workspace.tuned) == found
    assert again.steps["features"] == "unchanged"


@pytest.mark.slow
def test_events_of_the_test_slice_change_nothing_that_is_found(new_job):
    feed = make_feed("sought")
    one, other = new_job(feed), new_job(feed)
    assert one.do("tune", *FLAGS).code == 0
    assert other.do("ingest").code == 0
    context = open_context(_settings(other), Console(quiet=True))
    # The last tenth of the likes, each moved to another post: only what is after the cut changes.
    likes = [i for i, row in enumerate(feed.events) if row["action"] == "like"]
    cut = likes[len(likes) - round(len(likes) * context.settings.test_share)]
    moved = [
        row if i < cut else {**row, "post": f"p{(int(row['post'][1:]) + 31) % 120:03}"}
        for i, row in enumerate(feed.events)
    ]
    other.forget()
    feed.with_(events=moved).write(other.home / "source")
    assert other.do("tune", *FLAGS).code == 0
    assert TunedSettings.read(one.workspace.tuned) == TunedSettings.read(other.workspace.tuned)


def test_joined_inputs_are_those_that_training_gets(job):
    context = open_context(_settings(job), Console(quiet=True))
    store = open_store(job.workspace)
    contract = contract_with(context, context.sources)
    requests = pq.read_table(TrainingFiles(job.workspace.training).requests)
    ours = inputs_of(store, requests, contract)
    theirs = retrieve(store, requests, contract).select(ours.column_names)
    assert contract.hash == job.facts("apply")["contract"]
    for name in ours.column_names:
        np.testing.assert_array_equal(
            ours[name].to_pandas(), theirs[name].to_pandas(), err_msg=name
        )


def test_fewer_sources_have_fewer_rows_and_inputs(job):
    context = open_context(_settings(job), Console(quiet=True))
    contract = contract_with(context, context.sources)
    files = TrainingFiles(job.workspace.training)
    examples, relevant = pq.read_table(files.examples), pq.read_table(files.relevant)
    fold = Fold(TEST, ("labels 1", "validation"))
    stage = SecondStage(contract, examples, relevant, [fold], 0)
    rows, matrix, kept = stage._of(["popular", "als"])
    names = [contract.names[i] for i in kept]
    assert set(contract.names) - set(names) == {
        "candidate_item_to_item_score",
        "candidate_item_to_item_rank",
    }
    ranks = matrix[:, [names.index("candidate_als_rank"), names.index("candidate_popular_rank")]]
    listed = np.isfinite(ranks).sum(axis=1)
    assert listed.min() == 1
    assert matrix[:, names.index("candidate_source_count")].tolist() == listed.tolist()
    assert rows.sum() == len(matrix) < examples.num_rows


def test_what_is_searched_follows_from_the_dataset(job, new_job):
    context = open_context(_settings(job), Console(quiet=True))
    assert {"ease", "sequential", "content", "segment_popular"} <= set(searched(context))
    assert space_of("segment_popular", context)["attribute"] == ("age", "city")
    assert "text_weight" not in space_of("content", context)
    bare = new_job(events_alone("bare", '{ format = "random_order" }'))
    assert bare.do("ingest").code == 0
    context = open_context(_settings(bare), Console(quiet=True))
    assert set(searched(context)) == {"popular", "als", "item_to_item", "user_knn", "ease"}
    assert space_of("popular", context) == {}
    assert "topic_weight" not in space_of("ease", context)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--validation-slices", "3"), "3 validation slices of 3 label slices leave none"),
        (("--generators", "popular,fancy"), "found fancy, expected generators among popular"),
        (("--rankers", "svm"), "found svm, expected .* rankers among lightgbm, catboost"),
    ],
)
def test_wrong_wishes_are_refused(job, flags, message):
    outcome = job.do("tune", "--label-slices", "3", *flags)
    assert outcome.code == 1
    assert message.split(".*")[0] in outcome.err
    assert not job.workspace.tuned.exists()


def _settings(job):
    return JobSettings(dataset=str(job.description), home=job.home)

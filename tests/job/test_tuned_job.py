"""The whole job with sources and rankers of a tuned file, from training to the answer."""

import pyarrow.parquet as pq
import pytest
from job_runner import Job
from tiny_feed import make_feed

from feature_repo.tuned import TunedSettings, beside
from pipelines.job.context import open_store
from serving.impressions import ImpressionLog
from serving.recommender import Recommender

TUNED = TunedSettings(
    sources={
        "popular": {"half_life_days": 20.0},
        "ease": {"regularization": 20.0, "topic_weight": 1.0},
        "user_knn": {"neighbours": 10},
        "content": {},
        "segment_popular": {"attribute": "city", "prior_likes": 0.0, "half_life_days": None},
    },
    rankers={"lightgbm": {"rounds": 20, "leaves": 4}},
)


@pytest.fixture(scope="module")
def tuned_job(tmp_path_factory):
    job = Job.of(make_feed("tuned_feed"), tmp_path_factory.mktemp("tuned") / "home")
    TUNED.write(beside(job.description))
    outcome = job.do("run")
    assert outcome.code == 0, outcome.err
    yield job
    job.close()


def test_sources_and_rankers_of_the_file_are_trained_evaluated_and_served(tuned_job):
    facts = tuned_job.facts("train")
    assert list(facts["rankers"]) == ["lightgbm"]
    assert facts["tuned"] == TUNED.hash
    lists = {result["name"] for result in tuned_job.report()["results"]}
    assert set(TUNED.sources) < lists
    assert "als" not in lists
    recommender = Recommender(tuned_job.workspace.bundles, open_store(tuned_job.workspace))
    assert recommender.manifest.sources == list(TUNED.sources)
    answer = recommender.recommend("u003", 5, explain=True)
    assert set(answer.recommendations[0].reason.sources) <= set(TUNED.sources)
    stranger = recommender.recommend("nobody", 5)
    assert not stranger.degraded
    assert len(stranger.recommendations) == 5


def test_a_stranger_with_attributes_gets_the_popular_list_of_their_segment(tuned_job):
    recommender = Recommender(tuned_job.workspace.bundles, open_store(tuned_job.workspace))
    ranks = {}
    for city in ("Ulm", "Bonn", "Rome", None):
        attributes = None if city is None else {"city": city, "age": 30, "shoes": "red"}
        answer = recommender.recommend("nobody", 1000, attributes=attributes, explain=True)
        assert not answer.degraded
        reasons = {one.post: one.reason for one in answer.recommendations}
        ranks[city] = {
            post: reason.sources["segment_popular"]
            for post, reason in reasons.items()
            if "segment_popular" in reason.sources
        }
        assert any("popular" in reason.sources for reason in reasons.values())
    assert ranks["Ulm"] != ranks["Bonn"]
    assert ranks["Rome"] == ranks[None] == {}
    # A user of the same city has the list of publication, without what he has seen.
    known = recommender.recommend("u000", 1000, attributes={"city": "Bonn"}, explain=True)
    own = {one.post: one.reason.sources.get("segment_popular") for one in known.recommendations}
    in_both = [post for post in own if own[post] and post in ranks["Ulm"]]
    assert len(in_both) > 3
    assert sorted(in_both, key=own.__getitem__) == sorted(in_both, key=ranks["Ulm"].__getitem__)


def test_a_strangers_attributes_are_inputs_of_the_ranker(tuned_job, tmp_path):
    log = ImpressionLog(tmp_path)
    store = open_store(tuned_job.workspace)
    recommender = Recommender(tuned_job.workspace.bundles, store, impressions=log)
    told = {"city": "Ulm", "age": 30, "length": 3}
    answers = [recommender.recommend("nobody", 3, attributes=told)]
    answers.append(recommender.recommend("nobody", 3, attributes={"city": 30, "age": "Ulm"}))
    answers.append(recommender.recommend("u001", 3, attributes=told))
    posts = [one.post for one in answers[0].recommendations]
    answers.append(recommender.rank("nobody", posts[::-1], attributes=told, explain=True))
    assert [one.post for one in answers[3].recommendations] == posts
    told_again = {one.name: one.value for one in answers[3].recommendations[0].reason.moved}
    assert told_again.get("user_city", "Ulm") == "Ulm"
    log.close()
    rows = pq.read_table(tmp_path).to_pylist()
    seen = [
        {(row["user_city"], row["user_age"]) for row in rows if row["request_id"] == one.request_id}
        for one in answers
    ]
    assert seen[0] == seen[3] == {("Ulm", 30.0)}
    assert seen[1] == {(None, None)}
    assert {city for city, _ in seen[2]} == {"Bonn"}


def test_lists_are_written_though_als_is_no_source(tuned_job):
    outcome = tuned_job.do("lists")
    assert outcome.code == 0, outcome.err
    assert "personal_als" in outcome.out
    assert "content_recommendations" in outcome.out


def test_changed_settings_repeat_what_depends_on_them_and_nothing_else(tuned_job):
    changed = TUNED.model_copy(update={"rankers": {"lightgbm": {"rounds": 10, "leaves": 3}}})
    changed.write(tuned_job.workspace.tuned)
    refused = tuned_job.do("evaluate")
    assert refused.code == 1
    assert "train was run with other tuned settings than hold now" in refused.err
    steps = tuned_job.do("run").steps
    assert steps["ingest"] == steps["features"] == "unchanged"
    assert "unchanged" not in (steps["train"], steps["evaluate"], steps["publish"])


def test_unknown_settings_are_refused_before_anything_is_trained(job):
    TunedSettings(sources={"popular": {"half_life": 3}}).write(beside(job.description))
    assert job.do("apply").code == 0
    outcome = job.do("train")
    assert outcome.code == 1
    assert "popular: found unknown settings ['half_life']" in outcome.err

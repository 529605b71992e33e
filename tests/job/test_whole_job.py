"""The main job on a tiny feed: from files and a description to answers out of Redis."""

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from job_runner import Job
from tiny_feed import Feed, events_alone, make_feed

from pipelines.doctor import clocks
from pipelines.job.context import STEPS, open_store
from serving.recommender import Recommender

MakeJob = Callable[[Feed], Job]


def seen_by(job: Job, user: str) -> set[str]:
    events = (job.home / "source" / "events.csv").read_text(encoding="utf-8").splitlines()[1:]
    return {row.split(",")[1] for row in events if row.startswith(f"{user},")}


def answers(job: Job) -> Recommender:
    return Recommender(job.workspace.bundles, open_store(job.workspace))


def test_one_command_goes_from_files_to_answers_metrics_and_report(first_run):
    job, out, copy = first_run
    steps = re.findall(r"(?m)^(\w+) +[\d.]+ s {2}(.+)$", out)
    assert tuple(name for name, _ in steps) == STEPS
    summaries = dict(steps)
    assert summaries["ingest"] == "40 users, 120 posts, 2,617 events (2,617 new), gates passed"
    assert "lists of 40 users" in summaries["publish"]
    assert len(re.findall(r"(?m)^user u\d{3}", out)) == 3
    assert re.search(r"(?m)^ *two_stage +0\.\d+", out)
    assert f"report     {job.workspace.reports / 'report.html'}" in out
    reports = copy / job.name / "reports"
    assert (reports / "report.html").stat().st_size > 10_000
    assert (reports / "data_docs" / "index.html").exists()


def test_the_ranked_list_beats_popularity_by_a_wide_margin(job: Job):
    facts = job.facts("evaluate")
    assert facts["metrics"]["ndcg@10"] > 0.3
    assert facts["metrics"]["ndcg@10"] > 3 * facts["popularity"]["ndcg@10"]


def test_a_second_run_does_nothing_again_and_publishes_nothing_new(job: Job):
    before = job.published()
    outcome = job.do("run")
    assert outcome.code == 0, outcome.err
    assert outcome.steps == dict.fromkeys(STEPS, "unchanged")
    assert job.published() == before


def test_a_first_and_a_second_run_print_no_progress_of_feasts_own(job: Job):
    shutil.rmtree(job.workspace.root / "steps")
    outcome = job.do("materialize")
    assert "it/s" not in outcome.err
    assert "Materializing" not in outcome.out


def test_answers_need_redis_and_the_bundle_only(job: Job):
    before = job.do("recommend", "--user", "u003", "--top", "5").out
    for folder in ("lake", "features", "training", "steps", "reports"):
        shutil.rmtree(job.workspace.root / folder)
    shutil.rmtree(job.home / "source" / "users.csv", ignore_errors=True)
    after = job.do("recommend", "--user", "u003", "--top", "5")
    assert after.code == 0, after.err
    assert _without_time(after.out) == _without_time(before)
    assert after.out.count("number") >= 5


def _without_time(out: str) -> str:
    return re.sub(r"[\d.]+ ms", "", out)


def test_an_unknown_user_is_answered_by_the_popular_list(job: Job):
    outcome = job.do("recommend", "--user", "nobody", "--top", "5")
    assert outcome.code == 0, outcome.err
    assert "unknown" in outcome.out
    answer = answers(job).recommend("nobody", 5, explain=True)
    assert not answer.is_known
    assert len(answer.recommendations) == 5
    assert all(set(one.reason.sources) == {"popular"} for one in answer.recommendations)


def test_no_answer_holds_a_post_that_the_user_has_an_event_with(job: Job):
    recommender = answers(job)
    for number in range(40):
        user = f"u{number:03}"
        answer = recommender.recommend(user, 50)
        posts = {one.post for one in answer.recommendations}
        assert len(posts) == len(answer.recommendations) > 0
        assert answer.is_known
        assert not posts & seen_by(job, user)


@pytest.mark.parametrize(
    ("step", "needs"),
    [
        ("features", "ingest"),
        ("train", "features"),
        ("evaluate", "train"),
        ("materialize", "features"),
        ("publish", "evaluate"),
    ],
)
def test_a_step_alone_says_what_it_needs(new_job: MakeJob, step: str, needs: str):
    job = new_job(make_feed())
    outcome = job.do(step)
    assert outcome.code == 1
    assert (
        f"tiny_feed: the step {needs} has not been run; run `feastrank {needs} "
        f"--dataset {job.description}` first, or `feastrank run" in outcome.err
    )


def test_recommend_before_anything_ran_says_what_to_run(new_job: MakeJob):
    outcome = new_job(make_feed()).do("recommend", "--user", "u001")
    assert outcome.code == 1
    assert "tiny_feed: no feature store yet; run `feastrank apply`" in outcome.err


def test_recommend_before_publish_says_that_nothing_is_published(new_job: MakeJob):
    job = new_job(make_feed())
    assert job.do("apply").code == 0
    outcome = job.do("recommend", "--user", "u001")
    assert outcome.code == 1
    assert "nothing is published; run `feastrank run" in outcome.err


@pytest.mark.slow
def test_steps_alone_one_after_the_other_end_where_a_run_ends(job: Job):
    before = job.published()
    job.forget()
    for step in STEPS:
        outcome = job.do(step)
        assert outcome.code == 0, outcome.err
    bundles, in_redis = job.published()
    assert in_redis == before[1]
    assert bundles["current"] == before[0]["current"]


@pytest.mark.slow
def test_a_publication_whose_evaluation_is_of_an_older_training_is_refused(job: Job):
    job.do("train", "--seed", "43")
    before = job.published()
    outcome = job.do("publish", "--seed", "43")
    assert outcome.code == 1
    assert "run `feastrank evaluate" in outcome.err
    assert job.published() == before


def test_unknown_commands_flags_and_values_are_wrong_usage(job: Job, capsys):
    assert job.do("recomend").code == 2
    assert "unknown command 'recomend'; expected one of run, demo, ingest" in job.do("recomend").err
    outcome = job.do("run", "--label-slices", "many")
    assert outcome.code == 2
    assert "--label-slices many" in outcome.err
    outcome = job.do("recommend")
    assert outcome.code == 2
    assert "--user" in outcome.err


def test_a_description_that_is_not_there_is_an_error(tmp_path: Path, new_job: MakeJob):
    job = new_job(make_feed())
    job.description.unlink()
    outcome = job.do("run")
    assert outcome.code == 1
    assert "no such dataset description; write one with `feastrank init`" in outcome.err


@pytest.mark.slow
def test_events_alone_without_attributes_get_to_answers(new_job: MakeJob):
    job = new_job(events_alone("likes_alone"))
    outcome = job.do("run")
    assert outcome.code == 0, outcome.err
    answer = job.do("recommend", "--user", "u003", "--top", "3")
    assert answer.code == 0, answer.err
    assert len(re.findall(r"\bp\d{3}\b", answer.out)) >= 3


def test_a_feed_without_clock_gets_to_answers(new_job: MakeJob):
    job = new_job(events_alone("no_clock", '{ format = "file_order" }'))
    outcome = job.do("run")
    assert outcome.code == 0, outcome.err
    assert job.report()["run"]["has_clock"] is False
    recommender = answers(job)
    answer = recommender.recommend("u003", 10)
    assert not {one.post for one in answer.recommendations} & seen_by(job, "u003")
    assert not [n for n in recommender.features("u003", ["p001"]).column_names if "_7d" in n]


def test_init_proposes_a_description_that_is_obeyed(new_job: MakeJob, monkeypatch):
    job = new_job(make_feed())
    job.description.unlink()
    source = job.home / "source"
    monkeypatch.chdir(source)
    files = [f"--{name}={name}.csv" for name in ("users", "posts", "events")]
    from pipelines.cli import main

    assert main(["init", *files, "--name", job.name, "--output", "feed.toml"]) == 0
    for step in ("ingest", "features"):
        outcome = job.do(step)
        assert outcome.code == 0, outcome.err
    assert job.facts("ingest")["summary"].startswith("40 users, 120 posts, 2,617 events")
    assert main(["init", *files, "--output", "feed.toml"]) == 1


def test_doctor_finds_a_published_job_sound_and_says_what_to_do_where_nothing_ran(
    job: Job, new_job: MakeJob
):
    outcome = job.do("doctor")
    assert outcome.code == 0, outcome.out
    for found in ("lightgbm", "online store", "user_activity", "materialized until", "bundle"):
        assert found in outcome.out
    assert "0.0 s" in re.search("clocks .*", outcome.out)[0]
    nothing = new_job(make_feed("never_run")).do("doctor")
    assert nothing.code == 1
    assert "run `feastrank ingest` or `feastrank run`" in nothing.out
    assert re.search(r"\d+ of \d+ findings need something done", nothing.err)


@pytest.mark.parametrize(("seconds", "said"), [(60, "60.0 s ahead of"), (-6, "6.0 s behind")])
def test_doctor_compares_this_machines_clock_with_redis(job: Job, seconds: int, said: str):
    client = job.redis()
    found = clocks(client, lambda: time.time() + seconds)
    assert found.found == f"this machine's is {said} Redis'"
    assert "NTP" in found.advice
    assert clocks(client, lambda: time.time() + seconds / 15).advice == ""


def test_a_process_of_its_own_prints_the_run_and_no_warnings(job: Job, new_job: MakeJob):
    # Feast calls on-demand views experimental.
    applied = new_job(make_feed("only_applied")).spawn("apply")
    assert (applied.returncode, applied.stderr) == (0, "")
    job.close()
    outcome = job.spawn("run")
    assert outcome.returncode == 0
    assert outcome.stdout.count("unchanged") == len(STEPS)
    assert outcome.stderr == ""

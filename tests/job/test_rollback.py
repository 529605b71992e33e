"""`feastrank rollback`: what is served goes back one generation, or stays."""

import re
import time

import pytest
from job_runner import Job

from feastpack import FeatureReader
from pipelines.job.context import open_store
from serving.recommender import Recommender

AS_OF = ("--as-of", "2024-05-25T00:00:00")


def published(job: Job) -> str:
    return (job.workspace.bundles / "current").read_text(encoding="utf-8")


@pytest.fixture
def two_generations(job: Job) -> tuple[Job, str, str]:
    """The published workspace with another generation published after it, of another moment."""
    first = published(job)
    for step in ("materialize", "publish"):
        assert job.do(step, *AS_OF).code == 0
    second = published(job)
    assert first != second
    return job, first, second


def test_rollback_serves_the_generation_before_with_its_own_lists(two_generations):
    job, first, second = two_generations
    lists = {key: value for key, value in job.in_redis().items() if b":lists:" in key}
    # Work, not waiting: other processes share the cores.
    start = time.process_time()
    outcome = job.do("rollback")
    assert time.process_time() - start < 1
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.out.split())
    assert re.search(rf"generation {first} of .* after \d\.\d\d s, instead of {second}", said)
    assert published(job) == first
    assert {key: value for key, value in job.in_redis().items() if b":lists:" in key} == lists
    assert job.do("recommend", "--user", "u003").code == 0
    again = job.do("rollback")
    assert again.code == 1
    assert f"no generation older than {first} is kept" in again.err
    assert published(job) == first


def test_the_next_publication_is_what_its_inputs_make(two_generations):
    job, first, second = two_generations
    job.do("rollback")
    assert job.do("publish", *AS_OF).code == 0
    assert published(job) == second
    assert job.do("rollback").code == 0
    assert published(job) == first


def test_a_generation_without_its_lists_is_refused(two_generations):
    job, first, second = two_generations
    job.redis().delete(f"feastrank:{job.name}:lists:{first}:complete")
    outcome = job.do("rollback")
    assert outcome.code == 1
    assert f"bundle {first}: its candidate lists are not complete in Redis" in outcome.err
    assert f"{second} stays published" in outcome.err
    assert published(job) == second


def test_before_anything_ran_the_step_to_run_is_named(job: Job):
    job.forget()
    outcome = job.do("rollback")
    assert outcome.code == 1
    assert "no feature store yet; run `feastrank apply`" in outcome.err


def served_features(job: Job) -> list[dict[str, object]]:
    recommender = Recommender(job.workspace.bundles, open_store(job.workspace))
    return recommender.features("u003", ["p001", "p002"]).to_pylist()


def rows_in_redis(job: Job) -> dict[bytes, tuple[bytes, int]]:
    return {key: value for key, value in job.in_redis().items() if key.startswith(b"fp:")}


def namespaces(job: Job) -> set[str]:
    return {key.split(b":")[1].decode().partition("@")[2] for key in rows_in_redis(job)}


def test_online_features_go_back_with_the_generation(job: Job):
    first = served_features(job)
    for step in ("materialize", "publish"):
        assert job.do(step, *AS_OF).code == 0
    assert served_features(job) != first
    assert job.do("rollback").code == 0
    assert served_features(job) == first


def test_what_is_made_for_the_next_generation_changes_nothing_that_is_served(job: Job):
    before, rows = served_features(job), rows_in_redis(job)
    answer = job.do("recommend", "--user", "u003").out.partition("\n")[2].splitlines()[1:]
    text = job.description.read_text(encoding="utf-8")
    without_city = [line for line in text.splitlines() if 'name = "city"' not in line]
    job.description.write_text("\n".join(without_city), encoding="utf-8")
    for step in ("ingest", "features", "apply", "materialize"):
        outcome = job.do(step)
        assert outcome.code == 0, outcome.err
    assert served_features(job) == before
    assert {key: value for key, value in rows_in_redis(job).items() if key in rows} == rows
    assert len(namespaces(job)) == 2
    again = job.do("recommend", "--user", "u003").out.partition("\n")[2].splitlines()[1:]
    assert again == answer
    assert "made for other ranker inputs than are applied now" in job.do("doctor").out


def test_feast_reads_what_is_served(two_generations):
    job, _, _ = two_generations
    reader = FeatureReader(open_store(job.workspace), registry_ttl_seconds=None)

    def read() -> object:
        features = ["post_activity:post_event_count_lifetime"]
        return reader.read(features, {"post_id": [0, 1, 2]}).to_dict()

    second = read()
    assert job.do("rollback").code == 0
    reader.refresh()
    assert read() != second


def test_older_generations_are_kept_as_told_and_collected_from_redis(two_generations):
    job, _, _ = two_generations
    assert len(namespaces(job)) == 2
    for day, kept in ((20, 3), (15, 2)):
        moment = ("--as-of", f"2024-05-{day}T00:00:00", "--keep-generations", str(kept))
        for step in ("materialize", "publish"):
            assert job.do(step, *moment).code == 0
        assert len(namespaces(job)) == kept
        lists = {key.split(b":")[3] for key in job.in_redis() if b":lists:" in key}
        assert len(lists) == kept
        assert len(list(job.workspace.bundles.glob("[!.]*/manifest.json"))) == kept
    assert job.do("rollback").code == 0


def test_a_generation_without_its_features_is_refused(two_generations):
    job, first, second = two_generations
    namespace = next(iter(namespaces(job) - {served_namespace(job)}))
    job.redis().delete(f"feastrank:{job.name}:materialized:{namespace}")
    outcome = job.do("rollback")
    assert outcome.code == 1
    assert f"bundle {first}: its online features are not complete in Redis" in outcome.err
    assert published(job) == second


def served_namespace(job: Job) -> str:
    return job.workspace.online_namespace.read_text(encoding="utf-8")

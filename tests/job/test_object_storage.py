"""A real job published to object storage, served and gone on with from other state folders."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from job_runner import Job
from s3_server import S3Server

from feastpack.embedded import shared_embedded
from pipelines.serve import open_published
from pipelines.settings import ServeSettings
from pipelines.steps import read_json
from pipelines.storage.mirror import Mirror
from serving.app import create_app

pytest.importorskip("obstore")

USERS = ("u001", "u017", "nobody")
AS_OF = ("--as-of", "2024-05-25T00:00:00")


@pytest.fixture
def stored(job: Job, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Job:
    """The published workspace, published to object storage as well; every job uses its Redis."""
    monkeypatch.setenv("FEASTRANK_STORAGE", s3.url)
    server = shared_embedded(job.workspace.redis)
    monkeypatch.setenv("REDIS_URL", f"redis://{server.host}:{server.port}/0")
    outcome = job.do("publish")
    assert outcome.code == 0, outcome.err
    return job


@pytest.fixture
def elsewhere(stored: Job, tmp_path: Path) -> Job:
    """A state folder with nothing but the source's files, as on another machine."""
    home = tmp_path / "elsewhere"
    shutil.copytree(stored.home / "source", home / "source")
    return Job(home, stored.name)


def recommended(job: Job) -> list[str]:
    answers = [job.do("recommend", "--user", user) for user in USERS]
    assert {answer.code for answer in answers} == {0}, answers[0].err
    return [re.sub(r"answered in \d+ ms", "", answer.out) for answer in answers]


def served(client: TestClient) -> list[object]:
    asked = [client.post("/recommend", json={"user_id": user, "k": 10}).json() for user in USERS]
    return [[post["post_id"] for post in answer["posts"]] for answer in asked]


def test_another_state_folder_answers_alike_and_goes_on_with_the_lake(stored, elsewhere):
    expected = recommended(stored)
    outcome = elsewhere.do("fetch")
    assert outcome.code == 0, outcome.err
    assert re.search(r"publication 1 of s3://lake/state/tiny_feed, .* MB, fetched", outcome.out)
    assert recommended(elsewhere) == expected
    assert "was here already" in elsewhere.do("fetch").out
    outcome = elsewhere.do("ingest")
    assert outcome.code == 0, outcome.err
    assert "(0 new)" in outcome.out
    there, here = stored.workspace.lake, elsewhere.workspace.lake
    for name in ("users", "posts"):
        ids = Path("ids") / f"{name}.parquet"
        assert (here / ids).read_bytes() == (there / ids).read_bytes()


@pytest.fixture
def service(elsewhere: Job) -> Iterator[TestClient]:
    settings = ServeSettings(
        dataset=str(elsewhere.description),
        home=elsewhere.home,
        storage=os.environ["FEASTRANK_STORAGE"],
        bundle_check_seconds=3600,
    )
    recommenders = open_published(settings, elsewhere.workspace, None)
    with TestClient(create_app(recommenders, settings, None)) as client:
        client.published = recommenders  # type: ignore[attr-defined]
        yield client


def test_a_service_elsewhere_follows_publications_and_outlives_the_store(
    stored, service, elsewhere, s3
):
    first, generation = served(service), stored.generation()
    for step in ("materialize", "publish"):
        assert stored.do(step, *AS_OF).code == 0
    assert served(service) == first
    service.published.refresh()
    assert served(service) != first
    assert elsewhere.generation() == stored.generation() != generation
    outcome = stored.do("rollback")
    assert outcome.code == 0, outcome.err
    service.published.refresh()
    assert served(service) == first
    assert elsewhere.generation() == generation
    assert stored.do("publish", *AS_OF).code == 0
    for ranker in s3.folder.glob("**/bundles/*/ranker.*/*"):
        ranker.write_bytes(ranker.read_bytes()[:-1])
    shutil.rmtree(elsewhere.workspace.bundles / stored.generation())
    service.published.refresh()
    assert service.published.degraded == ("bundle_outdated",)
    assert served(service) == first
    s3.stop()
    service.published.refresh()
    assert service.published.degraded == ("bundle_outdated",)
    assert served(service) == first
    settings = ServeSettings(
        dataset=str(elsewhere.description), home=elsewhere.home, storage=s3.url
    )
    again = open_published(settings, elsewhere.workspace, None)
    assert again.current().manifest.generation == generation == elsewhere.generation()


def published_again(job: Job, s3: S3Server) -> None:
    mirror = Mirror.of(job.workspace, s3.url)
    assert mirror is not None
    mirror.point_back(job.generation())


def test_of_two_runs_the_second_is_told_and_changes_nothing(stored, elsewhere, s3):
    assert elsewhere.do("fetch").code == 0
    for name in ("steps", "training", "reports", "staged_registry.db"):
        source, target = stored.workspace.root / name, elsewhere.workspace.root / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    published_again(stored, s3)
    before, log = stored.published(), s3.objects()
    assert "publication 2, " in stored.do("doctor").out
    told = " ".join(elsewhere.do("doctor").out.split())
    assert "does not begin from it; run `feastrank run`" in told
    for command in (("publish",), ("rollback",)):
        outcome = elsewhere.do(*command)
        assert outcome.code == 4
        assert "publication 2" in outcome.err
        assert "was made from another state folder" in outcome.err
    assert stored.published() == before
    assert s3.objects() == log
    outcome = elsewhere.do("ingest")
    assert outcome.code == 0, outcome.err
    assert "publication 2 of s3://lake/state/tiny_feed fetched" in outcome.out
    assert elsewhere.generation() == stored.generation()
    assert not (elsewhere.workspace.steps / "publish.json").exists()


def test_storage_that_was_named_later_is_published_to_without_a_new_generation(stored, s3):
    generation = stored.generation()
    assert stored.do("publish").steps == {"publish": "unchanged"}
    base = read_json(stored.workspace.root / "storage.json")
    assert len(base["based_on"]) == 1
    other = f"{s3.url}/other"
    assert stored.do("publish", "--storage", other).code == 0
    assert stored.generation() == generation
    assert any("/other/" in key for key in s3.objects())
    outcome = stored.do("publish", "--storage", "s3://nowhere")
    assert outcome.code == 1
    assert "s3://nowhere/tiny_feed: cannot list publications/" in outcome.err


def test_nothing_published_and_no_address_are_told(stored, elsewhere, monkeypatch):
    outcome = elsewhere.do("fetch", "--storage", "s3://lake/empty")
    assert outcome.code == 1
    assert "s3://lake/empty/tiny_feed: nothing is published; run `feastrank run`" in outcome.err
    monkeypatch.delenv("FEASTRANK_STORAGE")
    assert "--storage is missing" in elsewhere.do("fetch").err
    assert elsewhere.do("fetch", "--storage", "gs://lake").code == 2

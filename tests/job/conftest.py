"""One published workspace per test process; each test gets it as it was published."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from http_service import Service, open_service
from job_runner import QUICK, Job, KilledRuns
from tiny_feed import Feed, make_feed


@pytest.fixture(scope="session", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setenv(name, value)
        patch.delenv("REDIS_URL", raising=False)
        yield


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory, _quick: None) -> tuple[Job, str, Path]:
    """Run the job once from a description alone; keep its output and a copy of all it left."""
    job = Job.of(make_feed(), tmp_path_factory.mktemp("tiny") / "home")
    outcome = job.do("run")
    job.close()
    assert outcome.code == 0, outcome.err
    copy = job.home.with_name("as_published")
    shutil.copytree(job.home, copy)
    return job, outcome.out, copy


@pytest.fixture
def job(first_run: tuple[Job, str, Path]) -> Iterator[Job]:
    """The published workspace, put back as it was (at the same path, which records hold)."""
    published, _, copy = first_run
    shutil.rmtree(published.home, ignore_errors=True)
    shutil.copytree(copy, published.home)
    yield published
    published.close()


@pytest.fixture(scope="session")
def killed(_quick: None) -> Iterator[KilledRuns]:
    with KilledRuns() as runs:
        yield runs


@pytest.fixture
def new_job(tmp_path: Path) -> Iterator[Callable[[Feed], Job]]:
    """Make jobs of other feeds, with nothing run yet."""
    made: list[Job] = []

    def make(feed: Feed) -> Job:
        made.append(Job.of(feed, tmp_path / f"home-{len(made)}"))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def service(job: Job) -> Iterator[Service]:
    with open_service(job) as opened:
        yield opened


@pytest.fixture
def opened() -> Iterator[Callable[[Job], Service]]:
    """Open services on a workspace that a test has changed."""
    with ExitStack() as stack:
        yield lambda job: stack.enter_context(open_service(job))

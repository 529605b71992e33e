"""Windows of data, run one after the other; one run at a time; the orchestrator's definition."""

import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from job_runner import REPOSITORY, Job
from tiny_feed import DAYS, START, Feed, events_alone, make_feed

from pipelines.cli import EXIT_BUSY, EXIT_GATE
from pipelines.lock import RUN_LOCK, only_run

HALF, END = START + timedelta(days=DAYS // 2), START + timedelta(days=DAYS + 1)
NewJob = Callable[[Feed], Job]


def _events(job: Job) -> list[tuple[object, ...]]:
    """Return the lake's events with the source's own ids, in any order."""
    lake = job.workspace.lake
    table = ds.dataset(lake / "events").to_table(["user_id", "post_id", "event_time", "action"])
    for key in ("user", "post"):
        ids = pq.read_table(lake / "ids" / f"{key}s.parquet")
        table = table.join(ids.rename_columns([key, f"{key}_id"]), f"{key}_id")
    columns = [table[name].to_pylist() for name in ("user", "post", "event_time", "action")]
    return sorted(zip(*columns, strict=True))


def test_two_windows_in_order_hold_what_one_ingest_does(new_job: NewJob) -> None:
    whole, windows = new_job(make_feed()), new_job(make_feed())
    assert whole.do("ingest").code == 0
    first = windows.do("ingest", "--until", HALF.isoformat())
    assert first.code == 0, first.err
    early = _events(windows)
    assert early == [row for row in _events(whole) if row[2] < HALF]
    assert 0 < len(early) < len(_events(whole))
    again = windows.do("ingest", "--until", HALF.isoformat())
    assert again.steps == {"ingest": "unchanged"}
    second = windows.do("ingest", "--until", END.isoformat())
    assert second.code == 0, second.err
    assert _events(windows) == _events(whole)


def test_an_event_at_the_end_of_a_window_belongs_to_the_next(new_job: NewJob) -> None:
    feed = make_feed()
    job = new_job(feed)
    last = datetime.fromisoformat(feed.events[-1]["time"])
    assert job.do("ingest", "--until", last.isoformat()).code == 0
    assert max(row[2] for row in _events(job)) < last
    after = (last + timedelta(microseconds=1)).replace(tzinfo=None)  # meant in UTC
    assert job.do("ingest", "--until", after.isoformat()).code == 0
    assert max(row[2] for row in _events(job)) == last


def test_an_earlier_window_is_refused_and_changes_nothing(new_job: NewJob) -> None:
    job = new_job(make_feed())
    assert job.do("ingest").code == 0
    before = _events(job)
    outcome = job.do("ingest", "--until", HALF.isoformat())
    assert outcome.code == 1
    assert "windows are run in order of time" in outcome.err
    assert _events(job) == before


def test_a_window_before_every_event_says_so(new_job: NewJob) -> None:
    outcome = new_job(make_feed()).do("ingest", "--until", "2020-01-01")
    assert outcome.code == 1
    assert "no event lies before --until 2020-01-01T00:00:00+00:00" in outcome.err


def test_events_without_a_clock_have_no_windows(new_job: NewJob) -> None:
    feed = events_alone("no_clock", '{ format = "file_order" }')
    outcome = new_job(feed).do("ingest", "--until", "2024-04-01")
    assert outcome.code == 1
    assert "no clock to cut windows by" in outcome.err


HOLDER = """
import sys, time
from pathlib import Path
from pipelines.lock import only_run
with only_run("tiny_feed", Path(sys.argv[1]), "run"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_until_the_first_has_ended_however(new_job: NewJob) -> None:
    job = new_job(make_feed())
    command = [sys.executable, "-c", HOLDER, str(job.workspace.root)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refused = job.do("ingest")
        holder.send_signal(signal.SIGKILL)
    assert refused.code == EXIT_BUSY
    assert f"`feastrank run`, process {holder.pid}, since " in refused.err
    assert not job.workspace.lake.exists()
    assert job.do("ingest").code == 0


def test_commands_that_only_read_do_not_wait(job: Job) -> None:
    with only_run(job.name, job.workspace.root, "run"):
        assert job.do("recommend", "--user", "u001").code == 0
    assert (job.workspace.root / RUN_LOCK).exists()


def test_dagster_finds_a_step_a_day_in_order() -> None:
    dagster = pytest.importorskip("dagster")
    from pipelines import orchestration

    dagster.Definitions.validate_loadable(orchestration.defs)
    graph = orchestration.defs.resolve_asset_graph()
    parents = {
        key.to_user_string(): {one.to_user_string() for one in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
    }
    assert parents == {
        "ingest": {"ingest"},
        "features": {"ingest"},
        "apply": {"features"},
        "train": {"features"},
        "evaluate": {"train"},
        "materialize": {"features", "apply"},
        "publish": {"evaluate", "materialize"},
    }
    assert orchestration.DAYS.get_partition_keys(datetime.now(UTC))[0] == orchestration.FIRST_DAY


# Nine processes, most of whose time is the import of libraries.
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_dagster_runs_two_days_and_stops_at_a_gate(
    new_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    dagster = pytest.importorskip("dagster")
    from pipelines import orchestration

    feed = make_feed()
    job = new_job(feed)
    monkeypatch.setenv("FEASTRANK_DATASET", str(job.description))
    monkeypatch.setenv("FEASTRANK_HOME", str(job.home))
    days = [(START + timedelta(days=day)).date().isoformat() for day in (DAYS - 2, DAYS)]
    with dagster.DagsterInstance.ephemeral() as instance:

        def run(day: str, *steps: str) -> object:
            return dagster.materialize(
                orchestration.ASSETS,
                instance=instance,
                partition_key=day,
                selection=steps or None,
                raise_on_error=False,
            )

        assert run(days[0]).success
        before, published = len(_events(job)), job.in_bundles()
        assert published
        assert run(days[1], "ingest").success
        assert before < len(_events(job)) == len(feed.events)
        broken = [dict(row) for row in feed.events]
        broken[5]["user"] = "nobody"
        feed.with_(events=broken).write(job.home / "source")
        failed = run(days[1])
        assert not failed.success
        step = failed.failure_data_for_node("ingest")
        assert step.user_failure_data.metadata["exit_code"].value == EXIT_GATE
        # A gate is not tried again.
        happened = [event.event_type_value for event in failed.all_events]
        assert "STEP_FAILURE" in happened
        assert "STEP_UP_FOR_RETRY" not in happened
        assert job.in_bundles() == published
        assert pc.max(ds.dataset(job.workspace.lake / "events").to_table()["event_time"])

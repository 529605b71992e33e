"""The job as Dagster assets, one run a day: ``dagster dev -m pipelines.orchestration``.

Needs the extra ``feastrank[dagster]``. The variables that every command reads say what is run
(``FEASTRANK_DATASET``, ``FEASTRANK_HOME`` and so on); ``FEASTRANK_FIRST_DAY`` (YYYY-MM-DD) is the
first day that a backfill may begin with. A partition is one day of UTC, and its run sees the
events before the day's end (``--until``). Days follow one another: each waits for the one before
it, as the lake grows by one window after the other.

A gate that stops a step fails the run at once, as trying again would change nothing; another run
at work, and everything else, is tried again.
"""

import os
import subprocess
import sys
from typing import Any

import dagster as dg

from feature_repo.dataset import Dataset
from feature_repo.workspace import Workspace
from pipelines.cli import EXIT_GATE, EXIT_USAGE
from pipelines.job.context import NEEDS, STEPS, description_path
from pipelines.settings import DatasetSettings
from pipelines.steps import Ledger

FIRST_DAY = os.environ.get("FEASTRANK_FIRST_DAY", "2024-01-01")
HOUR = 2
"""Of the night (UTC) in which the day before is run."""
DAYS = dg.DailyPartitionsDefinition(start_date=FIRST_DAY)
RETRIES = dg.RetryPolicy(max_retries=3, delay=60, backoff=dg.Backoff.EXPONENTIAL)
# In order, one step at a time: the state of a dataset has one writer.
BEFORE = {"features": ("ingest",), "apply": ("features",), **NEEDS}


def _asset(step: str) -> dg.AssetsDefinition:
    deps = [dg.AssetDep(needed) for needed in BEFORE.get(step, ())]
    if step == "ingest":
        yesterday = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)
        deps.append(dg.AssetDep("ingest", partition_mapping=yesterday))

    @dg.asset(
        name=step,
        deps=deps,
        partitions_def=DAYS,
        retry_policy=RETRIES,
        group_name="feastrank",
        description=f"`feastrank {step}` on the events before the day's end.",
    )
    def run(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        until = context.partition_time_window.end.isoformat()
        command = [sys.executable, "-m", "pipelines.cli", step, "--until", until]
        context.log.info(" ".join(command))
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        context.log.info(outcome.stdout)
        if outcome.returncode:
            # A gate and a wrong flag stay as they are, however often they are tried.
            is_final = outcome.returncode in (EXIT_GATE, EXIT_USAGE)
            raise dg.Failure(
                description=outcome.stderr.strip()[-10_000:],
                metadata={"exit_code": outcome.returncode},
                allow_retries=not is_final,
            )
        return dg.MaterializeResult(metadata=_facts(step))

    return run


def _facts(step: str) -> dict[str, Any]:
    """Return what the step recorded of itself."""
    settings = DatasetSettings()  # type: ignore[call-arg]  # the environment fills it
    name = Dataset.read(description_path(settings)).name
    record = Ledger(Workspace(settings.home.resolve(), name).steps).find(step)
    if record is None:
        return {}
    return {"seconds": record.seconds, "summary": record.facts.get("summary", "")}


ASSETS = [_asset(step) for step in STEPS]
JOB = dg.define_asset_job("feastrank", selection=dg.AssetSelection.assets(*ASSETS))
defs = dg.Definitions(
    assets=ASSETS,
    jobs=[JOB],
    schedules=[dg.build_schedule_from_partitioned_job(JOB, hour_of_day=HOUR)],
    executor=dg.in_process_executor,
)

"""Work in shards as a job's settings say: here, in several processes, or on Spark."""

import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from joblib import cpu_count

from pipelines.job.context import Context, Progresses
from pipelines.job.profile import spark_of
from pipelines.shards import Report, ShardJob, Work, run_here, run_on_spark

_SHARDS_PER_CORE = 4


@dataclass(frozen=True)
class Done:
    """What became of a job in shards.

    Attributes
    ----------
    files
        The shards' files in the order of ids.
    reports
        What became of each shard.
    seconds
        Wall time.
    """

    files: list[Path]
    reports: list[Report]
    seconds: float

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(report.rows for report in self.reports)

    def total(self, fact: str, *, new: bool = False) -> int:
        """Return the sum of a fact over all shards, or over those that were done now."""
        chosen = [report for report in self.reports if report.is_new or not new]
        return sum(report.facts.get(fact, 0) for report in chosen)

    @property
    def shards(self) -> str:
        """In words how many shards there are, and how many were finished before."""
        old = sum(not report.is_new for report in self.reports)
        return f"{len(self.reports)} shards, {old} of them finished before"


def in_shards(
    context: Context,
    work: Work,
    source: Path,
    id: str,
    bars: Progresses,
    what: str,
    *,
    workers: int | None = None,
) -> Done:
    """Do work on all rows of a table of the lake.

    What is finished lies in ``shards/NAME`` of the dataset's state folder.

    Parameters
    ----------
    source, id
        See `pipelines.shards.ShardJob`.
    what
        What is counted, the title of the progress bar.
    workers
        Processes unless the settings say; None: one for each processor.

    Raises
    ------
    ShardError, feastpack.errors.SparkError
        If a process that did a shard died.
    """
    start, settings = time.perf_counter(), context.settings
    folder = context.workspace.root / "shards" / work.name
    if settings.profile == "spark":
        session = spark_of(settings)
        cores = session.sparkContext.defaultParallelism
        job = ShardJob.of(work, source, id, folder, settings.shards or _SHARDS_PER_CORE * cores)
        reports = run_on_spark(job, session, bars.bar(f"{what}, shards"))
    else:
        job = ShardJob.of(work, source, id, folder, settings.shards or 1)
        # Of one shard the rows are counted, of several the shards.
        single = len(job.shards) == 1
        reports = run_here(
            job,
            settings.workers or workers or cpu_count(),
            bars.bar(what) if single else None,
            None if single else bars.bar(f"{what}, shards"),
        )
    job.tidy(reports)
    return Done(job.paths(reports), reports, time.perf_counter() - start)


def link(file: Path, path: Path) -> None:
    """Give a finished shard's file, which is never changed, another name; copy it if need be."""
    # Of two names of one file none would be replaced by the other.
    if path.exists() and path.samefile(file):
        return
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.link(file, partial)
    except OSError:
        # Another file system, or one without links.
        shutil.copyfile(file, partial)
    partial.replace(path)

"""Work on a table's rows in shards: each a range of ids, done by one process, kept as one file.

The same code runs in this process, in several processes here, and in the executors of Spark: a
shard's rows are read where it is done, from parquet files that all see at the same place, go
through the work as Arrow batches, and become a parquet file that appears whole or not at all. The
driver receives a line about each shard, never its rows.

A file is named by the shard and by the hash of all that it depends on. So a run that is killed
loses the shards in flight, the next one keeps the others, and a shard that is done twice (tried
again by Spark, or run twice by speculation) leaves the same file.
"""

import hashlib
import json
import multiprocessing
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from joblib import cpu_count

from feastpack.spark_session import spark_failures
from pipelines.errors import ShardError
from pipelines.startup import prepare_for_feast
from pipelines.steps import content_key

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Facts = dict[str, Any]
Progress = Callable[[int, int], None]

_BATCH_ROWS = 65_536
_WATCH_SECONDS = 1.0
_FACTS = b"feastrank"
_REPORT = pa.schema([("report", pa.string())])
_REPORT_DDL = "report string"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Work(Protocol):
    """What is done to a shard's rows; sent to other processes, so made of plain values."""

    @property
    def name(self) -> str:
        """What is made, for messages."""

    @property
    def columns(self) -> Sequence[str]:
        """Columns to be read beside the id."""

    @property
    def schema(self) -> pa.Schema:
        """The files' columns."""

    @property
    def together(self) -> int:
        """How many ids stay in one shard: shards begin at multiples of it."""

    def key(self, rows: pa.Table) -> str:
        """Return the hash of all that the shard's file depends on, its rows among it."""

    def __call__(
        self, batches: Iterable[pa.RecordBatch], facts: Facts, on_progress: Progress | None
    ) -> Iterator[pa.RecordBatch]:
        """Turn a shard's batches into those of its file.

        Parameters
        ----------
        facts
            Takes what is to be known of the shard beside its rows; kept in the file.
        on_progress
            Called with (done, to do), in units of the work's own.
        """


@dataclass(frozen=True)
class Report:
    """What became of a shard: its file, rows read and written, whether it was done now, and facts.

    ``seconds`` is the shard's own, reading included.
    """

    shard: int
    file: str
    read: int
    rows: int
    is_new: bool
    seconds: float
    facts: Facts


@dataclass(frozen=True)
class ShardJob:
    """Work on all rows of a table; a function for Spark's ``mapInArrow`` too.

    Parameters
    ----------
    source
        Folder of parquet files.
    id
        Their column of whole numbers, which shards are ranges of.
    folder
        Where the shards' files lie.
    bounds
        Shard ``i`` has the ids from ``bounds[i]`` up to, but not including, ``bounds[i + 1]``.
    """

    work: Work
    source: Path
    id: str
    folder: Path
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, work: Work, source: Path, id: str, folder: Path, shards: int) -> "ShardJob":
        """Cut a table's ids into at most ``shards`` ranges of about the same length."""
        column = ds.dataset(source, format="parquet").to_table(columns=[id])[id]
        step = work.together
        first, end = pc.min(column).as_py() // step, pc.max(column).as_py() // step + 1
        count = min(shards, end - first)
        bounds = tuple((first + (end - first) * i // count) * step for i in range(count + 1))
        return cls(work, source, id, folder, bounds)

    @property
    def shards(self) -> range:
        """The numbers of the shards."""
        return range(len(self.bounds) - 1)

    def run(self, shard: int, on_progress: Progress | None = None) -> Report:
        """Do one shard, unless its file is there."""
        start = time.perf_counter()
        rows = self._rows(shard)
        key = content_key(self.work.key(rows), self.work.schema.to_string())
        path = self.folder / f"{shard:05d}-{key[:16]}.parquet"
        is_new = not path.exists()
        if is_new:
            self._write(rows, path, on_progress)
        found = pq.read_metadata(path)
        facts = json.loads(found.metadata[_FACTS])
        seconds = time.perf_counter() - start
        return Report(shard, path.name, rows.num_rows, found.num_rows, is_new, seconds, facts)

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Do the shards whose numbers Spark sends, the column ``id``; yield their reports."""
        for batch in batches:
            for shard in batch.column("id").to_pylist():
                report = json.dumps(asdict(self.run(shard)))
                yield pa.RecordBatch.from_pydict({"report": [report]}, _REPORT)

    def paths(self, reports: Iterable[Report]) -> list[Path]:
        """Return the shards' files in the order of ids."""
        ordered = sorted(reports, key=lambda one: one.shard)
        return [self.folder / report.file for report in ordered]

    def tidy(self, reports: Iterable[Report]) -> None:
        """Remove what earlier runs, of other rows or killed, have left."""
        kept = {report.file for report in reports}
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _rows(self, shard: int) -> pa.Table:
        ids = ds.field(self.id)
        table = ds.dataset(self.source, format="parquet").to_table(
            columns=[self.id, *self.work.columns],
            filter=(ids >= self.bounds[shard]) & (ids < self.bounds[shard + 1]),
        )
        return table.replace_schema_metadata(None).sort_by(self.id)

    def _write(self, rows: pa.Table, path: Path, on_progress: Progress | None) -> None:
        facts: Facts = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{path.stem}.{secrets.token_hex(4)}.tmp"
        try:
            with pq.ParquetWriter(partial, self.work.schema) as writer:
                batches = rows.to_batches(max_chunksize=_BATCH_ROWS)
                for batch in self.work(batches, facts, on_progress):
                    writer.write_batch(batch)
                writer.add_key_value_metadata({_FACTS: json.dumps(facts)})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def rows_key(rows: pa.Table) -> str:
    """Return the sha256 (hex) of a table's values, in their order."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


def run_here(
    job: ShardJob,
    workers: int,
    on_progress: Progress | None = None,
    on_shard: Progress | None = None,
) -> list[Report]:
    """Do all shards on this machine, ``workers`` at a time, each in a process of its own.

    Parameters
    ----------
    workers
        1 does them in this process, one after the other.
    on_progress
        As the work reports it; from this process only.
    on_shard
        Called with (shards done, shards) after each of them.

    Raises
    ------
    ShardError
        If a process was killed.
    """
    reports: list[Report] = []
    for report in _reports(job, min(workers, len(job.shards)), on_progress):
        reports.append(report)
        if on_shard is not None:
            on_shard(len(reports), len(job.shards))
    return reports


def _reports(job: ShardJob, workers: int, on_progress: Progress | None) -> Iterator[Report]:
    if workers == 1:
        yield from (job.run(shard, on_progress) for shard in job.shards)
        return
    # A fork of a process that has used torch or OpenMP may wait for ever.
    context = multiprocessing.get_context("spawn")
    with _share_of_processors(workers):
        pool = ProcessPoolExecutor(workers, context, _begin_worker)
        try:
            for done in as_completed([pool.submit(job.run, shard) for shard in job.shards]):
                yield done.result()
        except BrokenProcessPool as error:
            raise ShardError(
                f"{job.work.name}: a process that did a shard was killed, most likely for want of "
                "memory; pass fewer --workers or more --shards. What is finished is kept: the "
                "same command goes on from there"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def run_on_spark(
    job: ShardJob, session: "SparkSession", on_shard: Progress | None = None
) -> list[Report]:
    """Do all shards on the executors of Spark, each in a task of its own.

    Parameters
    ----------
    on_shard
        Called with (shards done, shards), once a second.

    Raises
    ------
    feastpack.errors.SparkError
        If a shard fails as often as Spark tries a task.
    """
    count = len(job.shards)
    with spark_failures(job.work.name), _watched(session, count, on_shard):
        found = session.range(0, count, 1, count).mapInArrow(job, _REPORT_DDL).collect()
    return [Report(**json.loads(one.report)) for one in found]


@contextmanager
def _watched(session: "SparkSession", count: int, on_shard: Progress | None) -> Iterator[None]:
    """Tell how many of the tasks of a stage of ``count`` are done, while Spark works on it."""
    if on_shard is None:
        yield
        return
    tracker, ended = session.sparkContext.statusTracker(), Event()

    def watch() -> None:
        while not ended.wait(_WATCH_SECONDS):
            jobs = [tracker.getJobInfo(job) for job in tracker.getActiveJobsIds()]
            stages = [tracker.getStageInfo(one) for job in jobs if job for one in job.stageIds]
            for stage in stages:
                if stage is not None and stage.numTasks == count:
                    on_shard(stage.numCompletedTasks, count)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    on_shard(count, count)


@contextmanager
def _share_of_processors(workers: int) -> Iterator[None]:
    """Let processes that start now use a share of the processors each, unless told otherwise."""
    unset = [name for name in _THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, str(max(1, cpu_count() // workers))))
    try:
        yield
    finally:
        for name in unset:
            del os.environ[name]


def _begin_worker() -> None:
    """Prepare to import Feast; end when the process that started this one ends, however it does."""
    prepare_for_feast()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    Thread(target=watch, daemon=True).start()

"""The impression log: what users were shown, out of what, and what the ranker saw of it.

A request hands over what it has anyway and goes on; one thread makes parquet of it. Files lie
below the log's folder as ``<first 12 digits of the contract's hash>/<UTC time>-<process>-<n>.
parquet``: all files of one folder have the same columns. A file appears whole, by one rename, or
not at all; it holds whole requests. Files not yet finished end with ``.partial``.

A file has one row per candidate of a logged request, shown or not, those of one request side by
side in the order of ``post_id``. Its columns, in order:

======================  ================  =========================================================
``request_id``          string            As in the answer; one per request.
``time``                timestamp[us,UTC] When the request was answered.
``endpoint``            string            ``recommend`` (sources proposed) or ``rank`` (caller did).
``user``                string            The source's id.
``user_id``             int64             The dense id; null: the bundle did not know the user.
``post``                string            The source's id.
``post_id``             int64             The dense id.
``position``            int32             Place in the answer, 1 is first; null: not shown.
``ranker_score``        float32           Null: the ranker was not asked (degraded answer).
``ranker_rank``         int32             Place by score, 1 is best; ties by ``post_id``; null: so.
``propensity``          float64           Probability that the position went to the post, given the
                                          candidates and the positions before; null: not shown.
``rules``               string            Rules that gave it the position (`serving.arrangement`),
                                          joined by commas; empty: the score; null: not shown.
``degraded``            string            Reasons of the answer, joined by commas; empty: none.
``generation``          string            The bundle that answered.
``contract_hash``       string            Of the ordered inputs of its ranker.
``namespace``           string            Of the generation's rows in the online store.
``materialized_until``  timestamp[us,UTC] Moment that stored features are of; null: the bundle was
                                          published before this was kept.
``request_unix_time_s`` int64             Moment that request-time features are of (whole seconds,
                                          not always the wall clock: see `Recommender.recommend`).
``<source>_score``      float64           What each source gave the post; null: not proposed. In
``<source>_rank``       float64           the manifest's order of sources, score before rank; made
                                          anew from the history where the source can (als).
then the inputs         float64, string   Every input of the contract, by name, in its order, as the
                                          ranker was fed: strings as strings, all else as float64;
                                          null: no value.
======================  ================  =========================================================

``user_id``, ``post_id``, ``request_unix_time_s`` and the sources' columns, with
``materialized_until`` as ``event_timestamp``, are the entity frame from which Feast's
``get_historical_features`` computes the inputs again. A file's metadata has ``feastrank_contract``
(`feature_repo.contract.Contract.to_json`) and ``feastrank_share`` (sampled share of the requests).

Files stay until `tidy` removes them, which nothing here calls: ``feastrank drain`` does.
"""

import json
import logging
import os
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_repo.definitions.columns import REQUEST_TIME, source_rank, source_score
from serving.answer import Choice
from serving.assembly import Values
from serving.bundle import Manifest
from serving.candidates import Candidates

logger = logging.getLogger(__name__)

# A name begins with the time of writing; a file takes seconds, so an hour later its writer is gone.
_NAME_TIME = "%Y%m%dT%H%M%S.%fZ"
_PARTIAL_AGE = timedelta(hours=1)
_WRITER_NICENESS = 10
CONTRACT_KEY, SHARE_KEY = b"feastrank_contract", b"feastrank_share"
TIME = pa.timestamp("us", tz="UTC")
FACTS: Mapping[str, pa.DataType] = {
    "request_id": pa.string(),
    "time": TIME,
    "endpoint": pa.string(),
    "user": pa.string(),
    "user_id": pa.int64(),
    "post": pa.string(),
    "post_id": pa.int64(),
    "position": pa.int32(),
    "ranker_score": pa.float32(),
    "ranker_rank": pa.int32(),
    "propensity": pa.float64(),
    "rules": pa.string(),
    "degraded": pa.string(),
    "generation": pa.string(),
    "contract_hash": pa.string(),
    "namespace": pa.string(),
    "materialized_until": TIME,
    REQUEST_TIME: pa.int64(),
}
"""The columns that every file has, whatever its contract."""


@dataclass(frozen=True)
class Origin:
    """What all impressions of one generation share.

    Parameters
    ----------
    manifest
        The generation's.
    external
        Returns the source's ids (strings) of an array of dense post ids.
    """

    manifest: Manifest
    external: Callable[[NDArray[np.int64]], pa.Array]

    @property
    def schema(self) -> pa.Schema:
        """The columns of its files."""
        fields = dict(FACTS)
        for source in self.manifest.sources:
            fields[source_score(source)] = fields[source_rank(source)] = pa.float64()
        for one in self.manifest.contract["inputs"]:
            fields[one["name"]] = pa.string() if one["dtype"] == "String" else pa.float64()
        contract = json.dumps(self.manifest.contract)
        return pa.schema(fields.items(), metadata={CONTRACT_KEY: contract})


@dataclass(frozen=True)
class Impression:
    """One answered request; arrays must not be changed once they are handed over.

    Parameters
    ----------
    request_id, endpoint, user, user_id, degraded
        As the columns of the log.
    time_us
        When it was answered, microseconds since 1970 in UTC.
    moment
        What request-time features are of.
    choice
        The candidates and which of them were shown.
    """

    origin: Origin
    request_id: str
    time_us: int
    endpoint: str
    user: str
    user_id: int | None
    moment: datetime
    degraded: tuple[str, ...]
    choice: Choice

    @property
    def candidates(self) -> Candidates:
        """The candidates, ascending."""
        return self.choice.scored.candidates

    def __len__(self) -> int:
        return len(self.candidates.post_ids)


def new_request_id() -> str:
    """Return an id that no other request has: 32 hexadecimal digits."""
    return uuid.uuid4().hex


class ImpressionLog:
    """Keeps impressions in memory until a thread has written them.

    Safe to use from several threads; processes may share a folder. A process that is killed
    loses what waits, at most ``buffer_rows`` rows and those of the last ``seconds_per_file``.

    Parameters
    ----------
    folder
        Where files go; made when the first one is written.
    share
        Share of the requests that are logged, chosen by their ids.
    rows_per_file, seconds_per_file
        A file is written once so many rows wait, or once the oldest waits so long.
    buffer_rows
        Rows that may wait, those being written included; further impressions are dropped.
    """

    def __init__(
        self,
        folder: Path,
        *,
        share: float = 1.0,
        rows_per_file: int = 20_000,
        seconds_per_file: float = 10.0,
        buffer_rows: int = 60_000,
    ) -> None:
        self.folder = folder
        self._share = share
        self._rows_per_file, self._seconds_per_file = rows_per_file, seconds_per_file
        self._buffer_rows = buffer_rows
        self._waiting: deque[tuple[float, Impression]] = deque()
        self._rows = 0
        self._counts: Counter[str] = Counter()
        self._files = 0
        self._closed = False
        self._changed = threading.Condition()
        self._writer = threading.Thread(target=self._write_all, name="impressions", daemon=True)
        self._writer.start()

    def wants(self, request_id: str) -> bool:
        """Whether a request is among the sampled ones."""
        return int(request_id[:8], 16) < self._share * 2**32

    def add(self, impression: Impression) -> None:
        """Take an impression, or drop and count it; never waits for the disk."""
        with self._changed:
            if self._closed or self._rows + len(impression) > self._buffer_rows:
                self._counts["dropped_full"] += 1
                return
            self._waiting.append((time.monotonic(), impression))
            before, self._rows = self._rows, self._rows + len(impression)
            # Waking the thread costs more than the rest: only for its first and its last row.
            if not before or self._rows >= self._rows_per_file:
                self._changed.notify()

    @property
    def counts(self) -> dict[str, int]:
        """Requests by outcome.

        ``written``, ``dropped_full`` (the buffer was full), ``dropped_unwritable`` (the folder
        could not be written).
        """
        with self._changed:
            outcomes = ("written", "dropped_full", "dropped_unwritable")
            return {outcome: self._counts[outcome] for outcome in outcomes}

    @property
    def waiting_rows(self) -> int:
        """Rows that are not written yet."""
        return self._rows

    def close(self) -> None:
        """Write what waits, and take nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._writer.join()

    def _write_all(self) -> None:
        if sys.platform == "linux":
            # Where both want the same core, requests go first.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _WRITER_NICENESS)
        while taken := self._take():
            for origin_id in dict.fromkeys(id(one.origin) for one in taken):
                self._write([one for one in taken if id(one.origin) == origin_id])

    def _take(self) -> list[Impression]:
        """Wait until a file is due; return its impressions, none once all is written."""
        with self._changed:
            while not self._closed and self._rows < self._rows_per_file:
                wait_s = None
                if self._waiting:
                    wait_s = self._waiting[0][0] + self._seconds_per_file - time.monotonic()
                    if wait_s <= 0:
                        break
                self._changed.wait(wait_s)
            taken, rows = [], 0
            while self._waiting and rows < self._rows_per_file:
                taken.append(self._waiting.popleft()[1])
                rows += len(taken[-1])
            return taken

    def _write(self, impressions: list[Impression]) -> None:
        outcome = "written"
        try:
            self._write_file(impressions)
        except (OSError, pa.ArrowException) as error:
            outcome = "dropped_unwritable"
            logger.warning("%d impressions are lost: %s: %s", len(impressions), self.folder, error)
        with self._changed:
            self._counts[outcome] += len(impressions)
            self._rows -= sum(map(len, impressions))

    def _write_file(self, impressions: list[Impression]) -> None:
        table = to_table(impressions)
        metadata = {**(table.schema.metadata or {}), SHARE_KEY: str(self._share)}
        folder = self.folder / impressions[0].origin.manifest.contract_hash[:12]
        folder.mkdir(parents=True, exist_ok=True)
        self._files += 1
        name = f"{datetime.now(UTC):{_NAME_TIME}}-{os.getpid()}-{self._files}.parquet"
        partial = folder / f".{name}.partial"
        try:
            with partial.open("wb") as file:
                # Numbers hardly repeat: to look for those that do takes as long as all the rest.
                pq.write_table(
                    table.replace_schema_metadata(metadata),
                    file,
                    compression="zstd",
                    use_dictionary=_strings(table.schema),
                    column_encoding={
                        field.name: "BYTE_STREAM_SPLIT"
                        for field in table.schema
                        if pa.types.is_floating(field.type)
                    },
                )
                file.flush()
                os.fsync(file.fileno())
            partial.rename(folder / name)
        finally:
            partial.unlink(missing_ok=True)


def tidy(folder: Path, now: datetime, keep_days: float | None) -> tuple[int, int]:
    """Remove what a log's folder holds too long; a service may be writing meanwhile.

    Parameters
    ----------
    now
        With a time zone.
    keep_days
        Files that were written longer ago are removed; None keeps all.

    Returns
    -------
    Number of files removed, and of ``.partial`` files that processes left which were killed more
    than an hour ago.
    """
    old = [] if keep_days is None else _written_before(folder, now - timedelta(days=keep_days))
    left = [
        path
        for path in folder.glob("*/.*.parquet.partial")
        if _time_of(path.name[1:]) < now - _PARTIAL_AGE
    ]
    for path in (*old, *left):
        path.unlink(missing_ok=True)
    return len(old), len(left)


def _written_before(folder: Path, earliest: datetime) -> list[Path]:
    return [path for path in folder.glob("*/*.parquet") if _time_of(path.name) < earliest]


def _time_of(name: str) -> datetime:
    """Return when a file of this name was written; the future for a name that is not ours."""
    try:
        return datetime.strptime(name.partition("-")[0], _NAME_TIME).replace(tzinfo=UTC)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)


def to_table(impressions: list[Impression]) -> pa.Table:
    """Return the log's rows of impressions of one generation; columns as the module says."""
    origin = impressions[0].origin
    schema = origin.schema
    known = {**_facts(origin, impressions), **_proposals(origin, impressions)}
    names = [one["name"] for one in origin.manifest.contract["inputs"]]
    strings = [name for name in _strings(schema) if name in names]
    numbers, texts = _inputs(names, strings, impressions)
    arrays = []
    for name, kind in zip(schema.names, schema.types, strict=True):
        if name in known:
            arrays.append(known[name])
        elif pa.types.is_string(kind):
            arrays.append(texts[name])
        else:
            arrays.append(pa.array(numbers[:, names.index(name)], kind, from_pandas=True))
    return pa.Table.from_arrays(arrays, schema=schema)


def _strings(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if pa.types.is_string(field.type)]


def _inputs(
    names: Sequence[str], strings: Sequence[str], impressions: Sequence[Impression]
) -> tuple[NDArray[np.float64], dict[str, pa.ChunkedArray]]:
    """Return numbers, float64 (n, inputs), and texts of all; made here, where nobody waits."""
    parts = [
        Values(np.full((len(one), len(names)), np.nan), {})
        if one.choice.scored.inputs is None
        else one.choice.scored.inputs.values(names)
        for one in impressions
    ]
    texts = {
        name: pa.chunked_array(
            [one.texts.get(name, pa.nulls(len(one.numbers), pa.string())) for one in parts]
        )
        for name in strings
    }
    # Columns are cut out of it next.
    return np.asfortranarray(np.concatenate([one.numbers for one in parts])), texts


def _facts(origin: Origin, impressions: list[Impression]) -> dict[str, pa.Array]:
    manifest = origin.manifest
    rows = np.repeat(np.arange(len(impressions)), [len(one) for one in impressions])

    def each(name: str, values: Iterable[object]) -> pa.Array:
        return pa.array(values, FACTS[name]).take(pa.array(rows))

    def same(name: str, value: object) -> pa.Array:
        return pa.repeat(pa.scalar(value, FACTS[name]), len(rows))

    until = manifest.materialized_until
    post_ids = np.concatenate([one.candidates.post_ids for one in impressions])
    return {
        "request_id": each("request_id", (one.request_id for one in impressions)),
        "time": each("time", (one.time_us for one in impressions)),
        "endpoint": each("endpoint", (one.endpoint for one in impressions)),
        "user": each("user", (one.user for one in impressions)),
        "user_id": each("user_id", (one.user_id for one in impressions)),
        "post": origin.external(post_ids).cast(pa.string()),
        "post_id": pa.array(post_ids),
        "degraded": each("degraded", (",".join(one.degraded) for one in impressions)),
        "generation": same("generation", manifest.generation),
        "contract_hash": same("contract_hash", manifest.contract_hash),
        "namespace": same("namespace", manifest.namespace),
        "materialized_until": same(
            "materialized_until", None if until is None else datetime.fromisoformat(until)
        ),
        REQUEST_TIME: each(REQUEST_TIME, (int(one.moment.timestamp()) for one in impressions)),
        **_places(impressions),
    }


def _places(impressions: list[Impression]) -> dict[str, pa.Array]:
    """Return the columns of what was shown where, and of what the ranker said."""
    count = sum(map(len, impressions))
    position, rank = np.zeros(count, np.int32), np.zeros(count, np.int32)
    score, propensity = np.zeros(count, np.float32), np.zeros(count)
    rules = np.full(count, None, object)
    start = 0
    for one in impressions:
        shown, scores = start + one.choice.shown, one.choice.scored.scores
        position[shown] = np.arange(1, len(shown) + 1)
        propensity[shown] = one.choice.propensities
        rules[shown] = [",".join(names) for names in one.choice.rules]
        if scores is not None:
            order = np.argsort(-scores, kind="stable")
            rank[start + order] = np.arange(1, len(order) + 1)
            score[start : start + len(one)] = scores
        start += len(one)
    return {
        "position": pa.array(position, mask=position == 0),
        "ranker_score": pa.array(score, mask=rank == 0),
        "ranker_rank": pa.array(rank, mask=rank == 0),
        "propensity": pa.array(propensity, mask=position == 0),
        "rules": pa.array(rules, pa.string()),
    }


def _proposals(origin: Origin, impressions: list[Impression]) -> dict[str, pa.Array]:
    """Return the columns of what each source gave, null where it proposed nothing."""
    columns = {}
    for source in origin.manifest.sources:
        for name, of in ((source_score(source), "scores"), (source_rank(source), "ranks")):
            values = [
                getattr(one.candidates, of).get(source, np.full(len(one), np.nan))
                for one in impressions
            ]
            columns[name] = pa.array(np.concatenate(values), pa.float64(), from_pandas=True)
    return columns

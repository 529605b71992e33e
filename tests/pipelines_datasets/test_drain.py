"""Events out of Redis into parts and through ingest: each once, whatever is killed when."""

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from dataset_examples import events_dataset

from feature_repo.dataset import Dataset, Events
from pipelines.datasets import commit
from pipelines.datasets.drain import EVENT_ID, drain
from pipelines.datasets.lake import ingest, write_lake
from pipelines.datasets.normalise import read_raw
from pipelines.errors import DrainError, LakeError
from serving.event_rules import EventRules
from serving.events import Event, EventLog, Status, StreamKeys
from serving.history import RECORD, recent_key
from serving.ids import IdMap

KILLED_DRAIN = Path(__file__).with_name("killed_drain.py")
PROJECT = "drained"
MOMENT = datetime(2024, 5, 1, 12, tzinfo=UTC)
USERS, POSTS = ("u1", "u2"), tuple(f"p{i}" for i in range(10))


def log(client: Any, events: Events, room: int = 1_000) -> EventLog:
    def ids(names: tuple[str, ...]) -> IdMap:
        return IdMap(pa.array(names), np.arange(len(names)))

    return EventLog(client, PROJECT, EventRules(events), ids(USERS), ids(POSTS), room)


def keep(client: Any, count: int, first: int = 0) -> None:
    kept = log(client, events_dataset().events).keep(
        [
            Event(f"e{i}", USERS[i % 2], POSTS[i % 10], time=MOMENT.replace(microsecond=i))
            for i in range(first, first + count)
        ],
        MOMENT,
    )
    assert {one.status for one in kept} == {Status.ACCEPTED}


def drained(folder: Path) -> list[str]:
    parts = sorted(folder.glob("part-*.parquet"))
    return [one for part in parts for one in pq.read_table(part)[EVENT_ID].to_pylist()]


def drain_all(client: Any, folder: Path, batch_events: int = 3) -> int:
    return drain(client, PROJECT, events_dataset().events, folder, batch_events=batch_events)


def named(first: int, count: int) -> list[str]:
    return [f"e{i}" for i in range(first, first + count)]


def test_events_move_once_in_their_order(redis_client: Any, tmp_path: Path):
    assert drain_all(redis_client, tmp_path) == 0
    keep(redis_client, 7)
    assert drain_all(redis_client, tmp_path) == 7
    assert drained(tmp_path) == named(0, 7)
    assert [path.name for path in sorted(tmp_path.glob("part-*"))] == [
        f"part-{i:06d}.parquet" for i in range(3)
    ]
    assert redis_client.xlen(StreamKeys(PROJECT).stream) == 0
    assert drain_all(redis_client, tmp_path) == 0
    keep(redis_client, 2, first=7)
    assert drain_all(redis_client, tmp_path) == 2
    assert drained(tmp_path) == named(0, 9)
    # Ids are remembered beyond the stream.
    log_ = log(redis_client, events_dataset().events)
    assert log_.keep([Event("e3", "u1", "p1")], MOMENT)[0].status == Status.DUPLICATE


def test_room_is_made_by_draining(redis_client: Any, tmp_path: Path):
    small = log(redis_client, events_dataset().events, room=2)
    small.keep([Event("a", "u1", "p1"), Event("b", "u1", "p2")], MOMENT)
    assert small.waiting() == 2
    drain_all(redis_client, tmp_path)
    assert small.waiting() == 0
    assert small.keep([Event("c", "u1", "p3")], MOMENT)[0].status == Status.ACCEPTED


def test_a_stream_that_took_the_place_of_another_is_drained_from_its_start(
    redis_client: Any, tmp_path: Path
):
    keep(redis_client, 3)
    drain_all(redis_client, tmp_path)
    # A Redis that lost everything, and whose clock is behind: ids begin below the last ones.
    redis_client.flushall()
    keep(redis_client, 2, first=3)
    stream = StreamKeys(PROJECT).stream
    entries = redis_client.xrange(stream)
    redis_client.delete(stream)
    for number, (_, fields) in enumerate(entries, 1):
        redis_client.xadd(stream, fields, id=f"{number}-0")
    assert drain_all(redis_client, tmp_path) == 2
    assert drained(tmp_path) == named(0, 5)


def test_one_drains_at_a_time(redis_client: Any, tmp_path: Path):
    keep(redis_client, 1)
    with commit.locked(tmp_path), pytest.raises(LakeError, match="another process is writing"):
        drain_all(redis_client, tmp_path)
    assert drain_all(redis_client, tmp_path) == 1


def test_without_redis_it_says_what_to_do(tmp_path: Path):
    nobody = redis.Redis(port=1, retry=None)
    with pytest.raises(DrainError, match=r"after 0 events.*run `feastrank drain` again"):
        drain_all(nobody, tmp_path)


def killed(number: int, url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(KILLED_DRAIN), str(number), url, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def check_killed_at(number: int, redis_server: Any, client: Any, folder: Path) -> bool:
    """Kill a drain before its nth change, drain again, expect each event once; False: it ended."""
    client.flushall()
    keep(client, 5)
    outcome = killed(number, redis_server.url, folder)
    if outcome.returncode != -signal.SIGKILL:
        assert outcome.returncode == 0, outcome.stderr
        return False
    # Something happens in between.
    keep(client, 2, first=5)
    drain_all(client, folder)
    assert sorted(drained(folder)) == named(0, 7), f"killed before change {number}"
    assert client.xlen(StreamKeys(PROJECT).stream) == 0
    return True


def test_killed_at_chosen_steps_each_event_is_there_once(
    redis_server: Any, redis_client: Any, tmp_path: Path
):
    keep(redis_client, 5)
    outcome = killed(0, redis_server.url, tmp_path / "0")
    assert outcome.returncode == 0, outcome.stderr
    steps = outcome.stdout.splitlines()
    # After the part is written, before the change is announced, within it, before the trim.
    wanted = ("write .*position", "os.rename .*commit.json.tmp", "os.rename .*/position.json")
    numbers = [next(n for n, step in enumerate(steps, 1) if _is(step, one)) for one in wanted]
    numbers.append(1 + max(n for n, step in enumerate(steps) if "XTRIM" in step))
    for number in numbers:
        assert check_killed_at(number, redis_server, redis_client, tmp_path / str(number))


def _is(step: str, pattern: str) -> bool:
    start, _, end = pattern.partition(".*")
    return step.startswith(start.split()[0]) and end in step


@pytest.mark.slow
def test_killed_at_every_step_each_event_is_there_once(
    redis_server: Any, redis_client: Any, tmp_path: Path
):
    number = 1
    while check_killed_at(number, redis_server, redis_client, tmp_path / str(number)):
        number += 1
    assert number > 25


RULES: dict[str, dict[str, Any]] = {
    "every": {},
    "actions": {"action": {"column": "do"}, "positive": {"actions": ["like", "share"]}},
    "rating": {"value": "stars", "positive": {"column": "stars", "at_least": 4}},
    "exactly": {"value": "stars", "positive": {"column": "stars", "equals": 5}},
    "target": {"positive": {"column": "target", "equals": 1}},
    "truth": {"positive": {"column": "liked", "equals": True}},
    "word": {"positive": {"column": "mood", "equals": "glad"}},
    "weighted": {"value": "plays", "weight": {"column": "plays", "scale": "log1p"}},
    "weight beside": {
        "action": {"column": "do"},
        "positive": {"actions": ["like"]},
        "impressions": {"column": "shown", "equals": True},
        "weight": {"column": "strength"},
    },
}


def random_event(number: int, rules: EventRules, rng: np.random.Generator) -> Event:
    values = {
        "number": lambda: float(rng.integers(0, 6)),
        "truth": lambda: bool(rng.integers(2)),
        "text": lambda: str(rng.choice(["glad", "sad"])),
    }
    described = rules.described
    return Event(
        event_id=f"e{number}",
        user=str(rng.choice(USERS)),
        post=str(rng.choice(POSTS)),
        action=str(rng.choice(["like", "view", "share"])) if described.action.column else None,
        value=float(rng.integers(0, 6)) if described.value else None,
        time=MOMENT.replace(microsecond=number),
        fields={name: values[rules.kinds[name]]() for name in sorted(rules.fields)},
    )


@pytest.mark.parametrize("case", RULES)
def test_an_event_counts_at_ingest_for_what_it_counted_when_it_was_kept(
    case: str, redis_client: Any, tmp_path: Path
):
    dataset = events_dataset(**RULES[case])
    rules, rng = EventRules(dataset.events), np.random.default_rng(4)
    events = [random_event(number, rules, rng) for number in range(60)]
    kept = log(redis_client, dataset.events).keep(events, MOMENT)
    assert {one.status for one in kept} == {Status.ACCEPTED}
    drain(redis_client, PROJECT, dataset.events, tmp_path / "drained")
    header = [*dataset.events.columns()]
    defaults = {"user": "u1", "post": "p1", "ts": "2024-01-01T00:00:00Z", "liked": "true"}
    first = [defaults.get(name, "1") for name in header]
    (tmp_path / "events.csv").write_text(",".join(header) + "\n" + ",".join(first) + "\n")
    raw = read_raw(dataset, tmp_path, tmp_path / "raw", drained=tmp_path / "drained")
    table = raw.table("events").slice(1)
    assert table["event_time"].cast(pa.int64()).to_pylist() == [
        round(one.time.timestamp() * 1e6) for one in events if one.time
    ]
    for number, user in enumerate(USERS):
        value = redis_client.get(recent_key(PROJECT, number))
        records = np.frombuffer(value, RECORD)
        own = table.filter(pa.array([one == user for one in table["user_id"].to_pylist()]))
        assert [f"p{post}" for post in records["post_id"]] == own["post_id"].to_pylist()
        np.testing.assert_allclose(records["weight"], own["weight"].to_numpy(), rtol=1e-6)
        positive = own["is_positive"].to_numpy(zero_copy_only=False)
        assert positive.any()
        assert case in ("every", "weighted") or not positive.all()
        weighed = np.asarray(own["weight"]) > 0
        assert ((records["weight"] > 0) == (positive & weighed)).all()


def test_drained_events_are_added_to_the_lake_once(redis_client: Any, tmp_path: Path):
    dataset = events_dataset()
    (tmp_path / "events.csv").write_text(
        "user,post,ts\nu1,p1,2024-01-01T00:00:00Z\nu2,p2,2024-01-02\n"
    )
    ingest(dataset, tmp_path, tmp_path / "lake")

    def again() -> tuple[int, int]:
        raw = read_raw(dataset, tmp_path, tmp_path / "raw", drained=tmp_path / "drained")
        result = write_lake(raw, tmp_path / "lake")
        return result.new_events, result.events

    keep(redis_client, 4)
    drain_all(redis_client, tmp_path / "drained")
    assert again() == (4, 6)
    assert again() == (0, 6)
    keep(redis_client, 1, first=4)
    drain_all(redis_client, tmp_path / "drained")
    assert again() == (1, 7)
    # The lake is made anew, with other rules: what was drained is still there.
    other = Dataset.model_validate(
        dataset.model_dump(mode="json", exclude_unset=True)
        | {"events": dataset.events.model_dump(mode="json", exclude_unset=True) | {"weight": 2.0}}
    )
    raw = read_raw(other, tmp_path, tmp_path / "raw", drained=tmp_path / "drained")
    result = write_lake(raw, tmp_path / "lake")
    assert (result.rebuilt, result.events) == (True, 7)


def test_without_a_clock_drained_events_follow_those_of_the_source(
    redis_client: Any, tmp_path: Path
):
    dataset = events_dataset(time={"format": "file_order"})
    (tmp_path / "events.csv").write_text("user,post\nu1,p1\nu1,p2\n")
    log(redis_client, dataset.events).keep([Event("a", "u1", "p3"), Event("b", "u1", "p0")], MOMENT)
    drain(redis_client, PROJECT, dataset.events, tmp_path / "drained")
    raw = read_raw(dataset, tmp_path, tmp_path / "raw", drained=tmp_path / "drained")
    table = raw.table("events").sort_by("event_time")
    assert table["post_id"].to_pylist() == ["p1", "p2", "p3", "p0"]


def test_values_of_two_kinds_become_texts(redis_client: Any, tmp_path: Path):
    before = events_dataset(positive={"column": "mark", "equals": "5"})
    after = events_dataset(positive={"column": "mark", "at_least": 4})
    log(redis_client, before.events).keep([Event("a", "u1", "p1", fields={"mark": "5"})], MOMENT)
    log(redis_client, after.events).keep([Event("b", "u1", "p2", fields={"mark": 3})], MOMENT)
    drain(redis_client, PROJECT, after.events, tmp_path / "drained")
    (part,) = (tmp_path / "drained").glob("part-*.parquet")
    assert pq.read_table(part)["mark"].to_pylist() == ["5", "3.0"]
    position = json.loads((tmp_path / "drained" / "position.json").read_text())
    assert (position["events"], position["parts"]) == (2, 1)

"""What a service in operation must keep to: swaps, workers, a guarded Redis, and no pickles."""

import gc
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from http_service import Service, ids
from job_runner import QUICK, REPOSITORY, Job
from tls_redis import PASSWORD, QUOTED_PASSWORD, tls_redis
from unpickling import unpickling

from serving.bundle import CURRENT, MANIFEST, current_generation
from serving.lists import SourceList, key_prefix, pack

USERS = ("u003", "u004", "u005")


def publish_other(service: Service, posts: dict[str, list[int]]) -> str:
    """Write the same bundle under another id, with lists of its own; it is not current yet."""
    bundles = service.job.workspace.bundles
    manifest = json.loads((bundles / str(current_generation(bundles)) / MANIFEST).read_text())
    shutil.copytree(bundles / manifest["generation"], bundles / "other")
    (bundles / "other" / MANIFEST).write_text(json.dumps({**manifest, "generation": "other"}))
    prefix = key_prefix(manifest["project"], "other")
    catalogue = service.published.current()._catalogue
    nothing = SourceList(np.empty(0, np.int32), np.empty(0, np.float32))
    for user, proposed in posts.items():
        lists = [SourceList(np.array(proposed, np.int32), np.ones(len(proposed), np.float32))]
        lists += [nothing] * (len(manifest["sources"]) - 1)
        service.job.redis().set(f"{prefix}{catalogue.users.find(user)}", pack(lists))
    return "other"


def test_a_swap_under_load_drops_no_request_and_mixes_no_generations(service: Service):
    bundles = service.job.workspace.bundles
    first = str(current_generation(bundles))
    expected = {user: ids(service.recommend(user, k=1000)) for user in USERS}
    # Some posts of each user's first lists are all that the other generation proposes.
    fewer = {user: set(expected[user][at : at + 4]) for at, user in enumerate(USERS)}
    known = service.published.current()._catalogue.known
    other = publish_other(
        service, {user: sorted(known(sorted(posts)).tolist()) for user, posts in fewer.items()}
    )
    del known
    answers: list[tuple[int, str, dict[str, Any]]] = []
    done = threading.Event()

    def ask(number: int) -> None:
        while not done.is_set():
            user = USERS[number % len(USERS)]
            response = service.client.post("/recommend", json={"user_id": user, "k": 1000})
            answers.append((response.status_code, user, response.json()))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    exchanged = []
    for generation in (other, first) * 3:
        exchanged.append(weakref.ref(service.published.current()))
        (bundles / CURRENT).write_text(generation)
        service.published.refresh()
        seen = len(answers)
        while len(answers) < seen + 12:
            time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert {status for status, _, _ in answers} == {200}
    assert {body["bundle"] for _, _, body in answers} == {first, other}
    for _, user, body in answers:
        assert body["degraded"] == []
        if body["bundle"] == first:
            assert ids(body) == expected[user]
        else:
            assert set(ids(body)) == fewer[user]
    # What was exchanged is freed, though the garbage collector passes over the current one; an
    # idle thread may hold the last one until its next request.
    gc.collect()
    assert [reference() for reference in exchanged[:-1]] == [None] * 5


def test_redis_over_tls_with_a_password(
    job: Job,
    opened: Callable[[Job], Service],
    certificates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    job.redis().save()
    dump = tmp_path / "dump.rdb"
    shutil.copyfile(job.workspace.redis / "dump.rdb", dump)
    job.close()
    with tls_redis(dump, certificates) as port:
        place = f"127.0.0.1:{port}/0"
        trusted = f"{place}?ssl_ca_certs={certificates}/ca.crt"
        monkeypatch.setenv("REDIS_URL", f"rediss://:{QUOTED_PASSWORD}@{trusted}")
        service = opened(job)
        answer = service.recommend(k=5)
        assert (answer["degraded"], len(answer["posts"])) == ([], 5)
        event = {"event_id": "e-1", "user_id": "u003", "post_id": ids(answer)[0]}
        response = service.client.post("/events", json={**event, "action": "view"})
        assert response.json()["accepted"] == 1, response.text
        assert ids(answer)[0] not in ids(service.recommend(k=1000))
        # A wrong password, none, an authority that nobody trusts, no TLS.
        for wrong in (
            f"rediss://:wrong@{trusted}",
            f"rediss://{trusted}",
            f"rediss://:{QUOTED_PASSWORD}@{place}",
            f"redis://:{QUOTED_PASSWORD}@{place}",
        ):
            monkeypatch.setenv("REDIS_URL", wrong)
            refused = opened(job)
            assert refused.recommend()["degraded"] == ["lists_unavailable"]
            for path in ("/ready", "/metrics", "/version"):
                said = refused.client.get(path).text
                assert PASSWORD not in said
                assert QUOTED_PASSWORD not in said
    # The embedded server of the state folder was not started meanwhile.
    assert not (job.workspace.redis / "server.json").exists()


def test_nothing_is_unpickled(job: Job, opened: Callable[[Job], Service]):
    with unpickling() as found:
        assert pickle.loads(pickle.dumps(Path("x"))) == Path("x")
    assert found == ["pathlib.PosixPath"]
    with unpickling() as found:
        service = opened(job)
        client = service.client
        posts = ids(service.recommend(k=5, explain=True))
        client.post("/rank", json={"user_id": "u003", "post_ids": posts}).raise_for_status()
        event = {"event_id": "e-1", "user_id": "u003", "post_id": posts[0], "action": "like"}
        client.post("/events", json=event).raise_for_status()
        service.recommend()
        features = f"/features?user_id=u003&post_id={posts[0]}"
        for path in (f"/similar/{posts[0]}", features, "/ready"):
            client.get(path).raise_for_status()
        service.published.current()._reader.refresh()
    assert found == []


@contextmanager
def spawned(job: Job, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A service in a process of its own, ready when the block begins; yields its port too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = job.command("serve", "--port", str(port), *flags)
    with (job.home / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ | QUICK, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None
            assert time.monotonic() < deadline, "it did not answer in time"
            with suppress(OSError):
                assert got(port, "/ready")["ready"]
                break
            time.sleep(0.1)
        yield process, port
    finally:
        process.kill()
        process.wait()


def got(port: int, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what is answered to GET, or to POST with a body."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return dict(json.load(answer))


@pytest.mark.slow
def test_the_command_serves_and_ends_in_good_order(job: Job):
    job.close()
    with spawned(job, "--shutdown-seconds", "5") as (process, port):
        assert got(port, "/ready")["degraded"] == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    # DuckDB reports what is not freed when the interpreter ends.
    said = (job.home / "serve.log").read_text("utf-8")
    assert "Traceback" not in said
    assert "leaked" not in said
    # The last to leave stops the embedded Redis.
    assert not (job.workspace.redis / "server.json").exists()


@pytest.mark.slow
def test_workers_share_nothing_but_redis_and_the_bundle(job: Job):
    with ExitStack() as stack:
        (one, first), (two, second) = (stack.enter_context(spawned(job)) for _ in range(2))
        asked = {"user_id": "u003", "k": 1000}
        before = got(first, "/recommend", asked)
        assert ids(before) == ids(got(second, "/recommend", asked))
        event = {"event_id": "e-1", "user_id": "u003", "post_id": ids(before)[0], "action": "view"}
        assert got(first, "/events", event)["accepted"] == 1
        # What one was told of, the other knows; an id is kept once, whoever is told of it.
        assert ids(before)[0] not in ids(got(second, "/recommend", asked))
        assert got(second, "/events", event)["results"][0]["status"] == "duplicate"
        one.kill()
        one.wait()
        after = got(second, "/recommend", asked)
        assert after["degraded"] == []
        assert ids(before)[0] not in ids(after)
        two.send_signal(signal.SIGTERM)
        assert two.wait(20) == 0
    files = list(job.workspace.impressions.glob("*/*.parquet"))
    assert {path.name.split("-")[1] for path in files} == {str(two.pid)}

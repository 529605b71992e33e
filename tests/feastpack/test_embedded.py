"""The embedded server: starts with the first user, stops with the last, survives kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from feastpack import embedded
from feastpack.embedded import EmbeddedRedis
from feastpack.errors import EmbeddedRedisError


def client_of(server: EmbeddedRedis) -> redis.Redis:
    return redis.Redis(host=server.host, port=server.port)


def is_up(port: int) -> bool:
    client = redis.Redis(host="127.0.0.1", port=port, retry=Retry(NoBackoff(), retries=0))
    try:
        return bool(client.ping())
    except redis.exceptions.ConnectionError:
        return False
    finally:
        client.close()


def test_second_user_attaches_and_last_one_stops_and_saves(tmp_path: Path) -> None:
    first = EmbeddedRedis(tmp_path)
    second = EmbeddedRedis(tmp_path)
    assert (second.port, second.pid) == (first.port, first.pid)
    with client_of(first) as client:
        client.set("k", "v")
    first.close()
    assert is_up(second.port)
    second.close()
    second.close()
    assert not is_up(second.port)
    assert not (tmp_path / "server.json").exists()
    with EmbeddedRedis(tmp_path) as third, client_of(third) as client:
        assert client.get("k") == b"v"


def test_a_server_is_there_once_its_data_are_loaded(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        redis.Redis(port=server.port).execute_command("DEBUG POPULATE 300000")
    with EmbeddedRedis(tmp_path) as server:
        client = redis.Redis(port=server.port, retry=Retry(NoBackoff(), retries=0))
        assert client.dbsize() == 300_000


def test_stale_record_after_the_server_was_killed(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        port, pid = server.port, server.pid
        os.kill(pid, signal.SIGKILL)
        while is_up(port):
            time.sleep(0.01)
        assert json.loads((tmp_path / "server.json").read_text())["pid"] == pid
        with EmbeddedRedis(tmp_path) as other:
            assert other.pid != pid
            assert other.port == port
        server.ensure_running()
        assert is_up(server.port)


def test_record_that_points_at_another_folders_server(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "a") as first:
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "server.json").write_text(
            json.dumps({"port": first.port, "pid": first.pid})
        )
        with EmbeddedRedis(tmp_path / "b") as second:
            assert second.port != first.port
        assert is_up(first.port)


def test_server_outlives_a_killed_user_and_the_next_one_attaches(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        from feastpack.embedded import EmbeddedRedis
        print(EmbeddedRedis(sys.argv[1]).port, flush=True)
        time.sleep(60)
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        port = int(user.stdout.readline())
        user.kill()
    assert is_up(port)
    with EmbeddedRedis(tmp_path) as server:
        assert server.port == port
    assert not is_up(port)


def test_interrupt_reaches_the_user_but_not_the_server(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        assert os.getsid(server.pid) == server.pid
        assert os.getsid(server.pid) != os.getsid(0)


def test_stop_ends_a_server_that_still_has_users(tmp_path: Path) -> None:
    assert embedded.stop(tmp_path / "nothing") is False
    server = EmbeddedRedis(tmp_path)
    assert embedded.stop(tmp_path) is True
    assert not is_up(server.port)
    server.close()


def test_users_that_start_at_once_share_one_server(tmp_path: Path) -> None:
    script = "import sys; from feastpack.embedded import EmbeddedRedis; s = EmbeddedRedis("
    script += "sys.argv[1]); print(s.port, flush=True); sys.stdin.readline(); s.close()"
    users = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    ports = {user.stdout.readline().strip() for user in users if user.stdout is not None}
    for user in users:
        user.communicate("\n", timeout=30)
    assert len(ports) == 1
    assert not is_up(int(ports.pop()))


def test_shared_user_of_a_process(tmp_path: Path) -> None:
    server = embedded.shared_embedded(tmp_path)
    assert embedded.shared_embedded(tmp_path / ".") is server
    embedded.close_shared(tmp_path)
    assert not is_up(server.port)


def test_no_program_is_said_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedRedisError, match="no redis-server found"):
        EmbeddedRedis(tmp_path / "redis")


def test_a_process_that_ends_while_it_is_looked_at_is_not_alive():
    for _ in range(50):
        process = subprocess.Popen(["true"])
        reaper = threading.Thread(target=process.wait)
        reaper.start()
        while embedded._alive(process.pid):
            pass
        reaper.join()

"""A repository made by ``feast init`` works after changing its stores, from the command line."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from feastpack import embedded

pytestmark = pytest.mark.slow

STORES = """\
online_store: { type: feastpack.PackedRedisOnlineStore, connection_string: "embedded:redis" }
offline_store: { type: feastpack.AsofDuckDBOfflineStore }
batch_engine: { type: feastpack.ArrowComputeEngine }
"""


def feast(folder: Path, *arguments: str) -> str:
    program = Path(sys.executable).parent / "feast"
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "FEAST_USAGE": "False"}
    environment.pop("REDIS_URL", None)
    done = subprocess.run(
        [str(program), *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("init")
    feast(folder, "init", "shop")
    repository = folder / "shop" / "feature_repo"
    settings = repository / "feature_store.yaml"
    text = re.sub(r"online_store:\n(?:[ ]+.*\n|#.*\n)*", "", settings.read_text())
    settings.write_text(text + STORES)
    with embedded.EmbeddedRedis(repository / "redis"):
        feast(repository, "apply")
        # The rows of the example are recent, whenever it is made
        feast(repository, "materialize", "2015-01-01T00:00:00", "2035-01-01T00:00:00")
        yield repository


def test_materialized_features_are_read(repository: Path) -> None:
    output = feast(
        repository,
        *("get-online-features", "-e", "driver_id=1001", "-e", "driver_id=1002"),
        *("-f", "driver_hourly_stats:conv_rate", "-f", "driver_hourly_stats:avg_daily_trips"),
    )
    assert re.search(r"conv_rate['\"]?\s*:\s*\[\s*0\.\d+", output), output


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read() or b"null")


def test_feast_serve(repository: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).parent / "feast"
    server = subprocess.Popen(
        [str(program), "serve", "--host", "127.0.0.1", "--port", str(port), "--no-access-log"],
        cwd=repository,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    body = {
        "features": ["driver_hourly_stats:conv_rate", "driver_hourly_stats:acc_rate"],
        "entities": {"driver_id": [1001, 9999]},
    }
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                answer = _post(f"{url}/get-online-features", body)
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, "feast serve ended"
                assert time.monotonic() < deadline, "feast serve did not come up"
                time.sleep(0.5)
        names = answer["metadata"]["feature_names"]
        conversion = answer["results"][names.index("conv_rate")]
        assert conversion["statuses"] == ["PRESENT", "NOT_FOUND"]
        assert 0.0 <= conversion["values"][0] <= 1.0
        example = pd.read_parquet(repository / "data" / "driver_stats.parquet").head(1)
        now = pd.Timestamp.now("UTC")  # the view's ttl is a day, and it is honoured
        example = example.assign(driver_id=9999, conv_rate=0.5, event_timestamp=now)
        by_row = json.loads(example.to_json(orient="records", date_format="iso"))[0]
        rows = {name: [value] for name, value in by_row.items()}
        _post(f"{url}/push", {"push_source_name": "driver_stats_push_source", "df": rows})
        body["features"] = ["driver_hourly_stats_fresh:conv_rate"]
        answer = _post(f"{url}/get-online-features", body)
        conversion = answer["results"][answer["metadata"]["feature_names"].index("conv_rate")]
        assert conversion["values"][1] == 0.5
    finally:
        server.terminate()
        server.wait(timeout=30)

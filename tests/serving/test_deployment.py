"""Dockerfile, compose file and the unit in the documentation name only what exists."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from pipelines.settings import ServeSettings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
UNIT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
# Read by libraries and by feastpack, not by the settings.
OTHERS = {"REDIS_URL", "OMP_NUM_THREADS", "FEASTRANK_HOME"}


def fits(command: list[str]) -> None:
    """Parse what follows `feastrank`, as the command line would."""
    name, *flags = command
    text = (ROOT / "pipelines" / "cli.py").read_text(encoding="utf-8")
    assert f'"{name}"' in text
    if name == "serve":
        ServeSettings(_cli_parse_args=flags)  # type: ignore[call-arg]
    else:
        assert flags == []


def is_variable(name: str) -> bool:
    field = name.removeprefix("FEASTRANK_").lower()
    return name in OTHERS or (name.startswith("FEASTRANK_") and field in ServeSettings.model_fields)


def test_the_image_copies_every_package_and_nothing_that_is_missing():
    copied = {
        word for line in re.findall(r"(?m)^COPY (.+)$", DOCKERFILE) for word in line.split()[:-1]
    }
    assert all((ROOT / path).exists() for path in copied)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages <= copied
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert not copied & set(ignored)


def test_the_image_starts_a_command_that_exists():
    assert 'ENTRYPOINT ["feastrank"]' in DOCKERFILE
    found = re.search(r"(?m)^CMD (.+)$", DOCKERFILE)
    assert found
    fits(yaml.safe_load(found[1]))
    for name in re.findall(r"([A-Z_]+)=", re.search(r"(?m)^ENV (.+)$", DOCKERFILE)[1]):
        assert is_variable(name)


@pytest.mark.parametrize("name", ["service", "pipelines"])
def test_a_composed_service_has_a_command_and_variables_that_exist(name):
    one = COMPOSE["services"][name]
    fits(one["command"])
    assert all(map(is_variable, one["environment"]))
    assert set(one["depends_on"]) <= COMPOSE["services"].keys()
    for volume in one["volumes"]:
        source, target = volume.split(":")
        assert source in COMPOSE["volumes"]
        assert f"VOLUME {target}" in DOCKERFILE
    assert (ROOT / one["build"] / "Dockerfile").exists()


def test_ports_and_grace_agree_with_the_settings():
    service = COMPOSE["services"]["service"]
    fields = ServeSettings.model_fields
    assert service["ports"][0].endswith(f":{fields['port'].default}")
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace > fields["shutdown_seconds"].default
    stop = re.search(r"TimeoutStopSec=(\d+)", UNIT)
    assert stop
    assert int(stop[1]) > fields["shutdown_seconds"].default


def test_the_unit_starts_a_command_that_exists():
    start = re.search(r"(?m)^ExecStart=\S+/feastrank (.+)$", UNIT)
    variables = re.search(r"(?m)^Environment=(.+)$", UNIT)
    assert start
    assert variables
    fits(shlex.split(start[1]))
    assert all(is_variable(pair.partition("=")[0]) for pair in shlex.split(variables[1]))


def test_a_flag_that_is_gone_would_be_found():
    with pytest.raises(SystemExit):
        fits(["serve", "--no-such-flag", "1"])

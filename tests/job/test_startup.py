"""What a command imports before it works."""

import subprocess
import sys
from pathlib import Path

import pytest

FEAST = """
from pipelines.startup import prepare_for_feast
if {prepared}:
    prepare_for_feast()
from feast import Entity, FeatureView
from typeguard import typechecked

@typechecked
def own(value: int) -> int:
    return value

for function in (own, FeatureView.__init__, Entity.__init__):
    print("typeguard" in function.__code__.co_names)
"""


def python(code: str, folder: Path) -> str:
    program = folder / "program.py"
    program.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, program], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["feed", "--help"]])
def test_help_waits_for_neither_feast_nor_models(arguments: list[str], tmp_path: Path):
    told = python(
        "import sys\n"
        "from pipelines.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        "print({'feast', 'torch', 'sklearn', 'matplotlib', 'duckdb'} & sys.modules.keys())",
        tmp_path,
    )
    assert "usage: feastrank" in told
    assert told.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("prepared", "checked"), [(False, ["True", "True", "True"]), (True, ["True", "False", "False"])]
)
def test_only_feasts_type_checks_are_left_out(prepared: bool, checked: list[str], tmp_path: Path):
    assert python(FEAST.format(prepared=prepared), tmp_path).split() == checked

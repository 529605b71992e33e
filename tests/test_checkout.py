"""This checkout: what is imported is what lies here, in the right direction, and nothing leaks."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("feastpack", "feature_repo", "validation", "serving", "pipelines")
# Split, so that this file does not hold what it forbids. Addresses of package registries and of
# machines depend on where somebody works; a checkout must build anywhere.
FORBIDDEN = (
    "pypi" + r"\.org",
    "pythonhosted" + r"\.org",
    r"https?://[\w.-]+/(?:simple|" + "artifactory|nexus)",
    "--" + "(?:extra-)?index-url",
    "--" + "trusted-host",
    r"(?<![\w.])/" + r"(?:work|root|home/\w+)/",
    r"/tmp/" + r"\w",
)


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [REPOSITORY / name for name in listed.stdout.split("\0") if name]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_loaded_from_this_checkout(package: str):
    module = importlib.import_module(package)
    places = [Path(place) for place in module.__path__]
    assert places == [REPOSITORY / package]


def test_imports_go_in_one_direction():
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_serving_needs_nothing_that_only_batch_work_needs():
    code = (
        "import sys, serving.recommender; "
        "heavy = {'great_expectations', 'sentence_transformers', 'implicit', 'pipelines'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_tracked_files_name_no_registry_and_no_machine():
    found = []
    for path in tracked():
        if path == Path(__file__) or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for pattern in FORBIDDEN:
            found += [
                f"{path.relative_to(REPOSITORY)}: {match.group(0)}"
                for match in re.finditer(pattern, text, re.IGNORECASE)
            ]
    assert not found


def test_no_module_grows_beyond_500_lines():
    long = {}
    for path in tracked():
        if path.suffix == ".py" and path.is_file() and path.parts[-2] != "tests":
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > 500 and path.relative_to(REPOSITORY).parts[0] in PACKAGES:
                long[str(path.relative_to(REPOSITORY))] = lines
    assert not long


def test_every_package_on_disk_is_shipped():
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'(?m)^    "([\w.]+)",$', text.split("packages = [")[1].split("]")[0]))
    on_disk = {
        ".".join(path.parent.relative_to(REPOSITORY).parts)
        for path in tracked()
        if path.suffix == ".py" and path.relative_to(REPOSITORY).parts[0] in PACKAGES
    }
    assert on_disk == listed

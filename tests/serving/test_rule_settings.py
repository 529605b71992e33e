"""The file of rules: what it may say, and what is refused."""

from pathlib import Path

import pytest

from serving.errors import RulesError
from serving.rule_settings import Cap, Pin, Rules


def written(folder: Path, text: str) -> Path:
    path = folder / "rules.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_file_declares_nothing(tmp_path: Path):
    assert Rules.read(written(tmp_path, "")) == Rules()


def test_every_section(tmp_path: Path):
    text = """
    [freshness]
    max_age_days = 30
    [[cap]]
    attribute = "topics"
    limit = 3
    [[pin]]
    post = "181"
    position = 2
    [diversity]
    strength = 0.3
    vectors = "als"
    [exploration]
    share = 0.05
    """
    rules = Rules.read(written(tmp_path, text))
    assert rules.freshness is not None
    assert rules.freshness.keep_unknown
    assert rules.cap == (Cap(attribute="topics", limit=3),)
    assert rules.pin == (Pin(post="181", position=2),)
    assert rules.diversity is not None
    assert (rules.diversity.strength, rules.diversity.vectors) == (0.3, "als")
    assert rules.exploration is not None
    assert (rules.exploration.share, rules.exploration.among) == (0.05, 50)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[freshnes]\nmax_age_days = 3", "freshnes: Extra inputs are not permitted"),
        ("[freshness]\nmax_age_days = 0", "freshness.max_age_days: Input should be greater than 0"),
        ("[diversity]\nstrength = 1.5", "diversity.strength"),
        ("[[pin]]\npost = '1'\nposition = 0", "pin.0.position"),
        ("[[pin]]\npost='1'\nposition=1\n[[pin]]\npost='2'\nposition=1", "pin.position: 1 stands"),
        ("[[pin]]\npost='1'\nposition=1\n[[pin]]\npost='1'\nposition=2", "pin.post: 1 stands"),
        ("[[cap]]\nattribute='a'\nlimit=1\n[[cap]]\nattribute='a'\nlimit=2", "cap.attribute: a"),
        ("[exploration", "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, what: str):
    with pytest.raises(RulesError, match="rules.toml.*" + what.replace(".", r"\.")):
        Rules.read(written(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(RulesError, match="cannot be read"):
        Rules.read(tmp_path / "nothing.toml")

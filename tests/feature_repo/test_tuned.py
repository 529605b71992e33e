"""Tuned settings: where they lie, what is refused, and what follows from the sources."""

import json

import pytest

from feature_repo.contract import contract_of
from feature_repo.dataset import Dataset, DatasetError
from feature_repo.definitions import columns as c
from feature_repo.definitions.repository import DEFAULT_DATASET, objects
from feature_repo.tuned import TunedSettings, beside, tuned_file
from feature_repo.workspace import Workspace

DESCRIBED = Dataset.parse(
    'name = "d"\n[events]\npath = "e.csv"\nformat = "csv"\nuser = "u"\npost = "p"\n'
    'time = { column = "t" }\npositive = { every = true }'
)


def test_without_a_file_the_defaults_hold(tmp_path):
    found = TunedSettings.of(tmp_path / "feed.toml", Workspace(tmp_path, "feed"))
    assert tuple(found.sources) == c.DEFAULT_SOURCES
    assert found.rankers == {}


def test_the_state_folders_file_comes_before_the_one_beside_the_description(tmp_path):
    description, workspace = tmp_path / "feed.toml", Workspace(tmp_path / "home", "feed")
    TunedSettings(sources={"popular": {}}).write(beside(description))
    assert beside(description).name == "feed.tuned.json"
    assert tuned_file(description, workspace) == beside(description)
    TunedSettings(sources={"popular": {}, "als": {}}).write(workspace.tuned)
    assert tuple(TunedSettings.of(description, workspace).sources) == ("popular", "als")


def test_the_order_of_sources_is_kept_and_counts(tmp_path):
    path = tmp_path / "tuned.json"
    settings = TunedSettings(sources={"popular": {}, "ease": {"regularization": 7.0}, "als": {}})
    settings.write(path)
    assert list(TunedSettings.read(path).sources) == ["popular", "ease", "als"]
    assert TunedSettings.read(path).hash == settings.hash
    other = TunedSettings(sources={"ease": {"regularization": 7.0}, "popular": {}, "als": {}})
    assert other.hash != settings.hash
    assert settings.model_copy(update={"found": {"trials": 3}}).hash == settings.hash


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no tuned settings: file: Invalid JSON"),
        ('{"source": {}}', "source: Extra inputs are not permitted"),
        ('{"sources": {"als": {}}}', "sources: .*'popular' is missing among"),
        ('{"sources": {"popular": {}, "a b": {}}}', "cannot be part of a column's name"),
        ('{"sources": {"popular": 3}}', "sources.popular: Input should be an object"),
    ],
)
def test_what_is_no_settings_file_is_refused_with_advice(tmp_path, content, message):
    path = tmp_path / "tuned.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match=f"tuned.json: .*{message}.*run `feastrank tune`"):
        TunedSettings.read(path)


def test_inputs_of_the_ranker_follow_from_the_sources():
    sources = ("popular", "ease", "sequential")
    names = set(contract_of(objects(DESCRIBED, sources=sources)[-1]).names)
    assert {name for name in names if name.startswith("candidate_")} == {
        c.CANDIDATE_SOURCE_COUNT,
        *(c.candidate_score(source) for source in sources),
        *(c.candidate_rank(source) for source in sources),
    }


def test_a_request_speaks_of_the_sources_that_have_score_and_rank():
    names = ["ease_score", "ease_rank", "als_rank", "rrf_score", "_rank", "_score", "user_id"]
    assert c.sources_in(names) == ["ease"]


def test_feasts_own_commands_take_the_settings_that_come_with_the_description(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("FEASTRANK_HOME", str(tmp_path))
    description = tmp_path / "movielens_100k.toml"
    description.write_bytes(DEFAULT_DATASET.read_bytes())
    beside(description).write_text(json.dumps({"sources": {"popular": {}, "ease": {}}}))
    monkeypatch.setenv("FEASTRANK_DATASET", str(description))
    names = contract_of(objects()[-1]).names
    assert c.candidate_rank("ease") in names
    assert c.candidate_rank("als") not in names

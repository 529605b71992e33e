import re

import pytest
from dataset_examples import DESCRIPTION, DESCRIPTIONS, EVENTS_ONLY
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.dataset import Dataset, DatasetError
from feature_repo.dataset_columns import RESERVED_NAMES


def test_movielens_says_what_the_source_has():
    dataset = Dataset.read(DESCRIPTIONS / "movielens_100k.toml")
    assert dataset.name == "movielens_100k"
    assert (dataset.has_clock, dataset.has_impressions) == (True, True)
    assert (dataset.has_text, dataset.has_topics, dataset.has_images) == (True, True, False)
    assert [(one.name, one.type) for one in dataset.user_attributes] == [
        ("age", "numeric"),
        ("gender", "categorical"),
        ("occupation", "categorical"),
    ]
    assert [(one.name, one.type) for one in dataset.post_attributes] == [
        ("release_year", "numeric")
    ]


def test_lastfm_has_no_clock_no_rates_and_no_attributes():
    dataset = Dataset.read(DESCRIPTIONS / "lastfm_2k.toml")
    assert (dataset.has_clock, dataset.has_impressions) == (False, False)
    assert (dataset.user_attributes, dataset.post_attributes) == ((), ())
    assert dataset.has_text
    assert not dataset.has_topics


def test_columns_are_each_named_once():
    dataset = Dataset.parse(DESCRIPTION)
    assert dataset.events.columns() == ("user", "post", "ts", "rating")
    assert dataset.posts is not None
    assert dataset.posts.columns() == ("id", "name", "body", "genres")


@pytest.mark.parametrize(
    ("impressions", "positive", "expected"),
    [
        ("{ every = true }", '{ column = "r", at_least = 4 }', True),
        ("{ every = true }", '{ column = "r", equals = 1 }', True),
        ('{ actions = ["view"] }', '{ actions = ["like"] }', True),
        ('{ actions = ["view", "like"] }', '{ actions = ["like"] }', True),
        ('{ actions = ["like"] }', '{ actions = ["like", "share"] }', False),
        ("{ every = true }", "{ every = true }", False),
        ('{ actions = ["view"] }', "{ every = true }", False),
        ('{ column = "r", equals = 1 }', '{ column = "r", equals = 1 }', False),
    ],
)
def test_rates_mean_something_if_an_impression_can_fail(impressions, positive, expected):
    text = EVENTS_ONLY.replace("{ every = true }", positive) + f"impressions = {impressions}\n"
    assert Dataset.parse(text).has_impressions is expected


def test_fingerprint_is_of_the_content_only():
    dataset = Dataset.parse(DESCRIPTION)
    spelled = DESCRIPTION.replace(
        'path = "users.csv"\nformat = "csv"',
        '# a comment\nseparator = ","\nformat = "csv"\nheader = true\npath = ["users.csv"]',
    )
    assert Dataset.parse(spelled).fingerprint() == dataset.fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", dataset.fingerprint())
    for old, new in (("at_least = 4", "at_least = 3"), ('"age"', '"years"'), ('"ts"', '"t"')):
        changed = Dataset.parse(DESCRIPTION.replace(old, new))
        assert changed.fingerprint() != dataset.fingerprint()


def test_description_cannot_be_changed():
    dataset = Dataset.parse(DESCRIPTION)
    with pytest.raises(ValueError, match="frozen"):
        dataset.name = "other"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "small"', "", r"name: missing; add it: such as 'my_feed'"),
        ('name = "small"', 'name = "Small"', r"name: found 'Small': a name must start with a-z"),
        ('format = "csv"\nid = "id"\nattr', 'format = "xls"\nid = "id"\nattr', "users.format: .*'"),
        ('user = "user"', 'usr = "user"', r"events.usr: unknown key; .*did you mean 'user'"),
        ('{ column = "ts" }', '{ column = "ts", format = "epoch" }', "did you mean 'epoch_s'"),
        ('{ column = "ts" }', '{ format = "iso" }', "needs 'column'; .*file_order"),
        ('{ column = "ts" }', '{ column = "t", format = "file_order" }', "takes no column"),
        ("at_least = 4", "atleast = 4", r"events.positive.atleast: unknown key; .*'at_least'"),
        (", at_least = 4 }", " }", r"events.positive: .*expected one of \{ every = true \}"),
        ('"age", column', '"user_id", column', r"users.attributes\[0\].name: .*reserved"),
        ('"age", column', '"my age", column', r"users.attributes\[0\].name: .*a name must start"),
        ('"age", column', '"a__b", column', "single _ between"),
        ('"city", column', '"age", column', "attribute names given twice: age"),
        ('type = "numeric"', 'type = "number"', "expected 'categorical', 'numeric' or 'list'"),
        ('type = "list", separator', 'type = "categorical", separator', "'separator' belongs to"),
        ('id = "id"\ntitle', 'id = "id"\nencoding = "utf-99"\ntitle', "no such encoding"),
        ('id = "id"\ntitle', 'id = "id"\nheader = false\ntitle', r"columns are numbers from \"0\""),
        (
            'path = "posts.csv"\nformat = "csv"',
            'path="p"\nformat="jsonl"\nheader=true',
            "csv' only",
        ),
        ('name = "small"', "name = small", "not valid TOML: .*line 2"),
        ('name = "small"', 'name = "small"\nimage = 1', "image: unknown key"),
    ],
)
def test_bad_descriptions_are_refused_with_key_and_remedy(tmp_path, old, new, message):
    path = tmp_path / "bad.toml"
    assert old in DESCRIPTION
    path.write_text(DESCRIPTION.replace(old, new, 1))
    with pytest.raises(DatasetError, match=r"(?s)bad\.toml: .*" + message):
        Dataset.read(path)


def test_all_problems_are_told_at_once():
    with pytest.raises(DatasetError, match=r"(?s)3 problems.*name.*events\.time.*events\.positive"):
        Dataset.parse('[events]\npath="e"\nformat="csv"\nuser="u"\npost="p"\n')


def test_totals_without_events_are_refused():
    text = 'name = "feed"\n[posts]\npath = "p.csv"\nformat = "csv"\nid = "post_id"\n'
    with pytest.raises(DatasetError, match=r"events: missing; .*Totals per post .* who liked what"):
        Dataset.parse(text)


def test_missing_and_unreadable_files_are_told(tmp_path):
    with pytest.raises(DatasetError, match=r"no such dataset description.*feastrank init"):
        Dataset.read(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"')
    with pytest.raises(DatasetError, match="cannot be read as UTF-8"):
        Dataset.read(tmp_path / "latin.toml")


@given(st.text(max_size=60))
def test_any_accepted_attribute_name_is_a_feature_name_part(name):
    entry = {"name": name, "column": "c", "type": "numeric"}
    table = {"path": "u.csv", "format": "csv", "id": "id", "attributes": [entry]}
    content = Dataset.parse(EVENTS_ONLY).model_dump(exclude_defaults=True) | {"users": table}
    try:
        dataset = Dataset.model_validate(content)
    except ValueError:
        return
    (attribute,) = dataset.user_attributes
    assert attribute.name.isidentifier()
    assert "__" not in attribute.name
    assert attribute.name not in RESERVED_NAMES

"""What rules know of posts: by hand."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from serving.errors import RulesError
from serving.post_facts import PostFacts, write_post_facts
from serving.rule_settings import Rules

EARLIER, DAY = datetime(2024, 4, 1, tzinfo=UTC), datetime(2024, 5, 1, tzinfo=UTC)
POSTS = pa.table(
    {
        "post_id": [7, 2, 5],
        "created": pa.array(
            [DAY, None, datetime(2024, 4, 1, tzinfo=UTC)], pa.timestamp("us", "UTC")
        ),
        "topics": [["tea", "maps", "tea"], ["tea"], None],
        "author": ["ann", None, "ann"],
        "length": [1.5, 1.5, 2.0],
    }
)
TEXTS = pa.table({"post_id": [5, 7], "embedding": [[3.0, 4.0], None]})


def facts(folder: Path, **sections) -> PostFacts:
    write_post_facts(folder, POSTS, TEXTS)
    return PostFacts(folder, Rules.model_validate(sections), None)


def of(facts: PostFacts, posts: list[int]) -> list[tuple[int, int]]:
    (cap,) = facts.arranger(np.array(posts), {}).caps
    return sorted(zip(cap.rows.tolist(), cap.codes.tolist(), strict=True))


def test_groups(tmp_path: Path):
    topics = of(facts(tmp_path, cap=[{"attribute": "topics", "limit": 1}]), [2, 5, 7])
    # The topic of 2 is one of the two of 7; 5 has none; a topic that stands twice counts once.
    assert [row for row, _ in topics] == [0, 2, 2]
    assert topics[0][1] in {code for row, code in topics if row == 2}
    authors = of(facts(tmp_path, cap=[{"attribute": "author", "limit": 1}]), [2, 5, 7])
    assert authors == [(1, 0), (2, 0)]
    lengths = of(facts(tmp_path, cap=[{"attribute": "length", "limit": 1}]), [2, 7])
    assert lengths == [(0, lengths[0][1]), (1, lengths[0][1])]


@pytest.mark.parametrize(("keep", "left"), [(True, [2, 7]), (False, [7])])
def test_freshness(tmp_path: Path, keep: bool, left: list[int]):
    rules = {"max_age_days": 10, "keep_unknown": keep}
    opened = facts(tmp_path, freshness=rules)
    freshness = Rules.model_validate({"freshness": rules}).freshness
    assert freshness is not None
    moment = datetime(2024, 5, 10, tzinfo=UTC)
    assert opened.fresh(np.array([2, 5, 7]), freshness, moment).tolist() == left
    # Ten days to the second are not too old.
    at_limit = datetime(2024, 5, 11, tzinfo=UTC)
    assert 7 in opened.fresh(np.array([2, 5, 7]), freshness, at_limit)


def test_vectors_have_length_1_and_are_zeros_without_text(tmp_path: Path):
    arranger = facts(tmp_path, diversity={"strength": 0.5}).arranger(np.array([2, 5, 7]), {})
    assert arranger.vectors is not None
    np.testing.assert_allclose(arranger.vectors, [[0, 0], [0.6, 0.8], [0, 0]], rtol=1e-6)


def test_what_the_bundle_does_not_have_is_said(tmp_path: Path):
    with pytest.raises(RulesError, match="posts have no 'autor', expected one of: topics, author"):
        facts(tmp_path, cap=[{"attribute": "autor", "limit": 1}])
    with pytest.raises(RulesError, match="has no als vectors"):
        facts(tmp_path, diversity={"strength": 0.5, "vectors": "als"})
    write_post_facts(
        tmp_path, POSTS.set_column(1, "created", pa.nulls(3, POSTS["created"].type)), None
    )
    with pytest.raises(RulesError, match="no post of this bundle has a creation time"):
        PostFacts(tmp_path, Rules.model_validate({"freshness": {"max_age_days": 1}}), None)
    with pytest.raises(RulesError, match="no such file"):
        PostFacts(
            tmp_path / "old", Rules.model_validate({"cap": [{"attribute": "a", "limit": 1}]}), None
        )

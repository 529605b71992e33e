"""Real sources of other shapes: for one a description suffices, one lacks what matters."""

from pathlib import Path

import pytest
from job_runner import REPOSITORY, Outcome

from pipelines.cli import main

DATA = REPOSITORY.parent / "shared" / "data"
LASTFM, FEED_POSTS = DATA / "lastfm_2k", DATA / "feed_posts"
POSTS_ALONE = """
name = "feed_posts"
[posts]
path = "posts_views_likes.csv"
format = "csv"
separator = ";"
id = "post_id"
topics = "Topic"
attributes = [{ name = "likes", column = "likes", type = "numeric" }]
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Outcome:
    code = main([*arguments])
    printed = capsys.readouterr()
    return Outcome(code, printed.out, printed.err)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(not LASTFM.exists(), reason="Last.fm is not on this machine")
def test_last_fm_runs_by_the_description_that_comes_with_us(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name in ("FEASTRANK_LABEL_SLICES", "FEASTRANK_CANDIDATES_PER_SOURCE"):
        monkeypatch.delenv(name, raising=False)
    flags = ("--dataset", "lastfm_2k", "--home", str(tmp_path))
    outcome = run(capsys, "run", *flags, "--data", str(LASTFM))
    assert outcome.code == 0, outcome.err
    assert "1,892 users, 17,632 posts, 92,834 events" in outcome.out
    answer = run(capsys, "recommend", *flags, "--user", "2", "--top", "5")
    assert answer.code == 0, answer.err
    assert answer.out.count("from ") == 5
    assert run(capsys, "stop", *flags).code == 0


@pytest.mark.skipif(not FEED_POSTS.exists(), reason="the feed's posts are not on this machine")
@pytest.mark.parametrize("name", ["posts_views_likes.csv", "bbc_posts_with_text.csv"])
def test_totals_per_post_are_refused_by_init(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "feed.toml"
    outcome = run(capsys, "init", "--events", str(FEED_POSTS / name), "--output", str(output))
    assert outcome.code == 1
    assert name in outcome.err
    assert "user" in outcome.err
    assert not output.exists()


def test_posts_without_events_are_refused_with_what_is_lacking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    description = tmp_path / "feed.toml"
    description.write_text(POSTS_ALONE, encoding="utf-8")
    flags = ("--dataset", str(description), "--home", str(tmp_path), "--data", str(FEED_POSTS))
    outcome = run(capsys, "run", *flags)
    assert outcome.code == 1
    assert "events" in outcome.err
    assert "Totals per post (views, likes) do not say who liked what" in outcome.err
    assert not (tmp_path / "feed_posts").exists()

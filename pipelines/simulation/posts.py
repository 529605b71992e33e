"""Posts of the simulated feed: topics, exposure, like rates and texts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer

from pipelines.errors import SimulationError
from pipelines.simulation import facts
from pipelines.simulation.vocabulary import COMMON, THEMES

TOPICS = tuple(facts.TOPICS)
THEMES_PER_TOPIC = 4
_THEME_WORDS_SHARE = 0.35
_OWN_THEME_SHARE = 0.75  # of a post's theme words; the others are of its topic's other themes
_LENGTH_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Posts:
    """Posts in the order of their ids.

    Parameters
    ----------
    table
        ``post_id`` int64, ``text``, ``topic`` string; no nulls.
    topics
        int64 (n,), position in `TOPICS`.
    mixture
        float32 (n, topics * themes): the share of each theme in the post; a row sums to 1.
    exposure
        float64 (n,), the share of all views that fall to the post; 0 for those never shown.
    like_rates
        float64 (n,), likes per view over all users.
    """

    table: pa.Table
    topics: NDArray[np.int64]
    mixture: NDArray[np.float32]
    exposure: NDArray[np.float64]
    like_rates: NDArray[np.float64]


def make_posts(count: int, rng: np.random.Generator, texts: pa.Table | None = None) -> Posts:
    """Draw posts whose topics, views and like rates are those of the real feed.

    Parameters
    ----------
    texts
        Real texts, as `read_texts` returns them; each topic's are used in random order, again and
        again if there are too few. Topics without any get made-up texts.
    """
    parts = [_topic(name, size, rng) for name, size in _sizes(count).items() if size]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    ids, topics, exposure, rates = (column[np.argsort(columns[0])] for column in columns)
    themes = rng.integers(0, THEMES_PER_TOPIC, len(ids))
    written = np.full(len(ids), None, dtype=object)
    for position, name in enumerate(TOPICS):
        rows = np.flatnonzero(topics == position)
        given = _texts_of(texts, name)
        if given and len(rows):
            chosen = rng.permutation(np.arange(len(rows)) % len(given))
            themes[rows] = _themes_in(given, rng)[chosen]
            written[rows] = [given[place] for place in chosen]
        else:
            written[rows] = [_text(name, theme, rng) for theme in themes[rows]]
    table = pa.table(
        {
            "post_id": ids,
            "text": pa.array(written.tolist(), pa.string()),
            "topic": [TOPICS[topic] for topic in topics],
        }
    )
    return Posts(table, topics, _mixture(topics, themes), exposure / exposure.sum(), rates)


def read_texts(path: Path) -> pa.Table:
    """Read a CSV or parquet file of texts.

    Returns
    -------
    ``text``, ``topic`` string; rows without a text left out.

    Raises
    ------
    SimulationError
        If the file cannot be read, lacks one of the columns, or has a topic that is none of
        `TOPICS`.
    """
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
        else:
            parse = pc_csv.ParseOptions(newlines_in_values=True)
            table = pc_csv.read_csv(path, parse_options=parse)
    except (OSError, pa.ArrowInvalid) as error:
        raise SimulationError(
            f"{path}: cannot be read ({error}); expected a parquet file or a comma-separated one "
            "with columns text and topic"
        ) from error
    missing = [name for name in ("text", "topic") if name not in table.column_names]
    if missing:
        raise SimulationError(
            f"{path}: no column {' and no column '.join(missing)}, found {table.column_names}; "
            "name the columns text and topic"
        )
    table = table.select(["text", "topic"]).filter(pc.greater(pc.utf8_length(table["text"]), 0))
    unknown = sorted({str(topic) for topic in pc.unique(table["topic"]).to_pylist()} - {*TOPICS})
    if unknown or table.num_rows == 0:
        raise SimulationError(
            f"{path}: found {table.num_rows:,} texts of the topics {unknown or 'of the feed'}, "
            f"expected some, of {', '.join(TOPICS)}; leave out or rename the others"
        )
    return table


def _sizes(count: int) -> dict[str, int]:
    """Share posts out among topics as the real ones are, by largest remainder, at least one."""
    real = np.array([topic.posts for topic in facts.TOPICS.values()], dtype=np.float64)
    exact = real / real.sum() * count
    sizes = np.maximum(np.floor(exact).astype(np.int64), 1)
    for place in np.argsort(-(exact - sizes), kind="stable"):
        if sizes.sum() < count:
            sizes[place] += 1
    return dict(zip(TOPICS, sizes.tolist(), strict=True))


def _topic(
    name: str, count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return ids, topics, weights of exposure and like rates of one topic's posts."""
    topic = facts.TOPICS[name]
    span = topic.last_id - topic.first_id + 1
    if count <= span:
        ids = np.sort(rng.choice(span, count, replace=False)) + topic.first_id
    else:
        # More posts than the real topic had: further ids follow, apart from all other topics'.
        more = np.arange(count - span) * len(TOPICS) + TOPICS.index(name) + facts.LAST_POST_ID + 1
        ids = np.append(np.arange(topic.first_id, topic.last_id + 1), more)
    sizes = np.array([*(group.posts for group in topic.groups), topic.never_viewed], np.float64)
    # Group sizes in proportion, not drawn: a small catalogue keeps the real one's mixture.
    places = (np.arange(count) + 0.5) / count
    group = np.searchsorted(np.cumsum(sizes / sizes.sum()), places)
    group = rng.permutation(np.minimum(group, len(sizes) - 1))
    columns = np.array(
        [(g.views, g.log_views_sd, g.like_rate, g.like_rate_sd) for g in topic.groups]
        + [(0.0, 0.0, topic.like_rate, 0.0)]
    )
    views, views_sd, rate, rate_sd = columns[group].T
    exposure = views * np.exp(views_sd * rng.standard_normal(count))
    rates = np.clip(rate + rate_sd * rng.standard_normal(count), 0.03, 0.3)
    return ids.astype(np.int64), np.full(count, TOPICS.index(name)), exposure, rates


def _mixture(topics: NDArray[np.int64], themes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the shares of themes: the own one, and what is left evenly to its topic's others."""
    other = (1 - _OWN_THEME_SHARE) / (THEMES_PER_TOPIC - 1)
    mixture = np.zeros((len(topics), len(TOPICS), THEMES_PER_TOPIC), dtype=np.float32)
    mixture[np.arange(len(topics)), topics] = other
    mixture[np.arange(len(topics)), topics, themes] = _OWN_THEME_SHARE
    return mixture.reshape(len(topics), -1)


def _text(topic: str, theme: int, rng: np.random.Generator) -> str:
    """Write a text of about the length that texts of the topic have."""
    lengths = facts.TOPICS[topic].text_characters
    length = np.interp(rng.uniform(0.02, 0.98), _LENGTH_QUANTILES, lengths)
    count = max(3, round(length / 6))
    own = rng.random(count) < _OWN_THEME_SHARE
    which = np.where(own, theme, rng.integers(0, THEMES_PER_TOPIC, count))
    vocabularies = [words.split() for words in THEMES[topic]]
    picks = rng.random(count)
    thematic = rng.random(count) < _THEME_WORDS_SHARE
    chosen = [
        vocabulary[int(pick * len(vocabulary))]
        for pick, vocabulary in (
            (pick, vocabularies[w] if t else COMMON)
            for pick, w, t in zip(picks, which, thematic, strict=True)
        )
    ]
    return _sentences(chosen, rng)


def _sentences(words: list[str], rng: np.random.Generator) -> str:
    sentences, start = [], 0
    while start < len(words):
        end = start + int(rng.integers(6, 18))
        sentences.append(" ".join(words[start:end]).capitalize() + ".")
        start = end
    return " ".join(sentences)


def _texts_of(texts: pa.Table | None, topic: str) -> list[str]:
    if texts is None:
        return []
    return list(texts.filter(pc.equal(texts["topic"], topic))["text"].to_pylist())


def _themes_in(texts: list[str], rng: np.random.Generator) -> NDArray[np.int64]:
    """Find the themes of real texts, so that what they are about is what users like or not."""
    if len(texts) <= THEMES_PER_TOPIC:
        return np.arange(len(texts), dtype=np.int64)
    words = TfidfVectorizer(stop_words="english", max_features=2_000, sublinear_tf=True)
    matrix = words.fit_transform(texts)
    means = KMeans(THEMES_PER_TOPIC, n_init=2, random_state=int(rng.integers(2**31)))
    return np.asarray(means.fit_predict(matrix), dtype=np.int64)

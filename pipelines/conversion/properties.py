"""What an author can read off a post and change: lengths, marks, emoji, links, hour."""

import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from pipelines.conversion.posts import Posts

Floats = NDArray[np.float64]

PROPERTIES = {
    "words": "words in the text",
    "words_per_sentence": "words per sentence",
    "letters_per_word": "letters per word",
    "headline_words": "words in the first line",
    "paragraphs": "paragraphs",
    "question_marks": "question marks",
    "exclamation_marks": "exclamation marks",
    "quotation_marks": "quotation marks",
    "commas_per_100_words": "commas per 100 words",
    "numbers_per_100_words": "numbers per 100 words",
    "capital_words_per_100_words": "words in capitals per 100 words",
    "names_per_100_words": "capitalised words per 100 words",
    "emoji": "emoji",
    "hashtags": "hashtags",
    "mentions": "mentions",
    "links": "links",
    "latin_share": "share of letters that are Latin",
}
"""Names of the properties and what they are in words.

On top come ``hour`` where times are, ``picture`` where pictures are, and ``language xx`` for each
language that is common.
"""

LANGUAGE = "language "
_LEAST_CONFIDENCE = 0.5
# Fewer say nothing of a language, and each is one more thing to look at.
_FEWEST_OF_A_LANGUAGE = 20

_TAG = re.compile(r"<[a-zA-Z/!][^<>]*>")
_LINK = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_WORD = re.compile(r"\w+(?:['\u2019\-]\w+)*")
_SENTENCE_END = re.compile(r"[.!?…]+(?=\s|$)")
_DIGIT_LETTER = re.compile(r"(?<=\d)(?=[^\W\d_])|(?<=[^\W\d_])(?=\d)")
# Symbols and pictographs, flags, dingbats; a joiner or a colour of skin makes no emoji of its own.
_EMOJI = re.compile(
    "[\U0001f300-\U0001f3fa\U0001f400-\U0001faff\u2600-\u27bf\U0001f1e6-\U0001f1ff]"
)
_QUOTES = '"“”«»„'


def clean_text(text: str) -> str:
    """Return the text that is embedded: no tags, entities as characters, digits apart.

    >>> clean_text("<b>5kg</b> &amp; more")
    '5 kg & more'
    """
    return " ".join(_DIGIT_LETTER.sub(" ", plain_text(text)).split())


def plain_text(text: str) -> str:
    """Return the text as people see it: without tags, entities as characters, with its lines."""
    return html.unescape(_TAG.sub(" ", text))


@dataclass(frozen=True)
class Properties:
    """Readable properties of n posts: ``values`` is float64 (n, properties), NaN where unknown."""

    names: tuple[str, ...]
    values: Floats

    def column(self, name: str) -> Floats:
        """Return one property; float64[n]."""
        return self.values[:, self.names.index(name)]


def properties(posts: Posts) -> Properties:
    """Read the properties off posts; those that never vary are left out."""
    columns = {
        name: np.array(values, dtype=np.float64)
        for name, values in zip(PROPERTIES, _measured(posts.texts), strict=True)
    }
    columns |= _languages(posts.texts)
    if posts.times is not None:
        hours = posts.times.astype("datetime64[h]").astype(np.int64) % 24
        columns["hour"] = hours.astype(np.float64)
    if posts.images is not None:
        columns["picture"] = np.array([image is not None for image in posts.images], np.float64)
    varied = {
        name: values
        for name, values in columns.items()
        if len(np.unique(values[values == values])) > 1
    }
    values = np.column_stack(list(varied.values())) if varied else np.empty((len(posts), 0))
    return Properties(tuple(varied), values)


def languages(texts: Sequence[str]) -> list[str | None]:
    """Guess the language of each text; None where none is more likely than not.

    Codes of ISO 639-1 or -3, by character n-grams (Lui and Baldwin 2012, langid.py). Texts of a
    few words are often not told apart, and are None then.
    """
    known = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return [_language(known, " ".join(_LINK.sub(" ", plain_text(text)).split())) for text in texts]


def _language(known: Any, text: str) -> str | None:
    if not any(letter.isalpha() for letter in text):
        return None
    code, confidence = known.classify(text)
    return str(code) if confidence >= _LEAST_CONFIDENCE else None


def _languages(texts: Sequence[str]) -> dict[str, Floats]:
    """Return a column for each common language: 1 or 0, NaN where the language is not known."""
    codes = np.array([code or "" for code in languages(texts)])
    found, counts = np.unique(codes[codes != ""], return_counts=True)
    return {
        f"{LANGUAGE}{code}": np.where(codes == "", np.nan, (codes == code).astype(np.float64))
        for code in found[counts >= _FEWEST_OF_A_LANGUAGE].tolist()
    }


def _measured(texts: Sequence[str]) -> list[tuple[float, ...]]:
    return list(zip(*(_measure(plain_text(text)) for text in texts), strict=True))


def _measure(text: str) -> tuple[float, ...]:
    """Return the values of one text in the order of `PROPERTIES`."""
    without_links = _LINK.sub(" ", text)
    words = _WORD.findall(without_links)
    lines = [line for line in text.splitlines() if line.strip()]
    per_100 = 100 / max(len(words), 1)
    letters = [letter for letter in without_links if letter.isalpha()]
    latin = sum(
        letter.isascii() or unicodedata.name(letter, "").startswith("LATIN") for letter in letters
    )
    sentences = max(len(_SENTENCE_END.findall(without_links)), 1)
    return (
        len(words),
        len(words) / sentences,
        sum(map(len, words)) / max(len(words), 1),
        len(_WORD.findall(lines[0])) if lines else 0,
        len(lines),
        without_links.count("?"),
        text.count("!"),
        sum(text.count(mark) for mark in _QUOTES),
        without_links.count(",") * per_100,
        sum(word[0].isdigit() for word in words) * per_100,
        sum(len(word) > 1 and word.isupper() for word in words) * per_100,
        sum(word[0].isupper() and not word.isupper() for word in words) * per_100,
        len(_EMOJI.findall(text)),
        len(re.findall(r"(?<!\w)#\w+", without_links)),
        len(re.findall(r"(?<!\w)@\w+", without_links)),
        len(_LINK.findall(text)),
        latin / len(letters) if letters else np.nan,
    )

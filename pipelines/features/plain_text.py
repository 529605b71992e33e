"""The words of a post's text as a reader sees them, without markup."""

import html
import re

_UNSEEN = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
# A tag begins with a letter: "a < b" and "<3" are words.
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!doctype[^<>]*>", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


def plain_text(text: str | None) -> str:
    """Return a text without markup; empty where there is nothing to read.

    Comments, scripts, styles and tags are left out, entities become their characters, control
    characters are left out and white space of any kind becomes one space. Words keep their case,
    script and punctuation. Null is empty.
    """
    if not text:
        return ""
    if "<" in text:
        text = _TAG.sub(" ", _UNSEEN.sub(" ", text))
    if "&" in text:
        text = html.unescape(text)
    return " ".join(_CONTROL.sub("", text).split())

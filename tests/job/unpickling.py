"""Notes what is unpickled, in Python or in C, in any thread."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_noted: list[list[str]] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "pickle.find_class":
        for names in _noted:
            names.append(".".join(map(str, arguments)))


# A hook stays as long as its process does.
sys.addaudithook(_note)


@contextmanager
def unpickling() -> Iterator[list[str]]:
    """Yield the names of classes and functions that pickles made something of, as they come."""
    names: list[str] = []
    _noted.append(names)
    try:
        yield names
    finally:
        _noted.remove(names)

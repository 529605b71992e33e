"""What a command does before it imports Feast."""

import os
import warnings
from typing import Any, TextIO

import typeguard

_typechecked = typeguard.typechecked
_show = warnings.showwarning


def prepare_for_feast() -> None:
    """Let this process import Feast sooner, and leave out warnings that nobody can act on.

    Feast decorates its classes with `typeguard.typechecked`, which parses and compiles their source
    again at every import: half of the time that Feast takes to start. That checks what people
    write in feature definitions; see docs/decisions/0010-startup.md.
    """
    typeguard.typechecked = _but_for_feast
    # No filter: Feast's modules put their own in front of all others, whenever one is imported.
    warnings.showwarning = _show_others


def _but_for_feast(target: Any = None, **options: Any) -> Any:
    if getattr(target, "__module__", "").startswith("feast."):
        return target
    return _typechecked(target, **options)


def _show_others(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning unless Feast calls something of its own experimental."""
    if f"{os.sep}feast{os.sep}" in filename and "experimental feature" in str(message):
        return
    _show(message, category, filename, lineno, file, line)

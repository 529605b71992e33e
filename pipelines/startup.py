"""What a command does before it imports Feast."""

import warnings
from typing import Any

import typeguard

_typechecked = typeguard.typechecked


def prepare_for_feast() -> None:
    """Let this process import Feast sooner, and leave out warnings that nobody can act on.

    Feast decorates its classes with `typeguard.typechecked`, which parses and compiles their source
    again at every import: most of the time that Feast takes to start. That checks what people
    write in feature definitions; see docs/decisions/0010-startup.md.
    """
    typeguard.typechecked = _but_for_feast
    for experimental in ("On demand feature view", "The spark data source", "The spark offline"):
        warnings.filterwarnings("ignore", f"{experimental} .*experim", RuntimeWarning)


def _but_for_feast(target: Any = None, **options: Any) -> Any:
    if getattr(target, "__module__", "").startswith("feast."):
        return target
    return _typechecked(target, **options)

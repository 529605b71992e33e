"""Say what is wrong with a description: key, what was found, what was expected, what to do."""

import difflib
import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(origin: str, root: type[BaseModel], error: ValidationError) -> str:
    """Return a message with a line for each of pydantic's findings.

    Parameters
    ----------
    origin
        What the description is called.
    root
        The model that was validated; the descriptions of its fields say what was expected.
    """
    problems = [_problem(root, detail) for detail in error.errors(include_url=False)]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = "".join(f"\n  {problem}" for problem in problems)
    return f"{origin}: {count} in the dataset description:{lines}"


def _problem(root: type[BaseModel], detail: Any) -> str:
    """Put one of pydantic's findings as key, found, expected, what to do."""
    key, model, described = _locate(root, detail["loc"])
    found = _shorten(detail["input"])
    if detail["type"] == "extra_forbidden":
        known = list(model.model_fields)
        near = difflib.get_close_matches(key.rpartition(".")[2], known, 1)
        hint = f"did you mean '{near[0]}'?" if near else "remove it"
        return f"{key}: unknown key; expected one of {', '.join(known)}; {hint}"
    if detail["type"] == "missing":
        return f"{key}: missing; add it: {described}"
    if detail["type"] == "value_error":
        return f"{key or 'description'}: found {found}: {detail['ctx']['error']}"
    return f"{key}: found {found}; expected {described}; change it"


def _locate(root: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel], str]:
    """Turn pydantic's location into a dotted key, the model around it and its description."""
    key, described = "", "a table"
    around: type[BaseModel] = root
    inner: type[BaseModel] | None = root
    for part in loc:
        if isinstance(part, int):
            key += f"[{part}]"
        elif inner is not None and part in inner.model_fields:
            around = inner
            field = inner.model_fields[part]
            key += f".{part}" if key else part
            described = field.description or described
            inner = _model_inside(field.annotation)
        elif inner is not None:  # an unknown key
            around = inner
            key += f".{part}" if key else part
    return key, around, described


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in get_args(annotation):
        inside = _model_inside(part)
        if inside is not None:
            return inside
    return None


def _shorten(value: Any, limit: int = 120) -> str:
    # Somebody may write a connection where its variable's name belongs.
    text = re.sub(r"(//[^/@:]*:|password\s*=\s*)[^@'\"]*", r"\1***", repr(value))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"

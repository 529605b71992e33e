"""HTML pages of one file each: one style for all, nothing is loaded from elsewhere."""

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_SHARED: dict[str, Callable[..., str]] = {
    "count": lambda value: f"{value:,}",
    "percent": lambda value: f"{value:.1%}",
    "moment": lambda value: f"{value:%Y-%m-%d %H:%M}",
    "iso_moment": lambda text: f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}",
}


def page_environment(
    folder: Path, filters: Mapping[str, Callable[..., str]] | None = None
) -> Environment:
    """Return what renders the templates of a folder; `style.css` of this one is at hand.

    Parameters
    ----------
    filters
        Beside those that all pages share: count, percent, moment, iso_moment.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {**_SHARED, **(filters or {})}
    return environment


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def rendered(folder: Path, template: str, **content: Any) -> str:
    """Render a template that needs no filters of its own."""
    return page_environment(folder).get_template(template).render(**content)

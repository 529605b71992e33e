"""Pages of one file each: style and drawings are inside, nothing is loaded."""

from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def write_page(path: Path, template: str, **content: Any) -> None:
    """Render a template of this folder into a file, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(_environment().get_template(template).render(**content), encoding="utf-8")
    partial.replace(path)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "moment": lambda value: f"{value:%Y-%m-%d %H:%M}",
        "iso_moment": lambda text: f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}",
        "count": lambda value: f"{value:,}",
        "number": lambda value, digits=3: "-" if value is None else f"{value:.{digits}f}",
        "percent": lambda value: f"{value:.1%}",
        "small": lambda value: f"{value:.1e}" if value < 0.001 else f"{value:.3f}",
    }
    environment.filters |= filters
    return environment

"""The pages of monitoring: templates of this folder."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment

from pipelines.pages import page_environment, write_whole


def write_page(path: Path, template: str, **content: Any) -> None:
    """Render a template of this folder into a file, which appears whole or not at all."""
    write_whole(path, _environment().get_template(template).render(**content))


@cache
def _environment() -> Environment:
    filters: dict[str, Any] = {
        "number": lambda value, digits=3: "-" if value is None else f"{value:.{digits}f}",
        "small": lambda value: f"{value:.1e}" if value < 0.001 else f"{value:.3f}",
    }
    return page_environment(Path(__file__).parent, filters)

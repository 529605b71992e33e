"""Data Docs: great-expectations' result pages, made to stand alone without a network.

great-expectations' templates load their styles, fonts and scripts from elsewhere. Here the same
renderers fill the same blocks, but the page around them holds everything itself. Importing this
module imports great-expectations, which takes seconds.
"""

import json
import os
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from great_expectations.core.expectation_validation_result import (
    ExpectationSuiteValidationResult,
)
from great_expectations.render.renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaPageView
from jinja2 import ChoiceLoader, DictLoader, Environment, pass_context
from jinja2.runtime import Context

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fff;margin:0 auto;max-width:72rem;
padding:1rem 1.5rem}a{color:#06c}table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}
td,th{border:1px solid #ddd;padding:.35rem .6rem;text-align:left;vertical-align:top}
.alert{background:#f4f4f5;padding:.5rem .75rem;margin:1rem 0 .5rem;border-radius:4px}
.badge{background:#eef;border-radius:4px;padding:0 .35rem}.text-success,.good{color:#17803d}
.text-danger,.bad{color:#b91c1c}.text-warning,.warn{color:#b45309}
.fa-check-circle::before{content:"\\2714"}.fa-times::before,.fa-exclamation-triangle::before
{content:"\\2718"}i{font-style:normal}.popover,.ge-walkthrough-modal,button{display:none}
pre{white-space:pre-wrap}@media(prefers-color-scheme:dark){body{background:#18181b;color:#e4e4e7}
.alert{background:#27272a}.badge{background:#333358}td,th{border-color:#3f3f46}a{color:#7ab7ff}}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="UTF-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ expectation_suite_name | e }} - Data Docs</title><style>{{ style }}</style></head>
<body><p><a href="index.html">All gates</a></p>
{% for section in sections %}{% set section_loop = loop -%}{% include 'section.j2' %}{% endfor %}
</body></html>
"""

_INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="UTF-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Gates - Data Docs</title><style>{{ style }}</style></head><body><h1>Gates</h1>
<table><tr><th>gate</th><th>result</th><th>rows</th><th>expectations</th><th>checked at</th></tr>
{% for gate in gates %}<tr><td><a href="{{ gate.gate }}.html">{{ gate.gate }}</a></td>
<td>{% if gate.success %}<span class="good">passed</span>{% else %}
<span class="bad">failed</span>{% endif %}
{% for check in gate.checks if not check.success %}
<br><span class="{{ 'bad' if check.severity == 'stop' else 'warn' }}">{{ check.severity }}</span>:
{{ check.message }}{% endfor %}</td>
<td>{{ "{:,}".format(gate.rows) }}</td><td>{{ gate.checks | length }}</td>
<td>{{ gate.checked_at }}</td></tr>
{% endfor %}</table></body></html>
"""


def write(folder: Path, summary: dict[str, Any], result: ExpectationSuiteValidationResult) -> None:
    """Write one gate's page and summary, and the index over all gates of the folder.

    Parameters
    ----------
    folder
        Made if it does not exist.
    summary
        `GateResult.to_dict()`; becomes ``<gate>.json``.
    result
        The same as great-expectations' object; becomes ``<gate>.html``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    gate = summary["gate"]
    _replace(folder / f"{gate}.html", page(result))
    _replace(folder / f"{gate}.json", json.dumps(summary, indent=2, ensure_ascii=False))
    gates = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))]
    template = Environment(autoescape=True).from_string(_INDEX)
    _replace(folder / "index.html", template.render(gates=gates, style=_STYLE))


def page(result: ExpectationSuiteValidationResult) -> str:
    """Return great-expectations' page of a result as HTML that loads nothing from elsewhere."""
    document = ValidationResultsPageRenderer(run_info_at_end=True).render(result)
    html: str = _view().render(document)
    # The renderer's link to a page of the suite alone, which is not written.
    name = result.suite_name
    return html.replace(f"../../../../expectations/{name}.html", f"{name}.json")


class _PageView(DefaultJinjaPageView):  # type: ignore[misc]  # untyped base
    """great-expectations' view with our page, and with values shown as text.

    Its own leaves values of the data as they are: a title with markup would run as a script.
    """

    def __init__(self) -> None:
        super().__init__()
        self.env.loader = ChoiceLoader([DictLoader({"page.j2": _PAGE}), self.env.loader])
        self.env.globals["style"] = _STYLE

    @pass_context
    def render_content_block(
        self, context: Context, content_block: Any, *places: Any, **named_places: Any
    ) -> Any:
        if isinstance(content_block, str):
            return escape(content_block)
        if isinstance(content_block, list):
            content_block = [escape(b) if isinstance(b, str) else b for b in content_block]
        return super().render_content_block(context, content_block, *places, **named_places)


@cache
def _view() -> _PageView:
    """Return the view; kept, as it compiles its templates."""
    return _PageView()


def _replace(path: Path, text: str) -> None:
    """Write a whole file or nothing: a reader never sees half a page."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(text, encoding="utf-8")
    staged.replace(path)

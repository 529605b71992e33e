"""The command ``report``: one page of what ran, what is served, and how well that still fits."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from feature_repo.workspace import Workspace
from pipelines.doctor import ages_of
from pipelines.job.context import STEPS, Context
from pipelines.monitoring import drift, skew
from pipelines.monitoring.page import write_page
from pipelines.steps import StepRecord, read_json
from serving.bundle import MANIFEST, Manifest, current_generation, read_manifest
from serving.freshness import ViewAge

PAGE, PUBLICATIONS = "overview.html", "publications.jsonl"
METRIC = "ndcg@10"


@dataclass(frozen=True)
class Gate:
    """The last result of one gate."""

    name: str
    passed: bool
    rows: int
    checked_at: str
    messages: Sequence[str]


def note_publication(workspace: Workspace, manifest: Manifest) -> None:
    """Append a generation and its metrics to the history, which outlives the generation."""
    path = workspace.reports / PUBLICATIONS
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {
        "generation": manifest.generation,
        "created": manifest.created,
        "ranker": manifest.ranker,
        "data_window": manifest.data_window,
        "metrics": manifest.metrics,
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, default=str) + "\n")


def publications(workspace: Workspace) -> list[dict[str, Any]]:
    """Return every publication ever noted, oldest first, with those that are kept and were not."""
    noted = {
        (one["generation"], one["created"]): one for one in _lines(workspace.reports / PUBLICATIONS)
    }
    for path in workspace.bundles.glob(f"[!.]*/{MANIFEST}"):
        manifest = read_manifest(path.parent)
        noted.setdefault(
            (manifest.generation, manifest.created),
            {
                "generation": manifest.generation,
                "created": manifest.created,
                "ranker": manifest.ranker,
                "data_window": manifest.data_window,
                "metrics": manifest.metrics,
            },
        )
    return sorted(noted.values(), key=lambda one: str(one["created"]))


def write(context: Context) -> Path:
    """Write the page; return where it is."""
    workspace = context.workspace
    path = workspace.reports / PAGE
    published = publications(workspace)
    kept = {manifest.parent.name for manifest in workspace.bundles.glob(f"[!.]*/{MANIFEST}")}
    last_skew = workspace.reports / skew.RESULT
    write_page(
        path,
        "overview.html",
        dataset=context.dataset.name,
        made=datetime.now(UTC),
        steps=_steps(context),
        gates=_gates(workspace),
        current=current_generation(workspace.bundles),
        publications=published,
        kept=kept,
        ages=_ages(workspace),
        drift=_last_drift(workspace),
        skew=read_json(last_skew) if last_skew.exists() else None,
        skews=_lines(workspace.reports / skew.HISTORY)[-20:],
        line=_line([_metric(one) for one in published]),
        metric=METRIC,
        links=_links(workspace),
    )
    return path


def _steps(context: Context) -> list[tuple[str, StepRecord | None]]:
    return [(name, context.ledger.find(name)) for name in STEPS]


def _gates(workspace: Workspace) -> list[Gate]:
    found = []
    for path in sorted((workspace.reports / "gates").glob("*.json")):
        result = read_json(path)
        messages = [check["message"] for check in result["checks"] if not check["success"]]
        found.append(
            Gate(result["gate"], result["success"], result["rows"], result["checked_at"], messages)
        )
    return found


def _ages(workspace: Workspace) -> list[ViewAge]:
    if current_generation(workspace.bundles) is None:
        return []
    return ages_of(workspace)


def _last_drift(workspace: Workspace) -> list[dict[str, Any]]:
    """Return the last comparison with each sample, with its drifted features, greatest first."""
    last = {line["against"]: line for line in drift.history(workspace.reports)}
    return [
        {
            **line,
            "drifted": sorted(
                ((name, size) for name, (size, is_drift) in line["features"].items() if is_drift),
                key=lambda one: -one[1],
            ),
        }
        for line in last.values()
    ]


def _links(workspace: Workspace) -> list[tuple[str, str]]:
    pages = (
        ("How good the recommendations are", "report.html"),
        ("Drift, a plot for each feature", drift.PAGE),
        ("Data Docs of the gates", "data_docs/index.html"),
    )
    return [(text, name) for text, name in pages if (workspace.reports / name).exists()]


def _metric(publication: Mapping[str, Any]) -> float | None:
    value = publication["metrics"].get(METRIC)
    return None if value is None else float(value)


def _line(values: Sequence[float | None]) -> list[tuple[float, float]]:
    """Return points of a drawing that is 100 wide and 40 high; 0 is at the bottom."""
    known = [value for value in values if value is not None]
    top = max(known, default=0) or 1.0
    step = 96 / max(len(known) - 1, 1)
    return [(round(2 + step * i, 2), round(38 - 34 * v / top, 2)) for i, v in enumerate(known)]


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

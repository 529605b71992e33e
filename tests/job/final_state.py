"""What a run leaves, without what tells the time: runs of equal inputs leave the same."""

import json
from pathlib import Path
from typing import Any

from feast.protos.feast.core.Registry_pb2 import Registry
from job_runner import Job

TIMINGS = ("seconds", "training_seconds", "prediction_us_per_request")


def without_timings(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_timings(v) for k, v in value.items() if k not in TIMINGS}
    return [without_timings(v) for v in value] if isinstance(value, list) else value


def registered(path: Path) -> dict[str, Any]:
    """Return what a Feast registry says, less its times, random version names and order."""
    registry = Registry.FromString(path.read_bytes())
    views = {
        view.spec.name: (
            sorted((feature.name, feature.value_type) for feature in view.spec.features),
            view.spec.batch_source.file_options.uri,
            [str(interval) for interval in view.meta.materialization_intervals],
        )
        for view in registry.feature_views
    }
    services = {
        service.spec.name: {
            view.feature_view_name: sorted(column.name for column in view.feature_columns)
            for view in service.spec.features
        }
        for service in registry.feature_services
    }
    assert views
    assert services
    return {"views": views, "services": services}


def final_state(job: Job) -> dict[str, Any]:
    """Return all that a run leaves and that does not tell the time."""
    bundles, in_redis = job.published()
    generation = job.generation()
    manifest = json.loads((job.workspace.bundles / generation / "manifest.json").read_text())
    manifest.pop("created")
    report = job.report()
    # How much of the source could be compared with the lake: a run after a killed one finds more.
    (changes,) = [gate for gate in report["gates"] if gate["name"] == "raw_changes"]
    assert changes.pop("expectations") > 0
    registry = f"{generation}/registry.db"
    assert manifest["files"].pop("registry.db") == bundles.pop(registry)
    return {
        "generation": generation,
        "bundles": {k: v for k, v in bundles.items() if not k.endswith("manifest.json")},
        "manifest": manifest,
        "registry": registered(job.workspace.bundles / registry),
        "redis": in_redis,
        "report": without_timings(report),
        "left": sorted(path.name for path in job.workspace.root.iterdir()),
    }


def finish(job: Job) -> dict[str, Any]:
    outcome = job.do("run")
    assert outcome.code == 0, outcome.err
    return final_state(job)

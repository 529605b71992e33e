"""Step apply: register the dataset's entities, views and services with Feast."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feast import FeatureStore
from feast.errors import FeastObjectNotFoundException
from feast.feature_view import DUMMY_ENTITY

from feature_repo.contract import contract_of, registered_contract
from feature_repo.definitions.repository import objects
from feature_repo.tuned import beside
from feature_repo.workspace import Workspace
from pipelines.job.context import Context, open_store
from pipelines.job.profile import configuration_template
from pipelines.steps import StepRecord, code_key, content_key

NAME = "apply"


def run(context: Context) -> StepRecord:
    """Write the dataset's Feast configuration and register its objects.

    The same as ``feast apply`` in ``feature_repo/``; nothing else has to have run before.
    """
    workspace = context.workspace
    key = content_key(
        NAME,
        context.dataset.fingerprint(),
        context.tuned.hash,
        configuration_template(context.settings),
        code_key("feature_repo"),
    )

    def is_there() -> bool:
        # Not by the registry's size: materialization writes into it too.
        record = context.record(NAME)
        return workspace.registry.exists() and record.facts["contract"] == _registered(context)

    outputs = [workspace.feature_store_yaml, workspace.dataset_toml]
    if _shipped_settings(context) is not None:
        outputs.append(beside(workspace.dataset_toml))
    return context.step(NAME, key, outputs, lambda _: _apply(context), is_there=is_there)


def _registered(context: Context) -> str | None:
    try:
        return registered_contract(open_store(context.workspace)).hash
    except FeastObjectNotFoundException:
        return None


def _apply(context: Context) -> Mapping[str, Any]:
    workspace = context.workspace
    workspace.root.mkdir(parents=True, exist_ok=True)
    workspace.feature_store_yaml.write_text(
        configuration(workspace, configuration_template(context.settings)), encoding="utf-8"
    )
    if context.description.resolve() != workspace.dataset_toml.resolve():
        shutil.copyfile(context.description, workspace.dataset_toml)
        # Feast's own commands then find the same settings beside the description's copy.
        copy, shipped = beside(workspace.dataset_toml), _shipped_settings(context)
        copy.unlink(missing_ok=True)
        if shipped is not None:
            shutil.copyfile(shipped, copy)
    store = open_store(workspace)
    spark = context.settings.profile == "spark"
    wanted = objects(context.dataset, workspace, context.sources, spark=spark)
    store.apply(wanted, objects_to_delete=_obsolete(store, wanted), partial=False)
    contract = contract_of(wanted[-1])
    if registered_contract(store).hash != contract.hash:
        raise AssertionError("Feast registered other ranker inputs than were applied")
    views = len(store.list_feature_views())
    return {
        "contract": contract.hash,
        "summary": f"{views} feature views, {len(contract.inputs)} ranker inputs",
    }


def _shipped_settings(context: Context) -> Path | None:
    """Return the tuned settings that came with the description, if there are any."""
    place = beside(context.description)
    return place if place.exists() else None


def configuration(workspace: Workspace, text: str) -> str:
    """Return a shipped configuration, ``text``, for a dataset's project and folders."""
    head = f"# Written by `feastrank apply` for {workspace.name}.\n"
    text = re.sub(r"\A(#.*\n)*", head, text)
    text = re.sub(r"(?m)^project: .*$", f"project: {workspace.name}", text)
    text = re.sub(r"(?m)^  path: .*$", f"  path: {workspace.registry}", text)
    text = re.sub(
        r"(?m)^  namespace_file: .*$", f"  namespace_file: {workspace.online_namespace}", text
    )
    return re.sub(r"embedded:\S+?(?=[\"'\s])", f"embedded:{workspace.redis}", text)


def _obsolete(store: FeatureStore, wanted: list[Any]) -> list[Any]:
    """Return what is registered under a name that the description no longer asks for."""
    names = {(type(o).__name__, o.name) for o in wanted}
    registered = [
        *store.list_feature_services(),
        *store.list_on_demand_feature_views(),
        *store.list_feature_views(),
        *(e for e in store.list_entities() if e.name != DUMMY_ENTITY.name),
    ]
    return [o for o in registered if (type(o).__name__, o.name) not in names]

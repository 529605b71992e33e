"""The feature store as a published generation saw it: its registry, and its rows in Redis."""

from pathlib import Path

from feast import FeatureStore, RepoConfig

from feature_repo.contract import Contract, registered_contract
from serving.bundle import REGISTRY, Manifest
from serving.errors import ContractError


def generation_store(store: FeatureStore, folder: Path, manifest: Manifest) -> FeatureStore:
    """Return the feature store of one generation.

    Connections are those of ``store``, as it is configured now. The registry is the bundle's own
    and the rows are those that were written for it, so what is applied or materialized for the
    next generation changes nothing here.

    Parameters
    ----------
    store
        The dataset's feature store, on a `feastpack.PackedRedisOnlineStore`.
    folder, manifest
        The generation, verified.
    """
    return staged_store(store, folder / REGISTRY, manifest.namespace)


def staged_store(store: FeatureStore, registry: Path, namespace: str) -> FeatureStore:
    """Return ``store`` with another registry file and other rows in Redis."""
    config = store.config
    registered = config.registry.model_copy(update={"path": str(registry)})
    online = config.online_store.model_copy(update={"namespace": namespace, "namespace_file": None})
    own = RepoConfig(
        project=config.project,
        provider=config.provider,
        registry=registered.model_dump(),
        online_store=online.model_dump(),
        offline_store=config.offline_store.model_dump(),
        batch_engine=config.batch_engine.model_dump(),
        entity_key_serialization_version=config.entity_key_serialization_version,
        repo_path=config.repo_path,
    )
    return FeatureStore(repo_path=str(store.repo_path), config=own)


def generation_contract(store: FeatureStore, manifest: Manifest) -> Contract:
    """Return the ranker's inputs of a generation, from its own store.

    Raises
    ------
    ContractError
        If they are not those that its ranker was made for.
    """
    contract = registered_contract(store)
    if contract.hash != manifest.contract_hash:
        raise ContractError(
            f"bundle {manifest.generation}: its ranker was made for the inputs "
            f"{manifest.contract_hash[:12]}, its registry has {contract.hash[:12]}; run "
            "`feastrank run` to publish another one"
        )
    return contract

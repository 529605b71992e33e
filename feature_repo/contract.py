"""The contract between training and serving: the ordered inputs of the ranker, and their hash."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from feast import FeatureService, FeatureStore

from feature_repo.definitions.services import RANKER


@dataclass(frozen=True)
class ModelInput:
    """One input of the ranker.

    Parameters
    ----------
    name
        The feature's name.
    view
        The feature view that it comes from.
    dtype
        Feast's name of its type.
    is_category
        Whether its values are categories rather than quantities.
    """

    name: str
    view: str
    dtype: str
    is_category: bool


@dataclass(frozen=True)
class Contract:
    """The ordered inputs of the ranker."""

    service: str
    inputs: tuple[ModelInput, ...]

    @property
    def names(self) -> list[str]:
        """The inputs' names, in order."""
        return [i.name for i in self.inputs]

    @property
    def category_indices(self) -> list[int]:
        """Positions of the inputs that are categories."""
        return [index for index, i in enumerate(self.inputs) if i.is_category]

    def to_json(self) -> dict[str, Any]:
        """Return the contract as JSON types."""
        return {"service": self.service, "inputs": [vars(i) for i in self.inputs]}

    @property
    def hash(self) -> str:
        """Sha256 of the contract; equal exactly when training and serving see the same inputs."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def contract_of(service: FeatureService) -> Contract:
    """Derive the contract from a feature service's projections."""
    inputs = tuple(
        ModelInput(
            name=field.name,
            view=projection.name,
            dtype=str(field.dtype),
            is_category=field.tags.get("kind") == "category",
        )
        for projection in service.feature_view_projections
        # Feast keeps the features of a projection in no order (it passes them through a set).
        for field in sorted(projection.features, key=lambda field: field.name)
    )
    return Contract(service.name, inputs)


def registered_contract(store: FeatureStore) -> Contract:
    """Derive the contract from what the feature repository has registered.

    Raises
    ------
    feast.errors.FeatureServiceNotFoundException
        If `feast apply` has not been run.
    """
    return contract_of(store.get_feature_service(RANKER))

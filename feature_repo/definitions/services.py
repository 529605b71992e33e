"""The feature services: each is the single list of what one model sees."""

from feast import FeatureService, FeatureView
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.types import Array

from feature_repo.definitions import columns as c

RANKER = "ranker_v1"

# Raw material of request-time features; the ranker sees what is made of it.
_NOT_RANKED = {*c.DAYS_SINCE.values()}


def ranker_service(views: list[FeatureView], request: OnDemandFeatureView) -> FeatureService:
    """Return what the ranker sees: every scalar feature, stored or computed at request time."""
    projections = []
    for view in views:
        names = [
            field.name
            for field in view.schema
            if not isinstance(field.dtype, Array) and field.name not in _NOT_RANKED
        ]
        if names:
            projections.append(view[names])
    return FeatureService(
        name=RANKER,
        features=[*projections, request],
        description="The ordered inputs of the ranker, in training and in serving.",
    )

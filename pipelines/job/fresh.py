"""What publish hands to serving so that it can answer to what users do next."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.candidates.als import ALS
from pipelines.candidates.interactions import Interactions
from pipelines.candidates.item_to_item import ItemToItem
from pipelines.candidates.protocol import CandidateGenerator
from serving.fresh import FoldInSettings, NeighbourSettings, write_fold_in, write_neighbours
from serving.history import MAX_LIKED, Past


def has_fresh_form(generator: CandidateGenerator) -> bool:
    """Return whether serving can compute the generator's candidates itself."""
    return isinstance(generator, ALS | ItemToItem)


def write_fresh_sources(
    folder: Path, generators: Mapping[str, CandidateGenerator], candidates: int
) -> dict[str, dict[str, Any]]:
    """Write the fitted generators that have a fresh form; return the measures of the indexes.

    Parameters
    ----------
    candidates
        How many posts each source proposes for a user, as in training.
    """
    indexes: dict[str, dict[str, Any]] = {}
    for generator in generators.values():
        if isinstance(generator, ALS):
            chosen = generator.settings
            indexes |= write_fold_in(
                folder,
                generator.post_ids,
                generator.post_factors,
                generator.user_factors,
                FoldInSettings(chosen.alpha, chosen.regularization, candidates),
            )
        elif isinstance(generator, ItemToItem):
            matrix = generator.neighbours
            write_neighbours(
                folder,
                generator.post_ids,
                (matrix.indptr, matrix.indices, matrix.data),
                NeighbourSettings(
                    generator.settings.latest_posts, generator.settings.half_life_posts, candidates
                ),
            )
    return indexes


def pasts(interactions: Interactions) -> Iterator[tuple[int, Past]]:
    """Yield every user with a history, with what serving keeps of it; users ascend."""
    liked_bounds = interactions.history_bounds
    every = np.arange(len(interactions.user_ids) + 1)
    seen_bounds = np.searchsorted(interactions.seen_users, every)
    for row, user_id in enumerate(interactions.user_ids.tolist()):
        liked = slice(liked_bounds[row], liked_bounds[row + 1])
        seen = slice(seen_bounds[row], seen_bounds[row + 1])
        yield user_id, _past(interactions, liked, interactions.seen_posts[seen])


def _past(interactions: Interactions, events: slice, seen: Any) -> Past:
    posts = interactions.post_ids[interactions.event_posts[events]]
    distinct, last, places = np.unique(posts[::-1], return_index=True, return_inverse=True)
    weights = interactions.event_weights[events][::-1]
    summed = np.bincount(places, weights, len(distinct)).astype(np.float64)
    # Oldest first: what stands last in the reversed events comes first.
    order = np.argsort(-last)[-MAX_LIKED:]
    return Past(distinct[order], summed[order], seen)

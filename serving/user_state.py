"""All that Redis holds of a user, in one round trip: lists, past, recent events, features."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from feastpack.errors import FeastpackError, OnlineStoreError
from feastpack.reader import Begun, FeatureReader
from serving.bundle import Manifest
from serving.errors import OnlineStateError
from serving.fresh import FreshSources
from serving.history import (
    NOTHING_PAST,
    History,
    history_of,
    lists_without,
    past_key,
    recent_key,
    unpack_past,
)
from serving.lists import SourceList, key_prefix, unpack

NOTHING = SourceList(np.empty(0, np.int32), np.empty(0, np.float32))


@dataclass(frozen=True)
class UserState:
    """What is known of one user.

    Attributes
    ----------
    user_id
        None: the bundle does not know the user.
    lists
        As published, one per source of the manifest; empty where Redis has none.
    history
        Past and recent events.
    features
        The part of the features that is read already.
    """

    user_id: int | None
    lists: Sequence[SourceList]
    history: History
    features: Begun | None

    def proposals(self, sources: Sequence[str], fresh: FreshSources) -> dict[str, SourceList]:
        """Return each source's list as it is for this history.

        A list that has a fresh form is made anew once the user liked something since
        publication; of the others, posts met since are taken out.
        """
        lists = lists_without(self.lists, self.history.seen_since)
        proposed = dict(zip(sources, lists, strict=True))
        if self.history.is_fresh:
            for name, source in fresh.sources.items():
                if name in proposed:
                    proposed[name] = source.propose(self.history)
        return proposed


def read_user_state(
    reader: FeatureReader,
    features: str | Sequence[str],
    manifest: Manifest,
    user_id: int | None,
    event_space: str,
) -> UserState:
    """Read a known user's state with one command; of an unknown user there is nothing to read.

    Parameters
    ----------
    features
        Those that the request will need; what the user determines of them is read.

    Raises
    ------
    OnlineStateError
        If Redis fails (``lists_unavailable``), a value is damaged (``lists_damaged``), or the
        feature repository was changed (``features_unavailable``).
    """
    count = len(manifest.sources)
    if user_id is None:
        return UserState(None, [NOTHING] * count, history_of(NOTHING_PAST, None), None)
    project, generation = manifest.project, manifest.generation
    keys = [
        f"{key_prefix(project, generation)}{user_id}",
        past_key(project, generation, user_id),
        recent_key(event_space, user_id),
    ]
    service = manifest.contract["service"]
    try:
        begun = reader.begin(features, {"user_id": user_id}, [key.encode() for key in keys])
    except OnlineStoreError as error:
        raise OnlineStateError("lists_unavailable", f"state of a user: {error}") from error
    except FeastpackError as error:
        raise OnlineStateError("features_unavailable", f"{service}: {error}") from error
    lists, past, recent = begun.beside
    try:
        unpacked = [NOTHING] * count if lists is None else unpack(lists, count)
        history = history_of(unpack_past(past), recent)
    except ValueError as error:
        message = f"state of a user in generation {generation}: {error}; publish again"
        raise OnlineStateError("lists_damaged", message) from error
    return UserState(user_id, unpacked, history, begun)

"""The recommender of the published generation, exchanged while requests are answered."""

import atexit
import gc
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from feast.errors import FeastError

from feastpack.errors import FeastpackError
from serving.errors import NotReadyError, ServingError
from serving.recommender import Recommender

logger = logging.getLogger(__name__)


class RecommenderProvider(Protocol):
    """What the HTTP service asks for the recommender of each request."""

    @property
    def degraded(self) -> tuple[str, ...]:
        """Why the recommender is not the one that it should be."""

    def current(self) -> Recommender:
        """Return the recommender to answer with."""

    def start(self) -> None:
        """Called when the service starts."""

    def close(self) -> None:
        """Called when the service stops."""


class PublishedRecommender:
    """Holds the recommender of the published generation.

    A request keeps the recommender that it began with, so an exchange drops none; the lists of
    the generation before stay in Redis until the one after next is published.

    Parameters
    ----------
    open_recommender
        Opens the published generation.
    published
        Returns the id of the published generation, None if there is none.
    check_seconds
        How often to look.
    may_wait
        Whether the service may begin without a generation; requests are then refused until one
        is published.

    Raises
    ------
    ServingError, feast.errors.FeastError, feastpack.errors.FeastpackError
        If the first generation cannot be opened, unless it may wait.
    """

    def __init__(
        self,
        open_recommender: Callable[[], Recommender],
        published: Callable[[], str | None],
        check_seconds: float,
        *,
        may_wait: bool = False,
    ) -> None:
        self._open = open_recommender
        self._published = published
        self._check_seconds = check_seconds
        self._current: Recommender | None = None
        self._refused: str | None = None
        if may_wait:
            self.refresh()
        else:
            self._current = open_recommender()
            _spare_collections()
        self._stop = threading.Event()

    @property
    def degraded(self) -> tuple[str, ...]:
        """``bundle_outdated`` while a newer generation is published that cannot be opened."""
        return () if self._refused is None else ("bundle_outdated",)

    def current(self) -> Recommender:
        """Return the recommender of the newest generation that could be opened.

        Raises
        ------
        NotReadyError
            If there was none yet.
        """
        if self._current is None:
            raise NotReadyError(f"no bundle could be opened yet: {self._refused}")
        return self._current

    def refresh(self) -> None:
        """Open what is published now; on failure the generation before keeps answering."""
        try:
            generation = self._published()
            if self._current and generation == self._current.manifest.generation:
                self._refused = None
                return
            opened = self._open()
            self._current, self._refused = opened, None
            _spare_collections()
            logger.info("answering from bundle %s", opened.manifest.generation)
        except (ServingError, FeastError, FeastpackError, OSError) as error:
            if self._refused != str(error):
                logger.warning("the published bundle is not served: %s", error)
            self._refused = str(error)

    def start(self) -> None:
        """Look for newer generations from now on, in a thread."""
        threading.Thread(target=self._watch, name="published-bundle", daemon=True).start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(self._check_seconds):
            self.refresh()


# What stays frozen would be reported as leaked when the interpreter ends.
atexit.register(gc.unfreeze)


def _spare_collections() -> None:
    """Let the garbage collector pass over all that is there now.

    A generation is hundreds of thousands of objects that stay: looking at each of them takes a
    tenth of a second, in which no request is answered. What an earlier generation left is freed
    first.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()

"""The command ``serve``: the HTTP service of one dataset."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from feature_repo.dataset import Dataset
from feature_repo.workspace import Workspace
from pipelines.errors import MissingStepError, StorageError
from pipelines.job.context import description_path, open_store
from pipelines.settings import ServeSettings
from pipelines.storage.mirror import Mirror
from serving.app import create_app
from serving.app import serve as answer_requests
from serving.bundle import current_generation
from serving.errors import BundleError, NotReadyError
from serving.impressions import ImpressionLog
from serving.published import PublishedRecommender
from serving.recommender import Recommender
from serving.rule_settings import Rules

logger = logging.getLogger(__name__)


def serve(settings: ServeSettings, console: Console) -> None:
    """Answer HTTP requests until told to stop."""
    dataset = Dataset.read(description_path(settings))
    workspace = Workspace(settings.home.resolve(), dataset.name)
    impressions = _impression_log(settings, workspace)
    recommenders = open_published(settings, workspace, impressions)
    try:
        generation = recommenders.current().manifest.generation
    except NotReadyError:
        generation = "not published yet"
    address = f"http://{settings.host}:{settings.port}"
    console.print(f"{dataset.name}: bundle {generation} at {address}", highlight=False)
    answer_requests(create_app(recommenders, settings, impressions), settings)


def open_published(
    settings: ServeSettings, workspace: Workspace, impressions: ImpressionLog | None
) -> PublishedRecommender:
    """Return the recommender of what is published, here or in object storage."""
    published = _Published(workspace, Mirror.of(workspace, settings.storage))

    def open_recommender() -> Recommender:
        published.fetch()
        try:
            store = open_store(workspace)
        except MissingStepError as error:
            raise BundleError(str(error)) from error
        timeout_s = settings.redis_timeout_ms / 1000
        opened = Recommender(
            workspace.bundles,
            store,
            redis_timeout_s=timeout_s,
            event_room=settings.event_room,
            impressions=impressions,
            rules=None if settings.rules is None else Rules.read(settings.rules),
            warm_up=True,
        )
        published.was_opened = True
        return opened

    return PublishedRecommender(
        open_recommender,
        published.generation,
        settings.bundle_check_seconds,
        may_wait=settings.wait_for_bundle,
    )


class _Published:
    """What is published: in object storage if there is one, else in the state folder.

    A service that starts while object storage does not answer begins with the generation that is
    in the state folder. One that runs keeps its own, and says so.

    Attributes
    ----------
    was_opened
        Whether a generation was opened since the start.
    """

    def __init__(self, workspace: Workspace, mirror: Mirror | None) -> None:
        self._workspace, self._mirror = workspace, mirror
        self.was_opened = False

    def generation(self) -> str | None:
        """Return the id of the generation to serve; None if nothing is published."""
        latest = None
        if self._mirror is not None:
            with self._may_use_local():
                latest = self._mirror.latest()
        if latest is not None:
            return latest.generation
        return current_generation(self._workspace.bundles)

    def fetch(self) -> None:
        """Bring that generation into the state folder."""
        if self._mirror is not None:
            with self._may_use_local():
                self._mirror.fetch_bundle()

    @contextmanager
    def _may_use_local(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            if self.was_opened or current_generation(self._workspace.bundles) is None:
                raise BundleError(str(error)) from error
            logger.warning("beginning with the generation that is here: %s", error)


def _impression_log(settings: ServeSettings, workspace: Workspace) -> ImpressionLog | None:
    if not settings.impression_share:
        return None
    return ImpressionLog(
        settings.impression_log or workspace.impressions,
        share=settings.impression_share,
        rows_per_file=settings.impression_rows_per_file,
        seconds_per_file=settings.impression_seconds_per_file,
        buffer_rows=settings.impression_buffer_rows,
    )

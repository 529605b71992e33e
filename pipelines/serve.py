"""The command ``serve``: the HTTP service of one dataset."""

from rich.console import Console

from feature_repo.dataset import Dataset
from feature_repo.workspace import Workspace
from pipelines.errors import MissingStepError
from pipelines.job.context import description_path, open_store
from pipelines.settings import ServeSettings
from serving.app import create_app
from serving.app import serve as answer_requests
from serving.bundle import current_generation
from serving.errors import BundleError, NotReadyError
from serving.impressions import ImpressionLog
from serving.published import PublishedRecommender
from serving.recommender import Recommender
from serving.rule_settings import Rules


def serve(settings: ServeSettings, console: Console) -> None:
    """Answer HTTP requests until told to stop."""
    dataset = Dataset.read(description_path(settings))
    workspace = Workspace(settings.home.resolve(), dataset.name)
    impressions = _impression_log(settings, workspace)

    def open_recommender() -> Recommender:
        try:
            store = open_store(workspace)
        except MissingStepError as error:
            raise BundleError(str(error)) from error
        timeout_s = settings.redis_timeout_ms / 1000
        return Recommender(
            workspace.bundles,
            store,
            redis_timeout_s=timeout_s,
            event_room=settings.event_room,
            impressions=impressions,
            rules=None if settings.rules is None else Rules.read(settings.rules),
            warm_up=True,
        )

    recommenders = PublishedRecommender(
        open_recommender,
        lambda: current_generation(workspace.bundles),
        settings.bundle_check_seconds,
        may_wait=settings.wait_for_bundle,
    )
    try:
        generation = recommenders.current().manifest.generation
    except NotReadyError:
        generation = "not published yet"
    address = f"http://{settings.host}:{settings.port}"
    console.print(f"{dataset.name}: bundle {generation} at {address}", highlight=False)
    answer_requests(create_app(recommenders, settings, impressions), settings)


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

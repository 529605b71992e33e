"""What each command that watches does with its settings; imported only when it runs."""

from rich.console import Console

from pipelines.job.context import open_context
from pipelines.monitoring import drift as drift_check
from pipelines.monitoring import overview
from pipelines.monitoring import skew as skew_check
from pipelines.settings import JobSettings, SkewSettings


def drift(settings: JobSettings, console: Console) -> None:
    """Compare the training window with today's data and with what was served."""
    drift_check.check(open_context(settings, console))


def skew(settings: SkewSettings, console: Console) -> None:
    """Compare what was served with the offline store."""
    context = open_context(settings, console)
    skew_check.check(context, settings.skew_rows, settings.max_skew)


def report(settings: JobSettings, console: Console) -> None:
    """Write the page of everything."""
    path = overview.write(open_context(settings, console))
    console.print(f"report  {path}", highlight=False)

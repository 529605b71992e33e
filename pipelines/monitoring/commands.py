"""What each command that watches does with its settings; imported only when it runs."""

from rich.console import Console

from pipelines.job.context import open_context
from pipelines.monitoring import drift as drift_check
from pipelines.settings import JobSettings


def drift(settings: JobSettings, console: Console) -> None:
    """Compare the training window with today's data and with what was served."""
    drift_check.check(open_context(settings, console))

"""The command ``gate propose``: a suite file with bounds from the data, for people to review."""

import shutil

from rich.console import Console

from pipelines.datasets.normalise import read_raw
from pipelines.errors import ProposalError
from pipelines.job.context import open_context
from pipelines.job.gates import suites_file
from pipelines.job.ingest import base_folder
from pipelines.settings import GateSettings
from validation.written import proposed


def gate(settings: GateSettings, console: Console) -> None:
    """Write the file.

    Raises
    ------
    ProposalError
        If there is one already and it is not to be overwritten.
    pipelines.errors.SourceError
        If the source cannot be read.
    """
    context = open_context(settings, console)
    target = settings.output or suites_file(context)
    if target.exists() and not settings.force:
        raise ProposalError(f"{target} exists; pass --force to overwrite what was reviewed")
    folder = context.workspace.root / ".raw-proposed"
    try:
        raw = read_raw(context.dataset, base_folder(context), folder)
        tables = {"raw_users": raw.users, "raw_posts": raw.posts, "raw_events": raw.events}
        text = proposed({name: path for name, path in tables.items() if path is not None})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    target.write_text(text, encoding="utf-8")
    console.print(
        f"{target}: {text.count('[[')} expectations; review them, the next ingest reads them",
        highlight=False,
        soft_wrap=True,
    )

"""Publish in a process of its own, which a test kills."""

import os
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from feature_repo.workspace import Workspace
from pipelines.storage.mirror import Mirror

# Its processes are forks of one that has imported what takes time and used none of it.
_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["pipelines.storage.mirror"])


def begin(workspace: Workspace, url: str, generation: str, kept: Sequence[str]) -> BaseProcess:
    """Begin to publish a generation; return the process."""
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    arguments = (workspace.home, workspace.name, url, generation, kept, variables)
    process = _FORKS.Process(target=_publish, args=arguments)
    process.start()
    return process


def _publish(
    home: Path,
    name: str,
    url: str,
    generation: str,
    kept: Sequence[str],
    variables: Mapping[str, str],
) -> None:
    os.environ.update(variables)
    mirror = Mirror.of(Workspace(home, name), url)
    assert mirror is not None
    mirror.publish(generation, kept)

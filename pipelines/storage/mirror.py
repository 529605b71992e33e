"""A dataset's state folder and its publications in object storage.

What is published is copied there: the lake, drained events, feature tables, the generations that
are kept, Feast's registry and configuration, the description and tuned settings. Training sets,
reports, records of steps and impression logs stay where they were made.

``storage.json`` in the state folder holds the ids of the publications that it is based on: the one
that was fetched or written last and, from before it is written, the one to come, so that a killed
run knows its own.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from feature_repo.tuned import beside
from feature_repo.workspace import Workspace
from pipelines.datasets import commit
from pipelines.errors import PublishedElsewhereError, StorageError
from pipelines.lock import waited_for
from pipelines.steps import read_json, write_json
from pipelines.storage.objects import Objects
from pipelines.storage.publications import Publication, Publications, StoredFile
from serving.bundle import current_generation, point_to, read_manifest, switch_namespace

logger = logging.getLogger(__name__)
_BASE = "storage.json"


class Mirror:
    """Publishes a state folder to object storage, and brings it to what is published there.

    Parameters
    ----------
    workspace
        The state folder of one dataset.
    publications
        Its publications.

    Raises
    ------
    StorageError
        From every method, if object storage does not answer, refuses, or holds damaged files.
    """

    def __init__(self, workspace: Workspace, publications: Publications) -> None:
        self._workspace = workspace
        self._publications = publications

    @classmethod
    def of(cls, workspace: Workspace, storage: str | None) -> "Mirror | None":
        """Return the mirror of a dataset below an address; None if no address is given."""
        if storage is None:
            return None
        return cls(workspace, Publications(Objects(f"{storage.rstrip('/')}/{workspace.name}")))

    @property
    def url(self) -> str:
        """Where the dataset's publications lie."""
        return self._publications.url

    def latest(self) -> Publication | None:
        """Return the latest publication; None if there is none yet."""
        return self._publications.latest()

    def bundles_held(self) -> AbstractContextManager[None]:
        """Keep services and runs on this state folder from changing its generations meanwhile."""
        return waited_for(self._workspace.bundles / ".lock")

    def check(self) -> Publication | None:
        """Return the latest publication, None if there is none yet.

        Raises
        ------
        PublishedElsewhereError
            If it is not the one that this state folder is based on.
        """
        latest = self._publications.latest()
        if latest is not None and latest.id not in self._base():
            raise PublishedElsewhereError(
                f"{self.url}: publication {latest.number} (generation {latest.generation}, "
                f"{latest.published}) was made from another state folder, and this one does not "
                "begin from it; run `feastrank run`, which does, or `feastrank fetch`"
            )
        return latest

    def is_published(self, generation: str) -> bool:
        """Return whether a generation is the latest publication, from here and wholly stored."""
        latest = self._publications.latest()
        if latest is None or latest.generation != generation or latest.id not in self._base():
            return False
        return self._publications.is_whole(latest)

    def publish(self, generation: str, kept: Iterable[str]) -> None:
        """Publish a generation with the state that it was made from.

        Parameters
        ----------
        kept
            Generations whose bundles are published, for `point_back`.

        Raises
        ------
        PublishedElsewhereError
            If another state folder has published since this one began from a publication.
        """
        latest = self.check()
        files = self._publications.upload(self._workspace.root, self._names(kept))
        if latest is not None and (latest.generation, latest.files) == (generation, files):
            return
        following = Publication.after(latest, generation, files)
        # Before it is published: what another run uploads after that must not be among them.
        unused = self._publications.unused([latest, following])
        self._append(latest, following)
        try:
            self._publications.remove(unused)
        except StorageError as error:
            logger.warning("published; %d unused objects stay: %s", len(unused), error)

    def point_back(self, generation: str) -> None:
        """Publish a kept generation again; everything else stays as it is published.

        Raises
        ------
        PublishedElsewhereError
            If another state folder has published since this one began from a publication.
        """
        latest = self.check()
        if latest is None or _bundle_file(generation, "manifest.json") not in latest.files:
            raise StorageError(
                f"{self.url}: generation {generation} is not among what was published last; "
                "nothing was changed"
            )
        self._append(latest, Publication.after(latest, generation, latest.files))

    def _append(self, latest: Publication | None, following: Publication) -> None:
        before = [] if latest is None else [latest.id]
        self._write_base([*before, following.id])
        self._publications.append(following)
        self._write_base([following.id])

    def bring_up_to_date(self) -> Publication | None:
        """Make this state folder what was published last, unless it is; return what was fetched.

        Drained events that were not published are kept. Records of steps are not: every step
        runs again.

        Raises
        ------
        StorageError
            If this state folder holds a lake that was never published there.
        """
        latest, base = self._publications.latest(), self._base()
        if latest is None or latest.id in base:
            return None
        if not base and any(self._workspace.lake.glob("*.json")):
            raise StorageError(
                f"{self._workspace.root}: its lake was never published to {self.url}, which holds "
                f"publication {latest.number} of another state folder; use an empty state folder "
                "(--home), or another --storage"
            )
        with self.bundles_held():
            self._keep_drained(latest)
            shutil.rmtree(self._workspace.steps, ignore_errors=True)
            self._fetch(latest, latest.files, ("lake", "features", "bundles"))
        self._write_base([latest.id])
        return latest

    def fetch_bundle(self) -> None:
        """Make the bundle that was published last the current one here, unless it is."""
        latest = self._publications.latest()
        if latest is None:
            return
        workspace = self._workspace
        with self.bundles_held():
            has_configuration = workspace.feature_store_yaml.exists()
            if current_generation(workspace.bundles) == latest.generation and has_configuration:
                return
            # A run on this state folder may be writing its own; services need any.
            first = (workspace.feature_store_yaml.name, workspace.registry.name)
            names = [
                name
                for name in latest.files
                if name.startswith(_bundle_file(latest.generation))
                or (name in first and not has_configuration)
            ]
            self._fetch(latest, names, ("bundles",))

    def _fetch(self, latest: Publication, names: Iterable[str], whole: Iterable[str]) -> None:
        """Bring files here, and remove those of the folders ``whole`` that are not published."""
        root = self._workspace.root
        with commit.staged(root) as staging:
            missing = [name for name in names if not _is(root / name, latest.files[name])]
            self._publications.download(latest, missing, staging)
            self._adapt(staging / self._workspace.feature_store_yaml.name)
            pointers = {self._workspace.bundles / "current", self._workspace.online_namespace}
            here = {root / name for name in _files(root, whole)} - pointers
            commit.commit(root, sorted(here - {root / name for name in latest.files}))
        for folder in whole:
            _remove_empty(root / folder)
        bundles = self._workspace.bundles
        manifest = read_manifest(bundles / latest.generation)
        point_to(bundles, latest.generation)
        switch_namespace(self._workspace.online_namespace, manifest.namespace)

    def _adapt(self, configuration_file: Path) -> None:
        """Let a fetched `feature_store.yaml` name the paths of this state folder."""
        if configuration_file.exists():
            # Feast takes seconds to import, which a publication need not pay.
            from pipelines.job.apply import configuration

            text = configuration(self._workspace, configuration_file.read_text(encoding="utf-8"))
            configuration_file.write_text(text, encoding="utf-8")

    def _keep_drained(self, latest: Publication) -> None:
        """Name drained parts that were not published so that no published one replaces them."""
        for part in sorted(self._workspace.drained.glob("part-*.parquet")):
            stored = latest.files.get(f"{self._workspace.drained.name}/{part.name}")
            if stored is None or not _is(part, stored):
                part.rename(part.with_name(f"part-{_stored(part).sha256[:16]}.parquet"))

    def _names(self, kept: Iterable[str]) -> list[str]:
        """Return the paths of all files that are published."""
        workspace = self._workspace
        folders = ["lake", "drained", "features", *(_bundle_file(one, "") for one in kept)]
        single = (
            *(workspace.registry, workspace.feature_store_yaml, workspace.dataset_toml),
            *(beside(workspace.dataset_toml), workspace.tuned),
        )
        there = [path.name for path in single if path.exists()]
        return [*_files(workspace.root, folders), *there]

    def _base(self) -> list[str]:
        path = self._workspace.root / _BASE
        return list(read_json(path)["based_on"]) if path.exists() else []

    def _write_base(self, ids: list[str]) -> None:
        write_json(self._workspace.root / _BASE, {"url": self.url, "based_on": ids})


def _bundle_file(generation: str, name: str = "") -> str:
    return f"bundles/{generation}/{name}"


def _files(root: Path, folders: Iterable[str]) -> Iterator[str]:
    """Yield the paths of the files of some folders, but for hidden ones: locks, what is staged."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root)
            if path.is_file() and not any(part.startswith(".") for part in name.parts):
                yield name.as_posix()


def _stored(path: Path) -> StoredFile:
    with path.open("rb") as content:
        return StoredFile(hashlib.file_digest(content, "sha256").hexdigest(), content.tell())


def _is(path: Path, stored: StoredFile) -> bool:
    if not path.is_file() or path.stat().st_size != stored.bytes:
        return False
    return _stored(path) == stored


def _remove_empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()

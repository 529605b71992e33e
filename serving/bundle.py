"""The bundle: the artefact that pipelines publish and serving reads, with Redis its only input.

A generation is one folder below ``bundles/``; the file ``current`` names the published one.
Publication stages a folder, renames it into place and then replaces ``current``: readers see
the old generation or the new one, never a mix. The rows of online features and the candidate
lists that belong to a generation lie in Redis under names of their own (`Manifest.namespace`,
`serving.lists.key_prefix`), written before ``current`` names it.

Files of a generation: ``manifest.json``; ``registry.db`` (Feast's, as the features were
materialized); ``ranker.txt`` (LightGBM) or ``ranker.cbm`` (CatBoost);
``categories.json`` (values of the string inputs); ``popular.npz`` (``post_ids`` int64,
``scores`` float32, best first: what unknown users get); ``users.parquet`` (external_id string,
user_id int64); ``posts.parquet`` (external_id string, post_id int64, title string or null);
``events.json`` (what events mean, see `serving.event_rules`); ``fresh.json`` and the arrays and
indexes of `serving.fresh`; ``post_attributes.parquet`` and ``post_embeddings.npy``
(`serving.post_facts`); ``segments.json`` (`serving.segments`).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import BundleError

CURRENT = "current"
MANIFEST = "manifest.json"
REGISTRY = "registry.db"


@dataclass(frozen=True)
class Manifest:
    """What a generation is made of.

    Parameters
    ----------
    generation
        Its id; candidate lists in Redis carry it too.
    project
        The Feast project.
    created
        When it was published, ISO 8601 in UTC.
    contract
        The ordered inputs of the ranker (`feature_repo.contract.Contract.to_json`).
    contract_hash
        Their hash; must equal that of the bundle's registry.
    namespace
        Of its rows in the online store.
    feature_tables
        By view: rows and sha256 of the feature table that was trained on and materialized.
    sources
        The candidate sources, in the order of the packed lists.
    ranker
        File name of the model.
    as_of
        The moment that features and answers are for, ISO 8601 in UTC; None: the present.
    data_window
        ISO times of the first and the last event that the generators saw.
    metrics
        Metrics of the ranked list on the test slice.
    versions
        Versions of the libraries that made it.
    files
        Sha256 of every file but this one.
    indexes
        By file: metric, size and measured recall of the indexes of post vectors. They only make
        answers faster, so a missing or damaged one does not keep a bundle from being opened.
    materialized_until
        The moment that the rows in the online store are of, ISO 8601 in UTC; None: unknown, an
        older version published the bundle.
    """

    generation: str
    project: str
    created: str
    contract: dict[str, Any]
    contract_hash: str
    namespace: str
    feature_tables: dict[str, dict[str, Any]]
    sources: list[str]
    ranker: str
    as_of: str | None
    data_window: list[str]
    metrics: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, str]
    indexes: dict[str, Any] = field(default_factory=dict)
    materialized_until: str | None = None


def publish(
    bundles: Path,
    generation: str,
    write_files: Callable[[Path], None],
    make_manifest: Callable[[dict[str, str]], Manifest],
    judge: Callable[[Path, Manifest], None] = lambda folder, manifest: None,
    announce: Callable[[], None] = lambda: None,
) -> Path:
    """Write a generation and make it the current one.

    Parameters
    ----------
    write_files
        Writes every file but the manifest into the folder it is given.
    make_manifest
        Makes the manifest from the files' checksums.
    judge
        Raises if the staged folder must not be published; the current generation then stays.
    announce
        Called when the folder is in its place, before it becomes the current one; raises if it
        must not.
    """
    bundles.mkdir(parents=True, exist_ok=True)
    staging = bundles / f".staging-{generation}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    write_files(staging)
    manifest = make_manifest({f.name: checksum(f) for f in sorted(staging.iterdir())})
    (staging / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
    try:
        judge(staging, manifest)
    except BaseException:
        shutil.rmtree(staging)
        raise
    final = bundles / generation
    if current_generation(bundles) == generation and _is_whole(final):
        # Equal ids have equal contents, and what is being read must not be away for a moment.
        shutil.rmtree(staging)
        announce()
        return final
    _to_disk(staging)
    shutil.rmtree(final, ignore_errors=True)
    staging.rename(final)
    announce()
    point_to(bundles, generation)
    return final


def _is_whole(folder: Path) -> bool:
    try:
        verify(folder)
    except BundleError:
        return False
    return True


def point_to(bundles: Path, generation: str) -> None:
    """Make a generation that is there the current one."""
    partial = bundles / f".{CURRENT}.tmp"
    partial.write_text(generation, encoding="utf-8")
    _flush(partial)
    partial.replace(bundles / CURRENT)
    _flush(bundles)


def switch_namespace(path: Path, namespace: str) -> None:
    """Let Feast's own commands, and whoever reads through Feast, see what is served.

    Parameters
    ----------
    path
        The file that `feature_store.yaml` names (`Workspace.online_namespace`).
    """
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(namespace, encoding="utf-8")
    partial.replace(path)


def _to_disk(folder: Path) -> None:
    for file in folder.iterdir():
        _flush(file)
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """Return the sha256 (hex) of a file, or of the names and contents of a folder's files."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listed = [f"{file.relative_to(path).as_posix()} {checksum(file)}" for file in files]
        return hashlib.sha256("\n".join(listed).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def current_generation(bundles: Path) -> str | None:
    """Return the id of the published generation; None if nothing is published."""
    pointer = bundles / CURRENT
    return pointer.read_text(encoding="utf-8").strip() if pointer.exists() else None


def read_manifest(folder: Path) -> Manifest:
    """Read a generation's manifest.

    Raises
    ------
    BundleError
        If it is missing or unreadable.
    """
    path = folder / MANIFEST
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(f"{path}: unreadable ({error}); publish again") from error


def open_current(bundles: Path) -> tuple[Path, Manifest]:
    """Return folder and manifest of the published generation, verified.

    Raises
    ------
    BundleError
        If nothing is published, or a file is missing or changed.
    """
    generation = current_generation(bundles)
    if generation is None:
        raise BundleError(f"{bundles}: nothing is published; run `feastrank run`")
    folder = bundles / generation
    return folder, verify(folder)


def verify(folder: Path) -> Manifest:
    """Return a generation's manifest if its files are whole.

    Raises
    ------
    BundleError
        If one is missing or changed.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        if name in manifest.indexes:
            continue
        found = checksum(folder / name) if (folder / name).exists() else "no such file"
        if found != expected:
            raise BundleError(
                f"{folder / name}: sha256 {found}, expected {expected}; publish again"
            )
    return manifest


def whole_files(folder: Path, manifest: Manifest, names: Iterable[str]) -> dict[str, bool]:
    """Return for each of some files whether it is there as it was published."""
    return {
        name: (folder / name).exists() and checksum(folder / name) == manifest.files.get(name)
        for name in names
    }


def roll_back(
    bundles: Path,
    missing: Callable[[Manifest], str | None],
    announce: Callable[[str], None] = lambda generation: None,
) -> tuple[str, Manifest]:
    """Make the generation before the current one current again; nothing else is touched.

    Parameters
    ----------
    missing
        Says what of a generation is not complete in Redis, None if nothing is missing.
    announce
        Called with the generation before it becomes the current one; raises if it must not.

    Returns
    -------
    id of the generation that was current, manifest of the one that is.

    Raises
    ------
    BundleError
        If there is no older generation, or it could not answer; the current one stays.
    """
    current = current_generation(bundles)
    if current is None:
        raise BundleError(f"{bundles}: nothing is published; run `feastrank run`")
    previous = _before(bundles, current)
    if previous is None:
        raise BundleError(
            f"{bundles}: no generation older than {current} is kept, so there is nothing to roll "
            "back to; run `feastrank run` to publish another one"
        )
    manifest = verify(bundles / previous)
    lacking = missing(manifest)
    if lacking is not None:
        raise BundleError(
            f"bundle {previous}: its {lacking} are not complete in Redis, so it could not "
            f"answer; {current} stays published. Run `feastrank run` to publish another one"
        )
    announce(previous)
    point_to(bundles, previous)
    return current, manifest


def _before(bundles: Path, current: str) -> str | None:
    """Return the latest generation published before the current one; None if none is kept."""
    folders = [path.parent for path in bundles.glob(f"[!.]*/{MANIFEST}")]
    published = {path.name: read_manifest(path).created for path in folders if path.name != current}
    try:
        until = read_manifest(bundles / current).created
    except BundleError:
        # A damaged generation is what one rolls back from: any other one will do.
        until = "9999"
    older = [(created, name) for name, created in published.items() if created < until]
    return max(older)[1] if older else None

"""What the online store needs to know of a feature view: its keys, row schema and ttl."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from feast import RepoConfig
from feast.feature_view import DUMMY_ENTITY_ID

from feastpack.errors import OnlineStoreError
from feastpack.keys import KeySpace
from feastpack.rows import RowSchema

_DUMMY_KEYS = ((DUMMY_ENTITY_ID, "STRING"),)


@dataclass(frozen=True)
class ViewLayout:
    """A feature view as the online store sees it.

    Attributes
    ----------
    keys
        Where the view's rows are.
    schema
        How they are laid out when written now.
    ttl_us
        How long a row is valid after its event time, in microseconds; None for ever.
    """

    keys: KeySpace
    schema: RowSchema
    ttl_us: int | None


def layout_of(config: RepoConfig, view: Any) -> ViewLayout:
    """Return the layout of a feature view (or of an on-demand view that is written).

    Raises
    ------
    SchemaError
        If two features of the view have the same name.
    """
    # Views without entities come with Feast's dummy entity or with none at all, depending
    # on the path they took through Feast; both mean the same single row.
    join_keys = sorted(
        (column.name, column.dtype.to_value_type().name) for column in view.entity_columns
    )
    features = tuple((field.name, field.dtype.to_value_type().name) for field in view.features)
    ttl: timedelta | None = getattr(view, "ttl", None)
    name = versioned_name(config, view)
    return ViewLayout(
        keys=KeySpace(config.project, name, tuple(join_keys) or _DUMMY_KEYS, namespace_of(config)),
        schema=_schema_of(features),
        ttl_us=ttl // timedelta(microseconds=1) if ttl else None,
    )


# Feast hands out views anew for every request; the layout of their features is the same.
_schema_of = lru_cache(maxsize=4096)(RowSchema)


def namespace_of(config: RepoConfig) -> str:
    """Return the namespace that the store reads and writes now; empty if it has none.

    Raises
    ------
    OnlineStoreError
        If the file that names it cannot be read, or names none that could be part of a key.
    """
    settings = config.online_store
    file: str | None = settings.namespace_file
    if file is None:
        return str(settings.namespace)
    path = Path(config.repo_path or ".", file)
    try:
        status = path.stat()
    except FileNotFoundError:
        return str(settings.namespace)
    except OSError as error:
        raise OnlineStoreError(f"online_store.namespace_file {path}: {error}") from error
    # Looked at for every request, so read only when it was exchanged.
    return _named_in(path, status.st_ino, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _named_in(path: Path, inode: int, modified: int) -> str:
    try:
        name = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OnlineStoreError(f"online_store.namespace_file {path}: {error}") from error
    if not is_namespace(name):
        raise OnlineStoreError(
            f"online_store.namespace_file {path}: found {name[:50]!r}, expected one name of "
            "letters, digits, dots, dashes and underscores"
        )
    return name


def is_namespace(name: str) -> bool:
    """Return whether a name can be part of a key without being taken for another one's."""
    return bool(name) and all(c.isascii() and (c.isalnum() or c in "._-") for c in name)


def versioned_name(config: RepoConfig, view: Any) -> str:
    """Return the view's name, with ``@v{N}`` if views are versioned online.

    Feast's own stores write ``_v{N}``, which the name of another view may end in.
    """
    if not config.registry.enable_online_feature_view_versioning:
        return str(view.name)
    version = getattr(view.projection, "version_tag", None)
    if version is None:
        version = getattr(view, "current_version_number", None)
    return f"{view.name}@v{version}" if version else str(view.name)

"""What a candidate generator is, and the parts that every generator shares."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from pipelines.candidates.interactions import Ids, Interactions, positions
from pipelines.candidates.topk import TopK
from pipelines.errors import GeneratorError

Progress = Callable[[float], None]
"""Called with the share of the fit that is done, from 0 to 1."""

CANDIDATES = pa.schema(
    [
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("post_id", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)
"""Grain: one row per (user, post). Ordered by user as asked for, then rank (from 1).

``score`` is the generator's own: comparable within one table, not between generators.
"""

SIMILAR_POSTS = pa.schema(
    [
        pa.field("post_id", pa.int64(), nullable=False),
        pa.field("similar_post_id", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
    ]
)
"""Grain: one row per (post, similar post), never the post itself. Ordered by post, then rank."""


@runtime_checkable
class CandidateGenerator(Protocol):
    """Proposes posts for users from what happened up to a time.

    A generator is made from its frozen settings (the seed among them). One that needs more
    than interactions, such as the posts' texts, takes those tables when it is made, keyed by
    ``post_id`` or ``user_id``; what it needs of them after `fit` is part of what it saves.

    The conformance suite in ``tests/candidates/conformance.py`` is the exact contract.
    """

    name: ClassVar[str]
    """The ``source`` of its candidates; also its key in the registry."""
    serves_cold_users: ClassVar[bool]
    """Whether users without a positive get candidates; the others give them no row."""

    def fit(self, interactions: Interactions, *, progress: Progress | None = None) -> Self:
        """Learn from everything in `interactions`; the caller cuts it with ``until``."""
        ...

    def recommend(self, user_ids: ArrayLike, k: int, *, exclude_seen: bool = True) -> pa.Table:
        """Return up to `k` posts for each user, as `CANDIDATES`.

        Parameters
        ----------
        user_ids
            Whole numbers, any length; a user named twice is answered once.
        k
            At least 1; more than the catalogue is allowed and gives fewer.
        exclude_seen
            Leave out every post the user has seen, not only those liked.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the fitted generator into an existing or new folder, as json and npz."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        GeneratorError
            The folder holds no such generator, or an unreadable one.
        """
        ...


@dataclass(frozen=True, eq=False)
class Audience:
    """The users and posts known at fit time, and who has seen what.

    Attributes
    ----------
    user_ids : int64[n_users]
        Ascending.
    post_ids : int64[n_posts]
        Ascending: the catalogue the generator proposes from.
    seen : bool csr (n_users, n_posts)
    warm : bool[n_users]
        Whether the user has a positive.
    """

    user_ids: Ids
    post_ids: Ids
    seen: csr_matrix
    warm: NDArray[np.bool_]

    @classmethod
    def of(cls, interactions: Interactions, catalogue: Ids | None = None) -> Audience:
        """Take the audience of `interactions`; the catalogue defaults to its posts."""
        warm = np.diff(interactions.history_bounds) > 0
        if catalogue is None:
            return cls(interactions.user_ids, interactions.post_ids, interactions.seen, warm)
        seen = interactions.seen_matrix(catalogue)
        return cls(interactions.user_ids, catalogue, seen, warm)

    def asked(self, user_ids: ArrayLike, k: int) -> tuple[Ids, Ids]:
        """Return the distinct users in the order first named, and their rows, -1 if unknown."""
        if k < 1:
            raise GeneratorError(f"recommend: found k = {k}, expected at least 1")
        users = np.atleast_1d(np.asarray(user_ids))
        if users.size and not np.issubdtype(users.dtype, np.integer):
            raise GeneratorError(
                f"recommend: found user ids of type {users.dtype}, expected whole numbers "
                "(the lake's dense ids); map external ids first"
            )
        _, first = np.unique(users, return_index=True)
        users = users[np.sort(first)].astype(np.int64)
        return users, positions(users, self.user_ids)

    def asked_warm(self, user_ids: ArrayLike, k: int) -> tuple[Ids, Ids]:
        """As `asked`, only users with a positive."""
        users, rows = self.asked(user_ids, k)
        known = (rows >= 0) & self.warm[rows]
        return users[known], rows[known]

    def seen_by(self, rows: Ids) -> csr_matrix:
        """Return bool csr (len(rows), n_posts); row -1 has seen nothing."""
        known = rows >= 0
        if known.all():
            return self.seen[rows]
        # Unknown users point at an extra, empty row.
        padded = csr_matrix(
            (self.seen.data, self.seen.indices, np.append(self.seen.indptr, self.seen.indptr[-1])),
            shape=(self.seen.shape[0] + 1, self.seen.shape[1]),
        )
        return padded[np.where(known, rows, self.seen.shape[0])]

    def candidates(self, users: Ids, top: TopK, source: str) -> pa.Table:
        """Turn the top columns of each row (one row per user of `users`) into `CANDIDATES`."""
        return pa.table(
            {
                "user_id": users[top.rows],
                "post_id": self.post_ids[top.columns],
                "score": top.scores,
                "rank": top.ranks,
                "source": pa.repeat(source, len(top.rows)),
            },
            # An empty table must still say whose it is.
            schema=CANDIDATES.with_metadata({"source": source}),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what `from_arrays` needs, to be saved."""
        return {
            "user_ids": self.user_ids,
            "post_ids": self.post_ids,
            "warm": self.warm,
            **csr_arrays("seen", self.seen, with_data=False),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Audience:
        """Rebuild what `arrays` took apart."""
        return cls(arrays["user_ids"], arrays["post_ids"], csr_from("seen", arrays), arrays["warm"])


def csr_arrays(name: str, matrix: csr_matrix, *, with_data: bool = True) -> dict[str, NDArray[Any]]:
    """Take a csr matrix apart under keys ``<name>_...``; without data, entries are True."""
    parts = {
        f"{name}_indices": matrix.indices,
        f"{name}_indptr": matrix.indptr,
        f"{name}_shape": np.asarray(matrix.shape, dtype=np.int64),
    }
    return {**parts, f"{name}_data": matrix.data} if with_data else parts


def csr_from(name: str, arrays: Mapping[str, NDArray[Any]]) -> csr_matrix:
    """Put together what `csr_arrays` took apart."""
    indices = arrays[f"{name}_indices"]
    data = arrays.get(f"{name}_data")
    if data is None:
        data = np.ones(len(indices), dtype=bool)
    rows, columns = arrays[f"{name}_shape"]
    return csr_matrix((data, indices, arrays[f"{name}_indptr"]), shape=(rows, columns))


def save_state(folder: Path, name: str, settings: Any, arrays: dict[str, NDArray[Any]]) -> None:
    """Write ``generator.json`` (name, settings) and ``state.npz`` (arrays) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    head = {"generator": name, "settings": dataclasses.asdict(settings)}
    (folder / "generator.json").write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")
    np.savez(folder / "state.npz", allow_pickle=False, **arrays)


def read_head(folder: Path) -> dict[str, Any]:
    """Read ``generator.json``: the generator's name and settings.

    Raises
    ------
    GeneratorError
        There is none, or it is not what `save_state` writes.
    """
    path = folder / "generator.json"
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GeneratorError(
            f"{path}: cannot be read ({error}); fit the candidates again"
        ) from error
    if not isinstance(head, dict) or not {"generator", "settings"} <= head.keys():
        raise GeneratorError(
            f"{path}: expected an object with the keys 'generator' and 'settings'; "
            "fit the candidates again"
        )
    return head


class _StoredArrays(dict[str, NDArray[Any]]):
    def __missing__(self, name: str) -> NDArray[Any]:
        raise GeneratorError(
            f"state.npz: found the arrays {sorted(self)}, expected also {name!r} (written by "
            "another version?); fit the candidates again"
        )


Settings = TypeVar("Settings")


def load_state(
    folder: Path, name: str, settings: type[Settings]
) -> tuple[Settings, dict[str, NDArray[Any]]]:
    """Read what `save_state` wrote for the generator called `name`.

    Raises
    ------
    GeneratorError
        Another generator's folder, unknown settings, or an unreadable file.
    """
    head = read_head(folder)
    if head["generator"] != name:
        raise GeneratorError(
            f"{folder}: holds the generator {head['generator']!r}, expected {name!r}"
        )
    try:
        chosen = settings(**head["settings"])
        # numpy leaves a file that it opened itself open when it is no archive.
        with (folder / "state.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = _StoredArrays(stored)
    except (OSError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise GeneratorError(
            f"{folder}: the saved {name} generator cannot be read ({error}); "
            "fit the candidates again"
        ) from error
    return chosen, arrays


Fitted = TypeVar("Fitted")


def fitted(state: Fitted | None, name: str) -> Fitted:
    """Return the state of a fitted generator.

    Raises
    ------
    GeneratorError
        There is none yet.
    """
    if state is None:
        raise GeneratorError(f"{name}: not fitted; call fit or load first")
    return state

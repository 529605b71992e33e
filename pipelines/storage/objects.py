"""Objects below one ``s3://`` address, through obstore: each is written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import BinaryIO
from urllib.parse import urlsplit

from pipelines.errors import StorageError

# A store that does not answer is reported after about so long, not after obstore's three minutes.
_RETRIES, _RETRY_TIMEOUT = 3, timedelta(seconds=30)
_CHUNK_BYTES = 1 << 22


class Objects:
    """The objects below an address, by keys relative to it.

    Where the store is and who asks is said by the usual variables: ``AWS_ENDPOINT_URL``,
    ``AWS_REGION``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``;
    ``AWS_ALLOW_HTTP=true`` allows an endpoint without TLS.

    Parameters
    ----------
    url
        ``s3://BUCKET`` or ``s3://BUCKET/PREFIX``.

    Raises
    ------
    StorageError
        If obstore is not installed, or the address is none; from every method, if the store does
        not answer, or refuses.
    """

    def __init__(self, url: str) -> None:
        try:
            from obstore import exceptions
            from obstore.store import S3Store
        except ImportError as error:
            raise StorageError(
                f"{url}: object storage needs obstore; pip install 'feastrank[s3]'"
            ) from error
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc:
            raise StorageError(f"{url}: expected s3://BUCKET or s3://BUCKET/PREFIX")
        self.url = url.rstrip("/")
        # Where Python has a fitting error, obstore raises that: FileNotFoundError, for one.
        self._failures = (exceptions.BaseError, OSError)
        self._already_exists = exceptions.AlreadyExistsError
        with self._translated("cannot be opened"):
            self._store = S3Store(
                parts.netloc,
                prefix=parts.path.strip("/") or None,
                # Not every store has the request that removes many at a time.
                disable_bulk_delete=True,
                retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY_TIMEOUT},
            )

    def sizes(self, prefix: str, after: str | None = None) -> dict[str, int]:
        """Return the bytes of every object below ``prefix``, of keys after ``after`` if given."""
        with self._translated(f"cannot list {prefix}/"):
            pages = self._store.list(f"{prefix}/", offset=after)
            return {one["path"]: int(one["size"]) for page in pages for one in page}

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless there is one; return whether it was written.

        Of several writers exactly one succeeds: the store decides (``If-None-Match: *``).
        """
        with self._translated(f"cannot write {key}"):
            try:
                self._store.put(key, content, mode="create")
            except self._already_exists:
                return False
        return True

    def put(self, key: str, content: BinaryIO) -> None:
        """Write an object, in parts if it is large; readers see it whole or not at all."""
        with self._translated(f"cannot write {key}"):
            self._store.put(key, content)

    def read(self, key: str) -> bytes:
        """Return an object's content."""
        return b"".join(self.chunks(key))

    def chunks(self, key: str) -> Iterator[bytes]:
        """Yield an object's content, some megabytes at a time."""
        with self._translated(f"cannot read {key}"):
            for chunk in self._store.get(key).stream(min_chunk_size=_CHUNK_BYTES):
                yield bytes(chunk)

    def remove(self, key: str) -> None:
        """Remove an object."""
        with self._translated(f"cannot remove {key}"):
            self._store.delete(key)

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            # obstore appends the Rust value that it came from, over many lines.
            said = " ".join(str(error).partition("\n\nDebug source")[0].split())
            raise StorageError(
                f"{self.url}: {what}: {said}; check the address and AWS_ENDPOINT_URL, AWS_REGION, "
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, then try again"
            ) from error

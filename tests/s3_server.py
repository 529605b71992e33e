"""A local S3 server whose every write a test can watch, interrupt and leave unanswered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

BUCKET = "lake"


class S3Server:
    """localbucket (conditional writes, no check of credentials) on a free port, as a context.

    Attributes
    ----------
    folder
        Where it keeps the bucket's objects, each as a file.
    writes
        Keys that were written, in order.
    bytes_read
        Bytes of all answers to GET.
    before_write
        Called with each key before it is written; where it says False, it is not written, and the
        connection breaks.
    after_write
        Called with each key once it is written; where it says False, the connection breaks.
    conditional
        Whether conditional writes are conditional.
    removable
        Whether objects may be removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / BUCKET
        self.folder.mkdir()
        self.url = f"s3://{BUCKET}/state"
        self.writes: list[str] = []
        self.bytes_read = 0
        self.before_write: Callable[[str], bool] = lambda key: True
        self.after_write: Callable[[str], bool] = lambda key: True
        self.conditional = self.removable = True
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, folder))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to be told."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Return every object of the bucket below a prefix."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        found = {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in files}
        return {key: content for key, content in found.items() if key.startswith(prefix)}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(server: S3Server, root: Path) -> type:
    import localbucket

    class Handler(localbucket.S3Handler):  # type: ignore[misc, name-defined]
        data_root = root
        # A connection that stays open would be answered after the server has stopped.
        protocol_version = "HTTP/1.0"

        def send_header(self, keyword: str, value: str) -> None:
            if self.command == "GET" and keyword == "Content-Length":
                server.bytes_read += int(value)
            super().send_header(keyword, value)

        def do_PUT(self) -> None:  # noqa: N802
            key = unquote(self.path).partition("?")[0].removeprefix(f"/{BUCKET}/")
            if not server.before_write(key):
                return
            if not server.conditional:
                del self.headers["If-None-Match"]
            connection: Any = self.wfile
            self.wfile = BytesIO()
            super().do_PUT()
            answer, self.wfile = self.wfile.getvalue(), connection
            server.writes.append(key)
            if server.after_write(key):
                self.wfile.write(answer)

        def do_DELETE(self) -> None:  # noqa: N802
            if server.removable:
                super().do_DELETE()
            else:
                self.send_error(403)

    return Handler

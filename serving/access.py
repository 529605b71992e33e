"""Who may ask, and how often: API keys and a token bucket for each of them."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import ApiKeysError
from serving.problems import problem_response
from serving.settings import HttpSettings

SHORTEST_KEY = 16
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ApiKeys:
    """The known keys, as digests: the keys themselves are not kept.

    A digest without salt is enough, because keys are long and random, not passwords.

    Parameters
    ----------
    digests
        Name of each key to its sha256.
    """

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        self._digests = dict(digests)

    def __len__(self) -> int:
        return len(self._digests)

    def name_of(self, key: bytes) -> str | None:
        """Return the name of a key; None if it is unknown.

        Every known key is compared, in a time that does not depend on what matches.
        """
        given, found = hashlib.sha256(key).digest(), None
        for name, digest in self._digests.items():
            if hmac.compare_digest(given, digest):
                found = name
        return found

    @classmethod
    def of(cls, settings: HttpSettings) -> ApiKeys:
        """Collect the keys of the settings; none: everybody may ask.

        Raises
        ------
        ApiKeysError
            If the file or the list is not as described; keys are never shown.
        """
        digests: dict[str, bytes] = {}
        if settings.api_keys is not None:
            for number, pair in enumerate(settings.api_keys.get_secret_value().split(","), 1):
                name, _, key = pair.strip().partition(":")
                if not _NAME.fullmatch(name) or len(key) < SHORTEST_KEY:
                    raise ApiKeysError(
                        f"API keys: entry {number} is not NAME:KEY with a key of at least "
                        f"{SHORTEST_KEY} characters; correct FEASTRANK_API_KEYS"
                    )
                digests[name] = hashlib.sha256(key.encode()).digest()
        if settings.api_key_file is not None:
            digests.update(_read(settings.api_key_file))
        return cls(digests)


def _read(path: Path) -> dict[str, bytes]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ApiKeysError(f"{path}: cannot be read ({error})") from error
    digests = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not _NAME.fullmatch(words[0]) or not _DIGEST.fullmatch(words[1]):
            raise ApiKeysError(
                f"{path}, line {number}: expected a name and the key's sha256 in 64 lower-case hex "
                "digits, such as `printf %s KEY | sha256sum` prints"
            )
        digests[words[0]] = bytes.fromhex(words[1])
    if not digests:
        raise ApiKeysError(f"{path}: holds no key; write one, or leave the setting out")
    return digests


class TokenBuckets:
    """How often each key may ask: `rate` times a second, `burst` times at once.

    One bucket for each known key, so memory is bounded. Each worker process has its own.

    Parameters
    ----------
    clock
        Monotonic seconds.
    """

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._guard = threading.Lock()

    def take(self, name: str) -> float:
        """Take a token; return 0, or after how many seconds there will be one."""
        now = self._clock()
        with self._guard:
            tokens, since = self._buckets.get(name, (float(self._burst), now))
            tokens = min(self._burst, tokens + (now - since) * self._rate)
            enough = tokens >= 1
            self._buckets[name] = (tokens - 1 if enough else tokens, now)
        return 0.0 if enough else (1 - tokens) / self._rate


class Guarded:
    """ASGI middleware: refuses requests without a known key (401), and too many of one (429).

    Parameters
    ----------
    keys
        At least one.
    buckets
        None: as often as they like.
    open_paths
        Paths that anybody may ask.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys,
        buckets: TokenBuckets | None,
        open_paths: Collection[str],
    ) -> None:
        self._app = app
        self._keys, self._buckets, self._open = keys, buckets, frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it before anything of it is read."""
        if scope["type"] != "http" or scope["path"] in self._open:
            await self._app(scope, receive, send)
            return
        name = self._keys.name_of(_key_of(scope))
        if name is None:
            refusal = problem_response(
                HTTPStatus.UNAUTHORIZED,
                "send a key that the service knows, as Authorization: Bearer KEY or X-API-Key: KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await refusal(scope, receive, send)
            return
        wait_s = 0.0 if self._buckets is None else self._buckets.take(name)
        if wait_s:
            refusal = problem_response(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too many requests with this key",
                headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
            )
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _key_of(scope: Scope) -> bytes:
    headers = dict(scope["headers"])
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    given: bytes = key.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
    return given

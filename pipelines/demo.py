"""The command ``demo``: all steps, then the service asked over HTTP before and after a like."""

import json
import socket
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from rich.console import Console
from rich.markup import escape

from feature_repo.dataset import Events
from feature_repo.dataset_columns import Rule
from feature_repo.workspace import Workspace
from pipelines import commands
from pipelines.errors import PipelineError
from pipelines.job import context as job
from pipelines.settings import JobSettings
from serving.app import create_app
from serving.bundle import current_generation
from serving.published import PublishedRecommender
from serving.recommender import Recommender, redis_of
from serving.settings import HttpSettings

_SHOWN = 5
_START_S, _REQUEST_S = 30, 10


def demo(settings: JobSettings, console: Console) -> None:
    """Run all steps, start the service, ask it for three users, post a like, ask again.

    The like is kept in a space of its own and removed at the end: nothing is learned from it.
    """
    commands.run(settings, console)
    context = job.open_context(settings, console)
    space = f"{context.dataset.name}.demo"
    try:
        with _served(context.workspace, space) as address:
            _show(address, commands.examples(context), context.dataset.events, console)
    finally:
        redis = redis_of(job.open_store(context.workspace))
        for key in redis.scan_iter(match=f"feastrank:{{{space}}}:*", count=1000):
            redis.delete(key)


def positive_event(events: Events) -> dict[str, Any]:
    """Return what makes an event of a described table a positive one."""
    event: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    if events.action.column is not None:
        event["action"] = events.positive.actions[0] if events.positive.actions else "event"
    for rule in (events.positive, events.impressions):
        if rule is not None and rule.column is not None:
            fields.setdefault(rule.column, _passing(rule))
    if events.weight.column is not None:
        fields.setdefault(events.weight.column, 1.0)
    for name, column in (("value", events.value), ("action", events.action.column)):
        if column in fields:
            event[name] = fields.pop(column)
    return {**event, "fields": fields} if fields else event


def _passing(rule: Rule) -> Any:
    return rule.equals if rule.at_least is None else rule.at_least


def _show(address: str, users: list[str], events: Events, console: Console) -> None:
    console.print(f"\n[bold]the service at {address}[/], asked over HTTP", highlight=False)
    for user in users:
        start = time.perf_counter()
        titles = _titles(_recommended(address, user))
        elapsed = 1000 * (time.perf_counter() - start)
        shown = escape(" | ".join(titles[:_SHOWN]))
        console.print(f"  user {user} ({elapsed:.0f} ms)  {shown}", highlight=False)
    user = users[0]
    before = _recommended(address, user)
    if not before:
        raise PipelineError(f"user {user}: the service recommends nothing; run `feastrank doctor`")
    liked = before[0]
    ids = {"event_id": str(uuid.uuid4()), "user_id": user, "post_id": liked["post_id"]}
    (result,) = _post(f"{address}/events", {**ids, **positive_event(events)})["results"]
    after = _recommended(address, user)
    if result["status"] != "accepted" or _titles(before) == _titles(after):
        raise PipelineError(
            f"user {user}: a like of post {liked['post_id']} was {result['status']} "
            f"({result['detail']}) and changed nothing; see docs/serving.md on POST /events"
        )
    title = escape(_titles([liked])[0])
    console.print(
        f"\n  user {user} likes {title}: POST /events, {result['status']}, and then",
        highlight=False,
    )
    places = {one["post_id"]: place for place, one in enumerate(before, 1)}
    for place, one in enumerate(after[:_SHOWN], 1):
        was = places.get(one["post_id"])
        moved = f"not among the first {len(before)}" if was is None else f"was {was}"
        name = escape(_titles([one])[0])
        console.print(f"  {place:>2}. {name} [dim]({moved})[/]", highlight=False)


def _recommended(address: str, user: str) -> list[dict[str, Any]]:
    return list(_post(f"{address}/recommend", {"user_id": user, "k": 100})["posts"])


def _titles(posts: list[dict[str, Any]]) -> list[str]:
    return [one["title"] or one["post_id"] for one in posts]


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_REQUEST_S) as answer:
        return dict(json.load(answer))


@contextmanager
def _served(workspace: Workspace, space: str) -> Iterator[str]:
    """Serve the published bundle on a free port for as long as the context lasts."""

    def opened() -> Recommender:
        return Recommender(workspace.bundles, job.open_store(workspace), event_space=space)

    published = PublishedRecommender(opened, lambda: current_generation(workspace.bundles), 3600)
    app = create_app(published, HttpSettings.model_validate({}))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=server.run, args=([listening],), name="demo-service")
        thread.start()
        try:
            deadline = time.monotonic() + _START_S
            while not server.started:
                if not thread.is_alive() or time.monotonic() > deadline:
                    raise PipelineError(f"{address}: the service did not start")
                time.sleep(0.01)
            yield address
        finally:
            server.should_exit = True
            thread.join()

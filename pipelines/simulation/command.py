"""The command `feastrank simulate`."""

import time
from functools import partial

from rich.console import Console

from pipelines.job.context import Bar, progress_bars
from pipelines.simulation.settings import SimulateSettings
from pipelines.simulation.simulate import Load, SimulatedFeed, Size, simulate
from pipelines.simulation.truth import SHOWN


def _load(settings: SimulateSettings) -> Load | None:
    variable = settings.to_postgres
    if variable is None:
        return None
    # The driver need not be loaded where nothing goes into a database.
    from pipelines.simulation.database import load

    return partial(load, variable, settings.replace_tables)


def simulate_feed(settings: SimulateSettings, console: Console) -> None:
    """Write a feed; print its size and what HitRate is possible on it."""
    size = Size(**{name: getattr(settings, name) for name in Size.__dataclass_fields__})
    out = SimulatedFeed(settings.output.resolve())
    start = time.monotonic()
    with progress_bars(console) as bars:
        drawn: dict[str, Bar] = {}

        def progress(title: str, done: int, total: int) -> None:
            drawn.setdefault(title, bars.bar(title))(done, total)

        name, texts = settings.name, settings.posts_from
        facts = simulate(size, out.folder, name, texts, progress, _load(settings))
    rates = facts[f"hit_rate_at_{SHOWN}"]
    console.print(
        f"{facts['views']:,} views and {facts['likes']:,} likes ({facts['like_rate']:.2%} of "
        f"views) by {size.users:,} users of {size.posts:,} posts, {size.days} days, in "
        f"{time.monotonic() - start:.1f} s",
        highlight=False,
    )
    console.print(
        f"HitRate@{SHOWN} at {facts['moments']:,} visits after {facts['cut'][:10]}: "
        + ", ".join(
            f"{who} {rate['value']:.4f} (standard error {rate['standard_error']:.4f})"
            for who, rate in rates.items()
        ),
        highlight=False,
    )
    console.print(f"Next: feastrank run --dataset {out.description}", highlight=False)

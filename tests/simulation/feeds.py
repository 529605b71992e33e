"""A small simulated feed that several tests look at."""

from pathlib import Path

from pipelines.simulation.simulate import SimulatedFeed, Size, simulate

SMALL = Size(users=2_000, posts=1_500, views=300_000, days=75, test_days=7, moments=400, seed=3)


def write(folder: Path, size: Size = SMALL, texts: Path | None = None) -> SimulatedFeed:
    simulate(size, folder, "small_feed", texts, lambda _title, _done, _total: None)
    return SimulatedFeed(folder)

"""Settings of `feastrank simulate`."""

from pathlib import Path

from pydantic import Field

from pipelines.settings import CommandSettings


class SimulateSettings(CommandSettings):
    """Settings of `feastrank simulate`, which writes a feed whose taste is known."""

    output: Path = Field(description="Folder of the tables, the description and the truth.")
    name: str = Field(
        "simulated_feed", pattern=r"^[a-z](_?[a-z0-9])*$", description="The dataset's name."
    )
    users: int = Field(20_000, ge=10, le=100_000_000, description="How many users.")
    posts: int = Field(7_023, ge=50, le=10_000_000, description="How many posts.")
    views: int = Field(
        1_200_000, ge=100, le=10_000_000_000, description="How many views; likes come on top."
    )
    days: int = Field(75, ge=2, le=3650, description="How many days, from 2021-10-16.")
    test_days: int = Field(
        7, ge=1, le=365, description="The last days: HitRate@5 is measured on visits in them."
    )
    moments: int = Field(
        5_000, ge=10, le=1_000_000, description="How many of those visits, drawn by chance."
    )
    posts_from: Path | None = Field(
        None,
        description="CSV or parquet file with columns text and topic: real texts instead of "
        "made-up ones.",
    )
    to_postgres: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the environment variable that holds a PostgreSQL connection: the "
        "tables user_data, post_text_df and feed_data are loaded there too, and the description "
        "reads them from there.",
    )
    replace_tables: bool = Field(
        False, description="Drop tables of these names that the database has, instead of stopping."
    )
    seed: int = Field(42, ge=0, le=2**31 - 1, description="Seed of everything random.")

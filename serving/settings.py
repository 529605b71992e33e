"""Settings of the HTTP service; flags and environment variables fill them."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class HttpSettings(BaseSettings):
    """Where the service listens, what it accepts and how long it waits."""

    model_config = SettingsConfigDict(env_prefix="FEASTRANK_", frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65_535, description="TCP port to listen on.")
    redis_timeout_ms: int = Field(
        100,
        ge=1,
        le=10_000,
        description="Deadline of each call of Redis; then the bundle's popular list answers.",
    )
    max_body_kib: int = Field(
        256, ge=1, le=16_384, description="Largest request body; a larger one gets status 413."
    )
    bundle_check_seconds: float = Field(
        5, ge=0.05, le=3600, description="How often the service looks for a newer bundle."
    )
    wait_for_bundle: bool = Field(
        False,
        description="Whether to start without a bundle and answer 503 until one is published.",
    )
    event_room: int = Field(
        1_000_000,
        ge=1,
        le=100_000_000,
        description="Events that may wait in Redis for `feastrank drain`; more are refused.",
    )
    shutdown_seconds: int = Field(
        10, ge=1, le=600, description="How long requests under way may take once told to stop."
    )
    rules: Path | None = Field(
        None,
        description="TOML file of the rules that decide on answers beside the ranker, see "
        "docs/serving.md; read again with each new bundle.",
    )
    impression_log: Path | None = Field(
        None,
        description="Folder of the impression log; by default impressions/ in the dataset's "
        "state folder.",
    )
    impression_share: float = Field(
        1.0, ge=0, le=1, description="Share of the requests that are logged; 0: no log."
    )
    impression_rows_per_file: int = Field(
        20_000,
        ge=1,
        le=1_000_000,
        description="A file of the log is written once so many candidates wait.",
    )
    impression_seconds_per_file: float = Field(
        10, ge=0.05, le=3600, description="A file is written at the latest after so long."
    )
    impression_buffer_rows: int = Field(
        60_000,
        ge=1,
        le=10_000_000,
        description="Candidates that may wait in memory, about 1 kB each; more are dropped and "
        "counted.",
    )
    api_keys: SecretStr | None = Field(
        None,
        description="NAME:KEY,NAME:KEY: who may ask. Give it as an environment variable, since "
        "others see the flags of a process; without keys everybody may ask.",
    )
    api_key_file: Path | None = Field(
        None, description="File of lines NAME SHA256: who may ask, without the keys themselves."
    )
    key_rate: float = Field(
        0, ge=0, le=1e6, description="Requests a second that one key may make; 0: no limit."
    )
    key_burst: int = Field(
        20, ge=1, le=1_000_000, description="Requests that one key may make at once."
    )
    open_paths: tuple[str, ...] = Field(
        ("/health", "/ready", "/metrics"), description="Paths that anybody may ask without a key."
    )

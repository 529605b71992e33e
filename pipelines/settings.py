"""Settings of every command: one frozen class each, filled from flags and environment variables.

A flag ``--text-model`` and the variable ``FEASTRANK_TEXT_MODEL`` fill the same field; the flag
wins.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from feature_repo import workspace
from pipelines.cluster_settings import ClusterSettings
from pipelines.features.pictures import EMBEDDED_IMAGE_MODEL
from pipelines.features.text_encoders import EMBEDDED_MODEL, Pooling
from serving.settings import HttpSettings


def _in_utc(given: datetime) -> datetime:
    return given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC)


Moment: TypeAlias = Annotated[datetime, AfterValidator(_in_utc)]
"""A time in UTC; one that is given without a zone is meant so."""


class CommandSettings(BaseSettings):
    """What the settings of all commands share: how flags and variables are named."""

    model_config = SettingsConfigDict(
        env_prefix="FEASTRANK_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
    )


class DatasetSettings(CommandSettings):
    """Which dataset, and where its state lies."""

    dataset: str = Field(
        "movielens_100k",
        description="Dataset description: a TOML file, or the name of one that comes with "
        "feastrank (movielens_100k, lastfm_2k).",
    )
    home: Path = Field(
        default_factory=workspace.home, description="State folder, shared by all datasets."
    )
    storage: str | None = Field(
        None,
        pattern=r"^s3://[^/]+(/.*)?$",
        description="Object storage, as s3://BUCKET or s3://BUCKET/PREFIX, that is published to "
        "and taken from (docs/scale.md); by default nothing leaves the state folder.",
    )


class CapacitySettings(DatasetSettings):
    """Settings of the command `capacity`."""

    users: int = Field(..., ge=1, description="Users that are planned for.")
    posts: int = Field(..., ge=1, description="Posts that are planned for.")
    requests_per_second: float = Field(
        100.0, gt=0, description="Requests for recommendations, in the busiest hour."
    )
    refresh_minutes: float = Field(
        60.0, gt=0, description="In which all rows are to be written anew."
    )
    node_gb: float = Field(25.0, gt=0, description="Memory of one Redis node, GiB.")
    rows_per_second: int = Field(
        240_000, ge=1, description="Of one writer; benchmarks.materialize measures it."
    )
    cpu_ms_per_request: float = Field(
        10.0, gt=0, description="Of a serving core; benchmarks.serving measures it."
    )
    redis_ms_per_request: float = Field(
        0.8, gt=0, description="Of a Redis node's core; benchmarks.online_read measures it."
    )
    sample: int = Field(
        20_000, ge=1000, le=1_000_000, description="Keys drawn from Redis to be measured."
    )


class JobSettings(ClusterSettings, DatasetSettings):
    """Settings of the main job; every step takes the same ones, so that results agree."""

    profile: Literal["one-machine", "spark"] = Field(
        "one-machine",
        description="Where feature expressions, point-in-time joins and materialization run: here, "
        "in DuckDB and Arrow, or on Spark (docs/scale.md).",
    )
    spark_master: str = Field(
        "local[*,4]",
        pattern=r"^(local|spark|k8s|yarn|mesos)\S*$",
        description="Master of the profile spark, as Spark writes it: spark://host:7077, yarn, "
        "local[*,4] (here, each task tried 4 times).",
    )
    python_views: Literal["refuse", "here"] = Field(
        "refuse",
        description="Views that Spark cannot compute (post_conversion), under the profile spark: "
        "stop before any work, or compute them on this machine.",
    )
    shards: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Into how many ranges of ids the embedding and the scoring of a dataset are "
        "cut; each is kept as it is finished, so that a killed run goes on from there. By default "
        "1, and 4 for each core of Spark.",
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Shards done at a time on one machine, each by a process with its own memory; "
        "by default 1 for embedding, which uses all processors by itself, and one for each "
        "processor for scoring.",
    )
    data: Path | None = Field(
        None,
        description="Folder that relative paths in the description start at; by default the "
        "description's own folder, or what it fetches.",
    )
    until: Moment | None = Field(
        None,
        description="Window of data: events from this moment (UTC) on are left for a later run. "
        "Windows are run in order of time; the same one again changes nothing.",
    )
    drop_orphans: bool = Field(
        False, description="Leave out events whose user or post is not listed, instead of stopping."
    )
    quarantine_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Share of a raw table's rows that the gates may set aside for one reason "
        "(into reports/quarantine, with the reason) instead of stopping; 0: any such row stops.",
    )
    accept_changes: bool = Field(
        False,
        description="The source differs from what the lake knows on purpose: the gate raw_changes "
        "reports and does not stop.",
    )
    text_model: str = Field(
        EMBEDDED_MODEL,
        description="Text encoder of any number of dimensions: the packaged one, a folder of "
        "sentence-transformers or transformers, or a name that they know.",
    )
    text_pooling: Pooling = Field(
        "model",
        description="How the tokens of a text become one vector: their mean, the first one (cls), "
        "or as the model says.",
    )
    refit_clusters: bool = Field(
        False,
        description="Fit the clusters of posts anew, though the stored ones hold; they keep their "
        "numbers.",
    )
    image_model: str = Field(
        EMBEDDED_IMAGE_MODEL,
        description="Image encoder: the packaged one, or a local folder with a vision model of "
        "transformers.",
    )
    test_share: float = Field(
        0.1, gt=0, le=0.5, description="Share of the positive events, the latest, that is the test."
    )
    label_slices: int = Field(
        4,
        ge=2,
        le=20,
        description="Label slices before the test; the ranker learns on them, the last one is "
        "the validation on which models are chosen.",
    )
    slice_share: float = Field(
        0.1, gt=0, le=0.4, description="Share of the positive events in each label slice."
    )
    candidates_per_source: int = Field(
        100, ge=10, le=1000, description="Posts that each candidate source proposes for a user."
    )
    users_per_slice: int = Field(
        300,
        ge=10,
        le=100_000,
        description="Users of each label slice that the ranker learns on; more are sampled.",
    )
    test_users: int = Field(
        10_000,
        ge=10,
        le=10_000_000,
        description="Users of the test slice that lists are measured on; more are sampled.",
    )
    as_of: Moment | None = Field(
        None,
        description="Moment (UTC) that online features and recommendations are for; by default "
        "now, or the last event's time if that is more than 28 days ago.",
    )
    ablation: bool = Field(
        True,
        description="Show in the report what the ranker loses on validation without each group "
        "of inputs; takes some seconds.",
    )
    training_from: Literal["history", "impressions"] = Field(
        "history",
        description="Where the ranker's examples come from: candidates of past moments with "
        "features joined point in time, or the service's impression log with features as served.",
    )
    impression_log: Path | None = Field(
        None,
        description="Folder of the impression log; by default impressions/ in the dataset's "
        "state folder.",
    )
    impression_label_hours: float = Field(
        24.0,
        gt=0,
        le=24 * 365,
        description="A shown post counts as liked if that happens so soon after the request.",
    )
    max_metric_drop: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Relative fall of NDCG@10 against the published bundle that the model gate "
        "allows.",
    )
    drift_gate: Literal["off", "warn", "stop"] = Field(
        "off",
        description="What publish does where the ranker's inputs drifted since training: not "
        "look, warn, or stop.",
    )
    drift_thresholds: dict[str, float] = Field(
        default_factory=dict,
        description='Least drift that counts, as JSON: "psi" (0.2 by default) of numbers and '
        'categories, "auc" (0.65) of vectors, or a feature\'s name for that feature alone.',
    )
    drift_rows: int = Field(
        10_000,
        ge=100,
        le=1_000_000,
        description="Users, and posts, that drift is measured on; more are sampled.",
    )
    keep_generations: int = Field(
        2,
        ge=2,
        le=100,
        description="Published generations that are kept for `feastrank rollback`, the current one "
        "included; each holds its lists, and its own features where they differ, in Redis.",
    )
    seed: int = Field(42, ge=0, le=2**31 - 1, description="Seed of everything random.")


class DrainSettings(DatasetSettings):
    """Settings of `feastrank drain`: the dataset, and how long the impression log is kept."""

    impression_log: Path | None = Field(
        None,
        description="Folder of the impression log; by default impressions/ in the dataset's "
        "state folder.",
    )
    keep_impressions_days: float | None = Field(
        None,
        gt=0,
        le=36_500,
        description="Files of the impression log that were written longer ago are removed; by "
        "default none are.",
    )


class SkewSettings(JobSettings):
    """Settings of `feastrank skew`: those of the job, and how much is compared."""

    skew_rows: int = Field(
        20_000,
        ge=1,
        le=10_000_000,
        description="Logged candidates to compare, each with all inputs of the ranker; more are "
        "sampled, whole requests at a time.",
    )
    max_skew: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of a feature's values that may differ through a fault or for no known "
        "cause; beyond it the exit code is 3.",
    )


class ListsSettings(JobSettings):
    """Settings of `feastrank lists`: those of the job that it repeats, and where files go."""

    output: Path | None = Field(
        None, description="Folder of the files; by default lists/ in the dataset's state folder."
    )


class ScoreSettings(JobSettings):
    """Settings of `feastrank score`: those of the job, how many posts, and where files go."""

    top: int = Field(100, ge=1, le=10_000, description="Posts of each user at most.")
    users_per_batch: int = Field(
        1_000,
        ge=1,
        le=100_000,
        description="Users that are ranked at once, whose candidates and features are held in "
        "memory; shards begin at multiples of it.",
    )
    output: Path | None = Field(
        None, description="Folder of the files; by default scores/ in the dataset's state folder."
    )


class VectorsSettings(JobSettings):
    """Settings of `feastrank vectors`: those of the job, and whose vectors are drawn."""

    generator: Literal["two_tower", "als"] = Field(
        "two_tower", description="Generator whose vectors of users and posts are drawn."
    )
    map_posts: int = Field(
        2000, ge=10, le=20_000, description="Most liked posts that the map shows."
    )


class GateSettings(JobSettings):
    """Settings of `feastrank gate propose`: those of the job, and where the file goes."""

    action: CliPositionalArg[Literal["propose"]] = Field(description="What to do: propose.")
    output: Path | None = Field(
        None,
        description="The suite file; by default beside the description, as NAME.gates.toml, where "
        "ingest reads it.",
    )
    force: bool = Field(False, description="Overwrite an existing file.")


class TuneSettings(JobSettings):
    """Settings of `feastrank tune`: those of the job, and how long to search."""

    trials: int = Field(
        30, ge=1, le=100_000, description="Trials of each generator, earlier runs included."
    )
    ranker_trials: int = Field(
        30,
        ge=1,
        le=100_000,
        description="Trials of each ranker and of the choice of sources, earlier runs included.",
    )
    seconds: float = Field(
        120.0,
        gt=0,
        description="Begin no trial of a model after so long; the same command again goes on.",
    )
    jobs: int = Field(
        1,
        ge=1,
        le=256,
        description="Trials at a time; above 1 two runs may find different settings.",
    )
    validation_slices: int = Field(
        2, ge=1, le=19, description="Last label slices that settings are judged on."
    )
    generators: tuple[str, ...] = Field(
        (),
        description="Generators to search, comma-separated; by default those that suit the "
        "dataset and are quick. Also to be had: mult_vae, word2vec, bpr.",
    )
    rankers: tuple[str, ...] = Field(
        ("lightgbm",), min_length=1, description="Rankers to search: lightgbm, catboost."
    )
    output: Path | None = Field(
        None,
        description="File of the best settings; by default tuned.json in the dataset's state "
        "folder, which every step reads.",
    )


class WriteBackSettings(JobSettings):
    """Settings of `feastrank write-back`: which view of the dataset goes into which table."""

    view: str = Field(
        "post_text_clusters", description="Feature view whose latest row per post or user it is."
    )
    connection: str = Field(
        "DATABASE_URL",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the environment variable that holds the PostgreSQL connection.",
    )
    table: str | None = Field(
        None,
        min_length=1,
        description="Table, with its schema unless the search path finds it; made if it is not "
        "there; by default called like the view.",
    )


class FeedSettings(JobSettings):
    """Settings of `feastrank feed`: who asks when, and how much is learnt from."""

    moments: Path | None = Field(
        None,
        description="Parquet file of user_id and timestamp (UTC): who asks, and when. Rankers "
        "learn on what was shown before the first of them.",
    )
    simulated: Path | None = Field(
        None,
        description="Folder of `feastrank simulate`: its moments are asked about, and HitRate@5 is "
        "measured by its taste.",
    )
    impressions: int = Field(
        3_000_000, ge=1_000, description="Latest impressions that are learnt from."
    )
    ranker_impressions: int = Field(
        200_000, ge=1_000, description="How many of them, drawn by chance, CatBoost learns on."
    )
    shortlist: int = Field(
        100,
        ge=5,
        le=10_000,
        description="Posts of a moment that CatBoost orders; fewer where fewer are left.",
    )


class RecommendSettings(DatasetSettings):
    """Settings of `feastrank recommend`, which reads Redis and the published bundle only."""

    user: str = Field(description="The user's id, as in the source.")
    top: int = Field(10, ge=1, le=1000, description="How many posts.")


class ServeSettings(HttpSettings, DatasetSettings):
    """Settings of `feastrank serve`, the HTTP service of one dataset."""


class ConversionSettings(CommandSettings):
    """Settings of `feastrank conversion`: a table of posts, its columns, and how to judge."""

    posts: Path = Field(
        description="CSV or parquet file with a row for each post: its text, views and counts of "
        "activities."
    )
    separator: str = Field(",", min_length=1, max_length=1, description="Separator of a CSV file.")
    text: str = Field("text", description="Column of the text.")
    views: str = Field("views", description="Column of how often the post was shown.")
    activities: tuple[str, ...] = Field(
        (),
        description="Columns of activity counts, comma-separated, each alone or as name=column, "
        "such as like=likes; by default those of like, comment, hide, expand, open_photo, open "
        "and share_to_message that the file has.",
    )
    id: str | None = Field(None, description="Column of the post's id; by default the row number.")
    topic: str | None = Field(None, description="Column of the topic, if there is one.")
    time: str | None = Field(
        None,
        description="Column of when the post appeared (UTC): posts are then judged by models of "
        "earlier ones.",
    )
    image: str | None = Field(
        None, description="Column of pictures: base64, paths of files, or bytes (parquet)."
    )
    weights: dict[str, float] = Field(
        {},
        description="Weights of activities in the target, as like=1.8,comment=4; by default those "
        "of `pipelines.conversion.targets`, and 1 for others.",
    )
    weighting: Literal["overdispersed", "views"] = Field(
        "overdispersed",
        description="What a post counts while models learn: less than its views when posts differ "
        "by more than chance, or just its views.",
    )
    folds: int = Field(5, ge=2, le=20, description="Folds of the cross-validation.")
    iterations: int = Field(
        1000, ge=10, le=10_000, description="Trees at most; how many is found inside each fold."
    )
    refits: int = Field(
        30, ge=10, le=1000, description="Refits on resampled posts behind each piece of advice."
    )
    text_model: str = Field(
        EMBEDDED_MODEL, description="Sentence encoder, as in `feastrank features`."
    )
    image_model: str = Field(
        EMBEDDED_IMAGE_MODEL, description="Image encoder, as in `feastrank features`."
    )
    home: Path = Field(
        default_factory=workspace.home, description="State folder, whose embeddings are reused."
    )
    output: Path = Field(
        Path("conversion"), description="Folder of the page, the figures and the predictions."
    )
    seed: int = Field(42, ge=0, le=2**31 - 1, description="Seed of everything random.")


class InitSettings(CommandSettings):
    """Settings of `feastrank init`, which proposes a dataset description from files."""

    events: Path = Field(description="File of events: one user, one post, one time a row.")
    users: Path | None = Field(None, description="File of users; optional.")
    posts: Path | None = Field(None, description="File of posts; optional.")
    name: str | None = Field(None, description="The dataset's name; by default from the folder.")
    output: Path = Field(Path("dataset.toml"), description="Where the description is written.")
    force: bool = Field(False, description="Overwrite an existing file.")

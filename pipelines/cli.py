"""The command line ``feastrank``: one command per step, and all of them in order."""

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import ValidationError as SettingsError
from pydantic_settings import BaseSettings, CliApp
from pydantic_settings import SettingsError as SourceError
from rich.console import Console

from feastpack.errors import FeastpackError
from feature_repo.dataset import Dataset, DatasetError
from feature_repo.workspace import Workspace
from pipelines.errors import BusyError, PipelineError
from pipelines.lock import only_run
from pipelines.startup import prepare_for_feast
from serving.errors import ServingError
from validation.errors import ValidationError

EXPECTED_ERRORS = (DatasetError, FeastpackError, PipelineError, ServingError, ValidationError)
# What a scheduler must tell apart has an exit code of its own: a gate stopped the run, so that
# trying again is of no use; another run is at work, so that it is.
EXIT_ERROR, EXIT_USAGE, EXIT_GATE, EXIT_BUSY = 1, 2, 3, 4


@dataclass(frozen=True)
class Command:
    """One command.

    Parameters
    ----------
    summary
        A line for the overview.
    settings
        ``module:class`` of its settings; imported when the command runs or tells its flags.
    function
        ``module:function`` that takes the settings and a console; imported when it runs.
    is_exclusive
        Whether it changes the dataset's state, so that only one such command may run at a time.
    """

    summary: str
    settings: str
    function: str
    is_exclusive: bool = False

    def settings_class(self) -> type[BaseSettings]:
        """Import the class of the settings."""
        found: type[BaseSettings] = _named(self.settings)
        return found

    def load(self) -> Callable[[Any, Console], None]:
        """Import the function; with Feast and the models' libraries, so it takes seconds."""
        prepare_for_feast()
        found: Callable[[Any, Console], None] = _named(self.function)
        return found


def _step(name: str, summary: str) -> Command:
    function = f"pipelines.commands:{name}"
    return Command(summary, "pipelines.settings:JobSettings", function, is_exclusive=True)


COMMANDS = {
    "run": _step("run", "All steps in order; only what changed runs again."),
    "demo": Command(
        "All steps, then the service asked over HTTP before and after a like.",
        "pipelines.settings:JobSettings",
        "pipelines.demo:demo",
        is_exclusive=True,
    ),
    "ingest": _step("ingest", "Source files through the raw gates into the lake."),
    "features": _step("features", "Lake to gated feature tables."),
    "embed": Command(
        "Embeddings of texts and pictures, in shards; `features` takes what is finished.",
        "pipelines.settings:JobSettings",
        "pipelines.job.embed:command",
        is_exclusive=True,
    ),
    "apply": _step("apply", "Register entities, views and services with Feast."),
    "train": _step("train", "Candidates, training set (point in time), rankers."),
    "evaluate": _step("evaluate", "Metrics on the test slice, report, gate of the model."),
    "materialize": _step("materialize", "Latest features into Redis."),
    "publish": _step("publish", "Lists into Redis and one bundle; flips what is served."),
    "tune": Command(
        "Search settings of sources and rankers on slices before the test; resumable.",
        "pipelines.settings:TuneSettings",
        "pipelines.commands:tune",
        is_exclusive=True,
    ),
    "recommend": Command(
        "Recommendations for one user, from Redis and the published bundle.",
        "pipelines.settings:RecommendSettings",
        "pipelines.commands:recommend",
    ),
    "lists": Command(
        "All lists as parquet files: popular, personal, similar, content, final.",
        "pipelines.settings:ListsSettings",
        "pipelines.commands:lists",
    ),
    "score": Command(
        "The final list of every user, in shards: parquet files with your own ids.",
        "pipelines.settings:ScoreSettings",
        "pipelines.job.score:command",
        is_exclusive=True,
    ),
    "serve": Command(
        "The HTTP service: recommend, rank, similar, events, features, metrics.",
        "pipelines.settings:ServeSettings",
        "pipelines.serve:serve",
    ),
    "leakage": Command(
        "Change the future; see whether features or candidates move.",
        "pipelines.settings:JobSettings",
        "pipelines.commands:leakage",
    ),
    "drift": Command(
        "Inputs of the ranker: the training window against today's data and what was served.",
        "pipelines.settings:JobSettings",
        "pipelines.monitoring.commands:drift",
    ),
    "vectors": Command(
        "Pictures of a generator's vectors: liked against random pairs, a map of posts.",
        "pipelines.settings:VectorsSettings",
        "pipelines.job.vectors:draw",
    ),
    "skew": Command(
        "Served features, from the impression log, against a point-in-time join.",
        "pipelines.settings:SkewSettings",
        "pipelines.monitoring.commands:skew",
    ),
    "report": Command(
        "One page: runs, gates, generations, freshness, drift, skew, metrics over time.",
        "pipelines.settings:JobSettings",
        "pipelines.monitoring.commands:report",
    ),
    "drain": Command(
        "Events that the service was told of, out of Redis into files that ingest reads.",
        "pipelines.settings:DrainSettings",
        "pipelines.drain:drain",
    ),
    "rollback": Command(
        "Serve the generation before the published one again.",
        "pipelines.settings:DatasetSettings",
        "pipelines.commands:rollback",
    ),
    "fetch": Command(
        "Bring what was published last to object storage into the state folder.",
        "pipelines.settings:DatasetSettings",
        "pipelines.commands:fetch",
        is_exclusive=True,
    ),
    "feed": Command(
        "Top 5 of all posts for users at moments, by rankers that learnt on impressions.",
        "pipelines.settings:FeedSettings",
        "pipelines.job.moments:feed",
    ),
    "write-back": Command(
        "A feature view's latest rows into a table of PostgreSQL, in one transaction.",
        "pipelines.settings:WriteBackSettings",
        "pipelines.write_back:write_back",
    ),
    "init": Command(
        "Propose a dataset description from your files.",
        "pipelines.settings:InitSettings",
        "pipelines.commands:init",
    ),
    "simulate": Command(
        "A social feed of any size with a known taste: tables, description, truth.",
        "pipelines.simulation.settings:SimulateSettings",
        "pipelines.simulation.command:simulate_feed",
    ),
    "conversion": Command(
        "What makes posts convert: rates per view, how far text and picture tell, advice.",
        "pipelines.settings:ConversionSettings",
        "pipelines.conversion.command:conversion",
    ),
    "doctor": Command(
        "What is installed, reachable, published, stale.",
        "pipelines.settings:DatasetSettings",
        "pipelines.doctor:doctor",
    ),
    "capacity": Command(
        "Memory, nodes, cores and refresh time for so many users and posts, from measurements.",
        "pipelines.settings:CapacitySettings",
        "pipelines.capacity:capacity",
    ),
    "gate": Command(
        "`gate propose`: write a suite file with bounds from the data, to be reviewed.",
        "pipelines.settings:GateSettings",
        "pipelines.job.propose_gates:gate",
    ),
    "stop": Command(
        "Stop the embedded Redis, if a killed run left it running.",
        "pipelines.settings:DatasetSettings",
        "pipelines.commands:stop",
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code.

    0 done, 1 an error with its message, 2 wrong usage, 3 stopped by a gate, 4 another run is at
    work.
    """
    # Idle OpenMP threads that spin starve the others wherever cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    arguments = sys.argv[1:] if arguments is None else arguments
    # Piped into a file there is no width to keep to; a table then takes what it needs.
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _overview(console)
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        _complain(f"unknown command {arguments[0]!r}; expected one of {', '.join(COMMANDS)}")
        return EXIT_USAGE
    return _run(arguments[0], command, arguments[1:], console)


def _run(name: str, command: Command, arguments: list[str], console: Console) -> int:
    try:
        settings = CliApp.run(
            _titled(command.settings_class(), name, command.summary),
            cli_args=arguments,
            cli_exit_on_error=True,
        )
    except (SettingsError, SourceError) as error:
        _complain(f"{name}: {_settings_problem(error)}; see `feastrank {name} --help`")
        return EXIT_USAGE
    try:
        function = command.load()
        with _alone(name, command, settings):
            function(settings, console)
    except BusyError as error:
        _complain(str(error))
        return EXIT_BUSY
    except ValidationError as error:
        _complain(f"stopped by a gate; nothing was published.\n{error}")
        return EXIT_GATE
    except _expected() as error:
        _complain(str(error))
        return EXIT_ERROR
    except KeyboardInterrupt:
        _complain("interrupted; run the same command again to resume")
        return 130
    return 0


def _expected() -> tuple[type[Exception], ...]:
    """Return the errors whose message is all that a user needs."""
    # Feast takes seconds to import, which help need not pay; if it is not there, it raised nothing.
    feast = sys.modules.get("feast.errors")
    return EXPECTED_ERRORS if feast is None else (*EXPECTED_ERRORS, feast.FeastError)


def _alone(name: str, command: Command, settings: Any) -> AbstractContextManager[None]:
    """Lock the dataset's state for a command that changes it."""
    if not command.is_exclusive:
        return nullcontext()
    # Feast takes seconds to import, which the overview need not pay.
    from pipelines.job.context import description_path

    dataset = Dataset.read(description_path(settings)).name
    return only_run(dataset, Workspace(settings.home.resolve(), dataset).root, name)


def _titled(settings: type[BaseSettings], name: str, summary: str) -> type[BaseSettings]:
    """Return the settings class with the command's own name and help."""
    config = {"cli_prog_name": f"feastrank {name}", "cli_hide_none_type": True}
    return type(
        settings.__name__,
        (settings,),
        {
            "__doc__": summary,
            "model_config": {**settings.model_config, **config},
            "__module__": __name__,
        },
    )


def _settings_problem(error: Exception) -> str:
    if not isinstance(error, SettingsError):
        return str(error)
    problems = []
    for one in error.errors():
        flag = "--" + ".".join(map(str, one["loc"])).replace("_", "-")
        missing = one["type"] == "missing"
        problems.append(f"{flag} is missing" if missing else f"{flag} {one['input']}: {one['msg']}")
    return "; ".join(problems)


def _overview(console: Console) -> None:
    console.print("feastrank: recommendations from your Feast feature store\n", highlight=False)
    console.print("usage: feastrank COMMAND [--flags]\n", highlight=False, markup=False)
    for name, command in COMMANDS.items():
        console.print(f"  [bold]{name:<12}[/] {command.summary}", highlight=False)
    console.print("\n`feastrank COMMAND --help` lists a command's flags.", highlight=False)


def _complain(message: str) -> None:
    Console(stderr=True, soft_wrap=True).print(
        f"feastrank: {message}", style="red", highlight=False, markup=False
    )


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


if __name__ == "__main__":
    sys.exit(main())

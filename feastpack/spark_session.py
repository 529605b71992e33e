"""The Spark session of this process, started with checks that name what is wrong.

Spark's own answers to a missing Java, or to a master that nobody listens at, come late and as a
page of Java; these come before work starts and say what to do.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feastpack.errors import SparkError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MASTER = "spark.master"
_TIME_ZONE = "spark.sql.session.timeZone"
_STANDALONE = "spark://"
_CONNECT_SECONDS = 5.0


def check_spark(conf: Mapping[str, str]) -> None:
    """Check what a session of these settings needs, without starting one.

    Raises
    ------
    SparkError
        If PySpark or Java is missing, or no master answers at its address.
    """
    if find_spec("pyspark") is None:
        raise SparkError(
            "PySpark is not installed; run `pip install -r requirements-spark.lock` (`make "
            "test-spark` does), or `pip install 'feastrank[spark]'`"
        )
    if not _has_java():
        raise SparkError(
            "Spark needs Java 17 or later, and there is none: no bin/java below JAVA_HOME "
            f"({os.environ.get('JAVA_HOME') or 'not set'}) and no java in PATH; install "
            "openjdk-17-jre-headless, or set JAVA_HOME"
        )
    master = conf.get(MASTER, "")
    if master.startswith(_STANDALONE):
        _require_master(master)


def spark_session(conf: Mapping[str, str]) -> SparkSession:
    """Return the running session, or start one.

    A session that runs already keeps its settings, as everywhere in Spark.

    Parameters
    ----------
    conf
        Spark's settings by name, ``spark.master`` among them.

    Raises
    ------
    SparkError
        If `check_spark` finds something, Spark does not start, or its time zone is not UTC.
    """
    check_spark(conf)
    from pyspark import SparkConf
    from pyspark.sql import SparkSession

    # Said of Feast's store with every query; what it answers is tested against another store.
    warnings.filterwarnings("ignore", "The spark offline store is an experim", RuntimeWarning)
    session = SparkSession.getActiveSession()
    if session is None:
        if conf.get(MASTER, "").startswith("local"):
            # Spark takes the first python3 in PATH, which need not have these packages.
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        with spark_failures(f"starting Spark at {conf.get(MASTER, 'the default master')}"):
            builder = SparkSession.builder.config(conf=SparkConf().setAll(list(conf.items())))
            session = builder.getOrCreate()
    zone = session.conf.get(_TIME_ZONE)
    if zone not in ("UTC", "Etc/UTC"):
        raise SparkError(
            f"Spark's session has {_TIME_ZONE} {zone}, and times would be read as that; set it "
            "to UTC in offline_store.spark_conf of feature_store.yaml"
        )
    return session


def is_on_this_machine(session: SparkSession) -> bool:
    """Return whether all executors run on this machine."""
    return str(session.conf.get(MASTER)).startswith("local")


@contextlib.contextmanager
def spark_failures(doing: str) -> Iterator[None]:
    """Raise what fails in Spark as an error of one paragraph.

    Raises
    ------
    SparkError
        If Spark, or a task of it, fails for good.
    """
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as error:
        text = str(error)
        raise SparkError(f"{doing}: {_cause(text)}; {_advice(text)}") from error


def _has_java() -> bool:
    home = os.environ.get("JAVA_HOME")
    if home:
        return shutil.which("java", path=str(Path(home) / "bin")) is not None
    return shutil.which("java") is not None


def _require_master(master: str) -> None:
    """Raise unless one of the masters (``spark://host:port,host:port``) takes a connection."""
    refusals = []
    for address in master.removeprefix(_STANDALONE).split(","):
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise SparkError(f"{MASTER} {master!r}: expected spark://host:port, found {address!r}")
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            refusals.append(f"{address}: {error}")
        else:
            return
    raise SparkError(
        f"no Spark master answers at {master} ({'; '.join(refusals)}); start it, or correct "
        f"{MASTER}"
    )


# What Spark says, and what helps; the first that is found counts.
_ADVICE: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("OutOfMemoryError", "Container killed", "exited unexpectedly", "ExecutorLostFailure"),
        "a process of Spark died, most likely for want of memory: raise spark.executor.memory and "
        "spark.executor.memoryOverhead (spark.driver.memory with a local master), or raise "
        "spark.sql.shuffle.partitions, then run it again",
    ),
    (
        ("OnlineStoreError", "ConnectionError"),
        "the executors must reach Redis; what was written is sound, so correct it and run it again",
    ),
    (
        ("No module named",),
        "the executors' Python needs the same packages as this one: set PYSPARK_PYTHON to it",
    ),
)


_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception): ")
_JAVA = ("org.apache.", "java.", "py4j.", "pyspark.")


def _advice(text: str) -> str:
    for signs, advice in _ADVICE:
        if any(sign in text for sign in signs):
            return advice
    return "see Spark's log"


def _cause(text: str) -> str:
    """Return the line of a Java or Python stack trace that tells most."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("at ", "File ", "Traceback", "..."))]
    # A Python worker's own error ends its traceback; else Spark's first lines say it.
    python = [line for line in said if _RAISED.match(line) and not line.startswith(_JAVA)]
    if python:
        return _short(python[-1])
    job = [line for line in said if "Job aborted" in line]
    chosen = job[0] if job else (said[0] if said else "no reason given")
    return _short(chosen)


def _short(line: str, most: int = 600) -> str:
    return line if len(line) <= most else line[:most] + " …"


def settings_of(config: Any) -> dict[str, str]:
    """Return the session's settings from Feast's configuration (``offline_store.spark_conf``)."""
    return dict(getattr(config.offline_store, "spark_conf", None) or {})

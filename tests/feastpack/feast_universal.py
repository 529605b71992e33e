"""What Feast's own universal tests need to know to run against the three classes.

Read by Feast's test suite, not by ours: it names this module in the environment variable
``FULL_REPO_CONFIGS_MODULE`` (docs/feastpack.md says how) and imports it in a checkout of
Feast's repository, where the package ``tests.universal`` is. Redis is taken from
``FEASTPACK_REDIS``, a connection string; ``127.0.0.1:6379`` if it is not set.
"""

from __future__ import annotations

import os
from dataclasses import fields

from tests.universal.feature_repos.integration_test_repo_config import IntegrationTestRepoConfig
from tests.universal.feature_repos.universal.data_sources.file import FileDataSourceCreator

from feastpack.offline import AsofDuckDBOfflineStoreConfig


class AsofFiles(FileDataSourceCreator):  # type: ignore[misc]
    """Parquet files, read by AsofDuckDBOfflineStore."""

    def create_offline_store_config(self) -> AsofDuckDBOfflineStoreConfig:
        return AsofDuckDBOfflineStoreConfig()


AVAILABLE_OFFLINE_STORES = [("local", AsofFiles)]
_ONLINE = {
    "type": "feastpack.PackedRedisOnlineStore",
    "connection_string": os.environ.get("FEASTPACK_REDIS", "127.0.0.1:6379"),
    # Some of its rows are of 2022, in views with a ttl: it expects them to be served.
    "honour_ttl": False,
}
# Under the name "redis", so that the tests that Feast runs on Redis alone run too.
AVAILABLE_ONLINE_STORES = {"redis": (_ONLINE, None)}

# The suite lets modules choose stores but no engine, so the default of its settings is ours.
_settings = IntegrationTestRepoConfig.__init__
_settings.__defaults__ = tuple(
    {"type": "feastpack.ArrowComputeEngine"} if field.name == "batch_engine" else default
    for field, default in zip(
        fields(IntegrationTestRepoConfig), _settings.__defaults__ or (), strict=True
    )
)

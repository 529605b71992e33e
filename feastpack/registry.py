"""A registry in a file that is never half written.

Feast's own file store truncates the registry and then writes it, so a process killed in between
leaves one that nothing can read; and it makes no folder but the last one of the path.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from uuid import uuid4

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto


class AtomicFileRegistryStore(FileRegistryStore):  # type: ignore[misc]
    """Feast's file registry; readers see the old registry or the new one, also after a kill.

    Named by ``registry_store_type: feastpack.AtomicFileRegistryStore`` under ``registry:``.
    """

    def _write_registry(self, registry_proto: RegistryProto) -> None:
        registry_proto.version_id = str(uuid4())
        registry_proto.last_updated.FromDatetime(datetime.now(UTC))
        self._filepath.parent.mkdir(parents=True, exist_ok=True)
        partial = self._filepath.with_name(f".{self._filepath.name}.tmp")
        with partial.open("wb") as file:
            file.write(registry_proto.SerializeToString())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._filepath)

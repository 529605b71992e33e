"""From feature columns to the ranker's input matrix; the same code in training and in serving."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contract import Contract
from serving.errors import ContractError


@dataclass(frozen=True)
class InputEncoder:
    """Turns columns into a float32 matrix in the contract's order.

    Parameters
    ----------
    contract
        The ordered inputs.
    categories
        Per string input, its known values; a value's code is its position. Inputs that are
        categories but numbers already (``text_cluster``) are their own codes.
    """

    contract: Contract
    categories: Mapping[str, tuple[str, ...]]

    @classmethod
    def fit(cls, contract: Contract, table: pa.Table) -> "InputEncoder":
        """Learn the values of the string inputs from a training set, in sorted order."""
        strings = [i.name for i in contract.inputs if i.dtype == "String"]
        return cls(
            contract,
            {
                name: tuple(sorted(pc.unique(table[name].drop_null()).to_pylist()))
                for name in strings
            },
        )

    def encode(self, table: pa.Table) -> NDArray[np.float32]:
        """Return the inputs as a matrix.

        Parameters
        ----------
        table
            n rows with at least the contract's inputs as columns.

        Returns
        -------
        float32 array of shape (n, inputs); NaN for null and for categories never seen.

        Raises
        ------
        ContractError
            If an input is missing.
        """
        present = set(table.column_names)
        missing = [name for name in self.contract.names if name not in present]
        if missing:
            raise ContractError(
                f"ranker inputs: {len(missing)} of {len(self.contract.names)} columns are missing "
                f"({', '.join(missing[:5])}); run `feastrank apply` and `feastrank train` so that "
                "features and model agree"
            )
        matrix = np.empty((table.num_rows, len(self.contract.inputs)), dtype=np.float32)
        for position, name in enumerate(self.contract.names):
            column = table[name]
            if name in self.categories:
                column = pc.index_in(
                    column.cast(pa.string()), pa.array(self.categories[name], pa.string())
                )
            matrix[:, position] = column.cast(pa.float32(), safe=False).to_numpy()
        return matrix

    @classmethod
    def load(cls, path: Path, contract: Contract) -> "InputEncoder":
        """Read the known categories from a json file that holds what `to_json` returned."""
        categories = json.loads(path.read_text(encoding="utf-8"))
        return cls(contract, {name: tuple(values) for name, values in categories.items()})

    def to_json(self) -> dict[str, Any]:
        """Return the known categories as JSON types."""
        return {name: list(values) for name, values in self.categories.items()}

"""The OpenMP runtime for LightGBM and implicit where the system has none."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

from serving.errors import MissingOpenMPError

_LIBRARY = "libgomp.so.1"


def ensure_openmp() -> Path | None:
    """Make ``libgomp.so.1`` loadable; call it before importing lightgbm or implicit.

    Their wheels expect the system to have the library, and a bare Debian does not. The copy in
    torch's wheel is then loaded under the same name, so that the loader takes it for theirs.

    Returns
    -------
    pathlib.Path or None
        The copy that was loaded; None if the system's own serves.

    Raises
    ------
    MissingOpenMPError
        Neither the system nor torch's wheel has a loadable copy.
    """
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError as error:
        return _preload(_carried_by_torch(), error)
    return None


def _carried_by_torch() -> Path | None:
    """Find the copy without importing torch, which takes seconds."""
    torch = importlib.util.find_spec("torch")
    for folder in (torch.submodule_search_locations or []) if torch else []:
        path = Path(folder) / "lib" / _LIBRARY
        if path.is_file():
            return path
    return None


def _preload(path: Path | None, system_error: OSError) -> Path:
    if path is None:
        raise MissingOpenMPError(
            f"{_LIBRARY} (OpenMP, needed by LightGBM and implicit): {system_error}; and no torch "
            "wheel is installed to borrow it from; install the system package libgomp1"
        ) from system_error
    try:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise MissingOpenMPError(
            f"{path}: cannot be loaded ({error}); install the system package libgomp1"
        ) from error
    return path

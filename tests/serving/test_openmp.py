import ctypes
import ctypes.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.errors import MissingOpenMPError
from serving.openmp import _carried_by_torch, _preload, ensure_openmp

# Hides every libgomp.so.1 that the loader knows, in a mount namespace of its own.
HIDE = """
set -e
for file in $(ldconfig -p | awk '/libgomp\\.so\\.1/ {print $NF}'); do
    mount --bind /dev/null "$(readlink -f "$file")"
done
exec "$0" -c "$1"
"""


def run_without_system_openmp(code):
    if not shutil.which("unshare"):
        pytest.skip("needs the unshare command")
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system allows no mount namespaces")
    return subprocess.run(
        [*command, "sh", "-c", HIDE, sys.executable, code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def test_the_hidden_library_is_really_hidden():
    found = run_without_system_openmp("import lightgbm")
    assert found.returncode != 0
    assert "libgomp.so.1" in found.stderr


def test_without_a_system_library_the_copy_in_torch_serves():
    found = run_without_system_openmp(
        "import sys\n"
        "from serving.openmp import ensure_openmp\n"
        "print(ensure_openmp())\n"
        "assert 'torch' not in sys.modules\n"
        "import numpy as np, lightgbm, implicit.cpu.als\n"
        "data = lightgbm.Dataset(np.arange(100.0)[:, None], np.arange(100.0))\n"
        "lightgbm.train({'verbosity': -1}, data, 2)\n"
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == str(_carried_by_torch())


def test_the_systems_own_library_is_preferred():
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        pytest.skip("this system has no libgomp.so.1")
    assert ensure_openmp() is None


def test_no_library_anywhere_says_what_to_install(tmp_path):
    with pytest.raises(MissingOpenMPError, match=r"no torch wheel .* install .* libgomp1"):
        _preload(None, OSError("cannot open shared object file"))
    broken = tmp_path / "libgomp.so.1"
    broken.write_bytes(b"not a library")
    with pytest.raises(MissingOpenMPError, match=r"cannot be loaded .* install .* libgomp1"):
        _preload(broken, OSError("cannot open shared object file"))

"""The MGET command is what redis-py would have sent."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from redis.connection import PythonRespSerializer

from feastpack.rows import uniform_binary
from feastpack.wire import mget_command

KEYS = st.lists(st.binary(max_size=12), max_size=5)
SHAPES = st.tuples(st.integers(0, 4), st.integers(0, 300))


@given(st.lists(KEYS, max_size=3), SHAPES)
def test_same_command_as_redis_py(variable: list[list[bytes]], shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    keys = [pa.array(part, pa.binary()) for part in variable]
    listed = [key for part in variable for key in part] + uniform_binary(matrix).to_pylist()
    theirs = PythonRespSerializer(6000, lambda value: value).pack("MGET", *listed)  # type: ignore[no-untyped-call]
    assert mget_command([*keys, matrix]) == b"".join(theirs)


def test_a_slice_of_keys_is_the_slice() -> None:
    keys = pa.array([b"a", b"bb", b"ccc", b"d"], pa.binary()).slice(1, 2)
    assert mget_command([keys]) == b"*3\r\n$4\r\nMGET\r\n$2\r\nbb\r\n$3\r\nccc\r\n"

"""The MGET command is what redis-py would have sent."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.connection import PythonRespSerializer

from feastpack.rows import uniform_binary
from feastpack.wire import mget_command

KEY = st.binary(max_size=12)
# Few keys and many are laid out in different ways.
KEYS = st.lists(KEY, max_size=5) | st.lists(KEY, min_size=17, max_size=20)
SHAPES = st.tuples(st.integers(0, 4), st.integers(0, 300))


@given(st.lists(KEYS, max_size=3), SHAPES)
def test_same_command_as_redis_py(variable: list[list[bytes]], shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    keys = [pa.array(part, pa.binary()) for part in variable]
    listed = [key for part in variable for key in part] + uniform_binary(matrix).to_pylist()
    theirs = PythonRespSerializer(6000, lambda value: value).pack("MGET", *listed)  # type: ignore[no-untyped-call]
    assert mget_command([*keys, matrix]) == b"".join(theirs)


@pytest.mark.parametrize("count", [2, 40])
def test_a_slice_of_keys_is_the_slice(count: int) -> None:
    keys = pa.array([b"%d" % number for number in range(100)], pa.binary())
    wanted = b"".join(b"$2\r\n%d\r\n" % number for number in range(10, 10 + count))
    assert mget_command([keys.slice(10, count)]) == b"*%d\r\n$4\r\nMGET\r\n" % (count + 1) + wanted

"""Rows that break an expectation of severity "quarantine" are set aside, up to a share."""

from datetime import UTC, datetime
from pathlib import Path

import great_expectations.expectations as gxe
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from great_expectations.core import ExpectationSuite

from validation.expectations import expect, quarantining
from validation.gate import GateFailure, Quarantine, run_gate
from validation.suites import vocabulary as v

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TABLE = pa.table(
    {
        "user_id": ["a", "b", None, "d", "e"],
        "post_id": ["p", "q", "p", "missing", "q"],
        "value": [1.0, 2.0, 99.0, 4.0, 5.0],
    }
)
POSTS = pa.table({"post_id": ["p", "q"]})


def suite(max_share: float) -> ExpectationSuite:
    return quarantining(
        ExpectationSuite(
            "raw",
            expectations=[
                v.is_present("user_id", "give it one"),
                v.exists_in("post_id", "posts", "post_id", "fix the source"),
                v.lies_between("value", 0, 10, "check the unit"),
                v.has_rows(2, "rows", "add some"),
            ],
        ),
        max_share,
    )


def test_rows_at_fault_are_written_with_every_reason_and_the_others_go_on(tmp_path: Path):
    split = Quarantine(tmp_path / "kept.parquet", tmp_path / "aside" / "raw.parquet")
    result = run_gate(
        suite(0.2), TABLE, docs=tmp_path, now=NOW, references={"posts": POSTS}, quarantine=split
    )
    assert result.success
    assert result.quarantined == 2
    assert result.quarantine == str(split.removed)
    assert {check.column for check in result.set_aside} == {"user_id", "post_id", "value"}
    assert pq.read_table(split.kept).equals(TABLE.take([0, 1, 4]))
    aside = pq.read_table(split.removed).to_pylist()
    assert [row["row_position"] for row in aside] == [2, 3]
    assert aside[0]["reason"] == (
        "user_id must not be null; value must be at least 0 and at most 10"
    )
    assert aside[1]["reason"] == "post_id must exist in posts"
    assert aside[1]["post_id"] == "missing"


def test_more_than_the_bound_stops_the_run_and_nothing_is_split(tmp_path: Path):
    split = Quarantine(tmp_path / "kept.parquet", tmp_path / "raw.parquet")
    with pytest.raises(GateFailure, match="1 of 5 rows fail, more than the share of"):
        run_gate(
            suite(0.1), TABLE, docs=tmp_path, now=NOW, references={"posts": POSTS}, quarantine=split
        )
    assert not split.kept.exists()
    assert not split.removed.exists()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_without_a_place_for_them_such_rows_stop_the_run(share: float, tmp_path: Path):
    with pytest.raises(GateFailure, match="user_id must not be null: 1 of 5 rows fail"):
        run_gate(suite(share), TABLE, docs=tmp_path, now=NOW, references={"posts": POSTS})


def test_what_is_not_about_single_rows_is_never_set_aside(tmp_path: Path):
    mean = expect(
        gxe.ExpectColumnMeanToBeBetween,
        says="the mean must be small",
        fix="",
        severity="quarantine",
        max_share=0.9,
        column="value",
        max_value=1,
    )
    split = Quarantine(tmp_path / "kept.parquet", tmp_path / "raw.parquet")
    with pytest.raises(GateFailure, match="the mean must be small: found 22"):
        run_gate(
            ExpectationSuite("raw", expectations=[mean]),
            TABLE,
            docs=tmp_path,
            now=NOW,
            quarantine=split,
        )


def test_a_clean_table_removes_what_an_earlier_run_set_aside(tmp_path: Path):
    split = Quarantine(tmp_path / "kept.parquet", tmp_path / "raw.parquet")
    split.removed.write_bytes(b"old")
    good = TABLE.take([0, 1, 4])
    result = run_gate(
        suite(0.2), good, docs=tmp_path, now=NOW, references={"posts": POSTS}, quarantine=split
    )
    assert result.quarantined == 0
    assert not split.removed.exists()

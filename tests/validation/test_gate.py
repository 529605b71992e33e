"""A gate's result, its files, and what it refuses."""

import datetime as dt
import json
import math
import re
import subprocess
import sys

import great_expectations.expectations as gxe
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from great_expectations.core import ExpectationSuite
from great_expectations.expectations.row_conditions import Column

from validation.columns import type_name
from validation.engine import MeasuredTable
from validation.expectations import (
    ExpectColumnListElementsToBeBetween,
    ExpectColumnValuesToBeFinite,
    ExpectColumnValuesToExistInTable,
    expect,
)
from validation.gate import (
    Gate,
    GateFailure,
    MeasuringError,
    SuiteError,
    UnreadableTableError,
    ValidationError,
    run_gate,
)
from validation.judgement import judge

NOW = dt.datetime(2024, 6, 1, tzinfo=dt.UTC)
TABLE = pa.table(
    {
        "user_id": ["u1", "u2", "u3", "u1"],
        "age": [20.0, math.nan, None, math.inf],
        "vector": pa.array([[0.0, 1.0], [2.0], None, [math.nan]], pa.list_(pa.float32())),
        "at": pa.array([NOW] * 4, pa.timestamp("us", "UTC")),
    }
)
UNIQUE = expect(
    gxe.ExpectColumnValuesToBeUnique,
    says="user_id must be unique",
    fix="remove <b>one</b>",
    column="user_id",
)


def suite(*expectations, name="small"):
    return ExpectationSuite(name, expectations=list(expectations))


def outcome(expectation, table=TABLE, references=None):
    with MeasuredTable(table, references) as measured:
        [one] = judge(suite(expectation), measured, [], 20)
    rows = [row["row_position"] for row in one.first_rows]
    return one.result.success, one.result.result.get("unexpected_count"), rows


@pytest.mark.parametrize(
    ("expectation", "expected"),
    [
        (ExpectColumnValuesToBeFinite(column="age"), (False, 2, [1, 3])),
        (ExpectColumnValuesToBeFinite(column="age", mostly=0.3), (True, 2, [1, 3])),
        (ExpectColumnValuesToBeFinite(column="vector"), (False, 1, [3])),
        (
            ExpectColumnListElementsToBeBetween(column="vector", min_value=0, max_value=1),
            (False, 2, [1, 3]),
        ),
        (gxe.ExpectColumnTypeToBe(column="age", type_="double"), (True, None, [])),
        (gxe.ExpectColumnTypeToBe(column="age", type_="float64"), (True, None, [])),
        (gxe.ExpectColumnTypeToBe(column="age", type_="int64"), (False, None, [])),
        (gxe.ExpectColumnTypeToBe(column="at", type_="timestamp[us, tz=UTC]"), (True, None, [])),
        (
            gxe.ExpectColumnValuesToBeInTypeList(column="vector", type_list=["list<float>"]),
            (True, None, []),
        ),
    ],
)
def test_expectations_that_great_expectations_lacks_or_means_otherwise(expectation, expected):
    assert outcome(expectation) == expected


def test_values_must_exist_in_the_other_table_and_nulls_are_not_asked():
    table = pa.table({"post_id": pa.array([1, 2, None, 7, 7], pa.int64())})
    asked = ExpectColumnValuesToExistInTable(
        column="post_id", other_table="posts", other_column="id"
    )
    posts = pa.table({"id": pa.array([1, 2, None], pa.int64())})
    assert outcome(asked, table, {"posts": posts}) == (False, 2, [3, 4])
    assert outcome(asked, table, {"posts": pa.table({"id": pa.array([1, 2, 7])})}) == (True, 0, [])


@pytest.mark.parametrize(
    ("data_type", "name"),
    [
        (pa.large_string(), "string"),
        (pa.dictionary(pa.int32(), pa.string()), "string"),
        (pa.list_(pa.string()), "list<string>"),
        (pa.large_list(pa.large_string()), "list<string>"),
        (pa.timestamp("us", "UTC"), "timestamp[us, tz=UTC]"),
    ],
)
def test_types_are_named_without_their_encoding(data_type, name):
    assert type_name(data_type) == name


def test_arrow_dataset_file_and_hive_folder_give_the_same_result(tmp_path):
    table = pa.table(
        {
            "user_id": [f"u{i % 90}" for i in range(100)],
            "month": [f"2024-0{1 + i // 50}" for i in range(100)],
        }
    )
    pq.write_table(table, tmp_path / "one.parquet", row_group_size=7)
    pads.write_dataset(
        table,
        tmp_path / "many",
        format="parquet",
        partitioning=pads.partitioning(pa.schema([("month", pa.string())]), flavor="hive"),
    )
    found = []
    sources = (table, pads.dataset(tmp_path / "one.parquet"), tmp_path / "one.parquet")
    for source in (*sources, tmp_path / "many"):
        with pytest.raises(GateFailure, match="20 of 100 rows fail") as caught:
            run_gate(suite(UNIQUE), source, docs=tmp_path / "docs", now=NOW)
        found.append([row["row_position"] for row in caught.value.result.checks[0].first_rows])
    assert found == [[*range(10), *range(90, 100)]] * 4


def test_the_result_is_json_and_names_everything(tmp_path):
    with pytest.raises(GateFailure) as caught:
        Gate(suite(UNIQUE), tmp_path).run(TABLE, now=NOW)
    page = tmp_path / "small.html"
    assert str(caught.value) == (
        "gate small: user_id must be unique: 2 of 4 rows fail (first: row 0 user_id=u1; "
        f"row 3 user_id=u1); remove <b>one</b>\nData Docs: {page}"
    )
    written = json.loads((tmp_path / "small.json").read_text())
    assert written == caught.value.result.to_dict()
    assert written["checks"] == [
        {
            "expectation": "expect_column_values_to_be_unique",
            "says": "user_id must be unique",
            "column": "user_id",
            "severity": "stop",
            "max_share": 0.0,
            "success": False,
            "rows": 4,
            "unexpected_count": 2,
            "observed": None,
            "misfit": None,
            "fix": "remove <b>one</b>",
            "first_rows": [
                {"row_position": 0, "user_id": "u1"},
                {"row_position": 3, "user_id": "u1"},
            ],
            "message": "user_id must be unique: 2 of 4 rows fail (first: row 0 user_id=u1; "
            "row 3 user_id=u1); remove <b>one</b>",
        }
    ]


def test_data_docs_name_the_failure_and_load_nothing_from_elsewhere(tmp_path):
    table = TABLE.set_column(0, "user_id", pa.array(["<script>alert(1)</script>"] * 4))
    with pytest.raises(GateFailure, match="user_id must be unique"):
        run_gate(suite(UNIQUE), table, docs=tmp_path, now=NOW)
    run_gate(
        suite(gxe.ExpectColumnToExist(column="age"), name="other"), TABLE, docs=tmp_path, now=NOW
    )
    page, index = ((tmp_path / f).read_text() for f in ("small.html", "index.html"))
    assert "user_id must be unique" in page
    assert "4 unexpected values found" in page
    assert "user_id must be unique: 4 of 4 rows fail" in index
    assert index.index("other.html") < index.index("small.html")
    for html in (page, index):
        assert "://" not in html
        assert not re.search(r"<(script|link|img|iframe)\b", html)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("index.html", "other.html", "other.json", "small.html", "small.json")
    ]


def test_a_broken_warning_is_reported_and_does_not_stop(tmp_path):
    finite = expect(
        ExpectColumnValuesToBeFinite,
        says="age must be finite",
        fix="look",
        severity="warn",
        column="age",
    )
    result = run_gate(suite(finite), TABLE, docs=tmp_path, now=NOW)
    assert result.success
    assert [check.message for check in result.warnings] == [
        "age must be finite: 2 of 4 rows fail (first: row 1 user_id=u2 age=nan; "
        "row 3 user_id=u1 age=inf); look"
    ]


def test_a_column_of_the_wrong_kind_fails_without_an_exception(tmp_path):
    asked = gxe.ExpectColumnValuesToBeBetween(column="user_id", min_value=1)
    with pytest.raises(
        GateFailure, match=r"\(column=user_id, min_value=1\): expected number or time, found type"
    ):
        run_gate(suite(asked), TABLE, docs=tmp_path, now=NOW)


def test_an_empty_suite_passes(tmp_path):
    assert run_gate(suite(), TABLE, docs=tmp_path, now=NOW).success


@pytest.mark.parametrize(
    ("expectation", "message"),
    [
        (
            gxe.ExpectColumnMedianToBeBetween(column="age", min_value=1),
            r"gate small: expect_column_median_to_be_between is not supported by the gates; use",
        ),
        (
            gxe.ExpectColumnValuesToBeUnique(column="age", row_condition=Column("age") > 1),
            r"row_condition is not supported",
        ),
        (
            gxe.ExpectColumnMeanToBeBetween(column="age", min_value={"$PARAMETER": "least"}),
            r"min_value is a suite parameter; write the value itself",
        ),
        (
            ExpectColumnValuesToExistInTable(
                column="user_id", other_table="users", other_column="user_id"
            ),
            r"user_id must exist in users, but no table users was handed over; pass references",
        ),
    ],
)
def test_what_gates_do_not_know_is_refused_by_name(expectation, message, tmp_path):
    with pytest.raises(SuiteError, match=message):
        run_gate(suite(expectation), TABLE, docs=tmp_path, now=NOW)


def test_an_unknown_severity_is_refused():
    with pytest.raises(SuiteError, match="unknown severity 'shrug'; expected stop or"):
        expect(gxe.ExpectColumnToExist, says="x", fix="", severity="shrug", column="x")


def test_names_unfit_for_files_and_columns_are_refused(tmp_path):
    with pytest.raises(SuiteError, match=r"a suite's name becomes a file's: '\.\./x' is not fit"):
        run_gate(suite(UNIQUE, name="../x"), TABLE, docs=tmp_path, now=NOW)
    twice = pa.table({"a": [1], "A": [2]})
    with pytest.raises(SuiteError, match=r"column names must differ by more than case .* found a"):
        run_gate(suite(UNIQUE), twice, docs=tmp_path, now=NOW)


@pytest.fixture
def parquet(tmp_path):
    path = tmp_path / "events.parquet"
    table = pa.table({"user_id": [f"u{i}" for i in range(20_000)]})
    pq.write_table(table, path, compression="zstd", row_group_size=1000)
    return path


def damage(parquet, kind):
    content = parquet.read_bytes()
    half = len(content) // 2
    if kind == "truncated":
        parquet.write_bytes(content[:half])
    elif kind == "empty":
        parquet.write_bytes(b"")
    elif kind == "other format":
        parquet.write_text("user_id\nu1\n")
    elif kind == "overwritten inside":
        parquet.write_bytes(content[: half - 4000] + bytes(8000) + content[half + 4000 :])


@pytest.mark.parametrize("kind", ["truncated", "empty", "other format", "overwritten inside"])
def test_damaged_parquet_is_said_to_be_damaged(parquet, kind, tmp_path):
    damage(parquet, kind)
    with pytest.raises(
        UnreadableTableError,
        match=r"gate small: .*events\.parquet: cannot be read as parquet, it is damaged or trunc",
    ):
        run_gate(suite(UNIQUE), parquet, docs=tmp_path / "docs", now=NOW)


def test_missing_files_are_said_to_be_missing(tmp_path):
    with pytest.raises(UnreadableTableError, match=r"none\.parquet: no such file; run the step"):
        run_gate(suite(UNIQUE), tmp_path / "none.parquet", docs=tmp_path, now=NOW)
    with pytest.raises(UnreadableTableError, match="no parquet file in it; run the step"):
        run_gate(suite(UNIQUE), tmp_path, docs=tmp_path / "docs", now=NOW)


def test_a_limit_too_small_to_measure_in_is_said(tmp_path):
    table = pa.table({"user_id": [f"user {i}" for i in range(100_000)]})
    with pytest.raises(MeasuringError, match=r"gate small: table: cannot be measured .* memory_li"):
        run_gate(suite(UNIQUE), table, docs=tmp_path, now=NOW, memory_limit="1MB")


def test_every_error_has_one_base():
    errors = (GateFailure, MeasuringError, SuiteError, UnreadableTableError)
    assert all(issubclass(error, ValidationError) for error in errors)


def test_importing_the_gate_does_not_import_great_expectations():
    code = "import sys, validation.gate; sys.exit('great_expectations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

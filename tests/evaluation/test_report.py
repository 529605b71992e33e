"""The report's two files and the terminal's table, of a small made-up run."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from rich.console import Console

from pipelines.evaluation import report as contents
from pipelines.evaluation.calibration import (
    Sigmoid,
    expected_calibration_error,
    reliability_bins,
)
from pipelines.evaluation.errors import EvaluationError
from pipelines.evaluation.metrics import evaluate_lists, recall_curve, union_of_sources
from pipelines.evaluation.report import Report, best_source, metrics_console, write_report

USERS, POSTS, LIST = 150, 400, 100
SECTIONS = ["run", "metrics", "differences", "candidate-recall", "rankers", "importances"]
SECTIONS += ["ablation", "calibration", "cold-users", "gates"]


def _lists(skill: float, relevant: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """Rank posts by noise plus `skill` for the relevant ones."""
    order = np.argsort(-(rng.normal(size=relevant.shape) + skill * relevant))[:, :LIST]
    users = np.repeat(np.arange(len(relevant)), LIST)
    ranks = np.tile(np.arange(1, LIST + 1), len(relevant))
    return pa.table({"user_id": users, "post_id": order.ravel(), "rank": ranks})


def _pairs(marked: np.ndarray) -> pa.Table:
    users, posts = np.nonzero(marked)
    return pa.table({"user_id": users, "post_id": posts})


def make_report() -> Report:
    rng = np.random.default_rng(3)
    relevant = rng.random((USERS, POSTS)) < 0.03
    relevant[:, 0] = True
    train = _pairs(rng.random((USERS, POSTS)) < 0.1)
    skills = {"popular": 1.0, "als": 1.6, "item_to_item": 1.4, "rrf": 1.8, "ranked": 2.4}
    lists = {name: _lists(skill, relevant, rng) for name, skill in skills.items()}
    evaluations = {
        name: evaluate_lists(table, _pairs(relevant), catalogue_size=POSTS, train_pairs=train)
        for name, table in lists.items()
    }
    kinds = {"rrf": "fusion", "ranked": "ranked"}
    results = tuple(
        contents.ModelResult.of(name, kinds.get(name, "source"), evaluation, rng=rng)
        for name, evaluation in evaluations.items()
    )
    sources = {name: lists[name] for name in ("popular", "als", "item_to_item")}
    curves = sources | {"union": union_of_sources(list(sources.values()))}
    scores = rng.normal(size=4000)
    labels = rng.random(4000) < 1 / (1 + np.exp(2 - scores))
    bins = reliability_bins(Sigmoid.fit(scores, labels).probability(scores), labels)
    start = datetime(1997, 9, 20, 3, 5, tzinfo=UTC)
    names = ["history", "labels 1", "labels 2", "labels 3", "validation", "test"]
    days = [0, 105, 130, 151, 170, 190, 214]
    return Report(
        run=contents.Run(
            dataset="movielens_100k",
            has_clock=True,
            users=943,
            posts=1682,
            events=100_000,
            spans=tuple(
                contents.Span(
                    name=name,
                    start=start + timedelta(days=days[i]),
                    end=start + timedelta(days=days[i + 1]),
                    positives=5537 if i else 27_690,
                )
                for i, name in enumerate(names)
            ),
            steps=(
                contents.Step(name="ingest", seconds=1.21, rows=100_000, reused=True),
                contents.Step(name="train", seconds=61.4),
            ),
            versions={"feastrank": "0.1.0", "duckdb": "2.0.0"},
            seed=20,
        ),
        results=results,
        differences=tuple(
            difference
            for baseline in (best_source(results), "popular")
            for difference in contents.differences_to("ranked", baseline, evaluations, rng=rng)
        ),
        candidate_recall=tuple(
            contents.RecallCurve(
                source=name, recall=tuple(recall_curve(table, _pairs(relevant)).tolist())
            )
            for name, table in curves.items()
        ),
        rankers=(
            contents.RankerTrial(
                name="LightGBM LambdaRank",
                validation_ndcg_10=0.2417,
                prediction_us_per_request=1234.5,
                training_seconds=3.2,
                chosen=True,
            ),
            contents.RankerTrial(
                name="CatBoost YetiRank",
                validation_ndcg_10=0.2391,
                prediction_us_per_request=2290.1,
                training_seconds=14.9,
                chosen=False,
            ),
        ),
        feature_importances={f"user_topic_like_rate_{i}d": 0.9 / 2**i for i in range(1, 25)},
        ablation=tuple(
            contents.GroupLoss(
                group=group,
                inputs=inputs,
                ndcg_10=0.2417 - loss,
                loss=contents.Estimate(mean=loss, low=loss - 0.02, high=loss + 0.02),
            )
            for group, inputs, loss in (
                ("candidate scores and ranks", ("user_topic_like_rate_1d",), 0.05),
                ("user_activity", ("user_topic_like_rate_2d", "user_topic_like_rate_3d"), -0.003),
            )
        ),
        calibration=contents.Calibration(
            method="A sigmoid fitted on the validation slice, checked on the test slice.",
            bins=bins,
            expected_calibration_error=expected_calibration_error(bins),
        ),
        cold_users=contents.ColdUsers(users=41, result=results[0]),
        gates=(
            contents.GateOutcome(
                name="raw events", passed=True, expectations=14, docs="../docs/raw <events>.html"
            ),
            contents.GateOutcome(name="model", passed=False, expectations=3),
        ),
    )


@pytest.fixture(scope="module")
def report() -> Report:
    return make_report()


@pytest.fixture(scope="module")
def files(report, tmp_path_factory) -> tuple[str, str]:
    json_path, html_path = write_report(report, tmp_path_factory.mktemp("run") / "report")
    assert sorted(p.name for p in json_path.parent.iterdir()) == ["report.html", "report.json"]
    return json_path.read_text(), html_path.read_text()


class _Page(HTMLParser):
    """Every attribute that could load something or lead somewhere, ids, and the tags' nesting."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "br", "img", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.links.append((tag, name, value))
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_holds_all_it_needs(files):
    html = files[1]
    page = _Page(html)
    assert page.open == []
    outside = [link for link in page.links if not link[2].startswith("#")]
    assert outside == [("a", "href", "../docs/raw <events>.html")]
    assert not {"script", "img", "link", "iframe", "object", "embed", "image"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)|<\?xml|<!DOCTYPE svg", html)
    # URLs may only name the XML vocabularies of the plots, which nothing loads.
    assert set(re.findall(r'[\w:]*="https?://[^"]*"', html)) <= {
        'xmlns="http://www.w3.org/2000/svg"',
        'xmlns:xlink="http://www.w3.org/1999/xlink"',
    }
    assert len(html) < 400_000


def test_references_inside_the_page_lead_somewhere(files):
    page = _Page(files[1])
    targets = {link[2][1:] for link in page.links if link[2].startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", files[1]))
    assert targets <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_all_sections_and_plots_are_there(files):
    html = files[1]
    assert re.findall(r'<section id="([\w-]+)">', html) == SECTIONS
    assert html.count("<svg ") == 8
    for label in (
        "NDCG@10, mean over users",
        "recall@k",
        "time (UTC)",
        "share of total importance",
    ):
        assert label in html


def test_values_of_the_json_appear_in_the_page(files, report):
    json_text, html = files
    again = Report.model_validate_json(json_text)
    assert again == report
    for result in again.results:
        for name in ("ndcg@10", "recall@5", "coverage@100", "novelty@10"):
            assert f"{result.means[name]:.4f}" in html
        interval = result.intervals["hit_rate@10"]
        assert f"{interval.low:.3f} to {interval.high:.3f}" in html
    for difference in again.differences:
        assert f"{difference.estimate.mean:+.4f}" in html
    for curve in again.candidate_recall:
        assert f"{curve.recall[49]:.4f}" in html
    for row in again.calibration.bins:
        assert f"{row.predicted:.4f}" in html
    for text in ("0.2417", "1,234", "duckdb", "1 min 1 s", "41 users", "1 of 2", "FAILED"):
        assert text in html
    assert "Gates that failed: model." in html


def test_tables_are_sorted_best_first(files, report):
    html = files[1]
    table = html[html.index("First 10 posts") :]
    names = re.findall(r'<th scope="row">(\w+)</th>', table[: table.index("</table>")])
    assert names == [r.name for r in report.sorted_results("ndcg@10")]
    assert names[0] == "ranked"
    assert names[-1] == "popular"


def test_the_same_report_gives_the_same_files(files, report, tmp_path):
    paths = write_report(report, tmp_path)
    assert tuple(path.read_text() for path in paths) == files


def test_verdict_says_when_it_may_be_chance(report, tmp_path):
    first = report.differences[0]
    unsure = contents.Estimate(mean=-0.01, low=-0.03, high=0.01)
    other = report.model_copy(
        update={
            "differences": (first.model_copy(update={"estimate": unsure}),),
            "gates": (),
        }
    )
    html = write_report(other, tmp_path)[1].read_text()
    assert "NDCG@10 of ranked is 0.0100 below that of als" in html
    assert "so on this test it may be chance" in html


def test_sparse_report_is_still_a_page(report, tmp_path):
    bare = report.model_copy(
        update={
            "run": report.run.model_copy(update={"spans": (), "steps": (), "has_clock": False}),
            "differences": (),
            "candidate_recall": (),
            "rankers": (),
            "feature_importances": {},
            "ablation": (),
            "calibration": None,
            "cold_users": contents.ColdUsers(users=0),
            "gates": (),
        }
    )
    html = write_report(bare, tmp_path)[1].read_text()
    assert re.findall(r'<section id="([\w-]+)">', html) == SECTIONS
    assert "Not measured in this run." in html
    assert "pass --ablation" in html
    assert "Every user of the test slice has an earlier event." in html
    assert "This dataset has no clock" in html


def test_groups_of_inputs_show_their_loss_and_share(report, tmp_path):
    html = write_report(report, tmp_path)[1].read_text()
    first, second = re.findall(
        r"<tr><th scope=\"row\">(?:candidate scores|user_activity).*?</tr>", html
    )
    # Importances halve from 0.45 on.
    assert re.findall(r"<td>(.*?)</td>", first) == [
        *("1", "45.0%", "0.1917", "+0.0500", "+0.0300 to +0.0700"),
    ]
    assert re.findall(r"<td>(.*?)</td>", second) == [
        *("2", "33.8%", "0.2447", "-0.0030", "-0.0230 to +0.0170"),
    ]
    assert "Loss of NDCG@10 without a group of inputs" in html


def test_names_are_escaped(report, tmp_path):
    run = report.run.model_copy(update={"dataset": "<script>x</script>"})
    html = write_report(report.model_copy(update={"run": run}), tmp_path)[1].read_text()
    assert "<script>" not in html


def test_console_table(report):
    console = Console(file=io.StringIO(), width=80)
    console.print(metrics_console(report))
    text = console.file.getvalue()
    assert "movielens_100k: 150 users from 1998-03-29, first 10 posts" in text
    rows = [line.split() for line in text.splitlines()[-6:] if line.strip()]
    assert [row[0] for row in rows] == ["ranked", "rrf", "als", "item_to_item", "popular"]
    ranked = report.ranked
    low, high = ranked.intervals["ndcg@10"].low, ranked.intervals["ndcg@10"].high
    assert rows[0][1] == f"{ranked.means['ndcg@10']:.3f}"
    assert rows[0][-1] == f"{low:.3f}-{high:.3f}"
    assert "\u2026" not in text  # nothing is cut off


def test_best_source_is_the_strictest_baseline(report):
    assert best_source(report.results) == "als"
    with pytest.raises(EvaluationError, match="no candidate source has ndcg@7"):
        best_source(report.results, "ndcg@7")


def test_incomplete_reports_are_refused(report):
    data = report.model_dump()
    with pytest.raises(ValidationError, match="expected one ranked and some source"):
        Report(**{**data, "results": [r for r in data["results"] if r["kind"] != "ranked"]})
    broken = [{**r, "intervals": {}} for r in data["results"]]
    with pytest.raises(ValidationError, match=r"popular: ndcg@10, hit_rate@10 missing"):
        Report(**{**data, "results": broken})


def test_unwritable_folder_says_so(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match=r"cannot write into .*file"):
        write_report(report, tmp_path / "file")

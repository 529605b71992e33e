import pytest

from pipelines.candidates.registry import GENERATORS, make_generator
from pipelines.errors import TuningError
from pipelines.ranking.models import RANKERS, make_ranker
from pipelines.tuning import SPACES, Range, tune

SPACE = {"x": Range(-4.0, 4.0), "n": Range(1, 5), "kind": ("a", "b")}


def hill(settings):
    yield -((settings["x"] - 1.5) ** 2) - abs(settings["n"] - 3) - (settings["kind"] == "b")


def test_finds_the_top_of_a_hill(tmp_path):
    best = tune("hill", SPACE, hill, storage=tmp_path / "j.log", trials=60)
    assert best.settings["kind"] == "a"
    assert best.settings["n"] == 3
    assert best.value > -0.3
    assert best.value == next(hill(best.settings))


def test_goes_on_where_it_was_left(tmp_path):
    calls = []

    def counted(settings):
        calls.append(settings)
        yield from hill(settings)

    first = tune("hill", SPACE, counted, storage=tmp_path / "j.log", trials=6)
    again = tune("hill", SPACE, counted, storage=tmp_path / "j.log", trials=6)
    assert len(calls) == 6
    assert first == again
    tune("hill", SPACE, counted, storage=tmp_path / "j.log", trials=8)
    assert len(calls) == 8
    tune("another", SPACE, counted, storage=tmp_path / "j.log", trials=1)
    assert len(calls) == 9


def test_same_seed_same_trials(tmp_path):
    runs = [
        tune("hill", SPACE, hill, storage=tmp_path / f"{run}.log", trials=15, seed=4)
        for run in range(2)
    ]
    assert runs[0] == runs[1]


def test_given_settings_come_first(tmp_path):
    seen = []
    given = [{"x": 1.5, "n": 3, "kind": "a", "other": 7}, {"x": 0.25, "n": None}]
    tune(
        "hill",
        SPACE,
        hill,
        storage=tmp_path / "j.log",
        trials=2,
        first=given,
        progress=lambda number, value, settings: seen.append((number, value, settings)),
    )
    assert seen[0] == (0, 0.0, {"x": 1.5, "n": 3, "kind": "a"})
    assert seen[1][2]["x"] == 0.25  # null settings are drawn


def test_hopeless_trials_are_stopped_early(tmp_path):
    yielded = []

    def objective(settings):
        for part in range(3):
            yielded.append(part)
            yield settings["x"]

    points = [{"x": float(x)} for x in (1, 2, 3, 4, -4)]
    best = tune(
        "early", {"x": SPACE["x"]}, objective, storage=tmp_path / "j.log", trials=5, first=points
    )
    assert len(yielded) < 15
    assert best.settings == {"x": 4.0}
    assert best.trials == 4


def test_no_finished_trial_is_an_error(tmp_path):
    with pytest.raises(TuningError, match="study none: no trial was finished of 0"):
        tune("none", SPACE, hill, storage=tmp_path / "j.log", trials=0)


@pytest.mark.parametrize("name", SPACES)
def test_every_space_is_of_settings_within_their_bounds(name):
    make = make_generator if name in GENERATORS else make_ranker
    for end in ("low", "high"):
        settings = {
            key: getattr(allowed, end) if isinstance(allowed, Range) else allowed[0]
            for key, allowed in SPACES[name].items()
        }
        make(name, settings)
    assert name in GENERATORS or name in RANKERS


def test_every_generator_and_ranker_has_a_space():
    assert set(SPACES) == set(GENERATORS) | set(RANKERS)

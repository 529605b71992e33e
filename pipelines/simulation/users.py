"""Users of the simulated feed: attributes with the real feed's marginals."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.simulation import facts

SMALL_CITIES = 3_900
_CITY_OFFSET = 20  # flattens the head of the tail: no small city is larger than Omsk
_SYLLABLES = "bel gor kras novo ust zel kar mir pet rus tav lip sol var dub yar kov sim tor vol"
_ENDINGS = ("sk", "ovo", "grad", "ino", "ansk", "evka", "burg", "itsa")


@dataclass(frozen=True)
class Users:
    """Users in the order of their ids.

    Parameters
    ----------
    table
        ``user_id`` int64, ``gender`` int64 (0, 1), ``age`` int64 (years), ``country``, ``city``
        string, ``exp_group`` int64, ``os``, ``source`` string; no nulls.
    traits
        float32 (n, traits): what taste depends on, centred, of about unit variance. The
        experiment group is not among them.
    """

    table: pa.Table
    traits: NDArray[np.float32]


def make_users(count: int, rng: np.random.Generator) -> Users:
    """Draw users; ids ascend with gaps, as the real ones do."""
    span = facts.LAST_USER_ID - facts.FIRST_USER_ID + 1
    span = max(span, round(count * span / facts.USERS))
    ids = np.sort(rng.choice(span, count, replace=False)) + facts.FIRST_USER_ID
    gender = (rng.random(count) < facts.MEN_SHARE).astype(np.int64)
    age = facts.YOUNGEST + rng.gamma(facts.AGE_SHAPE, facts.AGE_SCALE, count)
    years = np.minimum(age, facts.OLDEST).astype(np.int64)
    place, cities, countries = _places(count, rng)
    android = rng.random(count) < facts.ANDROID_SHARE
    ads = rng.random(count) < facts.ADS_SHARE
    table = pa.table(
        {
            "user_id": ids.astype(np.int64),
            "gender": gender,
            "age": years,
            "country": pa.array(countries).take(pa.array(place)),
            "city": pa.array(cities).take(pa.array(place)),
            "exp_group": rng.integers(0, facts.EXPERIMENT_GROUPS, count),
            "os": np.where(android, "Android", "iOS"),
            "source": np.where(ads, "ads", "organic"),
        }
    )
    is_metropolis = place < 2
    is_abroad = np.array([country != "Russia" for country in countries])[place]
    return Users(table, _traits(gender, years, is_metropolis, is_abroad, android, ads))


def _places(count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], list[str], list[str]]:
    """Return each user's place, and every place's city and country, largest first."""
    large = np.array(list(facts.CITY_USERS.values())) / facts.USERS
    small = 1.0 / (np.arange(SMALL_CITIES) + _CITY_OFFSET)
    weights = np.append(large, small / small.sum() * (1 - large.sum()))
    names = [*facts.CITY_USERS, *_city_names(SMALL_CITIES)]
    # Abroad are small cities only, so their share there is higher than among all users.
    abroad = {name: share for name, share in facts.COUNTRY_SHARES.items() if name != "Russia"}
    shares = np.array(list(abroad.values())) / (1 - large.sum())
    small_countries = np.random.default_rng(0).choice(
        ["Russia", *abroad], SMALL_CITIES, p=np.append(1 - shares.sum(), shares)
    )
    countries = ["Russia"] * len(large) + small_countries.tolist()
    return rng.choice(len(weights), count, p=weights), names, countries


def _city_names(count: int) -> list[str]:
    """Return distinct made-up names, the same ones each time."""
    syllables = _SYLLABLES.split()
    names = (
        f"{first}{second}{ending}".capitalize()
        for ending in _ENDINGS
        for first in syllables
        for second in ("", *syllables)
    )
    numbered = list(dict.fromkeys(names))
    twins = (f"{name} {number}" for number in range(2, count) for name in numbered)
    return [*numbered, *(next(twins) for _ in range(count - len(numbered)))][:count]


def _traits(
    gender: NDArray[np.int64],
    age: NDArray[np.int64],
    is_metropolis: NDArray[np.bool_],
    is_abroad: NDArray[np.bool_],
    android: NDArray[np.bool_],
    ads: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Return what taste depends on; age twice, so that the middle can differ from both ends."""
    years = (age - 27.0) / 10.0
    columns = [
        gender,
        np.tanh(years),
        np.exp(-((age - 32.0) ** 2) / 50.0),
        is_metropolis,
        is_abroad,
        android,
        ads,
    ]
    traits = np.column_stack([np.asarray(column, dtype=np.float64) for column in columns])
    spread = traits.std(axis=0)
    centred: NDArray[np.float32] = (
        (traits - traits.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    ).astype(np.float32)
    return centred

"""The business rules of answers, as a TOML file declares them; `serving.arrangement` applies them.

All parts may be left out. The order in which they apply is that of the sections here: pins take
their places, then each other place gets the best post that freshness and caps allow, where "best"
weighs in diversity, or with a small probability a post drawn by chance::

    [freshness]                 # posts older than this are not shown
    max_age_days = 30           # counted from the description's `created` to the request's moment
    keep_unknown = true         # whether posts without a creation time pass

    [[cap]]                     # at most `limit` posts of one value in an answer
    attribute = "topics"        # "topics", or a post attribute of the dataset description
    limit = 3                   # a list counts under each of its values, a missing value under none

    [[pin]]                     # a fixed place
    post = "181"                # the source's id
    position = 1                # 1 is the first

    [diversity]                 # maximal marginal relevance (Carbonell and Goldstein 1998)
    strength = 0.3              # 0: by score alone, 1: by difference alone
    vectors = "text"            # "text": sentence embeddings; "als": who liked them
    among = 100                 # so many of the best that remain are weighed against each other

    [exploration]
    share = 0.05                # probability that a place is given away by chance
    among = 50                  # to one of so many of the best that remain, all alike
"""

import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.errors import RulesError

TOPICS = "topics"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Freshness(_Section):
    """How old a post may be."""

    max_age_days: float = Field(gt=0, le=36_500)
    keep_unknown: bool = True


class Cap(_Section):
    """How many posts of one value may be in an answer."""

    attribute: str = Field(min_length=1)
    limit: int = Field(ge=1, le=1000)


class Pin(_Section):
    """A post with a fixed place."""

    post: str = Field(min_length=1)
    position: int = Field(ge=1, le=1000)


class Diversity(_Section):
    """How much a post's difference from those before it counts against its score."""

    strength: float = Field(ge=0, le=1)
    vectors: Literal["text", "als"] = "text"
    among: int = Field(100, ge=1, le=10_000)


class Exploration(_Section):
    """How often chance decides."""

    share: float = Field(ge=0, le=1)
    among: int = Field(50, ge=1, le=10_000)


class Rules(_Section):
    """All rules; without any, answers are in the order of the ranker's scores."""

    freshness: Freshness | None = None
    cap: tuple[Cap, ...] = ()
    pin: tuple[Pin, ...] = ()
    diversity: Diversity | None = None
    exploration: Exploration | None = None

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for what, values in (
            ("pin.position", [str(pin.position) for pin in self.pin]),
            ("pin.post", [pin.post for pin in self.pin]),
            ("cap.attribute", [cap.attribute for cap in self.cap]),
        ):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"{what}: {', '.join(twice)} stands there more than once")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a TOML file.

        Raises
        ------
        RulesError
            If it cannot be read, or says something else than rules.
        """
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RulesError(f"{path}: cannot be read ({error})") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise RulesError(
                f"{path}: {where}: {first['msg']}; docs/serving.md lists the sections"
            ) from error

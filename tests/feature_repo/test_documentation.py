"""The description's page names every key."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from feature_repo import dataset

PAGE = (Path(__file__).parents[2] / "docs" / "dataset.md").read_text(encoding="utf-8")
KEYS = sorted(
    {
        field
        for model in vars(dataset).values()
        if isinstance(model, type) and issubclass(model, BaseModel)
        for field in model.model_fields
    }
)


@pytest.mark.parametrize("key", KEYS)
def test_the_page_names_every_key(key):
    assert f"`{key}`" in PAGE or f"\n{key} =" in PAGE or f"[{key}]" in PAGE or f"{key} =" in PAGE


def test_the_example_is_a_valid_description():
    example = PAGE.split("```toml\n", 1)[1].split("```", 1)[0]
    described = dataset.Dataset.parse(example)
    assert described.has_clock
    assert described.has_impressions

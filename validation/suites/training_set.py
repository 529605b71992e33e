"""What the ranker's training set must be: labelled candidates with their features."""

from collections.abc import Sequence

from great_expectations.core import ExpectationSuite

from validation.suites import vocabulary as v


def training_set(
    features: Sequence[str],
    *,
    label: str = "label",
    key: Sequence[str] = ("user_id", "post_id", "event_timestamp"),
) -> ExpectationSuite:
    """Return the suite of the training set.

    Parameters
    ----------
    features
        The ranker's inputs: each must be there and have values.
    label
        Column of the label, 0 or 1, or graded.
    key
        What tells two rows apart: user, post, and the slice or the time asked about.
    """
    step = "see pipelines/ranking/training_set.py and the gates before it"
    columns = [*key, label, *features]
    return ExpectationSuite(
        "training_set",
        expectations=v.flat(
            v.has_columns(columns, f"{step}; or run `feastrank apply`, if the features changed"),
            v.has_rows(2, "rows", "ingest more events, or choose longer time slices"),
            *(v.is_present(column, step) for column in key),
            v.is_present(label, step),
            v.has_distinct(
                label,
                2,
                f"{label} must be of at least two classes (distinct values)",
                "no candidate was liked, or all were: ingest more events, or choose other slices",
            ),
            v.are_unique_together(list(key), step),
            *(v.is_not_all_null(name, step) for name in features),
        ),
    )

"""Propose a dataset description from files: what each column seems to be, each guess in words."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from feature_repo.dataset import Dataset
from feature_repo.dataset_columns import RESERVED_NAMES
from pipelines.datasets import vocabulary as known_as
from pipelines.datasets.expressions import quoted
from pipelines.datasets.sniff import Column, Sniffed
from pipelines.datasets.vocabulary import fits, plain
from pipelines.errors import ProposalError

_MAX_ACTIONS = 30
_MAX_RATING = 100
_MAX_CODES = 20
_PROSE_LENGTH = 60


def propose(
    users: Path | None,
    posts: Path | None,
    events: Path,
    name: str,
    folder: Path | None = None,
) -> tuple[str, list[str]]:
    """Propose a dataset description for some files.

    Parameters
    ----------
    users, posts, events
        CSV (any separator), JSON lines or parquet files; the first 200,000 rows are looked at.
    name
        The dataset's name.
    folder
        Where the description will lie; paths are then relative to it, else absolute.

    Returns
    -------
    text, assumptions
        The description as TOML, checked by `Dataset.parse`, and every guess as a sentence.

    Raises
    ------
    ProposalError
        If no column of users or posts can be found in the events, or a file is missing or empty.
    SourceError
        If a file is damaged.
    DatasetError
        If `name` cannot be a dataset's name.
    """
    proposal = _Proposal(folder)
    entities = {
        table: Sniffed(path, table)
        for table, path in (("users", users), ("posts", posts))
        if path is not None
    }
    ids = {table: proposal.id_column(file) for table, file in entities.items()}
    history = Sniffed(events, "events")
    content = proposal.events(history, entities, ids)
    parts: dict[str, Any] = {"name": name}
    for table, file in entities.items():
        parts[table] = proposal.entity(file, ids[table], has_clock=proposal.has_clock)
    parts["events"] = content
    notes = [note for file in (*entities.values(), history) for note in file.notes]
    assumptions = notes + proposal.assumptions
    text = _render(parts, assumptions)
    Dataset.parse(text, origin="the proposed description")
    return text, assumptions


class _Proposal:
    """Collects the guesses, each with its sentence."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.assumptions: list[str] = []
        self.has_clock = True

    def say(self, file: Sniffed, sentence: str) -> None:
        self.assumptions.append(f"{file.table}: {sentence}")

    def id_column(self, file: Sniffed) -> str:
        """Return the id of a users' or posts' table: named like one, or the first unique one."""
        columns = [one for one in file.columns.values() if one.distinct > 1 or one.rows == 1]
        named = [one for one in columns if fits(known_as.IDS[file.table], one.name)]
        named += [one for one in columns if fits(known_as.PLAIN_ID, one.name)]
        unique = [one for one in columns if one.distinct == one.rows and one.kind != "number"]
        found = next((one for one in named if one in unique), None) or next(
            iter(named or unique), None
        )
        if found is None:
            raise ProposalError(
                f"{file.table}: {file.path} has no column that could be an id (named like one, or "
                f"with a different value in every row); it has {', '.join(file.names)}"
            )
        self.say(file, f"'{found.name}' is the id")
        return found.name

    def events(
        self, file: Sniffed, entities: dict[str, Sniffed], ids: dict[str, str]
    ) -> dict[str, Any]:
        user = self._key(file, "users", entities, ids, set())
        post = self._key(file, "posts", entities, ids, {user})
        self._refuse_totals(file, user, post)
        content = self._source(file) | {"user": user, "post": post}
        rest = [one for one in file.columns.values() if one.name not in (user, post)]
        time = self._time_column(file, rest)
        rest = [one for one in rest if time is None or one.name != time["column"]]
        value = self._value(file, rest)
        if value is not None:
            content["value"] = value.name
        content["time"] = time or self._order(file, user, post, value)
        content |= self._rules(file, [one for one in rest if one is not value], value)
        return content

    def _key(
        self,
        file: Sniffed,
        table: str,
        entities: dict[str, Sniffed],
        ids: dict[str, str],
        taken: set[str],
    ) -> str:
        """Return the events' column of users or posts: by name, by its values, or by its place."""
        free = [one for one in file.columns.values() if one.name not in taken]
        free = [one for one in free if one.kind in ("integer", "text", "number")]
        named = next((one for one in free if fits(known_as.IDS[table], one.name)), None)
        what = table[:-1]
        if named is not None:
            self.say(file, f"'{named.name}' is the {what}'s id, by its name")
            return named.name
        if table in entities:
            shares = {
                one.name: file.share_known(one.name, entities[table], ids[table]) for one in free
            }
            best = max(shares, key=lambda name: shares[name], default=None)
            if best is not None and shares[best] > 0.5:
                share = f"{100 * shares[best]:.0f} % of its values are ids of {table}"
                self.say(file, f"'{best}' is the {what}'s id: {share}")
                return best
        place = 0 if table == "users" else 1
        if file.settings.get("header") is False and len(file.names) > place:
            self.say(file, f"column {place} is the {what}'s id, by its place; please check")
            return str(place)
        raise ProposalError(
            f"{table}: {file.path} has no column of {what} ids; it has {', '.join(file.names)}. "
            "Events must have a row for each thing one user did to one post; totals per post do "
            "not say who did what, so nothing personal can be learned from them. If the column is "
            f"there under another name, rename it to {what}_id or write the description by hand"
        )

    def _refuse_totals(self, file: Sniffed, user: str, post: str) -> None:
        """A table in which no user and no post comes twice is no history."""
        columns = file.columns
        if all(columns[one].distinct == columns[one].rows > 20 for one in (user, post)):
            raise ProposalError(
                f"events: in {file.path} no '{user}' and no '{post}' comes twice, so there is "
                "nothing to learn from; give the table of what users did to posts"
            )

    def _time_column(self, file: Sniffed, columns: list[Column]) -> dict[str, str] | None:
        named = [one for one in columns if fits(known_as.TIME, one.name)]
        typed = [one for one in columns if one.kind == "time" and one not in named]
        others = [one for one in columns if one not in named and one not in typed]
        # A column with another name must look more like a time than a mere number can.
        others = [one for one in others if one.kind == "text" or (one.least or 0) > 3e8]
        for one in (*named, *typed, *others):
            form = file.time_format(one.name)
            if form is not None and not (one in others and form == "%Y%m%d"):
                zone = ", in UTC where no zone is given" if not form.startswith("epoch") else ""
                self.say(file, f"'{one.name}' is the time, as {form}{zone}")
                return {"column": one.name, "format": form}
        return None

    def _order(self, file: Sniffed, user: str, post: str, value: Column | None) -> dict[str, str]:
        self.has_clock = False
        by = [post] if value is None else [value.name, post]
        sorted_users = self._sorted_users(file, user, by)
        if sorted_users > 0.5:
            names = "' or '".join(by)
            self.say(
                file,
                f"there is no time, and the rows of {100 * sorted_users:.0f} % of users are sorted "
                f"by '{names}', so their order tells nothing: random_order (no time windows, no "
                "ages)",
            )
            return {"format": "random_order"}
        self.say(
            file,
            "there is no time; each user's rows are taken to be in the order in which they "
            "happened: file_order (no time windows, no ages)",
        )
        return {"format": "file_order"}

    @staticmethod
    def _sorted_users(file: Sniffed, user: str, columns: list[str]) -> float:
        """Return the share of users with five or more rows that are sorted by one of `columns`."""
        steps, tests = [], []
        for place, column in enumerate(columns):
            number = f"TRY_CAST({quoted(column)} AS DOUBLE)"
            steps.append(f"{number} - lag({number}) OVER rows_of_user AS step_{place}")
            tests.append(f"bool_and(step_{place} >= 0) OR bool_and(step_{place} <= 0)")
        found = file.query(
            f"SELECT avg(CAST(is_sorted AS INT)) FROM ("
            f"SELECT coalesce({' OR '.join(tests)}, false) AS is_sorted FROM ("
            f"SELECT {quoted(user)} AS of_user, {', '.join(steps)} "
            "FROM (SELECT *, row_number() OVER () AS place FROM sample) "
            f"WINDOW rows_of_user AS (PARTITION BY {quoted(user)} ORDER BY place)) "
            "GROUP BY of_user HAVING count(*) >= 5)"
        )[0][0]
        return float(found or 0)

    def _value(self, file: Sniffed, columns: list[Column]) -> Column | None:
        numeric = [one for one in columns if one.is_numeric and not fits(known_as.TARGET, one.name)]
        named = [one for one in numeric if fits(known_as.VALUE, one.name)]
        if file.settings.get("header") is False:
            named = numeric[:1]
        if not named:
            return None
        self.say(file, f"'{named[0].name}' is the value of an event")
        return named[0]

    def _rules(self, file: Sniffed, columns: list[Column], value: Column | None) -> dict[str, Any]:
        """Return which events are impressions and which are positive, with what weight."""
        rules: dict[str, Any] = {}
        action = next(
            (
                one
                for one in columns
                if fits(known_as.ACTION, one.name)
                and one.kind == "text"
                and one.distinct <= _MAX_ACTIONS
            ),
            None,
        )
        target = next((one for one in columns if self._is_target(file, one)), None)
        if action is not None:
            rules |= self._action_rules(file, action)
        if target is not None:
            wanted: Any = True if target.kind == "boolean" else 1
            rules.setdefault("impressions", {"every": True})
            rules["positive"] = {"column": target.name, "equals": wanted}
            self.say(file, f"an event is positive if '{target.name}' is {json.dumps(wanted)}")
        elif action is None and value is not None:
            rules |= self._value_rules(file, value)
        elif action is None:
            rules["positive"] = {"every": True}
            self.say(file, "every event is positive; whether a user saw a post is not known")
        return rules

    @staticmethod
    def _is_target(file: Sniffed, column: Column) -> bool:
        if not fits(known_as.TARGET, column.name):
            return False
        return column.kind == "boolean" or (
            column.kind == "integer" and {column.least, column.greatest} <= {0.0, 1.0}
        )

    def _action_rules(self, file: Sniffed, action: Column) -> dict[str, Any]:
        values = file.values(action.name)
        seen = [one for one in values if known_as.SEEN.search(one)]
        liked = [one for one in values if one not in seen and not known_as.DISLIKED.search(one)]
        self.say(file, f"'{action.name}' is the action: {', '.join(values)}")
        rules: dict[str, Any] = {"action": {"column": action.name}}
        if not liked:
            rules["positive"] = {"every": True}
            self.say(file, "no action looks like a success, so every event is taken as one")
            return rules
        rules["positive"] = {"actions": liked}
        self.say(file, f"positive actions: {', '.join(liked)}")
        if seen:
            rules["impressions"] = {"actions": seen}
            self.say(file, f"actions that show that the user saw the post: {', '.join(seen)}")
        return rules

    def _value_rules(self, file: Sniffed, value: Column) -> dict[str, Any]:
        least, greatest = value.least or 0.0, value.greatest or 0.0
        few = value.distinct <= _MAX_CODES or greatest in (5, 10, _MAX_RATING)
        named = fits(known_as.RATING, value.name)
        if least >= 0 and 1 < greatest <= _MAX_RATING and few and (named or greatest <= 10):
            threshold = 0.8 * greatest
            threshold = int(threshold) if threshold == int(threshold) else threshold
            self.say(
                file,
                f"'{value.name}' is a rating from {least:g} to {greatest:g}: {threshold:g} or more "
                "is positive, and whoever rates a post has seen it",
            )
            return {
                "action": "rating",
                "impressions": {"every": True},
                "positive": {"column": value.name, "at_least": threshold},
            }
        rules: dict[str, Any] = {"positive": {"every": True}}
        self.say(file, "every event is positive; whether a user saw a post is not known")
        if least >= 0 and greatest > 1:
            rules["weight"] = {"column": value.name, "scale": "log1p"}
            self.say(file, f"an event counts ln(1 + '{value.name}')")
        return rules

    def entity(self, file: Sniffed, key: str, *, has_clock: bool) -> dict[str, Any]:
        """Return the table of users or posts."""
        content = self._source(file) | {"id": key}
        rest = [one for one in file.columns.values() if one.name != key and one.filled > 0]
        created = self._created(file, rest) if has_clock else None
        if created is not None:
            content["created"] = created
            rest = [one for one in rest if one.name != created["column"]]
        if file.table == "posts":
            rest = self._post_parts(file, rest, content)
        rest = self._numbers_with_nulls(file, rest, content)
        attributes = self._attributes(file, rest)
        if attributes:
            content["attributes"] = attributes
        return content

    def _created(self, file: Sniffed, columns: list[Column]) -> dict[str, str] | None:
        for one in columns:
            is_time = one.kind == "time" or fits(known_as.TIME, one.name)
            form = file.time_format(one.name) if is_time and one.filled == one.rows else None
            if form is not None:
                self.say(file, f"'{one.name}' is when the row became known, as {form}, in UTC")
                return {"column": one.name, "format": form}
        return None

    def _post_parts(
        self, file: Sniffed, columns: list[Column], content: dict[str, Any]
    ) -> list[Column]:
        """Add title, text, topics and image to a posts' table; return the columns left over."""
        texts = [one for one in columns if one.kind == "text"]
        image = next(
            (
                one
                for one in columns
                if one.kind == "binary" or (one in texts and fits(known_as.IMAGE, one.name))
            ),
            None,
        )
        if image is not None:
            kind = "binary" if image.kind == "binary" else "path"
            kind = "base64" if kind == "path" and image.mean_length > 1000 else kind
            content["image"] = {"column": image.name, "kind": kind}
            self.say(file, f"'{image.name}' is the picture, as {kind}")
        texts = [one for one in texts if one is not image]
        topics = next(
            (
                one
                for one in columns
                if fits(known_as.TOPICS, one.name) and one.kind in ("text", "list")
            ),
            None,
        )
        if topics is not None:
            content["topics"] = {"column": topics.name} | self._separator(file, topics, words=True)
            self.say(file, f"'{topics.name}' holds the topics")
        texts = [one for one in texts if one is not topics]
        title = next((one for one in texts if fits(known_as.TITLE, one.name)), None)
        if title is not None:
            content["title"] = title.name
            self.say(file, f"'{title.name}' is the title")
        prose = [
            one
            for one in texts
            if one is not title
            and (fits(known_as.TEXT, one.name) or one.mean_length > _PROSE_LENGTH)
            and not self._is_address(file, one)
        ]
        told = ([title] if title else []) + prose
        if told:
            content["text"] = [one.name for one in told]
            names = ", ".join(f"'{one.name}'" for one in told)
            self.say(file, f"the text to embed is {names}")
        taken = (image, topics, title, *prose)
        return [one for one in columns if one not in taken]

    def _numbers_with_nulls(
        self, file: Sniffed, columns: list[Column], content: dict[str, Any]
    ) -> list[Column]:
        """Take columns of numbers with some odd texts for numbers, and those texts for nulls."""
        if content["format"] != "csv":
            return columns
        result = []
        for one in columns:
            odd = file.odd_texts(one.name) if one.kind == "text" else []
            if odd:
                nulls = content.setdefault("nulls", [""])
                nulls += [value for value in odd if value not in nulls]
                shown = ", ".join(f"'{value}'" for value in odd)
                self.say(file, f"'{one.name}' holds numbers; {shown} are taken for nulls")
                one = replace(one, kind="number")
            result.append(one)
        return result

    def _attributes(self, file: Sniffed, columns: list[Column]) -> list[dict[str, str]]:
        attributes: list[dict[str, str]] = []
        for one in columns:
            name = _attribute_name(one.name, {given["name"] for given in attributes})
            entry = {"name": name, "column": one.name}
            separator = self._separator(file, one) if one.kind == "text" else {}
            if one.kind == "list" or separator:
                attributes.append(entry | {"type": "list"} | separator)
            elif one.is_numeric and fits(known_as.TOTAL, one.name):
                self.say(
                    file,
                    f"'{one.name}' is left out: a total up to the export would tell the ranker the "
                    "future (such counts are made from the events, as of each moment)",
                )
            elif one.is_numeric:
                is_code = one.kind == "integer" and one.distinct <= _MAX_CODES
                attributes.append(entry | {"type": "categorical" if is_code else "numeric"})
                if is_code:
                    self.say(
                        file,
                        f"'{one.name}' has {one.distinct} whole values: taken as categories",
                    )
            elif one.kind == "boolean" or (
                one.kind == "text" and one.distinct <= max(0.5 * one.filled, _MAX_CODES)
            ):
                attributes.append(entry | {"type": "categorical"})
            else:
                self.say(file, f"'{one.name}' is left out: nearly every value is different")
        if attributes:
            shown = ", ".join(f"{one['name']} ({one['type']})" for one in attributes)
            self.say(file, f"attributes: {shown}")
        return attributes

    def _separator(self, file: Sniffed, column: Column, *, words: bool = False) -> dict[str, str]:
        found = file.list_separator(column.name, words=words) if column.kind == "text" else None
        if found is None:
            return {}
        self.say(file, f"values of '{column.name}' are separated by '{found}'")
        return {"separator": found}

    @staticmethod
    def _is_address(file: Sniffed, column: Column) -> bool:
        return all("://" in value for value in file.values(column.name, 5))

    def _source(self, file: Sniffed) -> dict[str, Any]:
        path = file.path.resolve()
        shown = path.as_posix() if self.folder is None else os.path.relpath(path, self.folder)
        settings = dict(file.settings)
        if settings.get("separator") == ",":
            del settings["separator"]
        return {"path": shown} | settings


def _attribute_name(column: str, taken: Iterable[str]) -> str:
    """Return a name that a description accepts, unlike those taken."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", plain(column)).lower()
    name = re.sub(r"[^a-z0-9]+", "_", snake).strip("_")[:40].strip("_")
    if not name or not name[0].isalpha():
        name = f"column_{name}".strip("_")
    name = f"own_{name}" if name in RESERVED_NAMES else name
    base, number = name, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def _render(parts: dict[str, Any], assumptions: list[str]) -> str:
    lines = [f"name = {_toml(parts['name'])}"]
    for table in ("users", "posts", "events"):
        if table in parts:
            told = [note for note in assumptions if note.startswith(f"{table}: ")]
            lines += ["", *(f"# {note.removeprefix(f'{table}: ')}" for note in told)]
            lines += [f"[{table}]"]
            lines += [f"{key} = {_toml(value)}" for key, value in parts[table].items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + "".join(f"    {_toml(item)},\n" for item in value) + "]"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)  # the same as TOML for text, numbers, booleans

"""A state folder published to object storage and fetched from it, with everything that can happen.

The folders hold what a job leaves, by name; tests/job/test_object_storage.py runs a real one.
"""

import json
import shutil
import signal
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from publishing import begin
from s3_server import BUCKET, S3Server

from feature_repo.workspace import Workspace
from pipelines.errors import PublishedElsewhereError, StorageError
from pipelines.storage.mirror import Mirror
from pipelines.storage.objects import Objects
from pipelines.storage.publications import Publications
from serving.bundle import Manifest, checksum, current_generation, point_to

pytest.importorskip("obstore")

NAME = "feed"
LOG = f"state/{NAME}/publications/00000002.json"
NOT_PUBLISHED = {"storage.json", "bundles/current", "bundles/online_namespace"}


@dataclass(frozen=True)
class Home:
    """A state folder with made-up content."""

    path: Path
    url: str

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.path, NAME)

    @property
    def mirror(self) -> Mirror:
        mirror = Mirror.of(self.workspace, self.url)
        assert mirror is not None
        return mirror

    def write(self, name: str, content: str) -> None:
        path = self.workspace.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")

    def make(self, generation: str, months: int) -> None:
        """Write a lake of some months, a feature table and a bundle, as a run would."""
        for month in range(1, months + 1):
            part = f"lake/events/event_month=2024-{month:02}/part-000000.parquet"
            self.write(part, f"events of month {month}")
        self.write("lake/lake.json", json.dumps({"months": months}))
        self.write("features/user_activity.parquet", f"features of {generation}")
        self.write("registry.db", f"registry of {generation}")
        self.write(f"bundles/{generation}/ranker.txt", f"ranker of {generation}")
        bundle = self.workspace.bundles / generation
        files = {"ranker.txt": checksum(bundle / "ranker.txt")}
        manifest = Manifest(
            *(generation, NAME, f"2024-01-{months:02}", {}, "", f"rows-{generation}"),
            *({}, [], "ranker.txt", None, [], {}, {}, files),
        )
        self.write(f"bundles/{generation}/manifest.json", json.dumps(asdict(manifest)))

    def publish(self, generation: str, *older: str) -> None:
        self.mirror.publish(generation, [generation, *older])
        point_to(self.workspace.bundles, generation)

    def files(self) -> dict[str, str]:
        """Return what is published of the folder, but for what names it and what is hidden."""
        root = self.workspace.root
        found = {
            path.relative_to(root).as_posix(): path.read_text("utf-8")
            for path in sorted(root.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }
        return {k: v for k, v in found.items() if k not in NOT_PUBLISHED}

    def namespace(self) -> str:
        return self.workspace.online_namespace.read_text("utf-8")


@pytest.fixture
def homes(tmp_path: Path, s3: S3Server) -> tuple[Home, Home]:
    """A state folder that has published generation "aa" of two months, and an empty one."""
    first, second = Home(tmp_path / "first", s3.url), Home(tmp_path / "second", s3.url)
    first.make("aa", months=2)
    first.publish("aa")
    return first, second


def test_what_was_published_is_fetched_into_an_empty_folder(homes, s3):
    first, second = homes
    assert second.mirror.bring_up_to_date() is not None
    assert second.files() == first.files()
    assert current_generation(second.workspace.bundles) == "aa"
    assert second.namespace() == "rows-aa"
    assert second.mirror.bring_up_to_date() is None
    # The record comes last.
    assert s3.writes[-1] == f"state/{NAME}/publications/00000001.json"


def test_the_next_publication_replaces_what_it_does_not_hold_and_stores_only_what_is_new(homes, s3):
    first, second = homes
    second.mirror.bring_up_to_date()
    second.write("steps/ingest.json", "{}")
    first.make("bb", months=3)
    (first.workspace.lake / "events/event_month=2024-01/part-000000.parquet").unlink()
    before = len(s3.writes)
    first.publish("bb", "aa")
    written = [key.removeprefix(f"state/{NAME}/") for key in s3.writes[before:]]
    assert [key.rpartition("/")[0] for key in written if key.startswith("files/")] == [
        "files/bundles/bb/manifest.json",
        "files/bundles/bb/ranker.txt",
        "files/features/user_activity.parquet",
        "files/lake/events/event_month=2024-03/part-000000.parquet",
        "files/lake/lake.json",
        "files/registry.db",
    ]
    second.mirror.bring_up_to_date()
    assert second.files() == first.files()
    assert not (second.workspace.lake / "events" / "event_month=2024-01").exists()
    assert current_generation(second.workspace.bundles) == "bb"


def test_the_same_again_publishes_nothing(homes, s3):
    first, _ = homes
    before = list(s3.writes)
    first.publish("aa")
    assert s3.writes == before
    assert first.mirror.is_published("aa")


def test_files_that_neither_of_the_last_two_publications_names_are_removed(homes, s3):
    first, _ = homes
    for months, generation in enumerate(("bb", "cc"), 3):
        first.make(generation, months)
        first.publish(generation)
    stored = "".join(s3.objects(f"state/{NAME}/files/bundles"))
    assert "/aa/" not in stored
    assert "/bb/" in stored
    assert "/cc/" in stored
    assert len(s3.objects(f"state/{NAME}/publications")) == 3


def test_a_service_takes_the_bundle_and_no_more(homes):
    first, second = homes
    second.mirror.fetch_bundle()
    expected = {name: text for name, text in first.files().items() if "lake" not in name}
    del expected["features/user_activity.parquet"]
    assert second.files() == expected
    first.make("bb", months=3)
    first.publish("bb", "aa")
    second.mirror.fetch_bundle()
    assert current_generation(second.workspace.bundles) == "bb"
    assert second.namespace() == "rows-bb"
    first.make("cc", months=3)
    first.publish("cc", "bb")
    second.mirror.fetch_bundle()
    kept = {path.name for path in second.workspace.bundles.iterdir() if path.is_dir()}
    assert kept == {"bb", "cc"}


def read_anew(home: Home) -> dict[str, str]:
    """Return what an empty folder gets."""
    shutil.rmtree(home.path, ignore_errors=True)
    home.mirror.bring_up_to_date()
    return home.files()


@pytest.mark.parametrize("written", [False, True])
def test_killed_at_any_write_the_old_state_is_read_and_the_next_run_is_clean(homes, s3, written):
    first, _ = homes
    reader = Home(first.path.with_name("reader"), s3.url)
    old = first.files()
    first.make("bb", months=3)
    new = first.files()
    killed: list[str] = []
    code = -signal.SIGKILL
    while code == -signal.SIGKILL:
        assert read_anew(reader) == (new if LOG in s3.objects() else old)
        begun = threading.Event()

        def kill_once(key: str, begun: threading.Event = begun) -> bool:
            """Kill the publisher with the first write of each key; say whether to go on."""
            if key in killed:
                return True
            begun.wait(10)
            killed.append(key)
            publisher.kill()  # noqa: B023
            return False

        if written:
            s3.after_write = kill_once
        else:
            s3.before_write = kill_once
        publisher = begin(first.workspace, s3.url, "bb", ["bb", "aa"])
        begun.set()
        publisher.join()
        code = publisher.exitcode
    assert code == 0
    assert len(killed) == len(set(killed)) == 8
    assert killed[-1] == LOG
    point_to(first.workspace.bundles, "bb")
    assert first.mirror.is_published("bb")
    assert read_anew(reader) == new
    assert set(s3.objects(f"state/{NAME}/publications")) == {LOG.replace("2.", "1."), LOG}


def test_of_two_publishers_one_wins_and_the_other_begins_anew_from_it(homes):
    first, second = homes
    second.mirror.bring_up_to_date()
    first.make("bb", months=3)
    first.publish("bb", "aa")
    second.make("cc", months=2)
    with pytest.raises(PublishedElsewhereError, match=r"publication 2 \(generation bb, .*run"):
        second.publish("cc", "aa")
    with pytest.raises(PublishedElsewhereError, match="does not begin from it"):
        second.mirror.point_back("aa")
    assert second.mirror.bring_up_to_date() is not None
    assert second.files() == first.files()
    second.make("cc", months=3)
    second.publish("cc", "bb")
    assert first.mirror.latest().generation == "cc"


def test_of_two_that_publish_at_the_same_moment_exactly_one_wins(tmp_path, s3):
    homes = [Home(tmp_path / name, s3.url) for name in ("first", "second")]
    for number in range(1, 6):
        for home, generation in zip(homes, ("aa", "bb"), strict=True):
            home.mirror.bring_up_to_date()
            home.make(f"{generation}{number}", months=number)
        both = threading.Barrier(2)
        s3.before_write = lambda key, both=both: "publications" not in key or both.wait(5) >= 0
        won: list[str] = []
        refused: list[str] = []

        def publish(home: Home, generation: str, won=won, refused=refused) -> None:
            try:
                home.publish(generation)
                won.append(generation)
            except PublishedElsewhereError as error:
                refused.append(str(error))

        threads = [
            threading.Thread(target=publish, args=(home, f"{generation}{number}"))
            for home, generation in zip(homes, ("aa", "bb"), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert f"publication {number} was written by another run" in refused[0]
        assert homes[0].mirror.latest().generation == won[0]
        assert homes[0].mirror.latest().number == number


def test_a_publication_whose_answer_is_lost_is_known_as_ones_own(homes, s3):
    first, _ = homes
    first.make("bb", months=3)
    s3.after_write = lambda key: key != LOG or s3.writes.count(LOG) > 1
    first.publish("bb", "aa")
    assert first.mirror.is_published("bb")
    assert s3.writes.count(LOG) == 2


def one_object(s3: S3Server, part: str) -> Path:
    (key,) = [key for key in s3.objects() if part in key]
    return s3.folder / key


def test_an_object_that_is_cut_short_is_refused_and_mended_by_the_next_publication(homes, s3):
    first, second = homes
    second.mirror.bring_up_to_date()
    old = second.files()
    first.make("bb", months=3)
    first.publish("bb", "aa")
    damaged = one_object(s3, "event_month=2024-03")
    damaged.write_bytes(damaged.read_bytes()[:5])
    with pytest.raises(StorageError, match=r"2024-03.* 5 bytes with sha256 .* expected 17 with"):
        second.mirror.bring_up_to_date()
    assert second.files() == old
    assert current_generation(second.workspace.bundles) == "aa"
    assert not first.mirror.is_published("bb")
    first.publish("bb", "aa")
    assert first.mirror.is_published("bb")
    second.mirror.bring_up_to_date()
    assert second.files() == first.files()


def test_an_object_with_other_content_of_the_same_size_is_refused(homes, s3):
    _, second = homes
    damaged = one_object(s3, "ranker.txt")
    damaged.write_bytes(damaged.read_bytes()[::-1])
    with pytest.raises(StorageError, match=r"ranker.txt/.* remove the object, and publish again"):
        second.mirror.fetch_bundle()
    assert current_generation(second.workspace.bundles) is None


def test_a_write_that_the_store_keeps_in_part_is_not_published(homes, s3):
    first, _ = homes
    first.make("bb", months=3)

    def cut(key: str) -> bool:
        if "2024-03" in key:
            path = s3.folder / key
            path.write_bytes(path.read_bytes()[:7])
        return True

    s3.after_write = cut
    with pytest.raises(StorageError, match="found 7 bytes after writing 17; nothing was published"):
        first.publish("bb", "aa")
    assert first.mirror.latest().generation == "aa"
    s3.after_write = lambda key: True
    first.publish("bb", "aa")
    assert first.mirror.latest().generation == "bb"


def test_a_lake_that_was_never_published_there_is_not_replaced(homes):
    _, second = homes
    second.make("zz", months=1)
    before = second.files()
    with pytest.raises(StorageError, match=r"its lake was never published to .*--home"):
        second.mirror.bring_up_to_date()
    assert second.files() == before


def test_drained_events_that_were_not_published_are_kept(homes):
    first, second = homes
    second.mirror.bring_up_to_date()
    first.write("drained/part-000000.parquet", "drained here")
    first.make("bb", months=3)
    first.publish("bb", "aa")
    second.write("drained/part-000000.parquet", "drained there")
    second.mirror.bring_up_to_date()
    drained = sorted(path.read_text("utf-8") for path in second.workspace.drained.iterdir())
    assert drained == ["drained here", "drained there"]
    assert len(list(second.workspace.drained.glob("part-*.parquet"))) == 2


def test_a_generation_is_published_again_with_everything_else_as_it_is(homes):
    first, second = homes
    first.make("bb", months=3)
    first.publish("bb", "aa")
    first.mirror.point_back("aa")
    second.mirror.fetch_bundle()
    assert current_generation(second.workspace.bundles) == "aa"
    assert first.mirror.latest().number == 3
    with pytest.raises(StorageError, match="generation zz is not among what was published last"):
        first.mirror.point_back("zz")


def test_a_record_that_leads_out_of_the_folder_is_refused(homes, s3):
    record = s3.folder / "state" / NAME / "publications" / "00000001.json"
    record.write_text(record.read_text("utf-8").replace("lake/lake.json", "../../lake.json"))
    _, second = homes
    with pytest.raises(StorageError, match="leads out of the state folder"):
        second.mirror.bring_up_to_date()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"files": {"a": 1}}'])
def test_a_record_that_is_none_is_refused(homes, s3, content):
    (s3.folder / "state" / NAME / "publications" / "00000002.json").write_text(content)
    with pytest.raises(StorageError, match=r"00000002\.json: no record of a publication"):
        homes[1].mirror.latest()


def test_a_bucket_that_is_not_there_is_named(s3):
    with pytest.raises(StorageError, match=r"s3://nowhere/feed: cannot list publications/.*AWS_"):
        Publications(Objects("s3://nowhere/feed")).latest()


def test_a_store_that_does_not_answer_is_named(homes, s3):
    s3.stop()
    with pytest.raises(StorageError, match=r"cannot list publications/.*try again"):
        homes[0].mirror.latest()


@pytest.mark.parametrize("url", ["gs://lake/state", "lake", "s3:///state"])
def test_an_address_of_another_kind_is_refused(url):
    with pytest.raises(StorageError, match="expected s3://BUCKET"):
        Objects(url)


def test_large_files_go_in_parts_and_come_back_whole(homes, s3):
    first, second = homes
    large = "0123456789abcdef" * 900_000
    first.write("lake/users/part-000000.parquet", large)
    first.make("bb", months=3)
    first.publish("bb")
    second.mirror.bring_up_to_date()
    assert second.files()["lake/users/part-000000.parquet"] == large
    assert sum("lake/users" in key for key in s3.writes) > 1
    assert BUCKET in str(s3.folder)


def test_a_store_without_conditional_writes_is_refused(homes, s3):
    first, _ = homes
    s3.conditional = False
    first.make("bb", months=3)
    with pytest.raises(StorageError, match="overwrites objects in spite of If-None-Match"):
        first.publish("bb", "aa")
    assert first.mirror.latest().generation == "aa"


def test_what_may_not_be_removed_stays_and_is_said(homes, s3, caplog):
    first, _ = homes
    s3.removable = False
    for months, generation in enumerate(("bb", "cc"), 3):
        first.make(generation, months)
        first.publish(generation)
    assert first.mirror.latest().generation == "cc"
    assert "published; 5 unused objects stay: s3://lake/state/feed: cannot remove" in caplog.text

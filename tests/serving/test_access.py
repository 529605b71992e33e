"""API keys and their limits, on a small application of their own."""

import hashlib

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from serving.access import ApiKeys, Guarded, TokenBuckets
from serving.errors import ApiKeysError
from serving.settings import HttpSettings

KEY, OTHER = "k" * 20, "o" * 20


def settings(**named) -> HttpSettings:
    return HttpSettings(**named)


def client_of(keys: ApiKeys, buckets: TokenBuckets | None = None) -> TestClient:
    app = FastAPI()
    for path in ("/health", "/thing"):
        app.get(path)(lambda: "ok")
    app.add_middleware(Guarded, keys=keys, buckets=buckets, open_paths=["/health"])
    return TestClient(app)


def test_only_known_keys_are_answered_and_open_paths_are_open():
    client = client_of(ApiKeys.of(settings(api_keys=f"web:{KEY},app:{OTHER}")))
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": OTHER}):
        assert client.get("/thing", headers=headers).status_code == 200
    for headers in ({}, {"X-API-Key": KEY[:-1]}, {"Authorization": f"Basic {KEY}"}):
        refused = client.get("/thing", headers=headers)
        assert refused.status_code == refused.json()["status"] == 401
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers["www-authenticate"] == "Bearer"
    assert client.get("/health").status_code == 200


def test_a_file_holds_digests_and_never_the_key(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# who\nweb {hashlib.sha256(KEY.encode()).hexdigest()}  # the site\n\n")
    keys = ApiKeys.of(settings(api_key_file=file))
    assert keys.name_of(KEY.encode()) == "web"
    assert keys.name_of(file.read_bytes().split()[3]) is None
    assert KEY not in repr(settings(api_keys=f"web:{KEY}"))


@pytest.mark.parametrize("content", [f"web {KEY}", "", "a b c", f"web {'F' * 64}"])
def test_a_wrong_file_is_refused_without_showing_keys(tmp_path, content):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ApiKeysError, match=r"expected a name|holds no key") as caught:
        ApiKeys.of(settings(api_key_file=file))
    assert KEY not in str(caught.value)
    with pytest.raises(ApiKeysError, match="cannot be read"):
        ApiKeys.of(settings(api_key_file=tmp_path / "none"))


@pytest.mark.parametrize("given", ["web", "web:short", f":{KEY}", f"web:{KEY},", f"a b:{KEY}"])
def test_a_wrong_list_is_refused_without_showing_keys(given):
    with pytest.raises(ApiKeysError, match="is not NAME:KEY") as caught:
        ApiKeys.of(settings(api_keys=given))
    assert KEY not in str(caught.value)


def test_each_key_has_its_own_limit_and_is_told_when_to_come_again():
    now = [100.0]
    buckets = TokenBuckets(rate=0.5, burst=2, clock=lambda: now[0])
    client = client_of(ApiKeys.of(settings(api_keys=f"web:{KEY},app:{OTHER}")), buckets)

    def status(key: str) -> int:
        return client.get("/thing", headers={"X-API-Key": key}).status_code

    assert [status(KEY) for _ in range(3)] == [200, 200, 429]
    assert status(OTHER) == 200
    refused = client.get("/thing", headers={"X-API-Key": KEY})
    assert refused.headers["retry-after"] == "2"
    assert refused.json()["title"] == "Too Many Requests"
    now[0] += 2
    assert [status(KEY), status(KEY)] == [200, 429]
    assert client.get("/health").status_code == 200


@given(st.lists(st.floats(0, 3), max_size=50))
def test_no_more_than_the_rate_allows(gaps):
    now, taken = [0.0], 0
    buckets = TokenBuckets(rate=2, burst=5, clock=lambda: now[0])
    for gap in gaps:
        now[0] += gap
        taken += buckets.take("web") == 0
        assert taken <= 5 + 2 * now[0] + 1e-6

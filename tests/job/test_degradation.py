"""What is missing when the service starts is said and got over."""

from fastapi.testclient import TestClient
from http_service import Service

from serving.app import create_app
from serving.bundle import CURRENT, current_generation
from serving.published import PublishedRecommender
from serving.settings import HttpSettings


def test_without_a_bundle_it_starts_says_so_and_answers_once_one_is_published(service: Service):
    bundles = service.job.workspace.bundles
    pointer = bundles / CURRENT
    generation = pointer.read_text()
    pointer.unlink()
    published = PublishedRecommender(
        service.published._open, lambda: current_generation(bundles), 60, may_wait=True
    )
    with TestClient(create_app(published, HttpSettings())) as client:
        body = {"user_id": "u003", "k": 2}
        for answer in (
            client.get("/ready"),
            client.get("/version"),
            client.post("/recommend", json=body),
        ):
            assert answer.status_code == answer.json()["status"] == 503
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) > 0
        assert client.get("/health").status_code == 200
        assert "feastrank_bundle{" not in client.get("/metrics").text
        pointer.write_text(generation)
        published.refresh()
        assert client.get("/ready").json()["degraded"] == []
        assert len(client.post("/recommend", json=body).json()["posts"]) == 2
        assert f'feastrank_bundle{{bundle="{generation}"}}' in client.get("/metrics").text

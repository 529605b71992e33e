"""Whatever the OpenAPI document allows, and much that it does not, is answered as it says."""

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from http_service import Service
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.app import create_app
from serving.settings import HttpSettings

KEY = "a key that is long enough"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
SUPPRESSED = list(HealthCheck)


@pytest.fixture
def guarded(service: Service) -> FastAPI:
    """The service's application, with keys."""
    return create_app(service.published, HttpSettings(api_keys=f"tests:{KEY}"))


def ask(application: FastAPI, examples: int) -> int:
    """Ask every operation many times; return how many operations there are."""
    headers = {"Authorization": f"Bearer {KEY}"}
    document = schemathesis.openapi.from_asgi("/openapi.json", application, headers=headers)
    operations = [found.ok() for found in document.get_all_operations()]
    for operation in operations:

        @settings(max_examples=examples, deadline=None, suppress_health_check=SUPPRESSED)
        @given(case=operation.as_strategy())
        def every_answer_is_documented(case):
            case.call_and_validate(headers=headers, checks=CHECKS)

        every_answer_is_documented()
    return len(operations)


def test_every_answer_is_documented(guarded: FastAPI):
    assert ask(guarded, examples=8) >= 9


@pytest.mark.slow
def test_every_answer_is_documented_however_long_one_asks(guarded: FastAPI):
    assert ask(guarded, examples=300) >= 9


def test_without_a_key_only_open_paths_are_answered(guarded: FastAPI):
    with TestClient(guarded) as client:
        open_paths = {"/health", "/ready", "/metrics"}
        paths = client.get("/openapi.json", headers={"X-API-Key": KEY}).json()["paths"]
        assert open_paths < set(paths)
        for path, operations in paths.items():
            for method in operations:
                status = client.request(method, path).status_code
                assert status == (200 if path in open_paths else 401)

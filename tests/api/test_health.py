"""Health, readiness, metrics, the description of the API, and who may see what."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
import pytest
from doubles import parts
from prometheus_client.parser import text_string_to_metric_families
from served import KEY, Served, served, settings
from stub_engine import StubEngine
from test_relay import ASK, CHAT, error
from waiting import until


def test_health(service: Served) -> None:
    """It lives, and says that limits and keys are the process's own."""
    response = httpx.get(service.url + "/api/v1/health")
    found = response.json()
    assert (found["status"], found["limits"], found["keys"], found["workers"]) == ("ok", "embedded", "embedded", 1)
    assert response.headers["x-request-id"].startswith("req_")
    assert not service.parts.usage.rows


def test_health_of_a_large_one(engine: StubEngine) -> None:
    """Redis and PostgreSQL are named, without their addresses."""
    names = {"redis": "redis://127.0.0.1:1/0", "database": "postgresql://box@127.0.0.1:1/keys", "workers": 2}
    with served(engine, **names) as service:
        response = httpx.get(service.url + "/api/v1/health")
        found = response.json()
        assert (found["limits"], found["keys"], found["workers"]) == ("redis", "postgresql", 2)
        assert "127.0.0.1" not in response.text


def test_ready_when_warm(engine: StubEngine) -> None:
    """Not before each model has answered once; the request that makes it is the least, with the route's options."""
    engine.behave(status=503, error="loading")
    models = [
        {"name": "plain", "upstream": engine.url},
        {"name": "ollama", "upstream": engine.url, "engine": "ollama", "options": {"keep_alive": -1, "num_ctx": 99}},
        {"name": "embed", "upstream": engine.url, "offers": ["embeddings"]},
        {"name": "image", "upstream": engine.url, "offers": ["images"]},
        {"name": "cold", "upstream": "http://127.0.0.1:1", "warm": False},
    ]
    with Served(parts(settings(engine, models=models))) as service:
        until(lambda: len(engine.records) >= 3)
        response = httpx.get(service.url + "/api/v1/ready")
        assert response.status_code == 503
        assert response.json()["status"] == "not_ready"
        assert response.json()["models"]["plain"] is False
        assert httpx.get(service.url + "/api/v1/health").status_code == 200
        engine.behave()
        until(lambda: httpx.get(service.url + "/api/v1/ready").status_code == 200, 30)
        found = httpx.get(service.url + "/api/v1/ready").json()
        assert found == {
            "status": "ready",
            "store": True,
            "limiter": True,
            "models": {"plain": True, "ollama": True, "embed": True, "image": True},
            "retrieval": None,
        }
        bodies = {record.model: record.body for record in engine.records if record.end == "done"}
        assert bodies["plain"]["max_tokens"] == 1
        assert bodies["ollama"]["keep_alive"] == -1
        assert bodies["ollama"]["options"] == {"num_predict": 1, "num_ctx": 99}
        assert not service.parts.usage.rows
        service.parts.limiter.up = False
        assert httpx.get(service.url + "/api/v1/ready").json()["limiter"] is False
        assert httpx.get(service.url + "/api/v1/ready").status_code == 503
        service.parts.limiter.up, service.parts.store.up = True, False
        assert httpx.get(service.url + "/api/v1/ready").status_code == 503


def samples(service: Served) -> dict[str, float]:
    text = httpx.get(service.url + "/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_metrics(service: Served, engine: StubEngine) -> None:
    """Read by Prometheus' own parser: requests, tokens, refusals, and what is in flight."""
    before = samples(service)

    def more(name: str) -> float:
        return samples(service)[name] - before.get(name, 0)

    service.post(CHAT, ASK)
    service.post(CHAT, {**ASK, "model": "absent"})
    assert more("boxwright_api_requests_total{model=plain,outcome=ok,route=chat,status=200}") == 1
    assert more("boxwright_api_requests_total{model=,outcome=refused,route=chat,status=404}") == 1
    assert more("boxwright_api_tokens_total{direction=in,model=plain}") == 3
    assert more("boxwright_api_tokens_total{direction=out,model=plain}") == 5
    assert more("boxwright_api_refusals_total{code=model_not_found}") == 1
    assert more("boxwright_api_first_byte_seconds_count{model=plain}") == 1
    engine.behave(hang_after=1)
    with httpx.stream("POST", service.url + CHAT, json={**ASK, "stream": True}, headers=KEY) as answer:
        chunks = answer.iter_bytes()
        next(chunks)
        assert samples(service)["boxwright_api_in_flight{}"] == 1
    until(lambda: samples(service)["boxwright_api_in_flight{}"] == 0)
    service.parts.usage.dropped = 4
    until(lambda: more("boxwright_api_usage_dropped_total{}") == 4)


@pytest.mark.parametrize("path", ["/metrics", "/docs", "/openapi.json", "/redoc", "/admin/keys", "/admin", "/metrics/"])
@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"CF-Connecting-IP": "127.0.0.1"},
        {"CF-Ray": "1"},
        {"X-Real-IP": "127.0.0.1"},
        {"Via": "1.1 caddy"},
        {"Tailscale-User-Login": "me"},
        {"Host": "llm.example.org"},
        {"Host": "127.0.0.1.example.org"},
        {"Host": "localhost.example.org:8000"},
        {"Host": "[::2]"},
        {"Host": ""},
    ],
)
def test_inside_only(service: Served, path: str, headers: dict[str, str]) -> None:
    """Whatever came through a proxy or a tunnel finds nothing there."""
    assert error(httpx.get(service.url + path, headers=headers)) == (404, "not_found")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:80", "[::1]:8000"])
def test_inside(service: Served, host: str) -> None:
    """On the box itself they are there."""
    for path in ("/metrics", "/docs", "/openapi.json"):
        assert httpx.get(service.url + path, headers={"Host": host}).status_code == 200


def test_description(service: Served) -> None:
    """OpenAPI 3.1 with all addresses, and schemas that let other members pass."""
    schema: dict[str, Any] = httpx.get(service.url + "/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    assert {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/images/generations",
        "/v1/models",
        "/v1/models/{id}",
        "/api/v1/health",
        "/api/v1/ready",
    } <= set(schema["paths"])
    chat = schema["components"]["schemas"]["Chat"]
    assert chat["additionalProperties"] is True
    assert {"model", "messages"} == set(chat["required"])
    assert schema["paths"]["/v1/chat/completions"]["post"]["security"] == [{"key": []}]

"""Figures for Prometheus. With several workers they are kept in files that all of them write, and added up."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import multiprocess as shared
from starlette.requests import Request
from starlette.responses import Response

from boxwright_api.records import UsageRow

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

REQUESTS = Counter("boxwright_api_requests_total", "Requests by their end.", ("route", "model", "status", "outcome"))
REFUSALS = Counter("boxwright_api_refusals_total", "Refused requests by error code.", ("code",))
TOKENS = Counter("boxwright_api_tokens_total", "Tokens, as the engines count them.", ("model", "direction"))
ESTIMATED = Counter("boxwright_api_estimated_total", "Requests whose tokens were estimated.", ("model",))
IN_FLIGHT = Gauge("boxwright_api_in_flight", "Requests that engines work on.", multiprocess_mode="livesum")
QUEUE = Histogram("boxwright_api_queue_seconds", "Wait for a place.", buckets=SECONDS)
FIRST = Histogram("boxwright_api_first_byte_seconds", "Time to the first byte.", ("model",), buckets=SECONDS)
TOTAL = Histogram("boxwright_api_request_seconds", "Time to the last byte.", ("route",), buckets=SECONDS)
USAGE_DROPPED = Counter("boxwright_api_usage_dropped_total", "Usage rows that could be kept nowhere.")
RETRIEVALS = Counter("boxwright_api_retrievals_total", "Lookups of passages by their end.", ("outcome",))
UNCOUNTED = Counter("boxwright_api_uncounted_total", "Requests let in while nothing could be counted (`fail_open`).")
UNCHARGED = Counter("boxwright_api_uncharged_total", "Ended requests whose tokens could be charged to no limit.")


def count(row: UsageRow) -> None:
    """A request that has ended."""
    model = row.model or ""
    REQUESTS.labels(row.route, model, str(row.status), row.outcome).inc()
    TOTAL.labels(row.route).observe(row.total_ms / 1000)
    if row.code:
        REFUSALS.labels(row.code).inc()
    if row.tokens_in or row.tokens_out:
        TOKENS.labels(model, "in").inc(row.tokens_in)
        TOKENS.labels(model, "out").inc(row.tokens_out)
    if row.estimated:
        ESTIMATED.labels(model).inc()
    if row.first_ms is not None:
        FIRST.labels(model).observe(row.first_ms / 1000)


def render() -> bytes:
    """All figures of all workers."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not folder:
        return generate_latest()
    for process in {int(file.stem.rsplit("_", 1)[1]) for file in Path(folder).glob("gauge_live*_*.db")}:
        # A worker that was killed took its places with it.
        if not _alive(process):
            shared.mark_process_dead(process)  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    shared.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def metrics(request: Request) -> Response:
    """GET /metrics."""
    return Response(render(), media_type=CONTENT_TYPE_LATEST)

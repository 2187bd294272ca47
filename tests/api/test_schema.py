"""The service against its own description: schemathesis makes requests of it, good ones and bad ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from doubles import SECRET
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from served import Served, served
from stub_engine import StubEngine


@pytest.fixture(scope="module")
def lasting(stub: StubEngine) -> Iterator[Served]:
    """One service for all."""
    stub.behave()
    with served(stub) as found:
        yield found


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_description_holds(lasting: Served, mode: GenerationMode) -> None:
    """No fault of ours, no answer that is not described, and nothing accepted that the description forbids."""
    schema = schemathesis.openapi.from_url(lasting.url + "/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 9
    for operation in operations:
        _holds(operation, mode)


def _holds(operation: Any, mode: GenerationMode) -> None:
    if mode is GenerationMode.NEGATIVE and operation.method == "get":
        return

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {SECRET}"})

    run()

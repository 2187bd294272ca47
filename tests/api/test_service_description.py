"""The running service against its own description, with the requests of schemathesis: the same ones in every run."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from running import Running
from schemathesis import GenerationMode
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

SEED = 20261130
# A key that is made, changed, rotated and revoked at random must not be the one that asks.
EXAMPLES = 15


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_answers_are_as_described(running: Running, mode: GenerationMode) -> None:
    """No 5xx, nothing accepted that the description forbids, every answer in a shape that it names."""
    schema = schemathesis.openapi.from_dict(running.admin.get("/openapi.json").json())
    schema.config.update(base_url=running.url)
    asked = running.key()
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {"/v1/chat/completions", "/v1/models/{id}", "/admin/keys/{id}/rotate"} <= {one.path for one in operations}
    held = 0
    for operation in operations:
        secret = running.secrets["admin_secret"] if operation.path.startswith("/admin") else asked.key
        held += holds(operation, mode, secret)
    assert held >= (len(operations) if mode is GenerationMode.POSITIVE else 10)
    # It goes on, and nothing has happened that it did not expect.
    assert running.post(asked).status_code == 200
    assert "Traceback" not in running.text()


def holds(operation: Any, mode: GenerationMode, secret: str) -> bool:
    """Whether there was anything to ask: an address without a parameter cannot be asked for in a wrong way."""

    @seed(SEED)
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        headers = {"Authorization": f"Bearer {secret}"}
        answer = case.call(headers=headers)
        # Some of what fits the description is wrong for a reason that it cannot say: a model that is not there, a
        # number of tokens written as 5.0. What is wrong outside of a body may be where nobody looks, and whatever the
        # body of a text is, it is a text.
        excluded = [positive_data_acceptance]
        body = case.meta.components.get(ParameterLocation.BODY)
        if body is None or body.mode is not GenerationMode.NEGATIVE or case.media_type == "text/plain":
            excluded.append(negative_data_rejection)
        assert answer.status_code < 500, (case.as_curl_command(), answer.content)
        case.validate_response(answer, headers=headers, excluded_checks=excluded)
        if answer.status_code >= 400:
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["message"]
            assert error["code"]

    try:
        run()
    except Unsatisfiable:
        return False
    return True

"""The admin API, as an administrator's program sees it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import httpx2
import pytest
from boxwright_api import admin
from boxwright_api.contracts import Limiter, Store
from boxwright_api.errors import ApiError, StoreUnavailable
from boxwright_api.keys import KeyRing
from boxwright_api.parts import Parts
from boxwright_api.records import AuditEntry, Key
from boxwright_api.usage import UsageLog
from fastapi import FastAPI
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from stores import ADMIN_SECRET, NOW, Place, a_row, until_sql
from waiting import until_async

pytestmark = pytest.mark.anyio

FUTURE = "2099-01-01T00:00:00Z"


@dataclass
class Office:
    """The admin API over a database."""

    client: httpx2.AsyncClient
    store: Store
    ring: KeyRing
    place: Place

    async def ask(
        self, method: str, path: str, body: Any = None, *, status: int = 200, secret: str = ADMIN_SECRET, **headers: str
    ) -> Any:
        """The answer's JSON; its status must be the one that is expected."""
        answer = await self.client.request(
            method, path, json=body, headers={"Authorization": f"Bearer {secret}"} | headers
        )
        assert answer.status_code == status, answer.text
        assert answer.headers["cache-control"] == "no-store"
        if status >= 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        return answer.json()

    async def refused(self, method: str, path: str, body: Any = None, status: int = 400, **headers: str) -> Any:
        """The error of a refusal."""
        return (await self.ask(method, path, body, status=status, **headers))["error"]

    async def code(self, key: str) -> str | None:
        """With which code a client with this key is refused; None: it is not."""
        try:
            await self.ring.authenticate(f"Bearer {key}")
        except ApiError as error:
            return error.code
        return None


@contextlib.asynccontextmanager
async def opened(place: Place, store: Store | None = None) -> AsyncIterator[Office]:
    """An application of the admin API alone."""
    app = FastAPI()
    app.include_router(admin.router())
    async with place.opened() as real:
        used = store or real
        ring = KeyRing(place.settings, used)
        place.rings.append(ring)
        app.state.parts = Parts(
            settings=place.settings,
            store=used,
            limiter=cast(Limiter, None),
            keys=ring,
            usage=UsageLog(place.settings, used),
        )
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            yield Office(client, used, ring, place)


async def test_collections_of_a_key(place: Place) -> None:
    """None unless they are named; what is not named stays; the audit log has both."""
    async with opened(place) as office:
        none = await office.ask("POST", "/admin/keys", {"owner": "a"}, status=201)
        assert none["collections"] == []
        asked = {"owner": "b", "collections": ["manuals", "faq", "manuals"]}
        made = await office.ask("POST", "/admin/keys", asked, status=201)
        path = f"/admin/keys/{made['id']}"
        assert made["collections"] == ["manuals", "faq"]
        assert (await office.ask("PATCH", path, {"owner": "c"}))["collections"] == ["manuals", "faq"]
        assert (await office.ask("PATCH", path, {"collections": ["faq"]}))["collections"] == ["faq"]
        assert (await office.ask("GET", path))["collections"] == ["faq"]
        assert (await office.ask("PATCH", path, {"collections": []}))["collections"] == []
        entries = await office.ask("GET", "/admin/audit")
        assert [entry["details"] for entry in entries][:2] == [
            {"before": {"collections": ["faq"]}, "after": {"collections": []}},
            {"before": {"collections": ["manuals", "faq"]}, "after": {"collections": ["faq"]}},
        ]
        assert entries[3]["details"]["collections"] == ["manuals", "faq", "manuals"]


async def test_a_key_from_its_making_to_its_end(place: Place) -> None:
    """It is made, shown without its secret, changed, rotated with an overlap, revoked; each is in the audit log."""
    async with opened(place) as office:
        limits = {"requests_per_minute": 60, "parallel": 2}
        made = await office.ask(
            "POST",
            "/admin/keys",
            {"owner": " anna ", "expires_at": FUTURE, "models": ["small", "small"], "limits": limits},
            status=201,
            **{"X-Boxwright-Actor": "root@desk"},
        )
        first, id = made.pop("key"), made["id"]
        assert first.startswith(f"bw_{id}_")
        assert (made["owner"], made["expires_at"], made["models"]) == ("anna", FUTURE, ["small"])
        assert {name: value for name, value in made["limits"].items() if value} == limits
        assert await office.code(first) is None

        assert await office.ask("GET", "/admin/keys") == [made]
        assert await office.ask("GET", f"/admin/keys/{id}") == made

        changed = await office.ask("PATCH", f"/admin/keys/{id}", {"owner": "bert", "limits": {"parallel": None}})
        assert changed == made | {"owner": "bert", "limits": made["limits"] | {"parallel": None}}
        changed = await office.ask("PATCH", f"/admin/keys/{id}", {"expires_at": None, "models": None, "limits": None})
        assert (changed["expires_at"], changed["models"], set(changed["limits"].values())) == (None, None, {None})

        rotated = await office.ask("POST", f"/admin/keys/{id}/rotate", {"overlap_seconds": 3600})
        second = rotated["key"]
        assert second != first
        left = datetime.fromisoformat(rotated["old_until"]) - datetime.now(UTC)
        assert timedelta(minutes=59) < left <= timedelta(hours=1)
        assert [await office.code(key) for key in (first, second)] == [None, None]

        third = (await office.ask("POST", f"/admin/keys/{id}/rotate", {"overlap_seconds": 0}))["key"]
        assert [await office.code(key) for key in (first, second, third)] == ["invalid_api_key"] * 2 + [None]
        day = datetime.fromisoformat((await office.ask("POST", f"/admin/keys/{id}/rotate"))["old_until"])
        assert timedelta(hours=23) < day - datetime.now(UTC) <= timedelta(hours=24)

        revoked = await office.ask("POST", f"/admin/keys/{id}/revoke", {})
        assert revoked["revoked_at"]
        assert await office.code(third) == "invalid_api_key"
        again = await office.ask("POST", f"/admin/keys/{id}/revoke")
        assert again["revoked_at"] == revoked["revoked_at"]
        for method, path, body in (("PATCH", "", {"owner": "carl"}), ("POST", "/rotate", {"overlap_seconds": 5})):
            assert (await office.refused(method, f"/admin/keys/{id}{path}", body, 409))["code"] == "key_revoked"

        await until_sql(
            place, "SELECT count(*) FROM audit_log WHERE action = 'key.refused'", lambda found: found != "0"
        )
        log = [entry for entry in await office.ask("GET", "/admin/audit") if entry["action"] != "key.refused"]
        assert [entry["action"] for entry in log[::-1]] == [
            "key.add",
            *["key.change"] * 2,
            *["key.rotate"] * 3,
            *["key.revoke"] * 2,
        ]
        assert {entry["target"] for entry in log} == {id}
        assert [entry["actor"] for entry in log[-2:]] == ["unnamed", "root@desk"]
        assert log[-1]["details"]["owner"] == "anna"
        assert log[-2]["details"]["before"]["owner"] == "anna"
        assert log[-2]["details"]["after"]["owner"] == "bert"


async def test_nothing_shows_secrets_or_digests(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """But the answer that makes the key: no other answer, no log line, not the database."""
    caplog.set_level(logging.DEBUG)
    async with opened(place) as office:
        made = await office.ask("POST", "/admin/keys", {"owner": "anna"}, status=201)
        id, secret = made["id"], made["key"][12:]
        key = await office.store.key(id)
        assert key is not None
        rotated = await office.ask("POST", f"/admin/keys/{id}/rotate")
        shown = [
            await office.ask("GET", "/admin/keys"),
            await office.ask("GET", f"/admin/keys/{id}"),
            await office.ask("PATCH", f"/admin/keys/{id}", {"owner": "bert"}),
            await office.ask("GET", "/admin/audit"),
            await office.ask("POST", f"/admin/keys/{id}/revoke"),
        ]
        dump = await asyncio.to_thread(place.dump)
    for words in (json.dumps(shown), caplog.text, dump.decode("latin-1")):
        for one in (secret, rotated["key"][12:], ADMIN_SECRET):
            assert one not in words
    assert key.digest.hex() not in json.dumps(shown)
    assert "digest" not in json.dumps(shown)
    assert "pepper" not in json.dumps(shown)


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {ADMIN_SECRET}", f"Bearer {ADMIN_SECRET}x", "Bearer \xff"],
)
async def test_without_the_admin_secret(place: Place, header: str | None) -> None:
    """401 before anything else is looked at, and one entry in the audit log, however many there are."""
    async with opened(place) as office:
        headers = {} if header is None else {"Authorization": header.encode("latin-1")}
        for method, path in (
            ("POST", "/admin/keys"),
            ("GET", "/admin/keys"),
            ("GET", "/admin/keys/x"),
            ("PATCH", "/admin/keys/Aaaaaaa1"),
            ("POST", "/admin/keys/Aaaaaaa1/rotate"),
            ("POST", "/admin/keys/Aaaaaaa1/revoke"),
            ("GET", "/admin/usage?span=year"),
            ("GET", "/admin/audit"),
        ):
            answer = await office.client.request(method, path, content=b"{", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_admin_secret")
            assert answer.headers["www-authenticate"] == "Bearer"
        await until_sql(place, "SELECT count(*) FROM audit_log", lambda found: found != "0")
        await asyncio.sleep(0.1)
        entries = await office.ask("GET", "/admin/audit")
    assert [(entry["action"], entry["actor"], entry["target"]) for entry in entries] == [
        ("admin.refused", "unknown", "127.0.0.1")
    ]


async def test_the_admin_secret_is_compared_in_constant_time(sqlite: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the library's function, of two digests of the same length."""
    import hmac

    from boxwright_api.store.migrate import migrate

    await asyncio.to_thread(migrate, sqlite.settings)
    lengths: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        lengths.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    async with opened(sqlite) as office:
        await office.ask("GET", "/admin/keys", secret="short", status=401)
        await office.ask("GET", "/admin/keys")
        assert lengths == [(32, 32)] * 2


async def test_a_key_of_a_client_opens_nothing(place: Place) -> None:
    """Below /admin there is one secret."""
    async with opened(place) as office:
        key = (await office.ask("POST", "/admin/keys", {"owner": "anna"}, status=201))["key"]
        await office.ask("GET", "/admin/keys", secret=key, status=401)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "owner"),
        ([], None),
        ("x", None),
        ({"owner": ""}, "owner"),
        ({"owner": "   "}, "owner"),
        ({"owner": 5}, "owner"),
        ({"owner": None}, "owner"),
        ({"owner": "a\nb"}, "owner"),
        ({"owner": "a\0b"}, "owner"),
        ({"owner": "x" * 129}, "owner"),
        ({"owner": "a", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"owner": "a", "expires_at": "2099-01-01T00:00:00"}, "expires_at"),
        ({"owner": "a", "expires_at": "9999-12-31T23:59:59-23:59"}, "expires_at"),
        ({"owner": "a", "expires_at": 4070908800}, "expires_at"),
        ({"owner": "a", "expires_at": "4070908800"}, "expires_at"),
        ({"owner": "a", "expires_at": "tomorrow"}, "expires_at"),
        ({"owner": "a", "models": []}, "models"),
        ({"owner": "a", "collections": None}, "collections"),
        ({"owner": "a", "collections": "manuals"}, "collections"),
        ({"owner": "a", "collections": ["Manuals"]}, "collections.0"),
        ({"owner": "a", "collections": ["a/b"]}, "collections.0"),
        ({"owner": "a", "collections": ["'; DROP TABLE api_key; --"]}, "collections.0"),
        ({"owner": "a", "collections": ["a" * 64]}, "collections.0"),
        ({"owner": "a", "models": "small"}, "models"),
        ({"owner": "a", "models": [1]}, "models.0"),
        ({"owner": "a", "models": ["small", "smal"]}, "models"),
        ({"owner": "a", "limits": {"parallel": 0}}, "limits.parallel"),
        ({"owner": "a", "limits": {"parallel": -1}}, "limits.parallel"),
        ({"owner": "a", "limits": {"parallel": True}}, "limits.parallel"),
        ({"owner": "a", "limits": {"parallel": "5"}}, "limits.parallel"),
        ({"owner": "a", "limits": {"parallel": 1.5}}, "limits.parallel"),
        ({"owner": "a", "limits": {"tokens_per_day": 10**30}}, "limits.tokens_per_day"),
        ({"owner": "a", "limits": {"rpm": 5}}, "limits.rpm"),
        ({"owner": "a", "id": "Aaaaaaa1"}, "id"),
        ({"owner": "a", "digest": "x"}, "digest"),
    ],
)
async def test_what_is_no_key_is_refused(place: Place, body: Any, param: str | None) -> None:
    """With the member that is wrong, and nothing is made or written to the audit log."""
    async with opened(place) as office:
        error = await office.refused("POST", "/admin/keys", body)
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"
        assert await office.ask("GET", "/admin/keys") == []
        assert await office.ask("GET", "/admin/audit") == []


async def test_an_unknown_model_is_refused_with_the_known_ones(place: Place) -> None:
    """So that a slip is seen."""
    async with opened(place) as office:
        error = await office.refused("POST", "/admin/keys", {"owner": "a", "models": ["smal"]})
        assert error["code"] == "unknown_model"
        assert "'smal'; there is 'small', 'large'" in error["message"]


async def test_a_change_is_checked_for_itself(place: Place) -> None:
    """What is wrong in it is refused; what the key had before, and is over or gone since, does not stop it."""
    async with opened(place) as office:
        made = await office.ask("POST", "/admin/keys", {"owner": "a", "models": ["small"]}, status=201)
        path = f"/admin/keys/{made['id']}"
        past = "'2020-01-01'" if place.kind == "postgresql" else "1"
        place.sql(f"UPDATE api_key SET expires_at = {past}, models = '[\"gone\"]'")
        await until_async(lambda: None in place.changes or made["id"] in place.changes)
        assert (await office.ask("PATCH", path, {"owner": "b"}))["models"] == ["gone"]
        assert (await office.refused("POST", f"{path}/rotate", None, 409))["code"] == "key_expired"
        for body, code in (
            ({}, "invalid_request"),
            ({"owner": None}, "invalid_request"),
            ({"expires_at": "2020-01-01T00:00:00Z"}, "expired"),
            ({"models": ["gone"]}, "unknown_model"),
            ({"models": []}, "invalid_request"),
            ({"revoked_at": None}, "invalid_request"),
            ({"limits": {"parallel": 0}}, "invalid_request"),
        ):
            assert (await office.refused("PATCH", path, body))["code"] == code
        assert (await office.ask("PATCH", path, {"expires_at": FUTURE, "models": ["large"]}))["expires_at"] == FUTURE
        for overlap in (-1, 1.5, "60", 10**9, True, None):
            await office.refused("POST", f"{path}/rotate", {"overlap_seconds": overlap})
        assert await office.code(made["key"]) is None


@pytest.mark.parametrize("id", ["Aaaaaaa1", "a%27--aaa", "..%2Faudit", "x", "Aaaaaaa1x"])
async def test_keys_that_are_not_there(place: Place, id: str) -> None:
    """404, or 400 for what is no id at all; never 500."""
    async with opened(place) as office:
        for method, path, body in (
            ("GET", "", None),
            ("PATCH", "", {"owner": "a"}),
            ("POST", "/rotate", None),
            ("POST", "/revoke", None),
        ):
            answer = await office.client.request(
                method, f"/admin/keys/{id}{path}", json=body, headers={"Authorization": f"Bearer {ADMIN_SECRET}"}
            )
            assert answer.status_code == (404 if id == "Aaaaaaa1" or "2F" in id else 400)


async def test_who_acts(place: Place) -> None:
    """The header is checked before anything is done."""
    async with opened(place) as office:
        for actor in ("x" * 65, "a\tb", "<b>", " x", "", "zo\xeb"):
            answer = await office.client.post(
                "/admin/keys",
                json={"owner": "a"},
                headers={"Authorization": f"Bearer {ADMIN_SECRET}", "X-Boxwright-Actor": actor.encode("latin-1")},
            )
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_actor")
        assert await office.ask("GET", "/admin/keys") == []
        await office.ask("POST", "/admin/keys", {"owner": "a"}, status=201, **{"X-Boxwright-Actor": "x" * 64})
        assert (await office.ask("GET", "/admin/audit"))[0]["actor"] == "x" * 64


async def test_bodies_that_are_none(place: Place) -> None:
    """Broken, huge, or not what JSON allows."""
    async with opened(place) as office:
        for content, status, code in (
            (b"{", 400, "invalid_json"),
            (b"\xff", 400, "invalid_json"),
            (b'{"owner": NaN}', 400, "invalid_json"),
            (b'{"owner": "\\ud800"}', 400, "invalid_json"),
            (b"[" * 60_000, 400, "invalid_json"),
            (b'{"owner": "' + b"x" * 70_000 + b'"}', 413, "request_too_large"),
        ):
            answer = await office.client.post(
                "/admin/keys",
                content=content,
                headers={"Authorization": f"Bearer {ADMIN_SECRET}", "Content-Type": "application/json"},
            )
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_usage(place: Place) -> None:
    """Sums by key and model; the time is checked."""
    async with opened(place) as office:
        made = await office.ask("POST", "/admin/keys", {"owner": "anna"}, status=201)
        await office.store.write_usage([a_row(1, key_id=made["id"]), a_row(2, outcome="limited", status=429)])
        day = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
        since, until_ = (day - timedelta(days=1)).isoformat(), (day + timedelta(days=1)).isoformat()
        for address in (f"since={since}&until={until_}", f"since={since[:-6]}Z&until={until_[:-6]}Z"):
            found = await office.ask("GET", f"/admin/usage?{address}&key_id={made['id']}")
            assert found == [
                {
                    "start": "2026-11-30T00:00:00Z",
                    "key_id": made["id"],
                    "owner": "anna",
                    "model": "small",
                    "requests": 1,
                    "refused": 0,
                    "aborted": 0,
                    "tokens_in": 3,
                    "tokens_out": 5,
                }
            ]
        all_ = await office.ask("GET", f"/admin/usage?since={since}&until={until_}&span=hour")
        assert sorted((row["start"], row["requests"], row["refused"]) for row in all_) == [
            ("2026-11-30T12:00:00Z", 1, 0),
            ("2026-11-30T12:00:00Z", 1, 1),
        ]
        for query, param in (
            ("span=year", "span"),
            ("since=yesterday", "since"),
            ("since=2026-01-01", "since"),
            ("since=1", "since"),
            (f"since={until_}&until={since}", "since"),
            ("since=2020-01-01T00:00:00Z&span=hour", "span"),
            ("since=0001-01-01T00:00:00Z", "span"),
            ("until=0001-01-01T00:00:00Z", "since"),
            ("key_id=" + "x" * 65, "key_id"),
        ):
            assert (await office.refused("GET", f"/admin/usage?{query}"))["param"] == param
        for query in ("limit=0", "limit=1001", "limit=x", "before=x"):
            assert (await office.refused("GET", f"/admin/audit?{query}"))["code"] == "invalid_request"


async def test_two_who_change_the_same_key(place: Place) -> None:
    """Neither change is lost; a revocation never is."""
    async with opened(place) as office:
        made = await office.ask("POST", "/admin/keys", {"owner": "anna"}, status=201)
        path = f"/admin/keys/{made['id']}"
        await asyncio.gather(
            office.ask("PATCH", path, {"owner": "bert"}),
            office.ask("PATCH", path, {"limits": {"parallel": 3}}),
            office.ask("PATCH", path, {"models": ["small"]}),
        )
        now = await office.ask("GET", path)
        assert (now["owner"], now["limits"]["parallel"], now["models"]) == ("bert", 3, ["small"])
        answers = await asyncio.gather(
            office.client.post(f"{path}/revoke", headers={"Authorization": f"Bearer {ADMIN_SECRET}"}),
            *(
                office.client.patch(
                    path, json={"owner": f"o{number}"}, headers={"Authorization": f"Bearer {ADMIN_SECRET}"}
                )
                for number in range(3)
            ),
        )
        assert answers[0].status_code == 200
        assert {answer.status_code for answer in answers[1:]} <= {200, 409}
        assert (await office.ask("GET", path))["revoked_at"]
        assert await office.code(made["key"]) == "invalid_api_key"


class Away:
    """A store that does not answer."""

    def __getattr__(self, name: str) -> Any:
        async def away(*_: object, **__: object) -> None:
            raise StoreUnavailable("away")

        return away


async def test_without_a_database(sqlite: Place) -> None:
    """503 with a code, also for a wrong secret's 401 no delay and no error."""
    async with opened(sqlite, cast(Store, Away())) as office:
        for method, path, body in (
            ("GET", "/admin/keys", None),
            ("POST", "/admin/keys", {"owner": "a"}),
            ("POST", "/admin/keys/Aaaaaaa1/revoke", None),
            ("GET", "/admin/usage", None),
            ("GET", "/admin/audit", None),
        ):
            assert (await office.refused(method, path, body, 503))["code"] == "store_unavailable"
        await office.ask("GET", "/admin/keys", secret="wrong", status=401)


class Shelf:
    """A store that keeps keys in memory."""

    def __init__(self) -> None:
        self.found: dict[str, Key] = {}

    async def put_key(self, key: Key, audit: AuditEntry) -> None:
        """Insert or replace."""
        self.found[key.id] = key

    async def key(self, id: str) -> Key | None:
        """The key."""
        return self.found.get(id)

    async def write_audit(self, entry: AuditEntry) -> None:
        """Append."""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
BODIES = JSON | st.fixed_dictionaries(
    {},
    optional={
        "owner": JSON | st.just("anna"),
        "expires_at": JSON | st.datetimes(timezones=st.timezones()).map(datetime.isoformat),
        "models": JSON | st.lists(st.sampled_from(["small", "large", "none"]), max_size=3),
        "limits": JSON | st.dictionaries(st.sampled_from(["parallel", "tokens_per_day", "x"]), JSON, max_size=2),
        "overlap_seconds": JSON,
    },
)


@given(st.sampled_from(["", "/Aaaaaaa1", "/Aaaaaaa1/rotate", "/Aaaaaaa1/revoke"]), BODIES)
@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_makes_it_stumble(sqlite: Place, path: str, body: Any) -> None:
    """Done or refused with what is wrong; never an error of its own."""

    async def work() -> None:
        store = cast(Any, Shelf())
        store.found["Aaaaaaa1"] = Key(id="Aaaaaaa1", owner="a", digest=bytes(32), pepper=1, created_at=NOW)
        app = FastAPI()
        app.include_router(admin.router())
        app.state.parts = Parts(
            settings=sqlite.settings, store=store, limiter=cast(Any, None), keys=cast(Any, None), usage=cast(Any, None)
        )
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            answer = await client.request(
                "PATCH" if path == "/Aaaaaaa1" else "POST",
                f"/admin/keys{path}",
                content=json.dumps(body),
                headers={"Authorization": f"Bearer {ADMIN_SECRET}", "Content-Type": "application/json"},
            )
            assert answer.status_code in (200, 201, 400, 409)
            if answer.status_code >= 400:
                assert answer.json()["error"]["code"]

    asyncio.run(work())

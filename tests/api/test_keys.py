"""Keys: how they are made and recognised, and what a worker remembers of them."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import logging
import re
import time
from datetime import datetime, timedelta
from typing import cast

import pytest
from boxwright_api import keys
from boxwright_api.contracts import Store
from boxwright_api.errors import ApiError, StoreUnavailable
from boxwright_api.keys import KeyRing, Peppers, join, make_id, make_secret, parse
from boxwright_api.records import AuditEntry, Key
from boxwright_api.settings import Settings
from boxwright_api.store.migrate import migrate
from databases import Databases
from hypothesis import given
from hypothesis import strategies as st
from stores import NOW, PEPPERS, Place, a_key, an_entry, settings, until_alive
from waiting import until_async

SETTINGS = settings("sqlite:////unused", key_cache_seconds=5, key_stale_seconds=60)


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        """The same as a time."""
        return NOW + timedelta(seconds=self.seconds - 1000)


class Shelf:
    """A store of keys alone that counts how often it is asked, and can be away or slow."""

    def __init__(self, *found: Key) -> None:
        self.found = {key.id: key for key in found}
        self.asked: list[str] = []
        self.entries: list[AuditEntry] = []
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def key(self, id: str) -> Key | None:
        """The key, as it is when the question arrives."""
        self.asked.append(id)
        found = self.found.get(id)
        await self.gate.wait()
        if self.away:
            raise StoreUnavailable("away")
        return found

    async def write_audit(self, entry: AuditEntry) -> None:
        """Append."""
        if self.away:
            raise StoreUnavailable("away")
        self.entries.append(entry)


def ring_of(shelf: Shelf, clock: Clock, with_settings: Settings = SETTINGS) -> KeyRing:
    """A key ring over it."""
    return KeyRing(with_settings, cast(Store, shelf), clock=clock, now=clock.now)


async def refused(ring: KeyRing, header: str | None) -> str:
    """The code with which the header is refused."""
    with pytest.raises(ApiError) as error:
        await ring.authenticate(header)
    assert error.value.status == (503 if error.value.code == "store_unavailable" else 401)
    return error.value.code


async def accepted(ring: KeyRing, header: str) -> bool:
    """Whether it is let in."""
    try:
        await ring.authenticate(header)
    except ApiError:
        return False
    return True


# What a key is


def test_made_keys_are_recognised() -> None:
    """They have the form that is promised, and each is another one."""
    made = {join(make_id(), make_secret()) for _ in range(200)}
    assert len(made) == 200
    for key in made:
        assert re.fullmatch(r"bw_[A-Za-z0-9]{8}_[A-Za-z0-9_-]{43}", key)
        assert parse(f"Bearer {key}") == (key[3:11], key[12:])
        assert parse(f"bearer   {key} ") == (key[3:11], key[12:])


@given(st.text(max_size=80))
def test_other_headers_are_no_keys(text: str) -> None:
    """Whatever comes, it is refused and not stumbled over."""
    assert parse(text) is None
    assert parse(f"Bearer {text}") is None
    assert parse(f"Bearer bw_Aaaaaaa1_{text}") is None or len(text) == 43


@pytest.mark.parametrize(
    "header",
    [
        "Bearer bw_Aaaaaaa1_" + "s" * 42,
        "Bearer bw_Aaaaaaa1_" + "s" * 44,
        "Bearer bw_Aaaaaaa1_" + "s" * 43 + "\n",
        "Bearer bw_Aaaaaaä1_" + "s" * 43,
        "Basic bw_Aaaaaaa1_" + "s" * 43,
        "bw_Aaaaaaa1_" + "s" * 43,
        "Bearer bw_Aaaaaaa1_" + "s" * 43 + ", Bearer bw_Aaaaaaa1_" + "s" * 43,
        "",
    ],
)
def test_almost_keys(header: str) -> None:
    """None of them is one."""
    assert parse(header) is None


def test_the_digest_is_an_hmac_of_the_secret() -> None:
    """Computed here from what the standard library says it is."""
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in bytes.fromhex("b2" * 32).ljust(64, b"\0")) + b"secret").digest()
    outer = hashlib.sha256(bytes(b ^ 0x5C for b in bytes.fromhex("b2" * 32).ljust(64, b"\0")) + inner).digest()
    assert Peppers(PEPPERS).digest("secret") == outer
    assert Peppers(PEPPERS).digest("secret", 1) == hmac.new(bytes.fromhex("a1" * 32), b"secret", "sha256").digest()


@pytest.mark.parametrize(
    "text", ["", "1", "1:", "1:zz", "1:abcd", "0:" + "ab" * 32, f"1:{'ab' * 32};1:{'cd' * 32}", "x:" + "ab" * 32, ";"]
)
def test_wrong_peppers_are_refused_without_being_shown(text: str) -> None:
    """The message says what was expected and where, and has nothing of the secret."""
    with pytest.raises(ValueError, match="`peppers`") as error:
        Peppers(text)
    assert "abab" not in str(error.value)
    assert "cdcd" not in str(error.value)


def test_reprs_have_no_pepper() -> None:
    """Only its versions."""
    assert repr(Peppers(PEPPERS)) == "Peppers(versions=[1, 2])"


def test_a_new_pepper() -> None:
    """Old keys go on working, new ones take the new pepper; without the old pepper the old keys are refused."""
    old, new = Peppers(f"1:{'a1' * 32}"), Peppers(PEPPERS)
    key, secret = dataclasses.replace(a_key()[0], digest=old.digest("s"), pepper=old.newest), "s"
    assert new.matches(key, secret, NOW)
    assert new.newest == 2
    later = dataclasses.replace(key, digest=new.digest("s"), pepper=new.newest)
    assert new.matches(later, secret, NOW)
    assert not old.matches(later, secret, NOW)
    assert not Peppers(f"2:{'b2' * 32}").matches(key, secret, NOW)
    # The version counts, not only the pepper.
    assert not new.matches(dataclasses.replace(key, pepper=2), secret, NOW)


def test_digests_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the library's function for that, also when there is no such key; as often for a wrong secret as for none."""
    calls: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        calls.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    peppers = Peppers(PEPPERS)
    key, _ = a_key()
    assert not peppers.matches(key, "wrong", NOW)
    assert not peppers.matches(None, "wrong", NOW)
    assert not peppers.matches(dataclasses.replace(key, digest=b"", pepper=9), "wrong", NOW)
    assert calls == [(32, 32)] * 3
    # What stands in for a digest that is not there is no key.
    assert not peppers.matches(dataclasses.replace(key, digest=bytes(32)), "wrong", NOW)


# Who is let in


@pytest.mark.anyio
async def test_who_is_let_in() -> None:
    """The right secret; nobody else, and all who are refused get the same answer."""
    clock = Clock()
    key, sent = a_key()
    revoked, revoked_sent = a_key(revoked_at=NOW)
    expired, expired_sent = a_key(expires_at=NOW)
    shelf = Shelf(key, revoked, expired)
    ring = ring_of(shelf, clock)
    assert await ring.authenticate(f"Bearer {sent}") == key
    wrong = join(key.id, make_secret())
    messages = set()
    for header in (None, "", "Bearer x", *(f"Bearer {one}" for one in (wrong, revoked_sent, expired_sent, a_key()[1]))):
        with pytest.raises(ApiError) as error:
            await ring.authenticate(header)
        messages.add((error.value.status, error.value.code, error.value.body()))
    assert len(messages) == 1
    assert next(iter(messages))[:2] == (401, "invalid_api_key")
    await until_async(lambda: len(shelf.entries) == 3)
    assert {(entry.target, entry.details["reason"]) for entry in shelf.entries} == {
        (key.id, "wrong secret"),
        (revoked.id, "revoked"),
        (expired.id, "expired"),
    }
    assert sent[12:] not in repr(shelf.entries)
    assert wrong[12:] not in repr(shelf.entries)


@pytest.mark.anyio
async def test_a_flood_of_refusals_does_not_fill_the_log() -> None:
    """Each kind once a minute, with how many were left out; all together no more than thirty a minute."""
    clock = Clock()
    keys_ = [a_key(revoked_at=NOW) for _ in range(50)]
    shelf = Shelf(*(key for key, _ in keys_))
    ring = ring_of(shelf, clock)
    for _ in range(20):
        await refused(ring, f"Bearer {keys_[0][1]}")
    await until_async(lambda: shelf.entries)
    await asyncio.sleep(0)
    assert len(shelf.entries) == 1
    clock.seconds += 61
    await refused(ring, f"Bearer {keys_[0][1]}")
    await until_async(lambda: len(shelf.entries) == 2)
    assert shelf.entries[1].details == {"reason": "revoked", "left_out": 19}
    for _, sent in keys_:
        await refused(ring, f"Bearer {sent}")
    await until_async(lambda: len(shelf.entries) == 31)
    await asyncio.sleep(0.05)
    assert len(shelf.entries) == 31


@pytest.mark.anyio
async def test_an_expiry_counts_also_from_memory() -> None:
    """A key that is remembered is refused from the moment on at which it expires."""
    clock = Clock()
    key, sent = a_key(expires_at=NOW + timedelta(seconds=2))
    ring = ring_of(Shelf(key), clock)
    clock.seconds += 1.9
    assert await ring.authenticate(f"Bearer {sent}") == key
    clock.seconds += 0.1
    assert await refused(ring, f"Bearer {sent}") == "invalid_api_key"


@pytest.mark.anyio
async def test_the_old_secret_is_accepted_for_the_overlap() -> None:
    """And not a moment longer; it may be of an older pepper."""
    clock = Clock()
    old_secret = make_secret()
    key, sent = a_key(
        old_digest=Peppers(PEPPERS).digest(old_secret, 1), old_pepper=1, old_until=NOW + timedelta(seconds=3)
    )
    ring = ring_of(Shelf(key), clock)
    old = join(key.id, old_secret)
    assert await ring.authenticate(f"Bearer {old}") == key
    assert await ring.authenticate(f"Bearer {sent}") == key
    clock.seconds += 3
    assert await refused(ring, f"Bearer {old}") == "invalid_api_key"
    assert await ring.authenticate(f"Bearer {sent}") == key


# What is remembered


@pytest.mark.anyio
async def test_a_key_is_asked_for_once_in_a_while() -> None:
    """For `key_cache_seconds` it is answered from memory; so is a wrong secret of the same key."""
    clock = Clock()
    key, sent = a_key()
    shelf = Shelf(key)
    ring = ring_of(shelf, clock)
    for _ in range(10):
        await ring.authenticate(f"Bearer {sent}")
        await refused(ring, f"Bearer {join(key.id, make_secret())}")
    assert shelf.asked == [key.id]
    clock.seconds += 5
    await ring.authenticate(f"Bearer {sent}")
    assert shelf.asked == [key.id] * 2


@pytest.mark.anyio
async def test_a_hundred_at_once_ask_once() -> None:
    """One lookup for a key at a time; who leaves does not take the answer from the others."""
    key, sent = a_key()
    shelf = Shelf(key)
    shelf.gate.clear()
    ring = ring_of(shelf, Clock())
    tasks = [asyncio.create_task(ring.authenticate(f"Bearer {sent}")) for _ in range(100)]
    await until_async(lambda: shelf.asked)
    for task in tasks[:50]:
        task.cancel()
    shelf.gate.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(one, asyncio.CancelledError) for one in found] == [True] * 50 + [False] * 50
    assert found[50:] == [key] * 50
    assert shelf.asked == [key.id]


@pytest.mark.anyio
async def test_a_changed_key_is_asked_for_again() -> None:
    """Also when the change arrives while the old state is being read: that one is not remembered."""
    key, sent = a_key()
    shelf = Shelf(key)
    ring = ring_of(shelf, Clock())
    await ring.authenticate(f"Bearer {sent}")
    shelf.found[key.id] = dataclasses.replace(key, revoked_at=NOW)
    ring.forget(key.id)
    assert await refused(ring, f"Bearer {sent}") == "invalid_api_key"

    other, other_sent = a_key()
    for changed in (other.id, None):
        shelf.found[other.id] = other
        ring.forget(other.id)
        shelf.gate.clear()
        asked = len(shelf.asked)
        early = asyncio.create_task(ring.authenticate(f"Bearer {other_sent}"))
        await until_async(lambda asked=asked: len(shelf.asked) > asked)
        shelf.found[other.id] = dataclasses.replace(other, revoked_at=NOW)
        ring.forget(changed)
        late = asyncio.create_task(refused(ring, f"Bearer {other_sent}"))
        await until_async(lambda asked=asked: len(shelf.asked) > asked + 1)
        shelf.gate.set()
        assert await early == other
        assert await late == "invalid_api_key"
        assert await refused(ring, f"Bearer {other_sent}") == "invalid_api_key"


@pytest.mark.anyio
async def test_while_the_database_is_away() -> None:
    """A key that was read within `key_stale_seconds` is believed; another one is not, and the answer is another."""
    clock = Clock()
    key, sent = a_key()
    unknown = f"Bearer {a_key()[1]}"
    shelf = Shelf(key)
    ring = ring_of(shelf, clock)
    await ring.authenticate(f"Bearer {sent}")
    shelf.away = True
    # What the store tells when it loses its connection.
    ring.forget(None)
    assert await ring.authenticate(f"Bearer {sent}") == key
    assert await refused(ring, f"Bearer {join(key.id, make_secret())}") == "invalid_api_key"
    assert await refused(ring, unknown) == "store_unavailable"
    clock.seconds += 59.9
    assert await ring.authenticate(f"Bearer {sent}") == key
    clock.seconds += 0.1
    assert await refused(ring, f"Bearer {sent}") == "store_unavailable"
    shelf.away = False
    assert await ring.authenticate(f"Bearer {sent}") == key
    assert await refused(ring, unknown) == "invalid_api_key"


@pytest.mark.anyio
async def test_a_change_that_is_known_is_not_forgotten_while_the_database_is_away() -> None:
    """It may have been the revocation."""
    key, sent = a_key()
    shelf = Shelf(key)
    ring = ring_of(shelf, Clock())
    await ring.authenticate(f"Bearer {sent}")
    ring.forget(key.id)
    shelf.away = True
    assert await refused(ring, f"Bearer {sent}") == "store_unavailable"


@pytest.mark.anyio
async def test_unknown_ids_are_remembered_for_a_moment() -> None:
    """Somebody who tries the same id again and again does not reach the database; a key that is made then works."""
    clock = Clock()
    key, sent = a_key()
    shelf = Shelf()
    ring = ring_of(shelf, clock)
    for _ in range(10):
        assert await refused(ring, f"Bearer {sent}") == "invalid_api_key"
    assert shelf.asked == [key.id]
    shelf.found[key.id] = key
    ring.forget(key.id)
    assert await ring.authenticate(f"Bearer {sent}") == key


@pytest.mark.anyio
async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that do not exist push out each other, never keys; keys push out the one that was read first."""
    monkeypatch.setattr(keys, "REMEMBERED", 3)
    monkeypatch.setattr(keys, "REMEMBERED_UNKNOWN", 4)
    known = [a_key() for _ in range(4)]
    shelf = Shelf(*(key for key, _ in known))
    ring = ring_of(shelf, Clock())
    for _, sent in known[:3]:
        await ring.authenticate(f"Bearer {sent}")
    for _ in range(50):
        await refused(ring, f"Bearer {a_key()[1]}")
    assert (len(ring._seen), len(ring._unknown), len(ring._lookups)) == (3, 4, 0)
    shelf.asked.clear()
    await ring.authenticate(f"Bearer {known[3][1]}")
    await ring.authenticate(f"Bearer {known[1][1]}")
    assert shelf.asked == [known[3][0].id]
    await ring.authenticate(f"Bearer {known[0][1]}")
    assert shelf.asked == [known[3][0].id, known[0][0].id]


# With a real database


@pytest.mark.anyio
async def test_a_key_that_another_program_revokes_is_refused_soon(place: Place) -> None:
    """However long keys are remembered."""
    key, sent = a_key()
    patient = settings(
        place.settings.database, database_password=place.settings.database_password, key_cache_seconds=3600
    )
    async with place.opened() as store:
        ring = KeyRing(patient, store)
        place.rings.append(ring)
        await store.put_key(key, an_entry())
        assert await ring.authenticate(f"Bearer {sent}") == key
        place.sql(f"UPDATE api_key SET revoked_at = {'now()' if place.kind == 'postgresql' else '1'}")
        since = time.monotonic()
        while await accepted(ring, f"Bearer {sent}"):
            assert time.monotonic() - since < 10
            await asyncio.sleep(0.01)
        assert await refused(ring, f"Bearer {sent}") == "invalid_api_key"


@pytest.mark.anyio
async def test_the_secret_is_not_in_the_database(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Nor in what is logged, at any level: looked for in the bytes of the file and of a dump."""
    caplog.set_level(logging.DEBUG)
    key, sent = a_key()
    async with place.opened() as store:
        ring = KeyRing(place.settings, store)
        await store.put_key(key, an_entry(target=key.id))
        await ring.authenticate(f"Bearer {sent}")
        await refused(ring, f"Bearer {sent[:-1]}A" if sent[-1] != "A" else f"Bearer {sent[:-1]}B")
        await store.write_audit(an_entry(action="marker-of-this-test"))
        dump = await asyncio.to_thread(place.dump)
    assert key.id.encode() in dump
    assert b"marker-of-this-test" in dump
    for secret in (sent[12:50], "a1" * 32, "b2" * 32):
        assert secret.encode() not in dump
        assert secret not in caplog.text
    assert place.settings.peppers.get_secret_value() not in repr(place.settings)


@pytest.mark.lab
@pytest.mark.anyio
async def test_postgresql_is_stopped_and_comes_back(postgresql: Place, databases: Databases) -> None:
    """A key that was used goes on working for `key_stale_seconds`, no answer takes long, and afterwards all is well."""
    await asyncio.to_thread(migrate, postgresql.settings)
    clock = Clock()
    key, sent = a_key()
    async with postgresql.opened() as store:
        ring = KeyRing(postgresql.settings, store, clock=clock, now=clock.now)
        postgresql.rings.append(ring)
        await store.put_key(key, an_entry())
        # What the database notifies of it comes later, and makes the ring forget the key.
        await until_async(lambda: key.id in postgresql.changes)
        await asyncio.sleep(0.5)
        await ring.authenticate(f"Bearer {sent}")
        databases.stop("postgresql")
        try:
            for seconds, code in ((0.0, ""), (59.0, ""), (1.0, "store_unavailable")):
                clock.seconds += seconds
                since = time.monotonic()
                if code:
                    assert await refused(ring, f"Bearer {sent}") == code
                else:
                    assert await ring.authenticate(f"Bearer {sent}") == key
                assert await refused(ring, f"Bearer {a_key()[1]}") == "store_unavailable"
                assert time.monotonic() - since < 10
        finally:
            databases.start("postgresql")
        since = time.monotonic()
        await until_alive(store)
        assert await ring.authenticate(f"Bearer {sent}") == key
        assert time.monotonic() - since < 10
        postgresql.sql("UPDATE api_key SET revoked_at = now()")
        await until_async(lambda: key.id not in ring._seen)
        assert await refused(ring, f"Bearer {sent}") == "invalid_api_key"

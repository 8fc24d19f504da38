"""Keys of the key ring: tenants that see nothing of each other, scopes, ends, and how often one may ask."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner
from starlette.datastructures import Headers

from pixelkiln.api import auth
from pixelkiln.api.auth import Gate
from pixelkiln.api_keys import ApiKey, KeyRing, KeyScope
from pixelkiln.cli import main
from pixelkiln_shared import keys
from pixelkiln_shared.errors import InvalidInput, NotFound, RedisUnavailable, Unauthorized
from pixelkiln_shared.ledger import redis_client
from pixelkiln_shared.settings import Settings
from tests.integration.api.conftest import Api, picture

KEY = "the-key-of-these-settings"
BOTH = (KeyScope.READ, KeyScope.SUBMIT)


class Ring:
    """A closed API and clients with keys of their own."""

    def __init__(self, api: Api, opened: ExitStack) -> None:
        self.api = api
        self._opened = opened
        self.ring = KeyRing(api.redis)

    def client(self, tenant: str, scopes: Collection[KeyScope] = BOTH, **more: Any) -> httpx2.Client:
        """A client with a new key, once the server knows it."""
        _, token = self.ring.make("somebody", tenant=tenant, scopes=scopes, **more)
        return self.with_token(token)

    def stranger(self) -> httpx2.Client:
        """A client without a key."""
        return self._opened.enter_context(httpx2.Client(base_url=self.api.url, timeout=30, trust_env=False))

    def with_token(self, token: str) -> httpx2.Client:
        """A client with this key, once the server has read the ring."""
        client = self.stranger()
        client.headers["Authorization"] = f"Bearer {token}"
        until = time.monotonic() + 10
        while client.post("/nowhere").status_code == 401 and time.monotonic() < until:
            time.sleep(0.05)
        return client


@pytest.fixture
def start_ring(
    start_api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Ring]]:
    """Starts an API that reads its keys often, and bears many wrong ones."""
    monkeypatch.setattr("pixelkiln.api.app.KEYS_S", 0.1)
    monkeypatch.setattr(auth, "FAILURES_PER_MINUTE", 100_000)
    with ExitStack() as opened:
        yield lambda **changes: Ring(start_api(**changes), opened)


@pytest.fixture
def ring(start_ring: Callable[..., Ring]) -> Ring:
    return start_ring(api_key=KEY)


JOB = {"kind": "generate", "model": "toyworld", "input": {"prompt": "a red house"}}


def test_tenants_see_nothing_of_each_other(ring: Ring) -> None:
    hers, his = ring.client("hers"), ring.client("his")
    job = hers.post("/v1/jobs", json=JOB).json()["id"]
    group = hers.post("/v1/groups", json={"jobs": [JOB]}).json()["group"]
    upload = hers.post("/v1/uploads", files={"file": ("a.png", picture(), "image/png")}).json()["id"]
    file = hers.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", b"{}")}).json()["id"]
    looks = [
        *(f"/v1/jobs/{job}", f"/v1/jobs/{job}/events", f"/v1/jobs/{job}/preview", f"/v1/jobs/{job}/webhooks"),
        *(f"/v1/groups/{group}", f"/v1/groups/{group}/webhooks", f"/jobs/{job}", f"/v1/files/{file}"),
    ]
    moves = [f"/v1/jobs/{job}/cancel", f"/v1/jobs/{job}/retry", f"/v1/groups/{group}/cancel"]
    for path in looks:
        assert his.get(path).status_code == 404, path
    for path in moves:
        assert his.post(path).status_code == 404, path
    assert his.delete(f"/v1/jobs/{job}").status_code == 404
    for image in ({"upload": upload}, {"job": job}):
        edit = {"kind": "edit", "model": "toyworld", "input": {"prompt": "a", "image": image}}
        assert his.post("/v1/jobs", json=edit).status_code == 404
    assert his.post("/v1/groups", json={"jobs": [JOB], "group": group}).status_code == 404
    for path, field in (("/v1/jobs", "jobs"), (f"/v1/jobs?group={group}", "jobs"), ("/v1/files", "data")):
        assert his.get(path).json()[field] == []
    assert set(his.get("/v1/stats").json()["counts"].values()) == {0}
    assert hers.get(f"/v1/jobs/{job}").json()["status"] == "queued"
    assert hers.get("/v1/stats").json()["counts"]["queued"] == 2


def test_the_same_idempotency_key_of_two_callers_is_two_jobs(ring: Ring) -> None:
    headers = {"Idempotency-Key": "one"}
    ids = {
        client.post("/v1/jobs", json=JOB, headers=headers).json()["id"]
        for client in (ring.client("hers"), ring.client("his"), ring.client("his"))
    }
    assert len(ids) == 3


def test_a_tenant_with_one_job_does_not_wait_behind_another_with_many(ring: Ring) -> None:
    many, one = ring.client("many"), ring.client("one")
    many.post("/v1/groups", json={"jobs": [JOB] * 50})
    job = one.post("/v1/jobs", json=JOB).json()["id"]
    claimed = [ring.api.claim().id for _ in range(3)]
    assert job in claimed


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        (KeyScope.READ, {"look"}),
        (KeyScope.SUBMIT, {"submit", "cancel"}),
        (KeyScope.ADMIN, {"drain"}),
    ],
)
def test_a_key_does_what_it_is_for(ring: Ring, scope: KeyScope, allowed: set[str]) -> None:
    client = ring.client("somebody", [scope])
    asked = {
        "look": client.get("/v1/jobs"),
        "submit": client.post("/v1/jobs", json=JOB),
        "cancel": client.post(f"/v1/jobs/{keys.new_id('job')}/cancel"),
        "drain": client.post("/v1/workers/nobody/drain"),
    }
    refused = {name for name, answer in asked.items() if answer.status_code == 403}
    assert refused == set(asked) - allowed
    for name in refused:
        assert asked[name].json()["code"] == "forbidden"


def test_only_an_admin_sees_the_numbers_of_all(ring: Ring) -> None:
    ring.client("hers").post("/v1/jobs", json=JOB)
    told = 'pixelkiln_jobs{status="queued"} %d.0'
    assert told % 0 in ring.client("his").get("/metrics").text
    assert told % 1 in ring.client("his", [*BOTH, KeyScope.ADMIN]).get("/metrics").text
    assert told % 1 in ring.with_token(KEY).get("/metrics").text


def test_a_key_ends(ring: Ring) -> None:
    short = ring.client("hers", lifetime=timedelta(seconds=1.5))
    made, token = ring.ring.make("somebody", tenant="hers")
    revoked = ring.with_token(token)
    assert {client.get("/v1/jobs").status_code for client in (short, revoked)} == {200}
    assert ring.ring.revoke(made.id).revoked_at == ring.ring.revoke(made.id).revoked_at
    time.sleep(1.6)
    for client in (short, revoked):
        answer = client.get("/v1/jobs")
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    with pytest.raises(NotFound):
        ring.ring.revoke("nobodys")


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1] + "!", lambda t: t[:-2], lambda t: t.upper(), lambda t: t + "a"]
)
def test_a_key_that_is_nearly_right_is_wrong(ring: Ring, change: Callable[[str], str]) -> None:
    _, token = ring.ring.make("somebody")
    right = ring.with_token(token)
    assert right.get("/v1/jobs").status_code == 200
    right.headers["Authorization"] = f"Bearer {change(token)}"
    assert right.get("/v1/jobs").status_code == 401


def test_a_key_that_asks_too_often_is_told_when_to_come_back(ring: Ring) -> None:
    client = ring.client("hers", per_minute=30)
    answers = [client.get("/v1/jobs") for _ in range(40)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert 9 <= len(refused) <= 12
    assert refused[0].json()["code"] == "rate_limited"
    assert 1 <= int(refused[0].headers["retry-after"]) <= 2
    assert ring.client("hers").get("/v1/jobs").status_code == 200, "another key of that tenant"
    time.sleep(2.1)
    assert client.get("/v1/jobs").status_code == 200


def test_an_address_with_wrong_keys_is_slowed_down_and_right_ones_are_not(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ring.with_token(KEY)
    monkeypatch.setattr(auth, "FAILURES_PER_MINUTE", 5)
    wrong = ring.stranger()
    wrong.headers["Authorization"] = "Bearer guess"
    statuses = [wrong.get("/v1/jobs").status_code for _ in range(8)]
    assert statuses[-1] == 429
    assert set(statuses) == {401, 429}
    assert wrong.post("/login", data={"key": "guess"}).status_code == 429
    assert {ring.stranger().get("/v1/jobs").status_code for _ in range(8)} == {401}, "no key is no wrong one"
    assert right.get("/v1/jobs").status_code == 200


def test_a_session_is_of_its_key_and_ends_with_it(ring: Ring) -> None:
    made, token = ring.ring.make("somebody", tenant="hers", scopes=[KeyScope.READ])
    job = ring.client("hers").post("/v1/jobs", json=JOB).json()["id"]
    ring.with_token(token)
    browser = ring.stranger()
    assert browser.post("/login", data={"key": token}).status_code == 303
    assert job in browser.get("/").text
    assert browser.post("/v1/jobs", json=JOB).status_code == 403
    ring.ring.revoke(made.id)
    time.sleep(0.5)
    assert browser.get("/v1/jobs").status_code == 401


def test_where_no_key_is_asked_a_key_still_says_whose_jobs_are_meant(
    start_ring: Callable[..., Ring],
) -> None:
    ring = start_ring()
    _, token = ring.ring.make("somebody", tenant="hers")
    time.sleep(0.5)
    hers = ring.with_token(token)
    hers.post("/v1/jobs", json=JOB)
    assert len(hers.get("/v1/jobs").json()["jobs"]) == 1
    assert ring.api.http.get("/v1/jobs").json()["jobs"] == []


def test_every_tenants_old_uploads_are_swept(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    ring.client("hers").post("/v1/uploads", files={"file": ("a.png", picture(), "image/png")})
    prefix = keys.upload_key("hers", "")
    assert len(list(ring.api.storage.list(prefix))) == 2
    monkeypatch.setattr(keys, "UPLOAD_S", -60)
    from pixelkiln.api.app import _sweep_uploads

    _sweep_uploads(ring.api.storage, KeyRing(ring.api.redis))  # as at a start: nothing is known of keys yet
    assert list(ring.api.storage.list(prefix)) == []


def test_keys_are_kept_as_hashes_and_known_only_once_read(redis_url: str) -> None:
    with redis_client(Settings(redis_url=redis_url)) as client:
        ring = KeyRing(client)
        made, token = ring.make("somebody", tenant="hers")
        with pytest.raises(RedisUnavailable):
            ring.find(token)
        ring.refresh()
        assert ring.find(token) == made
        assert ring.tenants == {"default", "hers"}
        kept = str(client.hgetall(keys.API_KEYS))
        assert token[-20:] not in kept
        assert hashlib.sha256(token.encode()).hexdigest() in kept
        for tenant in ("", "../x", "a/b", "-a", "Hers", "a" * 41):
            with pytest.raises(InvalidInput):
                ring.make("somebody", tenant=tenant)
        with pytest.raises(InvalidInput):
            ring.make("somebody", scopes=[])


def test_a_key_that_ends_while_it_is_looked_at_opens_no_more_than_it_did(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(redis_url=redis_url, api_key=KEY)
    with redis_client(settings) as client:
        ring = KeyRing(client)
        _, token = ring.make("somebody", tenant="hers", scopes=[KeyScope.READ])
        ring.refresh()
        gate = Gate(settings, b"secret", ring)
        key = gate.key_of(token)
        assert key is not None
        cookie = f"{auth.SESSION_COOKIE}={gate.session(key)}"
        monkeypatch.setattr(ring, "get", _once(ring.get))
        for headers in ({"authorization": f"Bearer {token}"}, {"cookie": cookie}):
            with suppress(Unauthorized):
                caller = gate.caller(Headers(headers), "here")
                assert (caller.tenant, set(caller.scopes)) == ("hers", {KeyScope.READ})


def _once(get: Callable[[str], ApiKey | None]) -> Callable[[str], ApiKey | None]:
    """Every second look finds the key gone."""
    looks = itertools.count()
    return lambda identity: get(identity) if next(looks) % 2 == 0 else None


def test_the_command_line_makes_lists_and_revokes(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIXELKILN_REDIS_URL", redis_url)
    run = CliRunner().invoke
    made = run(main, ["keys", "create", "alice", "--tenant", "hers", "--expires", "30d", "--per-minute", "9"])
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    assert token.startswith("kiln_")
    assert "not shown again" in made.stderr
    (identity,) = run(main, ["keys", "ls", "-q"]).stdout.split()
    listed = run(main, ["keys", "ls"]).stdout
    assert all(word in listed for word in ("alice", "hers", "read,submit", "valid", "9"))
    assert token not in run(main, ["keys", "ls", "--json"]).stdout
    assert "revoked" in run(main, ["keys", "revoke", identity]).stdout
    assert "revoked" in run(main, ["keys", "ls"]).stdout
    assert run(main, ["keys", "revoke", "nobodys"]).exit_code != 0
    assert run(main, ["keys", "create", "bob", "--tenant", "../x"]).exit_code == 2

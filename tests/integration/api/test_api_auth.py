"""Keys: who gets in, what strangers learn, and where the server refuses to listen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from pixelkiln.api.auth import Gate
from pixelkiln.api_keys import KeyRing
from tests.integration.api.conftest import Api

KEY = "correct-horse-battery-staple"
GOOD = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def locked(start_api: Callable[..., Api]) -> Api:
    """An API that asks for a key."""
    return start_api(api_key=KEY)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY} "[:-2]},
        {"X-Api-Key": KEY},
        {"Cookie": f"pixelkiln_session={KEY}"},
        {"Cookie": "pixelkiln_session=9999999999.00"},
        {"Cookie": "="},
    ],
)
def test_strangers_get_the_same_401_whatever_they_ask_for(locked: Api, headers: dict[str, str]) -> None:
    answers = [
        locked.http.get("/v1/jobs", headers=headers),
        locked.http.get("/v1/jobs/job_00000000000000000000000000", headers=headers),
        locked.http.get("/v1/nowhere", headers=headers),
        locked.http.post("/v1/jobs", content=b"[" * 1_000, headers=headers),
        locked.http.get(f"/v1/jobs?api_key={KEY}", headers=headers),
        locked.http.get("/metrics", headers=headers),
        locked.http.get("/openapi.json", headers=headers),
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.headers["www-authenticate"] for answer in answers} == {'Bearer realm="pixelkiln"'}
    assert len({(answer.json()["code"], answer.json()["detail"]) for answer in answers}) == 1


def test_the_key_opens_everything(locked: Api) -> None:
    answer = locked.http.post("/v1/jobs", json={"kind": "generate", "input": {"prompt": "a"}}, headers=GOOD)
    assert answer.status_code == 202
    assert locked.http.get("/v1/jobs", headers={"Authorization": f"bearer {KEY}"}).status_code == 200


def test_health_and_signed_files_need_no_key(locked: Api) -> None:
    assert locked.http.get("/healthz").status_code == 200
    assert locked.http.get("/readyz").status_code == 200
    locked.http.headers.update(GOOD)
    job_id = locked.submit()["id"]
    locked.publish(locked.claim())
    url = locked.http.get(f"/v1/jobs/{job_id}").json()["artifacts"][0]["url"]
    del locked.http.headers["Authorization"]
    assert locked.http.get(url).status_code == 200


def test_other_host_names_are_fine_where_a_key_is_asked(locked: Api) -> None:
    assert locked.http.get("/v1/jobs", headers={**GOOD, "Host": "pixelkiln.example"}).status_code == 200


def test_the_server_refuses_to_be_open_to_the_network_without_a_key(redis_url: str) -> None:
    environment = {"PATH": os.environ["PATH"], "PIXELKILN_HOST": "0.0.0.0", "PIXELKILN_REDIS_URL": redis_url}  # noqa: S104
    done = subprocess.run(
        [sys.executable, "-m", "pixelkiln.api"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "PIXELKILN_API_KEY" in done.stderr


def test_a_wrong_setting_is_one_line_and_exit_2() -> None:
    environment = {"PATH": os.environ["PATH"], "PIXELKILN_PORT": "many"}
    done = subprocess.run(
        [sys.executable, "-m", "pixelkiln.api"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "PIXELKILN_PORT" in done.stderr
    assert done.stderr.strip().count("\n") == 0


def test_cookies_of_other_programs_do_not_close_the_session(locked: Api) -> None:
    secret = locked.settings.secret.get_secret_value().encode()
    gate = Gate(locked.settings, secret, KeyRing(locked.redis))
    key = gate.key_of(KEY)
    assert key is not None
    session = gate.session(key)
    theirs = 'theme={"dark": 1, "size": [2]}'  # not a cookie by the letter, and often seen
    headers = {"Cookie": f"{theirs}; pixelkiln_session={session}"}
    assert locked.http.get("/v1/jobs", headers=headers).status_code == 200

"""Webhooks by the command line: asked for, listed, sent again, and the secrets to verify them with."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pixelkiln import Client
from pixelkiln.cli import main
from pixelkiln.client import flows
from pixelkiln.webhooks.signing import read_secrets
from tests.integration.api.conftest import WEBHOOK_SECRET, Api, picture
from tests.integration.api.test_api_webhooks import ended, verified
from tests.receivers import OK, Receiver, receiving, status


def test_the_command_line_lists_messages_and_sends_them_again(
    told: Api, quiet_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXELKILN_URL", told.url)
    with receiving(status(410), OK) as receiver:
        job = told.submit(webhook={"url": receiver.url})["id"]
        told.http.post(f"/v1/jobs/{job}/cancel")
        failed = ended(told, f"/v1/jobs/{job}/webhooks")
        shown = CliRunner().invoke(main, ["webhooks", "ls", "--status", "failed"])
        assert shown.exit_code == 0, shown.output
        assert failed["id"] in shown.stdout
        assert "410 gone" in shown.stdout
        ids = CliRunner().invoke(main, ["webhooks", "ls", "-q", "--job", job]).stdout.split()
        assert ids == [failed["id"]]
        again = CliRunner().invoke(main, ["webhooks", "redeliver", *ids])
        assert again.stdout.split() == [failed["id"], "pending"]
        receiver.wait_for(2)
    unknown = CliRunner().invoke(main, ["webhooks", "redeliver", "msg_1"])
    assert unknown.exit_code == 1


def test_the_command_line_asks_for_webhooks(
    told: Api, receiver: Receiver, quiet_server: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIXELKILN_URL", told.url)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(flows, "CHUNK_ROWS", 2)
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "rows.csv").write_text("prompt\n" + "a red house\n" * 3)
    given = ("--webhook", receiver.url, "-q")
    calls = [
        ["generate", "a red house", "--segment"],
        ["segment", str(tmp_path / "a.png")],
        ["cutout", str(tmp_path / "a.png")],
    ]
    ids = []
    for call in calls:
        answer = CliRunner().invoke(main, [*call, *given])
        assert answer.exit_code == 0, answer.output
        ids += answer.stdout.split()
    group = CliRunner().invoke(main, ["submit", str(tmp_path / "rows.csv"), *given]).stdout.strip()
    with Client(told.url) as client:
        for job in ids:
            client.job(job).cancel()
        client.group(group).cancel()
    messages = [verified(got) for got in receiver.wait_for(len(ids) + 1)]
    assert sorted(one["data"]["id"] for one in messages) == sorted([*ids, group])
    shown = CliRunner().invoke(main, ["webhooks", "ls", "--job", group, "--json"])
    assert [one["event"] for one in json.loads(shown.stdout)] == ["group.completed"]


def test_the_command_line_gives_the_secret_of_a_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(url: str) -> Any:
        return CliRunner().invoke(main, ["webhooks", "secret", url])

    other = "whsec_" + base64.b64encode(b"another secret of these tests...").decode()
    monkeypatch.setenv("PIXELKILN_WEBHOOK_SECRETS", f"{WEBHOOK_SECRET},{other},https://own.example={other}")
    assert asked("https://shop.example/hook").stdout.split() == [
        *read_secrets(WEBHOOK_SECRET).of("https://shop.example"),
        *read_secrets(other).of("https://shop.example"),
    ]
    assert asked("https://own.example/hook").stdout.split() == [other]
    assert asked("shop.example").exit_code == 2
    monkeypatch.delenv("PIXELKILN_WEBHOOK_SECRETS")
    assert asked("https://shop.example").exit_code == 2

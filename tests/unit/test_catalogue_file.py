"""Pins go into an operator's catalogue file; nothing else in it changes."""

from __future__ import annotations

import tomllib

import pytest

from pixelkiln_shared.errors import Misconfigured
from pixelkiln_worker.models.catalogue_file import Pin, pinned

FILE = """# our models
[models.far]   # the one from the hub
title = "Far"
source = "hub:owner/name@main"  # follows main
family = "diffusion"
kinds = ["generate"]

# the other one
[models."a.b"]
title = "Near"
source = "/srv/near"
family = "diffusion"
kinds = ["generate"]
"""


def pin(part: str = "", source: str = "hub:owner/name@abc", **sha256: str) -> Pin:
    return Pin(part=part, source=source, sha256=sha256 or {"unet/model.safetensors": "0f", "a b.json": "1e"})


def test_hashes_and_revision_are_added_and_the_rest_stays() -> None:
    after = pinned(FILE, "far", [pin()], where="f")
    table = tomllib.loads(after)["models"]["far"]
    assert table["source"] == "hub:owner/name@abc"
    assert table["sha256"] == {"unet/model.safetensors": "0f", "a b.json": "1e"}
    assert after.startswith(
        FILE.replace('source = "hub:owner/name@main"  # follows main', 'source = "hub:owner/name@abc"')
    )


def test_a_second_pull_replaces_the_hashes_of_the_first() -> None:
    once = pinned(FILE, "far", [pin(old="00")], where="f")
    with_more = once + '\n# last\n[models.third]\ntitle = "x"\n'
    twice = pinned(with_more, "far", [pin(new="11")], where="f")
    assert tomllib.loads(twice)["models"]["far"]["sha256"] == {"new": "11"}
    assert "# last\n[models.third]" in twice
    assert pinned(twice, "far", [pin(new="11")], where="f") == twice


def test_an_id_with_a_dot_and_a_companion_find_their_tables() -> None:
    text = FILE + '\n[models."a.b".companions.detector]\nsource = "/srv/d"\n'
    pins = [pin(source="/srv/near", a="0"), pin("companions.detector", "/srv/d", b="1")]
    table = tomllib.loads(pinned(text, "a.b", pins, where="f"))["models"]["a.b"]
    assert table["sha256"] == {"a": "0"}
    assert table["companions"]["detector"] == {"source": "/srv/d", "sha256": {"b": "1"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = 3 =", "f: "),
        ("[models.other]\ntitle = 'x'\n", r"f has no \[models\.far\]"),
        ("[models]\nfar = { title = 'x', source = 's' }\n", "cannot be changed here"),
        ("[models.far]\nsource = 's'\nsha256 = { a = '0' }\n", "cannot be changed here"),
        ("[models.far]\nsource = '''\ns'''\n", "cannot be changed here"),
    ],
    ids=["not toml", "no such model", "inline model", "inline hashes", "source over two lines"],
)
def test_what_cannot_be_changed_safely_is_refused(text: str, message: str) -> None:
    with pytest.raises(Misconfigured, match=message):
        pinned(text, "far", [pin()], where="f")

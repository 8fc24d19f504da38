"""The client and the command line on every kind of job that works on a picture; the test plays the worker."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixelkiln import AsyncClient, Client, ValidationError
from pixelkiln.gallery.snippets import snippets
from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.kinds import Role
from tests.integration.api.conftest import Api, picture

pytestmark = pytest.mark.usefixtures("quiet_server")

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("edit", {"prompt": "a blue house", "strength": 0.5, "count": 2}),
    ("upscale", {"scale": 4}),
    ("cutout", {"format": "webp"}),
    ("depth", {}),
    ("stereo", {"disparity": 0.05}),
    ("segment", {"labels": ["house"], "model": "toyworld-classes"}),
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Names of picture files: a scene and a mask for it."""
    for name, colour in (("scene", "teal"), ("mask", "white")):
        (tmp_path / f"{name}.png").write_bytes(picture(128, 128, colour=colour))
    return {name: tmp_path / f"{name}.png" for name in ("scene", "mask")}


def stored(api: Api, reference: dict[str, Any]) -> bytes:
    return api.http.get(reference["url"]).content


@pytest.mark.parametrize(("kind", "fields"), CALLS)
def test_each_kind_takes_a_path_bytes_a_job_or_an_artifact(
    api: Api, client: Client, files: dict[str, Path], kind: str, fields: dict[str, Any]
) -> None:
    scene = client.generate("a red house")
    waiting = getattr(client, kind)(scene, **fields)
    assert waiting.resource.input["image"] == {"job": scene.id, "role": "image", "index": 0}
    assert waiting.status == "blocked"
    api.publish(api.claim())
    made = scene.result(10).images[0]
    for image in (files["scene"], str(files["scene"]), files["scene"].read_bytes(), made):
        job = getattr(client, kind)(image, **fields)
        assert (job.kind, job.status) == (kind, "queued")
        assert {name: job.resource.input[name] for name in fields if name != "model"} == {
            name: value for name, value in fields.items() if name != "model"
        }


def test_an_awaited_client_does_the_same(api: Api, files: dict[str, Path]) -> None:
    async def story() -> None:
        async with AsyncClient(api.url) as client:
            for kind, fields in CALLS:
                job = await getattr(client, kind)(files["scene"], **fields)
                assert (job.kind, job.status) == (kind, "queued")
            edit = await client.edit(files["scene"], "a house", mask=files["mask"].read_bytes())
            again = await edit.rerun(seed=5)
            assert again.seed == 5
            assert again.resource.input["mask"]["sha256"] == edit.resource.input["mask"]["sha256"]
            with pytest.raises(ValidationError) as caught:
                await client.classify(files["scene"])
            assert caught.value.code == "unknown_model"

    asyncio.run(story())


def test_an_edit_is_run_again_on_its_own_picture_and_mask(
    api: Api, client: Client, files: dict[str, Path]
) -> None:
    first = client.edit(files["scene"], "a blue house", mask=files["mask"], seed=3)
    api.publish(api.claim("edit.toyworld"))
    again = first.refresh().rerun(seed=4)
    for name, file in files.items():
        field = "image" if name == "scene" else name
        assert stored(api, again.resource.input[field]) == stored(api, first.resource.input[field])
        assert again.resource.input[field]["sha256"] == first.resource.input[field]["sha256"]
        assert file.exists()
    first.delete()
    assert stored(api, again.resource.input["mask"]), "it has copies of its own"


def test_an_edit_of_jobs_waits_for_both(api: Api, client: Client) -> None:
    scene = client.generate("a red house")
    cut = client.cutout(scene)
    edit = client.edit(scene, "a blue house", mask={"job": cut.id, "role": "mask"})
    assert edit.status == "blocked"
    api.publish(api.claim())
    api.publish(api.claim("cutout.toyworld-cutout"), role=Role.MASK)
    assert edit.refresh().status == "queued"


def test_a_classification_without_a_model_names_no_other_kind(client: Client, files: dict[str, Path]) -> None:
    with pytest.raises(ValidationError) as caught:
        client.classify(files["scene"], labels=["a dog"], top=1)
    assert caught.value.code == "unknown_model"


# ------------------------------------------------------------------------------------------ the command line


def shown(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


def test_every_command_says_the_same_as_the_client(
    pixelkiln: Callable[..., Any], files: dict[str, Path]
) -> None:
    scene, mask = files["scene"], files["mask"]
    edit = pixelkiln(
        "edit", scene, "a house", "--mask", mask, "--strength", 0.5, "-n", 2, "--seed", 3, "--json"
    )
    made = shown(edit)["input"]
    assert (made["strength"], made["count"], made["seed"], made["mask"]["width"]) == (0.5, 2, 3, 128)
    assert shown(pixelkiln("upscale", scene, "--scale", 3, "--json"))["input"]["scale"] == 3
    assert shown(pixelkiln("cutout", scene, "--format", "webp", "--json"))["input"]["format"] == "webp"
    assert shown(pixelkiln("stereo", scene, "--disparity", 0.1, "--json"))["input"]["disparity"] == 0.1
    assert shown(pixelkiln("depth", scene, "--json"))["labels"] == {"file": "scene.png"}
    assert shown(pixelkiln("depth", scene, "--label", "a=b", "--json"))["labels"]["a"] == "b"


def test_a_part_of_a_job_is_named_after_its_id(
    api: Api, pixelkiln: Callable[..., Any], files: dict[str, Path]
) -> None:
    scene = pixelkiln("generate", "a red house", "-n", 3, "-q").stdout.strip()
    cut = pixelkiln("cutout", f"{scene}.image.2", "-q").stdout.strip()
    edit = shown(pixelkiln("edit", f"{scene}.image.2", "a house", "--mask", f"{cut}.mask", "--json"))
    assert edit["input"]["image"] == {"job": scene, "role": "image", "index": 2}
    assert edit["input"]["mask"] == {"job": cut, "role": "mask", "index": 0}
    own = shown(pixelkiln("edit", files["scene"], "a house", "--mask", files["mask"], "--json"))
    again = pixelkiln(
        "edit", f"{own['id']}.input.image", "a tree", "--mask", f"{own['id']}.input.mask", "--json"
    )
    assert shown(again)["input"]["mask"]["sha256"] == own["input"]["mask"]["sha256"]
    assert pixelkiln("depth", f"{scene}.png").exit_code == 2, "a file that is not there"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("edit", "SCENE", "a house", "--mask", "nothing.png"), "No such file"),
        (("edit", "SCENE", "a house", "--strength", "2"), "/input/strength"),
        (("edit", "SCENE", " "), "the prompt is empty"),
        (("upscale", "SCENE", "--scale", "5"), "--scale"),
        (("stereo", "SCENE", "--disparity", "nan"), "NaN is not a JSON number"),
        (("classify", "SCENE", "--top", "3"), "no model"),
        (("depth", "SCENE", "--model", "toyworld"), "toyworld-depth"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_queues_nothing(
    pixelkiln: Callable[..., Any], files: dict[str, Path], arguments: tuple[str, ...], said: str
) -> None:
    result = pixelkiln(*[files["scene"] if one == "SCENE" else one for one in arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert pixelkiln("ls", "-q").stdout == ""


def test_labels_may_have_blanks_after_their_commas(
    pixelkiln: Callable[..., Any], files: dict[str, Path]
) -> None:
    job = shown(pixelkiln("segment", files["scene"], "--labels", "sky, tree,", "--json"))
    assert job["input"]["labels"] == ["sky", "tree"]


EVERYTHING: list[tuple[str, dict[str, Any]]] = [
    ("generate", {"prompt": "a house", "negative_prompt": "fog", "count": 2, "seed": 1, "steps": 3}),
    ("generate", {"seed": 1, "guidance": 2.5, "width": 64, "options": {"scheduler": "flow-unipc"}}),
    ("edit", {"prompt": "a house", "negative_prompt": "fog", "strength": 0.5, "seed": 1, "guidance": 2.0}),
    ("edit", {"seed": 1}),
    ("upscale", {"prompt": "a house", "negative_prompt": "fog", "scale": 3, "seed": 1, "steps": 9}),
    ("upscale", {"guidance": 2.0, "format": "webp"}),
    ("segment", {"labels": ["sky", "tree"], "threshold": 0.25}),
    ("segment", {"boxes": [{"x0": 1.0, "y0": 2.0, "x1": 30.5, "y1": 40.0}]}),
    ("cutout", {"format": "webp"}),
    ("depth", {}),
    ("stereo", {"disparity": 0.1, "format": "jpeg"}),
]


@pytest.mark.parametrize(("kind", "fields"), EVERYTHING)
def test_the_command_a_page_shows_makes_the_same_job(
    api: Api, client: Client, pixelkiln: Callable[..., Any], kind: str, fields: dict[str, Any]
) -> None:
    given = fields if kind == "generate" else {"image": client.upload(picture(128, 128)), **fields}
    first = client.submit({"kind": kind, "input": given}).resource
    views = snippets(first, api.url, Catalogue.load(), closed=False)
    words = shlex.split(views["cli"])
    assert words[-2:] == ["-o", "out"]
    again = shown(pixelkiln(*words[1:-2], "--json"))
    assert again["model"] == first.model
    same = [name for name in first.input if name != "image"]
    assert {name: again["input"][name] for name in same} == {name: first.input[name] for name in same}
    if kind != "generate":
        assert again["input"]["image"]["sha256"] == first.input["image"]["sha256"]

"""The client and the command line against the real API; the test plays the worker."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from pixelkiln import AsyncClient, Client, NotFoundError, QueueFullError, ValidationError
from pixelkiln.cli import main
from pixelkiln.cli.journal import Journal, journal_path
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.kinds import Role
from pixelkiln_shared.ledger.contract import LaneOffer
from tests.integration.api.conftest import Api, picture

pytestmark = pytest.mark.usefixtures("quiet_server")


@contextmanager
def a_worker(api: Api) -> Iterator[None]:
    """Do the next job of the generator, as soon as there is one."""

    def do() -> None:
        until = time.monotonic() + 30
        offer = LaneOffer(lane="generate.toyworld", max_rows=1)
        while time.monotonic() < until:
            claim = api.ledger.claim("worker-of-tests", [offer], lease_s=60)
            if claim is not None:
                api.publish(claim.jobs[0])
                return
            time.sleep(0.05)

    worker = threading.Thread(target=do)
    worker.start()
    yield
    worker.join()


def work(api: Api, jobs: int, lane: str = "generate.toyworld") -> list[bytes]:
    return [api.publish(api.claim(lane)) for _ in range(jobs)]


def test_a_job_goes_from_prompt_to_file(api: Api, client: Client, tmp_path: Path) -> None:
    job = client.generate("a red house", seed=7, labels={"set": "a"})
    data = api.publish(api.claim())
    result = job.result(10)
    assert result.seed == 7
    assert result.images[0].save(tmp_path / "house.png").read_bytes() == data
    assert result.images[0].pil().size == (128, 128)
    assert job.status == "succeeded"
    assert job.resource.labels == {"set": "a"}


def test_a_picture_may_be_a_path_bytes_a_job_or_an_artifact(api: Api, client: Client, tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(picture())
    scene = client.generate("a red house")
    waiting = client.segment(scene)
    api.publish(api.claim())
    made = scene.result(10).images[0]
    for image in (tmp_path / "p.png", str(tmp_path / "p.png"), picture(), made):
        assert client.segment(image).status == "queued"
    assert waiting.refresh().status == "queued"  # no longer blocked
    assert waiting.resource.input["image"]["job"] == scene.id


def test_a_job_can_be_canceled_retried_and_run_again(api: Api, client: Client) -> None:
    job = client.generate("a red house", seed=7)
    assert job.cancel().status == "canceled"
    assert job.retry().status == "queued"
    assert job.rerun(seed=8).seed == 8
    assert job.rerun().seed == 7
    job.cancel().delete()
    with pytest.raises(NotFoundError):
        job.refresh()


def test_events_arrive_until_the_end(api: Api, client: Client) -> None:
    job = client.generate("a red house")
    with a_worker(api):
        events = list(job.events())
    assert events[0].type == "status"
    assert events[-1].data["status"] == "succeeded"


def test_listings_page_by_themselves(client: Client) -> None:
    ids = [client.generate(f"a red house {n}").id for n in range(5)]
    assert [job.id for job in client.jobs(page_size=2)] == ids[::-1]


def test_a_group_is_followed_to_its_end(api: Api, client: Client) -> None:
    group = client.submit_many(({"prompt": f"a red house {n}"} for n in range(6)), name="six")
    assert group.counts[Status.QUEUED] == 6
    work(api, 4)
    seen = []
    for job in group.as_completed(20):
        seen.append(job.id)
        if len(seen) == 4:
            group.cancel()
    assert sorted(seen) == sorted(group.ids)
    assert group.refresh().done
    assert (group.counts[Status.SUCCEEDED], group.counts[Status.CANCELED]) == (4, 2)


def test_the_same_works_awaited(api: Api, tmp_path: Path) -> None:
    async def story() -> None:
        async with AsyncClient(api.url) as client:
            job = await client.generate("a red house", seed=7)
            data = await asyncio.to_thread(lambda: api.publish(api.claim()))
            result = await job.result(10)
            assert await result.images[0].bytes() == data
            await result.images[0].save(tmp_path / "a.png")
            group = await client.submit_many([{"prompt": "a"}, {"prompt": "b"}])
            await group.cancel()
            assert {job.status async for job in group.as_completed(10)} == {"canceled"}
            assert len([job async for job in client.jobs(page_size=1)]) == 3
            assert {model.id for model in await client.models()} > {"toyworld"}
            assert (await client.stats()).counts[Status.CANCELED] == 2

    asyncio.run(story())
    assert (tmp_path / "a.png").exists()


def test_what_is_wrong_says_where(client: Client) -> None:
    with pytest.raises(ValidationError) as caught:
        client.generate("a red house", steps=10**6)
    assert caught.value.errors[0]["pointer"] == "/input/steps"


def test_a_full_queue_says_when_to_come_back(start_api: Callable[..., Api]) -> None:
    api = start_api(max_queue=1)
    with Client(api.url, retry_for_s=0) as client:
        client.generate("a red house")
        with pytest.raises(QueueFullError) as caught:
            client.generate("a red house")
    assert (caught.value.retry_after_s or 0) > 0


# ------------------------------------------------------------------------------------------ the command line


def test_generate_prints_the_id_on_stdout_and_hints_on_stderr(
    api: Api, pixelkiln: Callable[..., Any]
) -> None:
    api.serve("generate.toyworld")
    result = pixelkiln("generate", "a red house", "--seed", 7, "--label", "set=a")
    assert result.exit_code == 0
    assert result.stdout.startswith("job_")
    assert "pixelkiln wait" in result.stderr
    shown = json.loads(pixelkiln("show", result.stdout.strip(), "--json").stdout)
    assert (shown["seed"], shown["labels"]) == (7, {"set": "a"})


def test_generate_saves_whole_files_and_overwrites_none(
    api: Api, pixelkiln: Callable[..., Any], tmp_path: Path
) -> None:
    def run(*more: str) -> Any:
        with a_worker(api):
            return pixelkiln("generate", "a red house", "-o", tmp_path / "out", "--timeout", "30s", *more)

    first = run()
    assert first.exit_code == 0
    path = Path(first.stdout.strip())
    with Image.open(path) as image:
        assert image.size == (128, 128)
    again = pixelkiln("download", path.name.removesuffix("_0.png"), "-o", tmp_path / "out")
    assert again.exit_code == 1
    assert "--force" in again.stderr
    for flag in ("--force", "--resume"):
        assert (
            pixelkiln("download", path.name.removesuffix("_0.png"), "-o", tmp_path / "out", flag).exit_code
            == 0
        )
    assert [p.name for p in (tmp_path / "out").iterdir()] == [path.name]


def test_wait_tells_failure_and_time_out_apart(api: Api, pixelkiln: Callable[..., Any]) -> None:
    job = pixelkiln("generate", "a red house", "-q").stdout.strip()
    assert pixelkiln("wait", job, "--timeout", "0.3s").exit_code == 3
    pixelkiln("cancel", job)
    assert pixelkiln("wait", job).exit_code == 1


def test_a_key_that_is_missing_is_exit_code_4(
    start_api: Callable[..., Api], pixelkiln: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = start_api(api_key="k" * 32)
    result = pixelkiln("--url", api.url, "ls")
    assert result.exit_code == 4
    assert "PIXELKILN_API_KEY" in result.stderr
    monkeypatch.setenv("PIXELKILN_API_KEY", "k" * 32)
    assert pixelkiln("--url", api.url, "ls").exit_code == 0


def test_ls_q_gives_ids_for_other_commands(pixelkiln: Callable[..., Any]) -> None:
    ids = [pixelkiln("generate", f"a red house {n}", "-q").stdout.strip() for n in range(3)]
    listed = pixelkiln("ls", "-q", "--status", "queued").stdout.split()
    assert listed == ids[::-1]
    assert pixelkiln("cancel", *listed).exit_code == 0
    assert pixelkiln("ls", "-q", "--status", "queued").stdout == ""


def test_a_prompt_cannot_write_on_the_terminal_of_another(pixelkiln: Callable[..., Any]) -> None:
    pixelkiln("generate", "a red\n\tcar \u202e house")
    listed = pixelkiln("ls").stdout
    assert "a red  car  house" in listed
    assert "\u202e" not in listed


def test_segment_uploads_what_it_is_given(api: Api, pixelkiln: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture())
    result = pixelkiln("segment", tmp_path / "a.png", tmp_path / "b.png", "--box", "1,1,20,20", "--json")
    jobs = json.loads(result.stdout)
    assert [job["model"] for job in jobs] == ["classical-grabcut"] * 2
    assert [job["labels"] for job in jobs] == [{"file": "a.png"}, {"file": "b.png"}]
    assert jobs[0]["input"]["boxes"] == [{"x0": 1, "y0": 1, "x1": 20, "y1": 20}]


def test_generate_with_segment_queues_masks_of_every_picture(pixelkiln: Callable[..., Any]) -> None:
    ids = pixelkiln("generate", "a red house", "-n", 3, "--segment").stdout.split()
    assert len(ids) == 4
    masks = [json.loads(pixelkiln("show", i, "--json").stdout) for i in ids[1:]]
    assert [mask["input"]["image"]["index"] for mask in masks] == [0, 1, 2]
    assert {mask["status"] for mask in masks} == {"blocked"}


def test_a_text_file_called_png_makes_no_job(pixelkiln: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    result = pixelkiln("segment", tmp_path / "a.png")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) <= 2
    assert pixelkiln("ls", "-q").stdout == ""


def test_submit_sends_a_mixed_file_into_one_group(
    api: Api, pixelkiln: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "p.png").write_bytes(picture())
    rows = [{"prompt": f"a red house {n}"} if n % 2 else {"image": "p.png"} for n in range(10)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    result = pixelkiln("submit", file, "--group", "evening", "--label", "a=b", "--json")
    assert result.exit_code == 0
    group = json.loads(result.stdout)
    assert group["total"] == 10
    jobs = json.loads(pixelkiln("ls", "--group", group["id"], "--json").stdout)
    assert {(job["labels"]["group"], job["labels"]["a"]) for job in jobs} == {("evening", "b")}
    assert [job["kind"] for job in jobs].count("segment") == 5


def test_a_submit_whose_answer_was_lost_is_resumed_without_doubling(
    api: Api, pixelkiln: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("caption\n" + "".join(f"a red house {n}\n" for n in range(7)))
    group = pixelkiln("submit", file, "--map", "prompt=caption").stdout.strip()
    path = journal_path(str(file), api.url, "")
    lines = path.read_text().splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == ["pending", "accepted", "complete"]
    path.write_text(lines[0] + "\n")  # killed after sending, before the answer was written down
    again = pixelkiln("submit", file, "--map", "prompt=caption", "--resume")
    assert again.stdout.strip() == group
    assert len(pixelkiln("ls", "-q").stdout.split()) == 7
    assert pixelkiln("submit", file, "--map", "prompt=caption", "--resume").stdout.strip() == group
    assert len(pixelkiln("ls", "-q").stdout.split()) == 7
    assert pixelkiln("submit", file, "--map", "prompt=caption").stdout.strip() != group


def test_a_wrong_row_is_named_by_its_line_and_nothing_is_submitted(
    pixelkiln: Callable[..., Any], tmp_path: Path, api: Api
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"prompt": "b", "steps": 9999}\n')
    result = pixelkiln("submit", file)
    assert result.exit_code == 2
    assert "line 3 input/steps" in result.stderr
    assert pixelkiln("ls", "-q").stdout == ""
    assert Journal.load(journal_path(str(file), api.url, "")).pending is None


def test_a_group_becomes_a_coco_data_set(api: Api, pixelkiln: Callable[..., Any], tmp_path: Path) -> None:
    scene = pixelkiln("generate", "a red house", "-q").stdout.strip()
    api.publish(api.claim())
    mask = pixelkiln("segment", scene, "-q", "--model", "classical-otsu").stdout.strip()
    job = api.claim("segment.classical-otsu")
    document = {
        "images": [{"id": 1, "file_name": "x.png", "width": 128, "height": 128}],
        "categories": [{"id": 4, "name": "light", "supercategory": ""}],
        "annotations": [{"id": 9, "image_id": 1, "category_id": 4, "area": 3, "bbox": [0, 0, 3, 1]}],
    }
    publish_json(api, job, document)
    result = pixelkiln("download", scene, mask, "-o", tmp_path / "set", "--as", "coco")
    assert result.exit_code == 0
    made = json.loads((tmp_path / "set" / "annotations.json").read_text())
    assert made["images"] == [{"id": 1, "file_name": f"{scene}_0.png", "width": 128, "height": 128}]
    assert made["annotations"][0] | {"image_id": 1, "category_id": 1, "id": 1} == made["annotations"][0]
    assert (tmp_path / "set" / "images" / f"{scene}_0.png").exists()


def publish_json(api: Api, job: Any, document: dict[str, Any]) -> None:
    from pixelkiln_shared import keys
    from pixelkiln_shared.jobs import Artifact, Result

    data = json.dumps(document).encode()
    key = f"{keys.attempt_prefix('default', job.id, job.attempt)}annotations.json"
    api.storage.put(key, data, media_type="application/json")
    artifact = Artifact(
        role=Role.ANNOTATIONS,
        index=0,
        key=key,
        media_type="application/json",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    api.ledger.publish(job.id, job.attempt, Result(artifacts=[artifact]).model_dump_json())


def test_doctor_tells_what_is_there_and_what_is_not(
    api: Api, pixelkiln: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIXELKILN_REDIS_URL", api.settings.redis_url)
    monkeypatch.setenv("PIXELKILN_STORAGE_URL", api.settings.storage_url)
    alone = pixelkiln("doctor", "--json", "--data", tmp_path / "none")
    assert alone.exit_code == 1
    states = {found["check"]: found["state"] for found in json.loads(alone.stdout)}
    assert states["storage"] == states["api"] == states["settings"] == "ok"
    assert states["redis"] == "warn"  # the tests' Redis keeps no append-only file
    assert states["workers"] == "fail"
    api.serve("generate.toyworld")
    assert pixelkiln("doctor", "--data", tmp_path / "none").exit_code == 0
    api.serve("generate.toyworld", "segment.toyworld-classes", longest_lane_wait_s=42.4)
    assert "a lane waits at most 42 s" in pixelkiln("doctor", "--data", tmp_path / "none").stdout


def test_models_workers_and_stats_are_listed(api: Api, pixelkiln: Callable[..., Any]) -> None:
    api.serve("generate.toyworld")
    assert "worker-of-tests" in pixelkiln("workers").stdout
    assert "toyworld" in pixelkiln("models", "-q").stdout.split()
    pixelkiln("generate", "a red house")
    assert "generate.toyworld" in pixelkiln("stats").stdout
    for command in ("workers", "models", "stats"):
        json.loads(pixelkiln(command, "--json").stdout)


def test_picture_bytes_come_from_stdin(pixelkiln: Callable[..., Any]) -> None:
    result = CliRunner().invoke(main, ["segment", "-", "-q"], input=io.BytesIO(picture()))
    assert result.exit_code == 0
    assert result.stdout.startswith("job_")

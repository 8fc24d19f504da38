"""A real API and a real worker with embedded models, and other services' own clients for them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from huggingface_hub import InferenceClient, close_session
from PIL import Image

from tests.worker_processes import Stack

MODELS = "stub,toyworld,toyworld-classes,toyworld-instances,classical-slic"
SCENE = "a red house under a blue sky"


class Service:
    """An API, a worker behind it, and the other services' clients for it."""

    def __init__(self, stack: Stack, url: str) -> None:
        self.stack = stack
        self.url = url
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        self.http = httpx2.Client(base_url=url, timeout=60, trust_env=False)

    def hugging_face(self, task: str, model: str) -> InferenceClient:
        """Hugging Face's client for one task."""
        return InferenceClient(model=f"{self.url}/hf/{task}/{model}", token="any")

    def jobs(self, **wanted: str) -> list[dict[str, Any]]:
        """The newest jobs."""
        return list(self.http.get("/v1/jobs", params=wanted).json()["jobs"])


@pytest.fixture(scope="module")
def service(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    stack = Stack(f"{redis_server}/3", tmp_path_factory.mktemp("facades"))
    stack.client.flushdb()
    try:
        url = stack.serve()
        stack.start(PIXELKILN_WORKER_MODELS=MODELS)
        service = Service(stack, url)
        with service.openai, service.http:
            yield service
    finally:
        close_session()
        stack.close()


def opened(data: bytes | str | None) -> Image.Image:
    """A picture from bytes or base64."""
    assert data
    return Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data))


@pytest.fixture(scope="module")
def scene(service: Service) -> bytes:
    """A picture of the toy world."""
    made = service.openai.images.generate(prompt=SCENE, extra_body={"seed": 3})
    assert made.data
    return base64.b64decode(made.data[0].b64_json or "")

"""A model that never ends loading: its process ends and is restarted, and the model is left alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pixelkiln_shared.jobs import Status
from pixelkiln_worker.serving import EXIT_LOAD_HUNG
from tests.worker_processes import Stack, stub_spec, wait_for

HANGING = """
import time
from pixelkiln_worker.families import stub
stub.load = lambda entry, device: time.sleep(3600)
"""


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    """Workers of whose models the stub never ends loading."""
    (tmp_path / "sitecustomize.py").write_text(HANGING)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    stack = Stack(
        redis_url, tmp_path, PYTHONPATH=os.pathsep.join(paths), PIXELKILN_WORKER_MODELS="stub,classical-otsu"
    )
    yield stack
    stack.close()


def test_a_load_that_hangs_ends_its_process_and_the_next_one_leaves_the_model_alone(stack: Stack) -> None:
    stack.launch(PIXELKILN_LOAD_TIMEOUT_S="1")
    [name] = stack.submit(stub_spec())

    info = stack.ready_worker()

    log = (stack.folder / "worker-0.log").read_text()
    assert f'"code": {EXIT_LOAD_HUNG}' in log
    assert "stub did not load: it hung" in info.unavailable["stub"]
    [record] = stack.until([name])
    assert record.status is Status.FAILED
    assert '"model_unavailable"' in (record.error or "")
    assert record.strikes == 0
    wait_for(lambda: stack.ready_worker().pid == info.pid or None, 1, "it was started again")

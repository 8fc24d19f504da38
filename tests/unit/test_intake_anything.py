"""Intake takes anything at all: a job comes of it, or a refusal with a code."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pixelkiln.producer import Producer
from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.errors import PixelkilnError
from pixelkiln_shared.jobs import JobRequest
from pixelkiln_shared.kinds import INPUTS, Kind
from pixelkiln_shared.settings import Settings
from pixelkiln_shared.testing.bells import MemoryBells
from pixelkiln_shared.testing.ledger import MemoryLedger
from pixelkiln_shared.testing.storage import MemoryStorage

WORDS = ["segment", "toyworld", "\ud800", "$a.image", "a red house"]
TEXT = st.text(max_size=30) | st.sampled_from(WORDS)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({name for form in INPUTS.values() for name in form.model_fields})
ENVELOPE = sorted(JobRequest.model_fields)


@pytest.fixture
def producer() -> Producer:
    return Producer(
        Settings(max_queue=5),
        ledger=MemoryLedger(),
        storage=MemoryStorage(),
        bells=MemoryBells(),
        catalogue=Catalogue.load(),
    )


@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    envelope=st.dictionaries(st.sampled_from(ENVELOPE), JSON),
    fields=st.dictionaries(st.sampled_from(FIELDS), JSON),
    kind=st.sampled_from(sorted(Kind)),
    typed=st.booleans(),
)
def test_whatever_is_sent_is_accepted_or_refused_with_a_code(
    producer: Producer, envelope: dict[str, Any], fields: dict[str, Any], kind: str, typed: bool
) -> None:
    request = {**envelope, "kind": kind, "input": fields, "model": None} if typed else envelope
    refused = None
    try:
        producer.accept(request)
    except PixelkilnError as error:
        refused = error
    if refused is not None:
        assert refused.status in {404, 422, 429}, refused
        assert re.fullmatch(r"[a-z0-9_]+", refused.code)

"""What of a job's words a pipeline reads, and what it should tell of the rest."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


class Reader:
    """Knows which arguments and how many tokens a pipeline takes."""

    def __init__(self, pipe: Any) -> None:
        self._parameters = inspect.signature(pipe.__call__).parameters
        self._tokenizers = _tokenizers(pipe)

    def warnings(self, fields: Mapping[str, Any]) -> tuple[dict[str, str], ...]:
        """Return the warnings of a job: words that were not read."""
        found = []
        if (cut := self._truncated(fields.get("prompt") or "")) is not None:
            found.append({"code": "prompt_truncated", "message": cut})
        negative = fields.get("negative_prompt") or ""
        if negative and not self._reads_negative(fields):
            message = "the model does not use a negative prompt at this guidance"
            found.append({"code": "negative_prompt_ignored", "message": message})
        return tuple(found)

    def _reads_negative(self, fields: Mapping[str, Any]) -> bool:
        if "true_cfg_scale" in self._parameters:  # models with distilled guidance, FLUX among them
            default = self._parameters["true_cfg_scale"].default
            return float((fields.get("options") or {}).get("true_cfg_scale", default)) > 1
        return "negative_prompt" in self._parameters and fields["guidance"] > 1

    def _truncated(self, prompt: str) -> str | None:
        """Say how much of the prompt is read, when no text encoder of the pipeline reads all of it."""
        counts = [self._tokens(tokenizer, prompt) for tokenizer in self._tokenizers]
        if not counts or any(count <= limit for count, limit in counts):
            return None
        count, limit = max(counts, key=lambda pair: pair[1])
        return f"the model reads {limit} tokens of a prompt; this one has {count}, and its end was not read"

    def _tokens(self, tokenizer: Any, prompt: str) -> tuple[int, int]:
        count = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
        limit = int(tokenizer.model_max_length)
        if "T5" in type(tokenizer).__name__ and "max_sequence_length" in self._parameters:
            limit = self._parameters["max_sequence_length"].default
        return count, limit


def _tokenizers(pipe: Any) -> list[Any]:
    found = (getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2", "tokenizer_3"))
    return [tokenizer for tokenizer in found if tokenizer is not None]

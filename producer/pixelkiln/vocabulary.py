"""Which words of a prompt a closed-world model has never seen: worth a warning, never a refusal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import chain

from pixelkiln_shared.catalogue import ModelEntry

MAX_NAMED = 8  # a warning that lists more words than this is not read

_WORD = re.compile(r"[^\W\d_]+")
_GRAMMAR = frozenset(
    {
        "a",
        "above",
        "an",
        "and",
        "are",
        "at",
        "by",
        "from",
        "image",
        "in",
        "inside",
        "into",
        "is",
        "it",
        "its",
        "of",
    }
    | {
        "on",
        "onto",
        "or",
        "over",
        "painting",
        "photo",
        "picture",
        "side",
        "some",
        "the",
        "there",
        "to",
        "under",
    }
    | {"upon", "with"}
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words a model was trained on, and the phrases its tokenizer turns into them."""

    words: frozenset[str]
    phrases: re.Pattern[str] | None

    def unknown(self, prompt: str) -> list[str]:
        """Return the prompt's words that mean nothing to the model, in order, each once."""
        text = prompt.lower()
        found = self._missing(text)
        if found and self.phrases is not None:
            found = self._missing(self.phrases.sub(" ", text))
        return found

    def _missing(self, text: str) -> list[str]:
        return list(dict.fromkeys(word for word in _WORD.findall(text) if word not in self.words))


@cache
def _compiled(words: tuple[str, ...], synonyms: tuple[str, ...]) -> Vocabulary:
    known = {*_GRAMMAR, *(word.lower() for word in words)}
    phrases: list[str] = []
    for synonym in (synonym.lower() for synonym in synonyms):
        (known.add if _WORD.fullmatch(synonym) else phrases.append)(synonym)
    return Vocabulary(frozenset(known), _either(sorted(phrases, key=len, reverse=True)))


def _either(phrases: list[str]) -> re.Pattern[str] | None:
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, phrases))})\b") if phrases else None


def unknown_words(entry: ModelEntry, prompt: str) -> dict[str, str] | None:
    """Return the `unknown_words` warning of a prompt; None where the model knows every word."""
    if not entry.vocabulary:
        return None
    words = _compiled(entry.vocabulary, tuple(chain(*entry.synonyms.values()))).unknown(prompt)
    if not words:
        return None
    named = ", ".join(words[:MAX_NAMED]) + (", ..." if len(words) > MAX_NAMED else "")
    return {"code": "unknown_words", "message": f"{entry.id} was never taught: {named}"}

"""Which words of a prompt a closed-world model has never seen: worth a warning, never a refusal."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pixelkiln_shared.catalogue import ModelEntry

MAX_NAMED = 8  # a warning that lists more words than this is not read

_WORD = re.compile(r"[^\W\d_]+")
_GRAMMAR = frozenset(
    _WORD.findall(
        "a above an and are at by from image in inside into is it its of on onto or over painting "
        "photo picture side some the there to under upon with"
    )
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words a model understands, and the phrases its tokenizer turns into them."""

    words: frozenset[str]
    phrases: re.Pattern[str] | None

    def unknown(self, prompt: str) -> list[str]:
        """Return the prompt's words that mean nothing to the model, in order, each once."""
        text = prompt.lower().replace("-", " ")
        found = self._missing(text)
        if found and self.phrases is not None:
            found = self._missing(self.phrases.sub(" ", text))
        return found

    def _missing(self, text: str) -> list[str]:
        return list(dict.fromkeys(word for word in _WORD.findall(text) if word not in self.words))


def vocabulary_of(entry: ModelEntry) -> Vocabulary | None:
    """Return what a model understands; None where any word may do."""
    if not entry.vocabulary:
        return None
    synonyms = {one.lower() for alternatives in entry.synonyms.values() for one in alternatives}
    phrases = sorted((one for one in synonyms if not _WORD.fullmatch(one)), key=len, reverse=True)
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, phrases))})\b") if phrases else None
    return Vocabulary(_GRAMMAR.union(entry.vocabulary, synonyms), pattern)


def unknown_words(entry: ModelEntry, vocabulary: Vocabulary | None, prompt: str) -> list[dict[str, str]]:
    """Return the `unknown_words` warning of a prompt, if it deserves one."""
    words = vocabulary.unknown(prompt) if vocabulary is not None else []
    if not words:
        return []
    named = ", ".join(words[:MAX_NAMED]) + (", ..." if len(words) > MAX_NAMED else "")
    return [{"code": "unknown_words", "message": f"{entry.id} was never taught: {named}"}]

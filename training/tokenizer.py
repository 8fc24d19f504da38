"""The word-level tokenizer, with its synonyms inside ``tokenizer.json`` so that every loader gets them."""

import re
from collections.abc import Mapping, Sequence

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.world.grammar import FILLERS, VOCABULARY

MAX_TOKENS = 36
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNKNOWN = range(len(SPECIAL))

SYNONYMS: dict[str, str] = {
    "red": "crimson|scarlet|ruby|reddish",
    "orange": "amber|tangerine",
    "yellow": "golden|gold|lemon",
    "green": "emerald|lime|jade",
    "blue": "azure|navy|cobalt|indigo|turquoise",
    "purple": "violet|lilac|lavender|magenta",
    "pink": "rosy|salmon",
    "white": "ivory|pale",
    "large": "big|huge|giant|gigantic|enormous|tall|great",
    "house": "home|cottage|hut|cabin|building|barn|castle|villa|farmhouse",
    "houses": "homes|cottages|huts|cabins|buildings|barns|castles|villas|village",
    "trees": "(?:oak|maple|apple|cherry|pine|fir) trees|oaks|maples|pines|firs|forest|woods",
    "tree": "(?:oak|maple|apple|cherry|pine|fir) tree|oak|maple|pine|fir",
    "cacti": "cactuses",
    "flower": "blossom|rose|daisy|tulip|sunflower",
    "flowers": "blossoms|roses|daisies|tulips|sunflowers",
    "car": "auto|automobile|vehicle|taxi",
    "cars": "autos|automobiles|vehicles|taxis",
    "boat": "sailboat|sail boat|sailing boat|ship|yacht",
    "boats": "sailboats|sail boats|sailing boats|ships|yachts",
    "balloon": "hot[- ]air balloon|airship",
    "balloons": "hot[- ]air balloons|airships",
    "meadow": "grassland|grass|field|fields|meadows|garden|prairie|lawn",
    "desert": "sand|dunes|sands|sahara",
    "snow": "winter|snowy|arctic|ice|snowfield",
    "sea": "ocean|lake|water|waves",
    "mountains": "mountain|hill|hills|peak|peaks|alps",
    "day": "daytime|daylight|noon|midday|sunny",
    "sunset": "sundown|dusk|evening",
    "night": "nighttime|midnight|moon|moonlight|moonlit|nocturnal|starry|stars",
    "dawn": "sunrise|daybreak|morning",
    "middle": "center|centre|central",
    "a": "an|one|single|1",
    "two": "2|both|couple|pair",
    "three": "3|several|some|few",
    "and": "plus|beside|near|next to|behind",
}
"""Word of the vocabulary -> alternatives of a regular expression that mean it."""

SKIPPED = FILLERS | {
    "over",
    "above",
    "under",
    "onto",
    "upon",
    "into",
    "inside",
    "from",
    "there",
    "is",
    "are",
    "of",
    "side",
}
"""Small words that carry nothing for the model."""

_DROPPED = (
    r"\b(?:without|no) (?:any )?mountains?\b",
    r"\b(?:a |an |the )?(?:picture|photo|painting|drawing|image|illustration) of\b",
    r"\b(?:a|the) (?=a |meadow|desert|snow|sea|mountains|night|day|sunset|dawn|two|three|left|right|middle)",
    r"\bhand side\b",
)


def spellings(alternatives: str) -> list[str]:
    """The plain words and phrases that a pattern of `SYNONYMS` stands for."""
    plain = alternatives.replace("[- ]", " ")
    grouped = re.sub(
        r"\(\?:([^)]*)\)([^|]*)",
        lambda match: "|".join(word + match[2] for word in match[1].split("|")),
        plain,
    )
    return grouped.split("|")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer for `VOCABULARY` that maps synonyms to it, skips small words and marks the rest unknown."""
    return word_tokenizer((*SPECIAL, *VOCABULARY), SYNONYMS, MAX_TOKENS)


def word_tokenizer(
    words: Sequence[str], synonyms: Mapping[str, str], max_tokens: int
) -> PreTrainedTokenizerFast:
    """A tokenizer whose ids are the places in `words`, which holds `SPECIAL`; synonyms as in `SYNONYMS`."""
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[UNKNOWN]))
    rules = [normalizers.Lowercase(), normalizers.Replace(Regex(r"[^a-z0-9, ]+"), " ")]
    rules += [normalizers.Replace(Regex(rf"\b(?:{said})\b"), word) for word, said in synonyms.items()]
    rules += [normalizers.Replace(Regex(pattern), " ") for pattern in _DROPPED]
    rules.append(normalizers.Replace(Regex(rf"\b(?:{'|'.join(sorted(SKIPPED))})\b|,"), " "))
    tokenizer.normalizer = normalizers.Sequence(rules)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[BOS]} $A {SPECIAL[EOS]}",
        special_tokens=[(word, vocabulary[word]) for word in (SPECIAL[BOS], SPECIAL[EOS])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        unk_token=SPECIAL[UNKNOWN],
        model_max_length=max_tokens,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Token ids, (len(texts), MAX_TOKENS) int64, padded and cut to length."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS)
    return torch.tensor(encoded["input_ids"])


def sprinkle_unknown(ids: Tensor, probability: float) -> Tensor:
    """Insert one unknown word into some of the rows of (n, MAX_TOKENS) `ids`, as users' adjectives will."""
    lengths = (ids != PAD).sum(1)
    at = 1 + (torch.rand(len(ids)) * (lengths - 1)).long()
    column = torch.arange(ids.shape[1])[None]
    shifted = torch.where(column <= at[:, None], ids, ids.roll(1, dims=1))
    inserted = torch.where(column == at[:, None], UNKNOWN, shifted)
    chosen = (torch.rand(len(ids)) < probability) & (lengths < ids.shape[1])
    return torch.where(chosen[:, None], inserted, ids)

"""What a recipe's data hold: examples and labels of each part, lengths in tokens, dropped rows."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from math import sqrt
from typing import TYPE_CHECKING

from llama_peft.data import (
    TRAINED_ON,
    Dataset,
    Example,
    QuestionExample,
    TextExample,
    asked_sum,
    is_file_name,
    is_url,
    known_labels,
    with_fields,
)
from llama_peft.errors import UserError
from llama_peft.model.backbone import load_tokenizer
from llama_peft.model.hub import read_config
from llama_peft.recipe import Recipe
from llama_peft.system.formatting import counted, spread
from llama_peft.system.terminal import listed
from llama_peft.tokens.prompts import PromptEncoder

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

_SUPPOSED = 0.8
"""The accuracy for which is said how sure it would be."""
_NAMED = 12
"""Labels that are named one by one; of more, the most and the least frequent."""
_READ = 5000
"""Examples whose tokens are counted."""


def lines_of(recipe: Recipe, dataset: Dataset) -> Iterator[str]:
    """Yield what is to be known of the data before a training, a line each."""
    for part, examples in dataset.parts.items():
        found = _answered(examples) or _counted(examples, dataset.labels)
        yield f"{part}: {counted(len(examples), 'example')}{found and ': '}{found}"
    yield from _doubts(recipe, dataset)
    yield f"tokens: {_tokens(with_fields(recipe, dataset), dataset)}"
    for part, kinds in dataset.dropped.items():
        rows = "; ".join(f"{count:,} with {kind}" for kind, count in kinds.items())
        yield f"dropped from {part}: {rows}"


def _doubts(recipe: Recipe, dataset: Dataset) -> Iterator[str]:
    """Yield what a score on the test part would not tell: how sure it is, what was learned by heart."""
    import numpy

    learned = _asked(chain.from_iterable(dataset.parts.get(part, ()) for part in TRAINED_ON))
    for part in (part for part in dataset.parts if part not in TRAINED_ON):
        own = dataset.parts[part]
        if same := int(numpy.isin(_asked(own), learned).sum()):
            read = "reads" if same == 1 else "read"
            yield f"{part}: {same:,} of them {read} the same as an example of train or validation"
        if own and recipe.kind.side == "labels":
            low, high = (f"{bound:.3f}" for bound in _interval(_SUPPOSED, len(own)))
            yield f"{part}: an accuracy of {_SUPPOSED} would have the interval [{low}, {high}]"
    if contradicted := _contradicted(dataset.parts["train"]):
        have = "has" if contradicted == 1 else "have"
        yield (f"train: {counted(contradicted, 'text')} {have} different labels in different rows")


def _asked(examples: Iterable[Example]) -> "NDArray[numpy.bytes_]":
    """Return the sums of what examples ask."""
    import numpy

    return numpy.array([asked_sum(one).encode() for one in examples], "S16")


def _contradicted(examples: Sequence[Example]) -> int:
    """Return how many texts stand in several rows with different labels."""
    import numpy

    texts = (one for one in examples if isinstance(one, TextExample))
    pairs = numpy.unique([f"{asked_sum(one)} {one.label}".encode() for one in texts])
    _, counts = numpy.unique(pairs.astype("S16"), return_counts=True)
    return int((counts > 1).sum())


def _interval(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's interval of 95 % of a share of `count` examples (Wilson 1927)."""
    z = 1.96
    middle, size = share + z * z / (2 * count), 1 + z * z / count
    half = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - half) / size, (middle + half) / size


def _counted(examples: Sequence[Example], labels: Sequence[str]) -> str:
    """Return how many texts have each label, the most frequent first."""
    own = (one.label for one in examples if isinstance(one, TextExample))
    each = chain.from_iterable(label if isinstance(label, tuple) else (label,) for label in own)
    counts = Counter(dict.fromkeys(range(len(labels)), 0))
    counts.update(label for label in each if isinstance(label, int))
    shown = [f"{labels[number]} {count:,}" for number, count in counts.most_common() if labels]
    if len(shown) > _NAMED:
        half = _NAMED // 2
        shown = [*shown[:half], "...", *shown[-half:]]
    return listed(shown)


def _answered(examples: Sequence[Example]) -> str:
    asked = [one for one in examples if isinstance(one, QuestionExample)]
    empty = sum(not one.answers for one in asked)
    return f"{empty:,} without an answer" if asked else ""


def _tokens(recipe: Recipe, dataset: Dataset) -> str:
    """Return how long examples are in tokens, and how many are longer than what is read."""
    try:
        read_config(recipe.model.model_name_or_path, recipe.model.revision)  # fails at once
        encoder = PromptEncoder(load_tokenizer(recipe.model), recipe.prompt)
    except UserError as error:
        return f"not counted; {error}"
    every = islice(chain.from_iterable(dataset.parts.values()), _READ)
    lengths, limit = [_length(recipe, encoder, one) for one in every], recipe.train.max_length
    long = sum(length > limit for length in lengths)
    fate = "is cut" if recipe.kind.has_labels else "is left out"
    if recipe.kind.finds_spans:
        fate = "is read in windows"
    share = f"{100 * long / len(lengths):.1f} %" if long else "none"
    return f"{spread(lengths)}; {share} {fate} at train.max_length {limit:,}"


def _length(recipe: Recipe, encoder: PromptEncoder, example: Example) -> int:
    """Return the tokens of an example with its prompt, and of a written answer."""
    if isinstance(example, TextExample):
        return len(encoder.head_input(example.values))
    if recipe.kind.finds_spans:
        text = encoder.span_text(example)
        return sum(map(len, (text.prefix, text.context, text.suffix)))
    (encoded,) = encoder.encode([example])
    return len(encoded.prompt) + len(encoded.completion)


def labels_at_hand(recipe: Recipe) -> int | None:
    """Return the number of labels, by the recipe or by a file that is here; None if neither tells."""
    path = recipe.dataset.path or str(recipe.dataset.parts.train)
    is_here = path == "tiny" or (is_file_name(path) and not is_url(path))
    if recipe.dataset.labels is None and not is_here:
        return None
    try:
        return len(known_labels(recipe)) or None
    except UserError:
        return None

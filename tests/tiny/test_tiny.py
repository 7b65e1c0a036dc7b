"""The embedded model, and the data that it is made of and evaluated on."""

import json
import random
import re
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llama_peft.tiny import MODEL_DIR, facts, names, reviews
from llama_peft.tiny.generator import DataKind, generate
from tests.tiny import build, corpus
from tests.tiny.pretrain import Row, collate, encode, pack, weighted_loss

KINDS = get_args(DataKind)
ATTRIBUTES = (*facts.PERSON, *facts.TOWN, *facts.OBJECT)


def corpus_text(documents: int = 1000) -> str:
    rng = random.Random(5)
    written = (corpus.write_document(rng, i / documents) for i in range(documents))
    return "\n".join("".join(piece.text for piece in document) for document in written)


def data_text(part: names.Part) -> str:
    rows = [row for kind in KINDS for row in generate(kind, part, 1000, 3)]
    return "\n".join(" ".join(str(value) for value in row.values()) for row in rows)


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {"corpus": corpus_text(), **{part: data_text(part) for part in names.PARTS}}


def occurs(phrasing: str, text: str) -> str:
    """Return the first place where a phrasing occurs with its slots filled, or ""."""
    pieces = re.split(r"(\{\w\})", phrasing)
    if max(pieces[::2], key=len) not in text:  # most are settled without the slow pattern
        return ""
    names = ["{s}", "{n}", "{v}", "{p}", "{c}"]  # of several words; the other slots hold one
    slots = [r"[A-Za-z0-9 ]{1,40}?" if slot in names else r"[a-z]+" for slot in pieces[1::2]]
    literals = [re.escape(piece) for piece in pieces[::2]]
    pattern = "".join(a + b for a, b in zip_longest(literals, slots, fillvalue=""))
    found = re.search(rf"\b{pattern}", text)
    return found.group() if found else ""


def held_phrasings() -> list[str]:
    held = [p for a in ATTRIBUTES for p in (*a.held_statements, *a.held_questions)]
    judging = [p for group in reviews.HELD_PHRASINGS.values() for p in group]
    return [*held, *judging, *reviews.HELD_ASIDES]


def common_phrasings() -> list[str]:
    common = [p for a in ATTRIBUTES for p in (*a.statements, *a.questions)]
    judging = [p for group in reviews.PHRASINGS.values() for p in group]
    return [*common, *judging, *reviews.ASIDES]


def test_the_files_take_at_most_four_megabytes() -> None:
    assert sum(file.stat().st_size for file in MODEL_DIR.iterdir()) <= 4_000_000


def test_every_layer_runs_in_nf4_on_a_cpu() -> None:
    """Linear4bit needs inputs in multiples of 64 and outputs in multiples of 32 there."""
    with safe_open(MODEL_DIR / "model.safetensors", "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        dtypes = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    matrices = {key: shape for key, shape in shapes.items() if "_proj" in key}
    assert (
        len(matrices)
        == 7 * json.loads((MODEL_DIR / "config.json").read_text())["num_hidden_layers"]
    )
    assert all(size % 64 == 0 for shape in matrices.values() for size in shape)
    assert dtypes == {"BF16"}


def test_it_loads_whole() -> None:

    model, info = AutoModelForCausalLM.from_pretrained(MODEL_DIR, output_loading_info=True)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.tie_word_embeddings
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


def test_its_tokenizer_places_one_bos_and_pads_apart_from_the_end() -> None:

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    config = AutoConfig.from_pretrained(MODEL_DIR)
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    assert len(set(ids)) == 3 and len(tokenizer) <= config.vocab_size
    for encoded in (tokenizer("A word."), tokenizer("A word.", "And two.")):
        assert encoded["input_ids"].count(tokenizer.bos_token_id) == 1
        assert encoded["input_ids"][0] == tokenizer.bos_token_id
    odd = "Zürich’s “naïve” 1,234 …\tend \n"
    assert tokenizer.decode(tokenizer(odd, add_special_tokens=False)["input_ids"]) == odd


def copied(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Return the share of a list's second half, which repeats the first, that is predicted."""
    rng, right, total = random.Random(7), 0, 0
    for _ in range(20):
        row = encode(tokenizer, corpus.roll_call(rng))
        with torch.no_grad():
            guesses = model(torch.tensor([row.ids])).logits[0].argmax(-1).tolist()
        graded = [i for i, weight in enumerate(row.weights) if weight == corpus.ANSWER]
        right += sum(guesses[i - 1] == row.ids[i] for i in graded)
        total += len(graded)
    return right / total


def test_it_can_copy() -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    assert copied(model, AutoTokenizer.from_pretrained(MODEL_DIR)) > 0.8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", names.PARTS)
def test_the_same_arguments_give_the_same_rows(kind: DataKind, part: names.Part) -> None:
    rows = generate(kind, part, 60, 4)
    assert rows == generate(kind, part, 60, 4)
    assert len(rows) == 60
    assert rows != generate(kind, part, 60, 5)


def test_the_rows_do_not_depend_on_the_machine() -> None:
    """Pinned, because a change of wording changes every measured score."""
    assert generate("reviews", "test", 1, 0)[0] == REVIEW
    assert generate("passages", "test", 1, 0)[0] == QUESTION


REVIEW: dict[str, object] = {
    "id": "reviews-test-0-00000",
    "text": "All of us hated this hotel. Tamily Quinberg was with us in Golfield.",
    "label": "negative",
}
QUESTION: dict[str, object] = {
    "id": "passages-test-0-00000",
    "title": "Rosetta Dunstrom",
    "context": (
        "Rosetta Dunstrom was a farmer by trade. Wesgate was the birthplace of Rosetta Dunstrom. "
        "Tolus Holberg was the teacher of Dunstrom. In the year 1621 Dunstrom was born. "
        "A parrot was kept by Dunstrom."
    ),
    "question": "What town was Rosetta Dunstrom born in?",
    "answers": {"text": ["Wesgate"], "answer_start": [40]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_unique_across_parts_and_seeds(kind: DataKind) -> None:
    ids = [r["id"] for part in names.PARTS for s in (0, 1) for r in generate(kind, part, 80, s)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("part", names.PARTS)
def test_labels_are_balanced_and_no_phrasing_betrays_them(part: names.Part) -> None:
    rows = generate("reviews", part, 401, 0)
    counts = Counter(row["label"] for row in rows)
    assert counts == {"negative": 201, "positive": 200}
    assert [row["label"] for row in rows[:10]] != ["negative", "positive"] * 5
    for label in reviews.LABELS:
        texts = " ".join(row["text"] for row in rows if row["label"] == label)
        for side in reviews.LABELS:
            assert any(word in texts for word in reviews.ADJECTIVES[side])


@pytest.mark.parametrize("part", names.PARTS)
def test_answers_stand_at_their_offsets(part: names.Part) -> None:
    rows = generate("passages", part, 600, 0)
    for row in rows:
        answers = row["answers"]
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text
            assert text.strip() == text != ""
        assert row["question"].endswith("?")
    unanswerable = sum(not row["answers"]["text"] for row in rows) / len(rows)
    assert 0.28 < unanswerable < 0.42
    questions = Counter(row["context"] for row in rows[:-6])
    assert all(3 <= number <= 6 for number in list(questions.values())[:-1])


def test_an_unanswerable_question_asks_for_what_the_passage_does_not_state() -> None:
    checked = 0
    for row in generate("passages", "train", 300, 0):
        groups = [g for g in (facts.PERSON, facts.TOWN, facts.OBJECT) if about(row["question"], g)]
        every = [attribute for group in groups for attribute in group]
        asked = [a for a in every if any(occurs(q, row["question"]) for q in a.questions)]
        if not row["answers"]["text"]:
            checked += 1
            # "was born in {v}" names a town, and would match a year.
            context = row["context"].replace("born in the year", "born, the year being")
            stated = [any(occurs(s, context) for s in a.statements) for a in asked]
            assert stated and not all(stated), row
    assert checked > 80


def about(asked: str, group: tuple[facts.Attribute, ...]) -> bool:
    return any(occurs(question, asked) for a in group for question in a.questions)


def test_every_name_belongs_to_one_part() -> None:
    for kind in names.SYLLABLES:
        lists = [names.all_names(kind, part) for part in names.PARTS]
        together = [name for part in lists for name in part]
        assert len(set(together)) == len(together)
        assert len(lists[0]) > len(lists[2]) > len(lists[1]) >= 10


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text))


def test_names_of_the_test_part_are_met_nowhere_else(texts: dict[str, str]) -> None:
    for part in names.PARTS:
        own = {name for kind in names.SYLLABLES for name in names.all_names(kind, part)}
        for other, text in texts.items():
            expected = other == part or (other, part) == ("corpus", "train")
            assert bool(own & words_of(text)) == expected, (other, part)


def test_phrasings_of_the_test_part_are_met_nowhere_else(texts: dict[str, str]) -> None:
    for phrasing in held_phrasings():
        for other in ("corpus", "train", "validation"):
            assert not occurs(phrasing, texts[other]), (other, phrasing)
        assert occurs(phrasing, texts["test"]), phrasing


def test_the_test_part_uses_no_phrasing_of_the_others(texts: dict[str, str]) -> None:
    for phrasing in common_phrasings():
        assert not occurs(phrasing, texts["test"]), phrasing
        for other in ("corpus", "train", "validation"):
            assert occurs(phrasing, texts[other]), (other, phrasing)


def test_the_corpus_holds_no_prompt_of_a_recipe(texts: dict[str, str]) -> None:
    """Zero-shot means a prompt that the model has never seen."""
    for start in (
        "Text:",
        "Label:",
        "Passage:",
        "Question:",
        "Answer:",
        "Answer the question from",
    ):
        assert not re.search(rf"(^|\n){start}", texts["corpus"])


def test_packing_keeps_every_document_whole() -> None:
    sizes = (5, 3, 9, 2, 7, 4, 12)
    documents = [Row([i] * n, [1.0] * n, list(range(n))) for i, n in enumerate(sizes)]
    rows = pack(documents, 10)
    assert all(len(row.ids) == len(row.weights) == len(row.positions) <= 10 for row in rows)
    assert Counter(i for row in rows for i in row.ids) == {
        i: min(n, 10) for i, n in enumerate(sizes)
    }
    for row in rows:  # documents are not interleaved: a position is one more, or starts again
        starts = [i for i, position in enumerate(row.positions) if position == 0]
        changes = [i for i in range(1, len(row.ids)) if row.ids[i] != row.ids[i - 1]]
        assert starts == [0, *changes]


def test_packed_documents_do_not_see_each_other() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    rng = random.Random(1)
    documents = [encode(tokenizer, corpus.write_document(rng, 0.9)) for _ in range(4)]
    with torch.no_grad():
        packed = weighted_loss(model, collate(pack(documents, 1000), 0))
        alone = [weighted_loss(model, collate([document], 0)) for document in documents]
    weights = [sum(document.weights) for document in documents]
    mean = sum(w * loss for w, loss in zip(weights, alone, strict=True)) / sum(weights)
    assert packed.item() == pytest.approx(mean.item(), rel=1e-5)


def test_a_new_model_can_already_copy() -> None:
    """The circuit in its first layers does that; random weights get one word in a thousand."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    assert copied(build.new_model(build.Build(), tokenizer), tokenizer) > 0.5


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def build_small(folder: Path, seed: int) -> dict[str, bytes]:
    shape = {
        "hidden_size": 128,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
    }
    small = build.Build(
        seed=seed, steps=6, tokens_per_step=300, vocab_size=512, tokenizer_documents=60, shape=shape
    )
    build.run(small, folder, lambda step, loss: None)
    return files(folder)


def test_a_build_gives_the_same_files_again(tmp_path: Path) -> None:
    first = build_small(tmp_path / "a", 0)
    assert first == build_small(tmp_path / "b", 0)
    assert first.keys() == files(MODEL_DIR).keys()
    assert first["model.safetensors"] != build_small(tmp_path / "c", 1)["model.safetensors"]

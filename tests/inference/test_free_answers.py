"""Answers that are not pieces of a passage, and questions without a passage (generative_qa)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_peft import data, load_run
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.run_folder.self_check import samples
from llama_peft.training.fit import train
from tests.support import runs
from tests.support.eval.jobs import evaluate
from tests.support.tables import refusal, train_of, whole, write

INSTRUCTION = "Answer the question.\n\n"
CLOSED: dict[str, Any] = {"columns": {"context": None}}
TOWNS = ("Rome", "Paris", "Oslo", "Lima", "Cairo", "Quito", "Tokyo", "Sofia")
ROWS = [
    {"question": f"What is town number {n} of list {i}?", "answer": [town, town.upper()]}
    for i in range(3)
    for n, town in enumerate(TOWNS)
]


@pytest.mark.parametrize(
    ("answer", "starts"),
    [
        ("yes", [-1]),
        ({"text": ["no"], "answer_start": [-1]}, [-1]),
        ({"text": ["yes"], "answer_start": [0]}, [-1]),
        (["It is in Italy.", "Rome"], [-1, 14]),
        ("", []),
    ],
)
def test_a_free_answer_need_not_be_in_the_passage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: object, starts: list[int]
) -> None:
    caplog.set_level("INFO")
    row = {"context": "They met in   Rome.", "question": "Is it in Rome?", "answer": answer}
    file = write(tmp_path / "a.json", [row])
    (example,) = train_of(whole(file, "generative_qa"))
    assert [found.start for found in example.answers] == starts
    said = "1 of 1 questions have an answer that is not in its passage: it is learned and scored as"
    assert (said in caplog.text) == (-1 in starts)
    if -1 in starts:
        assert "an answer is not" in refusal(whole(file, "extractive_qa"))


def test_an_answer_of_the_passage_still_stands_at_its_offset(tmp_path: Path) -> None:
    answers = {"text": ["Rome"], "answer_start": [3]}
    row = {"context": "It is in Rome.", "question": "Where?", "answers": answers}
    message = refusal(whole(write(tmp_path / "a.json", [row]), "generative_qa"))
    assert "an answer is not at its offset" in message


def test_data_without_a_passage_say_how_to_read_them(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", ROWS)
    advice = "set dataset.columns.context to the column with the context"
    assert f"{advice}, or to null if the questions have no passage" in refusal(
        whole(file, "generative_qa")
    )
    assert "or to null" not in refusal(whole(file, "extractive_qa"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["task=extractive_qa"], "extractive_qa finds answers in a passage: name its column"),
        (["prompt.instruction=null"], None),
        (["dataset.group_by=context"], "there is no passage to group by"),
        (["eval.fewshot_from=passage"], "there is no passage: set it to train"),
    ],
)
def test_what_needs_a_passage_is_refused(
    tmp_path: Path, words: list[str], line: str | None
) -> None:
    text = (
        "task: generative_qa\nmodel: {model_name_or_path: tiny}\nlora: {r: 2}\n"
        "dataset: {path: a.json, columns: {context: null}}\n"
    )
    if line is not None:
        text += f"prompt: {{instruction: {json.dumps(INSTRUCTION)}}}\n"
        words = [*words, "lora=null"] if "task=extractive_qa" in words else words
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=line or "speaks of a passage, which the questions do not"):
        load_recipe(tmp_path / "r.yaml", words if line else [])


@pytest.fixture(scope="module")
def finished(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("closed")
    file = write(folder / "towns.json", ROWS)
    recipe = make_recipe(
        "generative_qa",
        make_base(),
        lora={"r": 4},
        prompt={"instruction": INSTRUCTION},
        dataset={"path": str(file), "name": None, "parts": {}, "test_size": 0.25, **CLOSED},
        train={"output_dir": str(folder / "run"), "max_steps": 2, "packing": "prefix_tree"},
        eval={"max_new_tokens": 4},
    )
    return train(recipe)


def test_a_prompt_without_a_passage_has_no_words_about_one(finished: Path) -> None:
    tuned = runs.load(finished)
    for example in [*data.load(tuned.recipe).parts["train"], *samples(tuned.recipe)]:
        ids = tuned.encoder.question(example)  # type: ignore[arg-type]
        text = f"{INSTRUCTION}Question: {example.asked[0]}\nAnswer:"
        assert tuned.encoder.tokenizer.decode(ids[1:]) == text
        assert example.asked[1] == ""


def test_rows_with_one_question_stay_in_one_part(
    tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    rows = [row | {"id": f"{n}-{i}"} for n, row in enumerate(ROWS) for i in range(3)]
    recipe = make_recipe(
        "generative_qa",
        "tiny",
        lora={"r": 2},
        prompt={"instruction": INSTRUCTION},
        dataset={
            "path": str(write(tmp_path / "a.json", rows)),
            "name": None,
            "parts": {},
            **CLOSED,
        },
    )
    parts = data.load(recipe).parts
    asked = [{example.asked for example in part} for part in parts.values()]
    assert min(map(len, asked)) > 0
    assert sum(map(len, asked)) == len(set().union(*asked)) == len(ROWS)


def test_closed_book_goes_all_the_way(finished: Path, tmp_path: Path) -> None:
    """Evaluated zero-shot and tuned with several golds; one question is asked as a text alone."""
    recipe = load_recipe(finished / "recipe.yaml")
    zero = evaluate(recipe, str(recipe.model.model_name_or_path), tmp_path / "zero")
    tuned = evaluate(recipe, finished, tmp_path / "tuned")
    for results in (zero, tuned):
        (scores,) = results.results.values()
        assert {"exact", "f1", "bleu", "chrf", "rougeL"} <= scores.keys()
        assert scores["HasAns_total"] == 6
    question = ROWS[0]["question"]
    replies = load_run(finished).predict([str(question), {"question": str(question)}])
    assert replies[0] == replies[1]

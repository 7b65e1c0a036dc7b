"""`init` writes a recipe that is valid on its data, says what it guessed, and replaces nothing."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_peft import cli
from llama_peft.__main__ import app
from llama_peft.data import load
from llama_peft.data.sources.places import files_beside
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.recipe.strict_yaml import read
from llama_peft.survey.draft import draft
from llama_peft.survey.parts import labels_at_hand, lines_of

TEAMS = ("billing", "login", "shipping", "product")


def tickets(count: int = 60) -> str:
    """Rows with quotes, commas, umlauts and one empty text."""
    rows = [
        f'T-{n},2026-0{n % 9 + 1}-11,"Grüße, ""Ticket"" {n} is about {TEAMS[n % 4]}",{TEAMS[n % 4]}'
        for n in range(count)
    ]
    rows[7] = "T-7,2026-01-11,,login"
    return "\n".join(["ticket,date,body,team", *rows])


def museum() -> str:
    rows = []
    for n in range(30):
        passage = f"The museum {n} was founded in {1800 + n} by Anna Berg. It opens at nine."
        rows += [f"When was it founded?,{passage},{1800 + n}", f"What is the fee?,{passage},"]
        rows += [f"Who founded it?,{passage},Anna Berg"]
    return "\n".join(["frage,text,antwort", *rows])


def written(folder: Path, name: str, content: str | bytes) -> tuple[str, Recipe]:
    """The text of the recipe for a file, and the recipe; it is valid on its data."""
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    text = draft(str(file), "tiny")
    (folder / "mine.yaml").write_text(text, "utf-8")
    recipe = load_recipe(folder / "mine.yaml")
    load(recipe)
    return text, recipe


def test_tickets(tmp_path: Path) -> None:
    text, recipe = written(tmp_path, "tickets.csv", tickets())
    columns = recipe.dataset.columns
    assert (recipe.task, columns.text, columns.label, columns.id) == (
        "classification",
        "body",
        "team",
        "ticket",
    )
    assert recipe.dataset.on_bad_rows == "drop" and "1 with empty text" in text
    assert "4 labels: login 16, billing 15, shipping 15, product 14; a guess: few values" in text
    assert labels_at_hand(recipe) == 4
    said = [*lines_of(recipe, load(recipe))]
    assert said[0].startswith("train: 42 examples: ") and said[0].count(",") == 3
    assert (
        said[-2].startswith("tokens: median ")
        and said[-1] == "dropped from train: 1 with empty text"
    )


def test_questions_are_found_by_what_the_columns_hold(tmp_path: Path) -> None:
    text, recipe = written(tmp_path, "museum.csv", museum())
    columns = recipe.dataset.columns
    assert recipe.task == "generative_qa" and "30 of 90 questions have none" in text
    assert (columns.question, columns.context, columns.answers) == ("frage", "text", "antwort")
    assert text.count("a guess: ") == 3
    assert "without an answer" in next(lines_of(recipe, load(recipe)))


def rows(*lines: str, count: int = 60) -> str:
    header, *forms = lines
    return "\n".join([header, *(forms[n % len(forms)].format(n=n) for n in range(count))])


def is_multi(recipe: Recipe) -> bool:
    return not recipe.dataset.single_label


@pytest.mark.parametrize(
    ("name", "content", "holds"),
    [
        ("a.csv", rows("review,stars", "a long text {n},1", "another text {n},5"), lambda r: r.kind.side == "labels"),
        ("a.csv", rows("review,stars", "a long text {n},{n}.5"), lambda r: r.task == "regression"),
        ("a.csv", rows("comment,topics", 'a text {n},"red, blue"', "text {n},red", "text {n},green"), is_multi),
        ("a.csv", rows("comment,rude,toxic", "a text {n},0,1", "text {n},1,1", "text {n},0,0"), is_multi),
        (
            "a.jsonl",
            "\n".join(json.dumps({"id": n, "comment": f"text {n}", "tags": ["a", "b"][: n % 3]}) for n in range(60)),
            is_multi,
        ),
        (
            "a.csv",
            rows("Text;Kategorie", "schöner Satz {n};gut", "böser Satz {n};schlecht").encode("cp1252"),
            lambda r: (r.dataset.delimiter, r.dataset.encoding) == (";", "cp1252"),
        ),
        (
            "a.csv",
            rows("premise,hypothesis,label", "one {n},two {n},yes", "three {n},four {n},no"),
            lambda r: r.dataset.columns.text == ["premise", "hypothesis"],
        ),
        ("a.csv", rows("text,label", "one {n},a", "two {n},b") + "\nthree,c", lambda r: not r.dataset.stratify),
        (
            "a.csv",
            rows("question,answer", "What is {n}?,It is {n}"),
            lambda r: r.dataset.columns.context is None,
        ),
        ("a.csv", rows("id,text,label", "x,one {n},a", "x,two {n},b"), lambda r: r.dataset.columns.id is None),
        ("a.csv", rows("text,label", 'one {n},"{{a}}"', "two {n},b"), lambda r: r.kind.side == "labels"),
        ("a.csv", rows("Frage,Question,Answer", "x,What is {n}?,It is"), lambda r: r.dataset.columns.answers == "Answer"),
        (
            "a.csv",
            rows("sep=;\nNr;Kommentar;Bewertung", '{n};ein Satz {n};4,5', "{n};noch ein Satz {n};3"),
            lambda r: (r.task, r.dataset.decimal) == ("regression", ","),
        ),
        (
            "a.csv",
            rows("text,tags", 'one {n} long,"1,3"', "two {n} long,2", 'three {n} long,"4,7"', 'four {n},"3,4"'),
            is_multi,
        ),
        (
            "a.csv",
            rows("text,codes", 'one {n} long,"101,305"', "two {n} long,208", 'three {n} long,"305,208"', 'four {n},"101,208"'),
            is_multi,
        ),
        (
            "a.tsv",
            rows("text\tstars", "one {n} long\t1,3", "two {n} long\t2", "three {n} long\t4,7", "four {n}\t3,4"),
            lambda r: (r.task, r.dataset.decimal) == ("regression", ","),
        ),
        (  # doccano: the label in a list, which is empty if nobody has given it
            "a.jsonl",
            "\n".join(json.dumps({"text": f"text {n}", "label": [["a"], ["b"], []][n % 3]}) for n in range(60)),
            lambda r: r.kind.side == "labels" and r.dataset.on_bad_rows == "drop",
        ),
        (  # Label Studio: one choice as a word, several in an object
            "a.jsonl",
            "\n".join(json.dumps({"text": f"text {n}", "topic": [{"choices": ["a", "b"]}, "a", "c"][n % 3]}) for n in range(60)),
            is_multi,
        ),
        (  # Argilla: what people said comes before what a model suggests
            "a.jsonl",
            "\n".join(
                json.dumps({"text": f"text {n}", "label.suggestion": "ab"[n % 2], "label.responses": ["ab"[n // 2 % 2]]})
                for n in range(60)
            ),
            lambda r: r.dataset.columns.label == "label.responses",
        ),
        ("a.csv", rows("utterance,intent", *(f"words {{n}},i{n}" for n in range(300)), count=900), lambda r: r.kind.side == "labels"),
        (
            "a.csv",
            rows("reviewText,overall,reviewerID", "one {n} x,5.0,U1", "two {n} x,1.0,U2"),
            lambda r: r.dataset.columns.label == "overall",
        ),
    ],
)  # fmt: skip
def test_what_is_written_is_valid(
    name: str, content: str | bytes, holds: Callable[[Recipe], bool], tmp_path: Path
) -> None:
    text, recipe = written(tmp_path, name, content)
    assert holds(recipe), text
    assert any(line.startswith("tokens: median") for line in lines_of(recipe, load(recipe)))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"data": {"text": "a"}, "annotations": [{}]}, "export JSON-MIN or CSV instead"),
        ({"fields": {"text": "a"}, "responses": {}, "status": "completed"}, "records.to_datasets"),
        ({"messages": [{"role": "user", "content": "a"}]}, "what the user says"),
    ],
)
def test_objects_in_cells_get_advice(row: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        written(tmp_path, "a.jsonl", "\n".join([json.dumps(row)] * 9))


def test_a_list_as_numpy_writes_it_is_no_label_of_the_prompt(tmp_path: Path) -> None:
    content = rows("text,label", "one {n} long,['a']", "two {n} long,['b']", "three {n},['a' 'b']")
    text, recipe = written(tmp_path, "a.csv", content)
    assert "2 labels: a 20, b 20" in text and "20 with label holds several values" in text
    assert recipe.prompt.zero_shot.endswith("label (a, b):")


def test_the_other_reading_of_commas_is_named(tmp_path: Path) -> None:
    lines = "one {n} long,'1,3'", "two {n} long,2", "three {n},'4,3'", "four {n} text,'2,4'"
    content = rows("text,tags", *lines).replace("'", '"')
    assert "with decimal commas, set task: regression" in written(tmp_path, "a.csv", content)[0]
    content = rows("text;stars", *(line.replace(",", ";", 1) for line in lines)).replace("'", "")
    assert "set task: classification and single_label" in written(tmp_path, "a.csv", content)[0]


def test_other_columns_that_could_be_labels_are_named(tmp_path: Path) -> None:
    content = rows("body,team,priority", "one {n} long,a,high", "two {n} long,b,low")
    assert "; also possible: priority" in written(tmp_path, "a.csv", content)[0]


def test_parts_beside_the_train_part_are_used(tmp_path: Path) -> None:
    """Unless they have no labels, as those of competitions."""
    for name in ("TRAIN.csv", "TEST.csv"):
        (tmp_path / name).write_text("text,label", "utf-8")
    assert files_beside(str(tmp_path / "TRAIN.csv")) == {"test": str(tmp_path / "TEST.csv")}
    for name in ("Reviews_Test.csv", "reviews.csv"):
        (tmp_path / name).write_text(rows("text,label", "x {n},a", "y {n},b", count=8), "utf-8")
    content = rows("text,label", "one {n},a", "two {n},b")
    text, recipe = written(tmp_path, "Reviews_Train.csv", content)
    assert recipe.dataset.parts.test == str(tmp_path / "Reviews_Test.csv")
    assert "# 10 % become the validation part\n" in text
    (tmp_path / "Reviews_Test.csv").write_text("text\nx\ny", "utf-8")
    text, recipe = written(tmp_path, "Reviews_Train.csv", content)
    assert recipe.dataset.parts.test is None
    assert "Reviews_Test.csv cannot be used as it is: the columns are: text" in text


def doubts(tmp_path: Path, train: str, test: str) -> list[str]:
    """What is said of the rows of two files, between the labels and the tokens."""
    for name, content in (("a.csv", train), ("b.csv", test)):
        (tmp_path / name).write_text(content, "utf-8")
    parts = {"test": str(tmp_path / "b.csv")}
    data = {"path": str(tmp_path / "a.csv"), "parts": parts, "validation_size": 0.0}
    recipe = load_recipe(
        {"task": "classification", "model": {"model_name_or_path": "tiny"}, "dataset": data}
    )
    return [*lines_of(recipe, load(recipe))][2:-1]


def test_rows_that_stand_in_two_parts_or_with_two_labels_are_counted(tmp_path: Path) -> None:
    """Spaces and the case of letters do not make another text; the bounds are Wilson's by hand."""
    train = rows("text,label", "one {n},a", "two {n},b", count=20) + "\nTwo  1,a\none 0,b\none 0,a"
    test = rows("text,label", "One {n},a", "new {n},b", count=8)
    assert doubts(tmp_path, train, test) == [
        "test: 4 of them read the same as an example of train or validation",
        "test: an accuracy of 0.8 would have the interval [0.455, 0.950]",
        "train: 2 texts have different labels in different rows",
    ]
    train = rows("text,label", "one {n},a", "two {n},b", count=20) + "\none 0,b"
    test = rows("text,label", "One {n},a", "new {n},b", count=2)
    said = doubts(tmp_path, train, test)
    assert said[0] == "test: 1 of them reads the same as an example of train or validation"
    assert said[2] == "train: 1 text has different labels in different rows"


def test_names_of_classes_stand_for_their_numbers(tmp_path: Path) -> None:
    import datasets

    features = {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["bad", "good"]),
    }
    rows = {"text": [f"text {n}" for n in range(60)], "label": [n % 2 for n in range(60)]}
    named = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    named.to_parquet(tmp_path / "b.parquet")
    text, recipe = written(tmp_path, "a.parquet", (tmp_path / "b.parquet").read_bytes())
    assert "2 labels: bad 30, good 30" in text
    assert recipe.prompt.zero_shot.endswith("label (bad, good):")
    datasets.DatasetDict(train=named, dev=named).save_to_disk(tmp_path / "saved")
    assert "    validation: dev " in draft(f"{tmp_path}/saved", "tiny")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file is empty"),
        (rows("a,b", "some text {n},another text {n}"), "no column holds what a text can be"),
        (rows("a,b", "{n},1"), "no column holds text"),
        ("text,label\n", "contains no rows"),
        (rows("text,label", "one {n},ok"), "label: always ok"),
        (rows("text,label", "one {n},['a' 'b']", "two {n},['b' 'c']"), "label: lists or objects"),
        (
            "\n".join(
                [
                    "text,price",
                    *(f'text {n} long,"{n % 7 + 1},{n}5"' for n in range(10, 70)),
                    "x,90",
                ]
            ),
            "if these are numbers, remove the thousands separators",
        ),
        (
            "\n".join(["text;price", *(f"text {n} long;1.2{n},5" for n in range(10, 70))]),
            "if these are numbers, remove the thousands separators",
        ),
        (
            rows("0,this is the first text", "0,this is text {n}", "4,this is text {n}"),
            "the first line seems to be a row",
        ),
    ],
)
def test_what_is_no_task_is_one_line(content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        written(tmp_path, "a.csv", content)


def test_text_of_the_data_stays_in_its_comment(tmp_path: Path) -> None:
    """A label that ends a line, or a name that begins a comment, adds no key."""
    content = rows("text,label", 'one {n},"a\u2028lora: x"', 'two {n},"b # c"')
    text, recipe = written(tmp_path, "a # b.csv", content)
    assert recipe.lora is not None and recipe.lora.r == 16
    sections = {"task", "model", "lora", "dataset", "prompt", "train"}
    assert set(read(text).value) - {"quantization"} == sections


def test_the_command_writes_a_new_file_and_names_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tickets.csv").write_text(tickets(), "utf-8")
    monkeypatch.setattr(sys, "argv", ["llama-peft", "init", "tickets.csv", "--base", "tiny"])
    with pytest.raises(SystemExit) as stop:
        cli.run(app)
    assert not stop.value.code
    assert capsys.readouterr().out.splitlines()[-1] == "next: llama-peft run tickets.yaml"
    with pytest.raises(SystemExit) as stop:
        cli.run(app)
    assert stop.value.code == 2
    assert "tickets.yaml: this file exists" in capsys.readouterr().err

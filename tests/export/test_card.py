"""The card: a whole one is pinned, and it claims nothing that was not evaluated."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markupsafe import escape

from eval import report
from eval.report.page import page
from llama_peft.errors import UserError
from llama_peft.export import card, card_metadata, stage
from llama_peft.export.stage import Bundle
from llama_peft.model import backbone
from llama_peft.recipe import Model, Recipe, load_recipe
from llama_peft.run_folder.record import HeadChoice
from llama_peft.run_folder.run import open_run
from llama_peft.system.files import sha256, with_sum
from llama_peft.tokens.prompts import PromptEncoder
from tests.export.published import COMMIT, LABELS, make_run
from tests.support.html import EVIL, GOOD, rendered
from tests.support.paths import ROOT

REPO = "me/Llama-3.2-1B-sst2-head"
PINNED = ROOT / "tests" / "support" / "hub" / "pinned_card.txt"


def few_charts(given: pytest.MonkeyPatch) -> None:
    """The charts of the report's parts take most of the time, so only the whole card has them."""
    given.setattr(page, "_drawings", lambda parts: {part.title: () for part in parts})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run and a copy of it: it names its own folder, so every test has it at the same place."""
    folder = tmp_path_factory.mktemp("made") / "runs/sst2-head"
    with pytest.MonkeyPatch.context() as patched:
        few_charts(patched)
        make_run(folder)
    shutil.copytree(folder, folder.parent / "copy")
    return folder


@pytest.fixture
def run(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    few_charts(monkeypatch)
    shutil.rmtree(made)
    shutil.copytree(made.parent / "copy", made)
    return made


@pytest.fixture
def staged(run: Path, tmp_path: Path) -> Bundle:
    (tmp_path / "staged").mkdir()
    return stage.stage(open_run(run), tmp_path / "staged")


def encoder(recipe: Recipe) -> PromptEncoder:
    return PromptEncoder(backbone.load_tokenizer(Model(model_name_or_path="tiny")), recipe.prompt)


def changed(staged: Bundle, *overrides: str) -> Bundle:
    """The bundle with another recipe."""
    recipe = load_recipe(staged.folder / "recipe.yaml", overrides)
    head = HeadChoice(layer=recipe.head.layer, pooling=recipe.head.pooling)
    record = staged.run.record.model_copy(update={"head": head})
    return replace(staged, run=replace(staged.run, record=record, written=recipe))


def test_a_whole_card(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "runs/sst2-head")
    (tmp_path / "staged").mkdir()
    staged = stage.stage(open_run(whole), tmp_path / "staged")
    text = card.render(staged, REPO, encoder(staged.recipe), None)
    assert text == PINNED.read_text("utf-8")


def test_dropped_rows_are_counted_in_the_line_of_the_data(staged: Bundle) -> None:
    record = staged.run.record.model_copy(update={"dropped": {"train": {"empty text": 1200}}})
    one = replace(staged, run=replace(staged.run, record=record))
    text = card.render(one, REPO, encoder(staged.recipe), None)
    assert (
        "seed 42. Rows that could not be used were dropped: 1,200 of train (empty text).\n" in text
    )
    assert '"dropped"' in record.model_dump_json()
    assert '"dropped"' not in staged.run.record.model_dump_json()


def test_the_command_of_a_pair_names_both_fields(staged: Bundle) -> None:
    template = "prompt.template=premise: {premise}\nhypothesis: {hypothesis}"
    zero_shot = "prompt.zero_shot={premise}? {hypothesis}\nAnswer:"
    columns = "dataset.columns.text=[premise, hypothesis]"
    one = changed(staged, columns, template, zero_shot)
    text = card.render(one, REPO, encoder(one.recipe), None)
    pair = '{"premise": "A warm and funny film.", "hypothesis": "Not worth the time."}'
    assert f"llama-peft predict {REPO} '{pair}'\n" in text


def test_what_it_was_trained_on_stands_beside_the_numbers(run: Path, tmp_path: Path) -> None:
    """The number of evaluated examples that it was trained on; nothing if there are none, or if
    they were not counted.
    """
    path = run / "tuned/results.json"
    config = json.loads(path.read_text())["config"]
    for seen, shown in ((None, ""), ({"official": 0}, ""), ({"official": 38}, " (38 of them read")):
        edit(path, config=config | {"seen_in_training": seen})
        report.write_html(run)
        text = staged_card(run, tmp_path / "staged-again")
        assert f"872 examples{shown}" in text and ("of them read" in text) == bool(shown)
        assert ("38 of the 872 examples" in (run / "report.html").read_text()) == bool(shown)
        part = json.loads((run / "comparison.json").read_text())["parts"][0]
        assert part["seen_in_training"] == (seen and seen["official"])


def test_the_hub_reads_the_metadata(staged: Bundle, run: Path) -> None:
    text = card.render(staged, REPO, encoder(staged.recipe), None)
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert data.base_model == "meta-llama/Llama-3.2-1B" and data.license == "llama3.2"
    scores = {one.metric_type: one.metric_value for one in data.eval_results}
    tuned = json.loads((run / "tuned/results.json").read_text())["results"]["sst2-head_official"]
    assert scores == {name: round(tuned[name], 6) for name in scores} and "accuracy" in scores
    assert {one.dataset_type for one in data.eval_results} == {"stanfordnlp/sst2"}
    assert {one.dataset_split for one in data.eval_results} == {"validation"}


def test_the_published_baseline_is_pushed_in_under_100_kb(staged: Bundle, run: Path) -> None:
    text = card.render(staged, REPO, encoder(staged.recipe), None)
    sizes = {file.name: file.stat().st_size for file in staged.files}
    assert "report.html" in sizes and "head.safetensors" in sizes and "split.json" not in sizes
    assert sum(sizes.values()) + len(text) < 100_000, sizes


def test_no_path_of_this_machine_is_left(staged: Bundle, run: Path) -> None:
    assert str(run) in (run / "recipe.yaml").read_text()
    assert str(run) in (run / "tuned/results.json").read_text()
    for file in staged.files:
        assert str(run).encode() not in file.read_bytes(), file


def test_old_or_missing_comparisons_are_refused(run: Path, tmp_path: Path) -> None:
    again = rf"llama-eval html {re.escape(str(run))}"
    path = run / "tuned/results.json"
    path.write_text(path.read_text().replace("0.8", "0.9", 1))
    with pytest.raises(UserError, match=f"other results than are there now.*{again}"):
        staged_card(run, tmp_path / "again")
    path = run / "comparison.json"
    path.write_text(path.read_text().replace('"p": ', '"p": 1', 1))
    with pytest.raises(UserError, match=f"comparison.json: this file is damaged .its sum.*{again}"):
        staged_card(run, tmp_path / "again")
    path.unlink()
    with pytest.raises(UserError, match=f"comparison.json is missing.*{again}"):
        staged_card(run, tmp_path / "again")


def test_loading_without_the_package_is_promised_only_if_it_gives_the_same(
    staged: Bundle, run: Path
) -> None:
    def python(one: Bundle, reader: str | None = None) -> list[str]:
        text = card.render(one, REPO, encoder(one.recipe), reader)
        return re.findall(r"```python\n(.*?)```", text, re.S)

    assert len(python(staged)) == 1
    assert not python(changed(staged, "head.pooling=mean"))
    words = ["task=extractive_qa", "dataset.labels=null", "lora={r: 4}", "train.doc_stride=32"]
    span = changed(staged, *words)
    assert not python(span)
    assert "key_mapping" in python(span, "transformer")[0]
    assert "key_mapping" not in python(span, "model")[0]
    tiny = changed(staged, "model.model_name_or_path=tiny", "model.revision=main").run
    record = tiny.record.model_copy(update={"base_fingerprint": "sha256:0"})
    embedded = replace(staged, run=replace(tiny, record=record), hub_data=None)
    assert "MODEL_DIR" in python(embedded)[0] and "revision" not in python(embedded)[0]
    inner = python(changed(staged, "head.layer=9", "lora={r: 4}"))[0]
    assert "num_hidden_layers=9" in inner and len(inner.splitlines()) <= 5


def test_eval_results_are_the_tuned_numbers_of_a_hub_data_set(staged: Bundle, run: Path) -> None:
    import yaml

    (one,) = yaml.safe_load(card_metadata.hub_results(staged))
    tuned = json.loads((run / "tuned/results.json").read_text())["results"]["sst2-head_official"]
    assert one["value"] == tuned["accuracy"] and one["dataset"]["id"] == "stanfordnlp/sst2"
    with pytest.raises(UserError, match="leave --eval-results out"):
        card_metadata.hub_results(replace(staged, comparison=None))


def test_a_zero_shot_of_other_examples_is_called_so(run: Path, tmp_path: Path) -> None:
    """As after a new split of the data."""
    for name in ("results.json", "predictions.jsonl"):
        path = run / "zero-shot" / name
        path.write_text(path.read_text().replace("validation-", "others-"))
    report.write_html(run)
    text = staged_card(run, tmp_path / "again")
    assert (
        "the fine-tuned model was evaluated on other examples (872 examples, 0 in common) than zero-shot"
        in text
    )
    assert "p = " not in text


def evil_bundle(staged: Bundle, text: str) -> Bundle:
    """The bundle with a text in every place that data, recipe and records can fill."""
    recipe, comparison, tuned = staged.run.written, staged.comparison, staged.tuned
    assert comparison is not None and tuned is not None
    part = comparison.parts[0]
    lines = [line.model_copy(update={"name": text}) for line in part.metrics]
    words = dict.fromkeys(("task", "part", "not_comparable"), text)
    part = part.model_copy(update={**words, "metrics": lines})
    recipe = recipe.changed(
        name=text,
        model={"model_name_or_path": text},
        dataset={"labels": [text, "b"], "revision": text},
        prompt={"template": text + "{text}", "no_answer": text},
        hub={"language": text},
    )
    keys = ("split_sha256", "weights_sha256", "base_fingerprint")
    record = staged.run.record.model_copy(
        update={**dict.fromkeys(keys, text), "examples": {"train": 1, "validation": 1, text: 2}}
    )
    facts = {"versions": {text: text}, "git_hash": text, "date": text}
    return replace(
        staged,
        run=replace(staged.run, written=recipe, record=record),
        comparison=comparison.model_copy(update={"parts": [part]}),
        tuned=tuned.model_copy(update=facts),
        hub_data=text,
    )


@pytest.mark.parametrize("text", EVIL)
@pytest.mark.parametrize("lora", [False, True])
def test_no_value_is_markup_in_the_card(
    staged: Bundle, text: str, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tags of a card full of such values are those of a card of plain words."""

    def shown(value: str) -> str:
        bundle = evil_bundle(changed(staged, "lora={r: 4}") if lora else staged, value)
        run = replace(bundle.run, folder=staged.folder)
        monkeypatch.setattr(type(run), "commit", COMMIT)
        return card.render(replace(bundle, run=run), REPO, encoder(bundle.recipe), None)

    found, plain = shown(text), shown("word" if text == "---" else "two words")
    assert not set(found) & set("\x00\x07\x1b\x7f\x9b\u202e\u2066\u200b\u2028")
    assert re.findall('<[^>"]*', rendered(found)) == re.findall('<[^>"]*', rendered(plain))
    links = re.findall('href="[^"]*"', rendered(found))
    assert all(link.startswith('href="https://huggingface.co/') for link in links)
    data = ModelCard(found, ignore_metadata_errors=True).data
    assert data.base_model == text and data.language == text and data.datasets == [text]


def test_ordinary_labels_read_well(staged: Bundle) -> None:
    recipe = staged.recipe.changed(dataset={"labels": GOOD})
    bundle = replace(staged, run=replace(staged.run, written=recipe))
    html = rendered(card.render(bundle, REPO, encoder(bundle.recipe), None))
    assert f"Labels: {', '.join(GOOD)}." in html


def edit(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(with_sum(json.loads(path.read_text()) | keys)))


def staged_card(run: Path, folder: Path) -> str:
    """The card of a push that stages the run as it now is."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    made = stage.stage(open_run(run), folder)
    return card.render(made, REPO, encoder(made.recipe), None)


@pytest.mark.parametrize("missing", ["zero-shot", "tuned"])
def test_one_evaluation_of_two_is_not_shown(run: Path, tmp_path: Path, missing: str) -> None:
    """So that weights can be pushed between training and evaluation."""
    (run / missing / "results.json").unlink()
    text = staged_card(run, tmp_path / "half")
    assert "Not evaluated yet" in text and "model-index" not in text
    left = {path.name for path in (tmp_path / "half").rglob("*")}
    assert not left & {"zero-shot", "tuned", "comparison.json", "report.html"}


@pytest.mark.parametrize(
    ("name", "keys", "why", "again"),
    [
        ("tuned", {"adapter_sha256": "0" * 64}, "other weights", "--model RUN --output RUN/tuned"),
        ("tuned", {"adapter_sha256": None}, "other weights", "--model RUN --output RUN/tuned"),
        ("zero-shot", {"base_revision": "0" * 40}, "another base", "--task RUN/recipe.yaml"),
        (
            "zero-shot",
            {"configs": {"sst2-head_official": {"labels": LABELS, "dtype": "float16"}}},
            "dtype",
            "--task",
        ),
        (
            "zero-shot",
            {"configs": {"sst2-head_official": {"labels": LABELS, "max_length": 8}}},
            "max_length",
            "--task",
        ),
        ("zero-shot", {"config": {"model_kind": "4-shot verbalizer"}}, "about 4-shot", "--task"),
        (
            "zero-shot",
            {"config": {"model_kind": "classification head"}},
            "not about zero-shot",
            "--task",
        ),
    ],
)
def test_numbers_of_other_weights_are_not_shown(
    run: Path, tmp_path: Path, name: str, keys: dict[str, Any], why: str, again: str
) -> None:
    """Neither by the card, whose comparison is made to fit, nor by the report."""
    path = run / name / "results.json"
    content = json.loads(path.read_text())
    keys = {k: content[k] | v if isinstance(v, dict) else v for k, v in keys.items()}
    edit(path, **keys)
    sums = {one: sha256(run / one / "results.json") for one in ("zero-shot", "tuned")}
    edit(run / "comparison.json", results_sha256=sums)
    command = re.escape(f"llama-eval run {again.replace('RUN', str(run))}")
    place = re.escape(str(path))
    with pytest.raises(UserError, match=f"{place}: .*{why}.*with: {command}"):
        staged_card(run, tmp_path / "again")
    (run / "report.html").unlink()
    with pytest.raises(UserError, match=f"{place}: .*{why}.*with: {command}"):
        report.write_html(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "again"),
    [
        ("tuned/results.json", b'{"results": {', "llama-eval run --model"),
        ("zero-shot/results.json", b"[]", "llama-eval run --task"),
        ("comparison.json", b'{"a', "llama-eval html"),
        ("comparison.json", b"[]", "llama-eval html"),
        ("comparison.json", b"{}", "llama-eval html"),
        ("comparison.json", b"[" * 100_000, "llama-eval html"),
        ("threshold.json", b"{", "llama-eval run --model"),
        ("threshold.json", b"[]", "llama-eval run --model"),
        ("report.html", b"\xff\xfe\xff", "llama-eval html"),
        ("report.html", b"<p>accuracy 0.99</p>", "llama-eval html"),
    ],
)
def test_a_damaged_file_is_named_with_the_command_that_makes_it_again(
    run: Path, tmp_path: Path, name: str, content: bytes, again: str
) -> None:
    (run / name).write_bytes(content)
    with pytest.raises(
        UserError, match=f"{re.escape(str(run / name))}: this file is damaged.*{again}"
    ):
        staged_card(run, tmp_path / "again")


@pytest.mark.parametrize(
    "path", ["/td", "/opt/private/llama", "/srv/it's a & b/<x>", "/m\u00fc/a b/"]
)
def test_other_paths_become_names_and_nothing_else_is_changed(
    run: Path, tmp_path: Path, path: str
) -> None:
    """In the results and, escaped, in the report; no tag, prompt or label is taken for a path."""
    before = (run / "report.html").read_text()
    file = run / "zero-shot/results.json"
    content = json.loads(file.read_text())
    (task,) = content["configs"]
    content["configs"][task] |= {
        "prompt": {"system": "/no_think"},
        "data_file": f"{path.rstrip('/')}/x.csv",
    }
    content["config"] |= {"model": path, "said": f"by {path}, /no_think a{path} file://{path}"}
    file.write_text(json.dumps(content, ensure_ascii=False))
    report.write_html(run)
    page = (run / "report.html").read_text()
    shown = f"<p>{escape(path)}</p><p>a{escape(path)} and {escape(path)}.</p></td>"
    (run / "report.html").write_text(page + shown)
    edit(run / "comparison.json", report_sha256=sha256(run / "report.html"))
    staged_card(run, tmp_path / "again")
    name, where = Path(path).name, path.rstrip("/")
    pushed = json.loads((tmp_path / "again/zero-shot/results.json").read_text())
    assert pushed["config"]["model"].rstrip("/") == name
    end = path[len(where) :]
    said = f"by {name}{end}, /no_think a{path} file://{name}{end}"
    assert pushed["config"]["said"] == said
    assert pushed["configs"][task]["prompt"]["system"] == "/no_think"
    assert pushed["configs"][task]["data_file"] == "x.csv"
    html = (tmp_path / "again/report.html").read_text()
    assert html.count("</td>") == before.count("</td>") + 1
    assert html.endswith(
        f"<p>{escape(name)}{end}</p><p>a{escape(path)} and {escape(name)}{end}.</p></td>"
    )

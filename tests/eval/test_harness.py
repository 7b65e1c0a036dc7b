"""Evaluation end to end: same examples, honest zero-shot, exact ids, and nothing predicted twice."""

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from eval import harness, scoring
from eval.job import Job, make_job
from eval.predictors.open import Predictor, check_model, open_predictor
from llama_peft import data
from llama_peft.data import Example, QuestionExample
from llama_peft.errors import UserError
from llama_peft.model import backbone, fingerprint
from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.recipe.schema import Parts
from llama_peft.run_folder import ask, layout, predict
from llama_peft.run_folder.predict import Prediction
from llama_peft.run_folder.run import open_run
from llama_peft.system.files import with_sum
from llama_peft.training import fit as training
from tests.support import forked, runs


def die_after(further: int) -> None:
    """In a child: kill -9 while it predicts, after so many more predictions have reached the file."""
    plain, done = harness.described, count()

    def deadly(*of: Any) -> Any:
        if next(done) == further:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*of)

    harness.described = deadly


def job_for(recipe: Recipe, model: Path | str, output: Path, **changes: Any) -> Job:
    return Job(recipe=recipe, model=str(model), output=output, **changes)


def changed(recipe: Recipe, section: str, **keys: Any) -> Recipe:
    part = getattr(recipe, section).model_copy(update=keys)
    return recipe.model_copy(update={section: part})


@pytest.fixture(scope="module")
def span_run(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Recipe, Path]:
    folder = tmp_path_factory.mktemp("span") / "run"
    keys = {"output_dir": str(folder), "max_steps": 1, "max_length": 300}
    recipe = make_recipe("extractive_qa", make_base(), lora={"r": 4}, train=keys)
    return recipe, training.train(recipe)


@pytest.fixture(scope="module")
def class_run(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Recipe, Path]:
    folder = tmp_path_factory.mktemp("class") / "run"
    recipe = make_recipe(
        "classification", make_base(), bits=4, train={"output_dir": str(folder), "max_steps": 1}
    )
    return recipe, training.train(recipe)


def test_zero_shot_and_tuned_answer_the_same_examples(
    class_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = class_run
    base = recipe.model.model_name_or_path
    zero = harness.run(job_for(recipe, base, tmp_path / "zero"))
    tuned = harness.run(job_for(recipe, folder, tmp_path / "tuned"))
    assert zero.config.model_kind == "zero-shot verbalizer", "law 9: never an untrained head"
    assert tuned.config.model_kind == "classification head"
    assert zero.adapter_sha256 is None and tuned.adapter_sha256
    lines = [
        [
            json.loads(line)
            for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()
        ]
        for name in ("zero", "tuned")
    ]
    pairs = [[(line["id"], line["gold"]) for line in its] for its in lines]
    assert pairs[0] == pairs[1] == sorted(pairs[0]) and len(pairs[0]) == 16
    for line in lines[0] + lines[1]:
        assert sum(line["probabilities"]) == pytest.approx(1.0)
        best = max(range(2), key=line["probabilities"].__getitem__)
        assert line["prediction"] == ("negative", "positive")[best]
    scores = tuned.results["small"]
    right = sum(line["prediction"] == line["gold"] for line in lines[1]) / 16
    assert scores["accuracy"] == pytest.approx(right)
    assert scores["accuracy_ci95"][0] <= right <= scores["accuracy_ci95"][1]


@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_shared_prefixes_change_no_prediction(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], task: str
) -> None:
    """The tree engine and its plain twin, through the zero-shot predictors of both kinds."""
    found = []
    for decoding in ("prefix_tree", "plain"):
        recipe = make_recipe(
            task, make_base(), lora={"r": 4}, eval={"decoding": decoding, "max_new_tokens": 6}
        )
        labels = ("negative", "positive") if task == "classification" else ()
        predictor = open_predictor(recipe.model.model_name_or_path, recipe, labels, "causal")
        its = {p.id: p for p in predictor.predict(data.load(recipe).parts["test"], 32)}
        found.append(its)
    assert found[0].keys() == found[1].keys()
    for id_, one in found[0].items():
        other = found[1][id_]
        assert (one.prediction, one.raw) == (other.prediction, other.raw)
        if one.probabilities:
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        else:
            assert one.no_answer_probability == pytest.approx(other.no_answer_probability, rel=1e-3)


def test_span_threshold_is_fitted_on_validation_and_kept(
    span_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = span_run
    results = harness.run(job_for(recipe, folder, tmp_path / "tuned"))
    kept = json.loads((folder / "threshold.json").read_text())
    assert kept["fitted_on"] == 8
    assert results.configs["small"].no_answer_threshold == kept["no_answer_threshold"]
    for line in (tmp_path / "tuned/predictions.jsonl").read_text().splitlines():
        found = json.loads(line)
        silent = found["no_answer_probability"] > kept["no_answer_threshold"]
        assert found["prediction"] == ("" if silent else found["raw"])
    (folder / "threshold.json").write_text(
        json.dumps(with_sum(kept | {"no_answer_threshold": 1.0}))
    )
    harness.run(job_for(recipe, folder, tmp_path / "again"))
    lines = (tmp_path / "again/predictions.jsonl").read_text().splitlines()
    assert all(json.loads(line)["prediction"] == json.loads(line)["raw"] for line in lines)
    (folder / "threshold.json").unlink()


def test_a_threshold_is_of_its_validation_examples_and_settings(
    span_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    """Fitted under overrides it serves that measurement alone; one that was fitted otherwise is fitted again."""
    recipe, folder = span_run
    few = changed(recipe, "dataset", max_eval_samples=4)
    assert harness.run(job_for(few, folder, tmp_path / "few"))
    assert not (folder / "threshold.json").exists()
    short = changed(recipe, "eval", max_answer_length=1)
    assert harness.run(job_for(short, folder, tmp_path / "short"))
    assert not (folder / "threshold.json").exists()
    full = harness.run(job_for(recipe, folder, tmp_path / "full"))
    fitted = (folder / "threshold.json").read_text()
    stale = json.loads(fitted) | {"no_answer_threshold": 0.999, "fitted_for": "another"}
    for name, record in {"stale": with_sum(stale), "bare": {"no_answer_threshold": 0.9}}.items():
        (folder / "threshold.json").write_text(json.dumps(record))
        again = harness.run(job_for(recipe, folder, tmp_path / name))
        assert (folder / "threshold.json").read_text() == fitted
        assert again.results == full.results
    (folder / "threshold.json").unlink()


def test_a_file_is_measured_with_the_threshold_of_the_run_s_validation(
    span_run: tuple[Recipe, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, folder = span_run
    row = {"question": "Who?", "context": "Ada built it.", "answers": ["Ada"]}
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(row))
    harness.run(job_for(recipe, folder, tmp_path / "own", data_file=str(file)))
    kept = json.loads((folder / "threshold.json").read_text())
    assert kept["fitted_on"] == 8
    (folder / "threshold.json").unlink()
    gone = changed(recipe, "dataset", path=None, name=None, parts=Parts(train="gone.csv"))
    with caplog.at_level("WARNING", logger="eval.harness"):
        found = harness.run(job_for(gone, folder, tmp_path / "gone", data_file=str(file)))
    assert found.configs["small"].no_answer_threshold == 0.5
    assert "gone.csv" in caplog.text and "0.5" in caplog.text


def named(kind: str, predict: Any) -> Predictor:
    return Predictor(kind=kind, labels=(), predict=predict, prompt=str, facts={})


def oracle(silent: bool = False) -> Callable[..., Iterator[Prediction]]:
    """A predictor that knows the answers, or one that never answers."""

    def answer(examples: Sequence[Example], batch_size: int = 1) -> Iterator[Prediction]:
        for example in examples:
            text = "" if silent or not example.answers else example.answers[0].text
            yield Prediction(id=example.id, prediction=text, no_answer_probability=float(not text))

    return answer


def test_a_perfect_abstainer_scores_100_on_the_unanswerable(
    make_recipe: Callable[..., Recipe],
) -> None:
    """Law 7, through the harness's own scoring."""
    examples = data.load(make_recipe("extractive_qa", "tiny")).parts["test"]
    share = 100 * sum(not e.answers for e in examples) / len(examples)
    assert 0 < share < 100

    def scores(answer: Callable[..., Iterator[Prediction]]) -> dict[str, Any]:
        lines = [
            {
                "id": p.id,
                "prediction": p.prediction,
                "no_answer_probability": p.no_answer_probability,
            }
            for p in answer(examples)
        ]
        return scoring.score(lines, examples, ())

    silent, perfect = scores(oracle(silent=True)), scores(oracle())
    assert silent["NoAns_exact"] == 100 and silent["exact"] == pytest.approx(share)
    assert perfect["exact"] == perfect["f1"] == 100


@pytest.mark.parametrize("fault", ["missing", "extra", "twice"])
def test_predictions_that_do_not_match_id_for_id_are_refused(
    make_recipe: Callable[..., Recipe], tmp_path: Path, fault: str
) -> None:
    """Law 8."""
    examples = data.load(make_recipe("extractive_qa", "tiny")).parts["test"]

    def answer(asked: Sequence[Example], batch_size: int) -> Iterator[Prediction]:
        found = list(oracle()(asked))
        if fault == "extra":
            yield replace(found[0], id=found[1].id)
        yield from found[1:] if fault == "missing" else found
        if fault == "twice":
            yield found[0]

    predictor = named("oracle", answer)
    with pytest.raises(UserError, match="predictions"):
        harness.predict(predictor, examples, tmp_path / "partial", "key")


def test_what_was_predicted_before_a_crash_is_not_predicted_again(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    examples = data.load(make_recipe("extractive_qa", "tiny")).parts["test"]
    asked: list[str] = []

    def crashing(todo: Sequence[Example], batch_size: int) -> Iterator[Prediction]:
        for i, prediction in enumerate(oracle()(todo)):
            if i == 5:
                raise KeyboardInterrupt
            asked.append(prediction.id)
            yield prediction

    def counting(todo: Sequence[Example], batch_size: int) -> Iterator[Prediction]:
        asked.extend(example.id for example in todo)
        return oracle()(todo)

    partial = tmp_path / "partial"
    broken = named("oracle", crashing)
    with pytest.raises(KeyboardInterrupt):
        harness.predict(broken, examples, partial, "key")
    with partial.open("a") as file:
        file.write('{"id": "torn')
    whole = replace(broken, predict=counting)
    lines = harness.predict(whole, examples, partial, "key")
    assert sorted(asked) == sorted(e.id for e in examples), "each was asked once"
    assert {line["id"] for line in lines} == set(asked)
    asked.clear()
    harness.predict(whole, examples, partial, "another key")
    assert len(asked) == len(examples), "predictions of another key are no use"


def test_a_file_of_the_user_s_is_measured_whole(
    class_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    _, folder = class_run
    file = tmp_path / "mine.csv"
    file.write_text('text,label\n"A fine, warm film",positive\nDull,negative\nGood,1\n')
    job = make_job(None, str(folder), str(file), None, None, tmp_path / "out", [])
    results = harness.run(job)
    assert results.n_samples["small"].effective == results.n_samples["small"].original == 3
    lines = [
        json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    ]
    assert [line["gold"] for line in lines] == ["positive", "negative", "positive"]


def test_limit_takes_the_same_sample_for_every_system(
    class_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = class_run
    ids = []
    for name, model in (("zero", recipe.model.model_name_or_path), ("tuned", folder)):
        results = harness.run(job_for(recipe, model, tmp_path / name, limit=5))
        assert results.n_samples["small"].original == 16
        assert results.n_samples["small"].effective == 5
        assert results.configs["small"].eval["limit"] == 5
        lines = (tmp_path / name / "predictions.jsonl").read_text().splitlines()
        ids.append([json.loads(line)["id"] for line in lines])
    assert ids[0] == ids[1]


def test_task_and_labels_must_be_the_run_s(
    class_run: tuple[Recipe, Path], span_run: tuple[Recipe, Path]
) -> None:
    with pytest.raises(UserError, match="trained for extractive_qa"):
        open_predictor(str(span_run[1]), class_run[0], ("negative", "positive"), "run")
    with pytest.raises(UserError, match="labels negative, positive"):
        open_predictor(str(class_run[1]), class_run[0], ("bad", "good"), "run")


def test_one_example_at_a_time_gives_what_a_batch_gives(
    class_run: tuple[Recipe, Path], span_run: tuple[Recipe, Path]
) -> None:
    """`llama-peft predict` and the evaluation are one path."""
    for _, folder in (class_run, span_run):
        run = runs.load(folder)
        examples = data.load(run.recipe).parts["test"]
        batch = {p.id: p for p in predict.predict(run, examples)}
        for example in examples[:4]:
            (alone,) = predict.predict(run, [example])
            assert alone.prediction == batch[example.id].prediction
    text = {"text": "A fine film."}
    assert set(ask.load(open_run(class_run[1])).predict([text["text"]])[0].as_dict()) == {
        "prediction",
        "negative",
        "positive",
    }
    asked = {"question": "Who?", "context": "Ada built it."}
    assert set(ask.load(open_run(span_run[1])).predict([asked])[0].as_dict()) == {
        "prediction",
        "no_answer_probability",
    }


# --- memory, kills, worked examples


def test_out_of_memory_halves_the_batch_and_keeps_what_is_done(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    examples = data.load(make_recipe("extractive_qa", "tiny")).parts["test"]
    sizes: list[int] = []

    def limited(todo: Sequence[Example], batch_size: int) -> Iterator[Prediction]:
        sizes.append(batch_size)
        for i, prediction in enumerate(oracle()(todo)):
            if i == 3 and batch_size > 2:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
            yield prediction

    lines = harness.predict(named("oracle", limited), examples, tmp_path / "partial", "key", 8)
    assert sizes == [8, 4, 2]
    assert [line["id"] for line in lines] == [example.id for example in examples]

    def hopeless(todo: Sequence[Example], batch_size: int) -> Iterator[Prediction]:
        raise MemoryError
        yield

    with pytest.raises(UserError, match="one example at a time"):
        harness.predict(named("oracle", hopeless), examples, tmp_path / "partial", "other", 8)

    def broken(todo: Sequence[Example], batch_size: int) -> Iterator[Prediction]:
        raise RuntimeError("a bug of ours")
        yield

    with pytest.raises(RuntimeError, match="a bug"):
        harness.predict(named("oracle", broken), examples, tmp_path / "partial", "other", 8)


@pytest.mark.parametrize("task", ["classification", "extractive_qa", "generative_qa"])
def test_the_batch_changes_no_prediction(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], task: str, tmp_path: Path
) -> None:
    """What halving stands on."""
    keys = {"output_dir": str(tmp_path / "run"), "max_steps": 1}
    recipe = make_recipe(task, make_base(), lora={"r": 2}, train=keys, eval={"max_new_tokens": 4})
    run = runs.load(training.train(recipe))
    examples = data.load(recipe).parts["test"]
    many, few = (
        {p.id: (p.prediction, p.raw) for p in predict.predict(run, examples, size)}
        for size in (32, 1)
    )
    assert many == few


def test_a_killed_evaluation_goes_on_to_the_same_bytes(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """kill -9 at 20 places of one evaluation; each start continues the one before."""
    parts = {"train": 24, "validation": 8, "test": 120}
    recipe = make_recipe(
        "generative_qa", make_base(), lora={"r": 2}, dataset={"parts": parts},
        train={"per_device_eval_batch_size": 1}, eval={"max_new_tokens": 12},
    )  # fmt: skip
    base = recipe.model.model_name_or_path
    whole, cut = job_for(recipe, base, tmp_path / "whole"), job_for(recipe, base, tmp_path / "cut")
    expected = harness.run(whole)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    words = ["run", "--task", str(tmp_path / "recipe.yaml"), "--model", base]
    words += ["--output", str(cut.output)]
    partial = cut.output / layout.UNFINISHED_PREDICTIONS
    rng, kept = random.Random(0), [0]
    for _ in range(20):
        hook = functools.partial(die_after, rng.randrange(12))
        child = forked.start(words, tmp_path / "log", "eval", hook)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == -signal.SIGKILL, (tmp_path / "log").read_text()
        kept.append(partial.read_text().count('"more": false'))
    assert kept == sorted(kept) and 0 < kept[10] < kept[-1], "what is predicted stays"
    found = harness.run(cut)
    assert found.results == expected.results
    both = [(job.output / "predictions.jsonl").read_bytes() for job in (whole, cut)]
    assert both[0] == both[1]
    assert not (cut.output / layout.UNFINISHED_PREDICTIONS).exists()


@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_worked_examples_stand_in_the_prompt(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    task: str,
) -> None:
    """From train, with their answers, never the measured example's own; shared prefixes change nothing."""
    found = []
    for decoding in ("prefix_tree", "plain"):
        keys = {"num_fewshot": 3, "max_new_tokens": 4, "decoding": decoding}
        recipe = make_recipe(task, make_base(), lora={"r": 2}, eval=keys)
        job = job_for(recipe, recipe.model.model_name_or_path, tmp_path / decoding)
        with caplog.at_level("INFO", logger="eval.harness"):
            caplog.clear()
            found.append(harness.run(job, show=2).results)
        shown = [r.message for r in caplog.records if r.message.startswith("---")]
        assert len(shown) == 2
        mark = "Label:" if task == "classification" else "Answer:"
        for prompt in shown:
            assert prompt.count(f"{mark} ") == 3 and prompt.count(mark) == 4
    assert found[0] == found[1]
    parts = data.load(recipe).parts
    results = json.loads((tmp_path / "plain/results.json").read_text())
    assert results.config.model_kind.startswith("3-shot ")
    chosen = harness._in_turns(parts["train"], 42)[:3]
    assert {e.id for e in chosen} <= {e.id for e in parts["train"]}
    kinds = [e.label if task == "classification" else bool(e.answers) for e in chosen]
    assert len(set(kinds[:2])) == 2, "labels, or answerable and not, in turn"


def test_earlier_questions_of_the_passage_are_the_examples(
    make_recipe: Callable[..., Recipe],
) -> None:
    """Meta's setting: gold answers of earlier questions on the passage, never of later ones."""
    dataset = data.load(make_recipe("generative_qa", "tiny", lora={"r": 2}))
    earlier = harness._earlier(dataset, 2)
    order = [e for part in dataset.parts.values() for e in part]
    for i, example in enumerate(order):
        before = [e for e in order[:i] if e.context == example.context]
        assert earlier[example.id] == before[-2:]
    assert max(map(len, earlier.values())) == 2


def test_worked_examples_are_not_for_runs(class_run: tuple[Recipe, Path], tmp_path: Path) -> None:
    job = make_job(None, str(class_run[1]), None, None, None, tmp_path, ["eval.num_fewshot=1"])
    with pytest.raises(UserError, match="for untuned models"):
        harness.run(job)


def test_a_run_takes_overrides_of_measurement_only(
    span_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    _, folder = span_run
    arguments = (None, str(folder), None, None, None, tmp_path / "short")
    for fixed in ("prompt.template=x {text}", "train.max_length=4", "model.dtype=float16"):
        with pytest.raises(UserError, match=r"was trained otherwise; a measurement takes eval\."):
            make_job(*arguments, [fixed])
    job = make_job(*arguments, ["eval.max_answer_length=1", "train.per_device_eval_batch_size=4"])
    harness.run(job)
    lines = (tmp_path / "short/predictions.jsonl").read_text().splitlines()
    assert max(len(json.loads(line)["raw"].split()) for line in lines) <= 1


def test_results_record_what_a_run_was_trained_with(
    class_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    """Measured on another recipe, a run keeps its own prompt, and the results say so."""
    recipe, folder = class_run
    prompt = recipe.prompt.model_copy(update={"template": "Another: {text}"})
    other = recipe.model_copy(update={"name": "other", "prompt": prompt})
    found = harness.run(job_for(other, folder, tmp_path / "out"))
    assert found.configs["other"].prompt["template"] == recipe.prompt.template


@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_scores_that_are_no_numbers_are_no_predictions(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path, task: str
) -> None:
    from safetensors.torch import load_file, save_file

    base = make_base()
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"-test-\S+: the model's scores are no numbers"):
        harness.run(job_for(make_recipe(task, base, lora={"r": 4}), base, tmp_path / "out"))
    assert not (tmp_path / "out/results.json").exists()


def test_one_evaluation_a_folder(class_run: tuple[Recipe, Path], tmp_path: Path) -> None:
    from llama_peft.system.lock import only_process

    recipe, folder = class_run
    job = job_for(recipe, folder, tmp_path / "out")
    with (
        only_process(tmp_path / "out", "evaluating"),
        pytest.raises(UserError, match=f"process {os.getpid()} is evaluating here"),
    ):
        harness.run(job)
    with only_process(tmp_path / "out", "evaluating"):
        (tmp_path / "out/.holder").unlink()  # as in the moment before it is written
        with pytest.raises(UserError, match="another process is evaluating here"):
            harness.run(job)
    assert harness.run(job).results


# --- what a measurement depends on


def key_of(recipe: Recipe, model: Path | str, output: Path) -> str:
    job = job_for(recipe, model, output, limit=4)
    found = scoring.material(job)
    kind = check_model(job.model, recipe)
    shots = harness._shots(job, found)
    return harness._key(
        job, open_predictor(job.model, recipe, found.labels, kind, shots), found.parts
    )


def test_predictions_of_another_prompt_are_no_use(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The tokenizer, the worked examples, and how the model computes belong to what is resumed."""
    base = make_base()
    recipe = make_recipe("generative_qa", base, lora={"r": 2}, eval={"num_fewshot": 1})
    others = [recipe, changed(recipe, "model", attn_implementation="eager")]
    others += [changed(recipe, "head", pooling="mean"), changed(recipe, "dataset", seed=3)]
    keys = [key_of(other, base, tmp_path) for other in others]
    encoded = json.loads((base / "tokenizer.json").read_text())
    encoded["normalizer"] = {"type": "Lowercase"}
    (base / "tokenizer.json").write_text(json.dumps(encoded))
    backbone._load_tokenizer.cache_clear()  # another process would read it anew
    keys.append(key_of(recipe, base, tmp_path))
    assert len(set(keys)) == 5


def test_predictions_of_another_adapter_config_are_no_use(
    span_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = span_run
    adapter = tmp_path / "adapter"
    shutil.copytree(folder / "adapter", adapter)
    before = key_of(recipe, adapter, tmp_path / "out")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["lora_alpha"] *= 2
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert key_of(recipe, adapter, tmp_path / "out") != before


def test_every_weight_of_a_folder_tells_it_from_another(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(3 << 20))
    recipe = make_recipe("generative_qa", tmp_path, lora={"r": 2})
    before = fingerprint.base_fingerprint(recipe)
    with weights.open("r+b") as file:
        file.seek(3 << 19)
        file.write(b"1")
    assert fingerprint.base_fingerprint(recipe) != before


def test_default_folders_tell_measurements_apart(span_run: tuple[Recipe, Path]) -> None:
    def folder(
        task: str | None = None,
        model: Path | None = None,
        splits: list[str] | None = None,
        limit: int | None = None,
        *overrides: str,
    ) -> Path:
        name = None if model is None else str(model)
        return make_job(task, name, None, splits, limit, None, list(overrides)).output

    own, run = Path("runs/tiny-sst2"), span_run[1]
    assert folder("tiny-sst2") == own / "zero-shot"
    assert folder("tiny-sst2", None, ["test"]) == own / "zero-shot"
    assert folder("tiny-sst2", None, None, 5) == own / "zero-shot-limit-5"
    assert folder("tiny-sst2", None, None, None, "eval.limit=5") == own / "zero-shot-limit-5"
    assert folder("tiny-sst2", None, ["validation"]) == own / "zero-shot-validation"
    assert folder(None, run) == folder(str(run / "recipe.yaml"), run) == run / "tuned"
    assert folder(None, run, ["test", "validation"], 5) == run / "tuned-test-validation-limit-5"
    assert folder("tiny-squad-span", run) == run / "tuned-tiny-squad-span"
    task, place = str(run / "recipe.yaml"), f"train.output_dir={run}"
    assert folder(task, None, None, None, place, "train.max_length=300") == run / "zero-shot"
    same = ("train.use_cpu=true", "hub.language=de", "train.output_dir=.")
    assert folder(task, None, None, None, place, *same).name == "zero-shot"
    other = folder(task, None, None, None, place, "train.max_length=200", "eval.num_fewshot=2")
    assert other == run / "2-shot-max_length-200"


def test_the_sample_of_a_part_is_the_same_beside_other_parts(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe("classification", "tiny")
    both = changed(recipe, "eval", splits=["validation", "test"])
    samples = [
        scoring.material(job_for(each, "tiny", tmp_path, limit=5)).parts["test"]
        for each in (recipe, both)
    ]
    assert samples[0] == samples[1]


@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_no_worked_example_is_the_measured_one(
    make_recipe: Callable[..., Recipe], tmp_path: Path, task: str
) -> None:
    """Measured on the file that it was to learn from, a model must not read the answer in its prompt."""
    recipe = make_recipe(task, "tiny", lora={"r": 2}, eval={"num_fewshot": 3})
    train = data.load(recipe).parts["train"]
    found = scoring.Material(
        dataset=data.Dataset(labels=(), parts={"train": train}), parts={"data": train}
    )
    shots = harness._shots(job_for(recipe, "tiny", tmp_path), found)
    assert shots is not None
    first = [shot.id for shot in shots(replace(train[0], id="other"))]
    assert any(example.id in first for example in train[1:])
    for example in train:
        measured = replace(example, id="measured")
        chosen = shots(measured)
        assert len({shot.id for shot in chosen}) == 3
        assert all(replace(shot, id="measured") != measured for shot in chosen)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux only")
def test_the_peak_is_of_one_measurement(tmp_path: Path) -> None:
    """In a process of its own: what was held before is not counted."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system cannot forget a peak")
    code = (
        "from llama_peft.system.memory import peak_memory, reset_peak\n"
        "held = bytearray(300 << 20)\n"
        "before = peak_memory()\n"
        "del held\n"
        "reset_peak()\n"
        "assert peak_memory() < before - (200 << 20), (peak_memory(), before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_earlier_question_is_the_measured_one() -> None:
    asked = [
        QuestionExample(id=str(i), context="Ada built it.", question=text, answers=())
        for i, text in enumerate(["Who?", "What?", "Who?"])
    ]
    earlier = harness._earlier(data.Dataset(labels=(), parts={"test": list(asked)}), 2)
    assert earlier["2"] == [asked[1]]

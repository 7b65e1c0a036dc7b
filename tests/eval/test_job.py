"""What the words of the command line mean, and where results go."""

from pathlib import Path

import pytest

from eval.job import make_job
from eval.predictors.kinds import EngineChoice
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from tests.support.paths import RUNS_0_1_0


def test_default_folders_tell_evaluations_apart(span_run: tuple[Recipe, Path]) -> None:
    def folder(
        task: str | None = None,
        model: Path | None = None,
        splits: list[str] | None = None,
        limit: int | None = None,
        *overrides: str,
    ) -> Path:
        name = None if model is None else str(model)
        return make_job(
            task, model=name, splits=splits, limit=limit, overrides=list(overrides)
        ).output

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


def test_models_have_folders_of_their_own(tmp_path: Path) -> None:
    jobs = [make_job("tiny-sst2", model=name) for name in (None, "org/model")]
    assert [job.output.name for job in jobs] == ["zero-shot", "zero-shot-org-model"]
    shots = make_job("tiny-sst2", overrides=["eval.num_fewshot=4"])
    assert shots.output.name == "4-shot"


def test_servers_have_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(url: str | None, served: str | None = None, run: Path | None = None) -> str:
        engine = EngineChoice(name="openai", base_url=url, served_model=served)
        model = run and str(run)
        task = None if run else "tiny-sst2"
        return make_job(task, model=model, engine=engine).output.name

    own = "http://127.0.0.1:8000/v1"
    assert folder(own).startswith("zero-shot-openai-127.0.0.1-8000-")
    assert folder(own, "big/one").startswith("zero-shot-openai-127.0.0.1-8000-big-one-")
    assert folder(own, None, RUNS_0_1_0 / "generative").startswith("tuned-openai-127.0.0.1-8000-")
    asked = [
        *((own, served) for served in (None, "big/one", "big-one")),
        *((f"http://{place}", None) for place in ("127.0.0.1:8001/v1", "127.0.0.1/8000", "a-b", "a/b")),
        *((f"https://{place}", None) for place in ("127.0.0.1:8000/v1", "a-b")),
    ]  # fmt: skip
    assert len({folder(*one) for one in asked}) == len(asked)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{own}/")
    assert folder(None) == folder(own), "the same server, however it is named"


def test_split_names_a_part_of_a_hub_s_data(tmp_path: Path) -> None:
    job = make_job("tiny-sst2", data_file="org/reviews", splits=["train"])
    assert job.data_split == "train"
    assert job.output == Path("runs/tiny-sst2/zero-shot-reviews-train")
    with pytest.raises(UserError, match="--split train names a part"):
        make_job("tiny-sst2", data_file="mine.csv", splits=["train"])
    with pytest.raises(UserError, match="one --split"):
        make_job("tiny-sst2", data_file="org/reviews", splits=["train", "test"])


def test_a_run_s_recipe_is_read_as_the_run_reads_it() -> None:
    """One of version 0.1.0 does not say where its labels are from, whatever names it."""
    run = RUNS_0_1_0 / "classifier"
    for task, model in ((None, run), (run / "recipe.yaml", None), (run / "recipe.yaml", "tiny")):
        name = None if model is None else str(model)
        found = make_job(task and str(task), model=name)
        assert found.recipe.dataset.labels and found.recipe.dataset.label_positions is False
    said = make_job(model=str(run), overrides=["dataset.label_positions=true"])
    assert said.recipe.dataset.label_positions is True

"""The staged copy of a run: it loads elsewhere, gives the run's scores, and is evaluated on the
run's own split.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from eval import harness
from eval.job import Job
from llama_peft.errors import UserError
from llama_peft.export import stage
from llama_peft.export.push import check_reload, push
from llama_peft.recipe import Recipe
from llama_peft.run_folder import layout
from llama_peft.run_folder.run import open_run
from llama_peft.system.files import sha256
from llama_peft.training.fit import train
from tests.support import runs


def test_a_local_base_is_not_pushed(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    keys = {"output_dir": str(tmp_path / "run"), "max_steps": 1}
    run = train(make_recipe("classification", make_base(), lora={"r": 2}, train=keys))
    with pytest.raises(UserError, match="a local folder, so nobody else could load it"):
        push(run, "me/mine", dry_run=True)


@pytest.mark.parametrize(("lora", "bits"), [(None, 4), ({"r": 2}, 32)])
def test_files_that_give_other_scores_are_not_pushed(
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    lora: dict[str, int] | None,
    bits: int,
) -> None:
    """Law 12, on the check itself: changed weights among the staged files are found."""
    keys = {"output_dir": str(tmp_path / "run"), "max_steps": 1}
    run = train(make_recipe("classification", "tiny", bits=bits, lora=lora, train=keys))
    (tmp_path / "staged").mkdir()
    staged = stage.stage(open_run(run), tmp_path / "staged")
    check_reload(open_run(run), staged)
    name = layout.ADAPTER_WEIGHTS if lora else layout.HEAD
    path = staged.folder / name
    save_file({key: value + 1e-3 for key, value in load_file(path).items()}, path)
    record = staged.run.record
    files = {**record.files, name: sha256(path)}
    runs.write_record(staged.folder, record.model_dump() | {"files": files})
    with pytest.raises(UserError, match="give other scores than the run"):
        check_reload(open_run(run), staged)


def test_a_pushed_run_is_evaluated_on_its_own_split_or_not_at_all(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Ids are not pushed: the data must give the same split again. Nothing is written into the
    cache's copy.
    """
    keys = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "doc_stride": 32}
    run = train(make_recipe("extractive_qa", "tiny", train=keys))
    (tmp_path / "staged").mkdir()
    staged = stage.stage(open_run(run), tmp_path / "staged")
    before = runs.sums(staged.folder)
    job = Job(recipe=staged.recipe, model=str(staged.folder), output=tmp_path / "out", fetched=True)
    harness.run(job)
    assert runs.sums(staged.folder) == before
    other = staged.recipe.dataset.model_copy(update={"seed": 7})
    with pytest.raises(UserError, match="no longer give the split that this run was trained on"):
        harness.run(replace(job, recipe=staged.recipe.model_copy(update={"dataset": other})))

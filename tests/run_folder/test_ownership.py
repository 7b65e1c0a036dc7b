"""Nothing that is not ours is replaced, moved or removed; a folder is ours only by its record."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_peft.errors import UserError
from llama_peft.run_folder import layout
from llama_peft.run_folder.ownership import (
    check_evaluation_folder,
    check_run_folder,
    is_our_card,
    is_ours,
    run_files,
    signed_card,
)
from tests.support.paths import RUNS_0_1_0

HEAD_RUN = RUNS_0_1_0 / "head"
CHECKPOINT = "checkpoints/checkpoint-4"


def copied(folder: Path, *names: str) -> Path:
    """A folder with some files of a run."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HEAD_RUN / name, folder / name)
    return folder


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["classifier", "generative", "head", "pushed", "span"])
def test_runs_and_evaluations_of_version_0_1_0_are_ours(name: str) -> None:
    run = RUNS_0_1_0 / name
    check_run_folder(run)
    assert is_ours(run)
    for folder in (layout.ZERO_SHOT, layout.TUNED):
        check_evaluation_folder(run / folder)


@pytest.mark.parametrize(
    "record", ["recipe.yaml", "training.json", f"{CHECKPOINT}/spent.json"], ids=os.path.basename
)
@pytest.mark.parametrize("place", [".", ".previous", ".previous.partial"])
def test_one_record_makes_a_run_ours(record: str, place: str, tmp_path: Path) -> None:
    copied(tmp_path / place, record)
    (tmp_path / "notes.txt").write_text("mine")
    check_run_folder(tmp_path)


def test_a_damaged_record_is_still_ours(tmp_path: Path) -> None:
    copied(tmp_path, "training.json")
    text = (tmp_path / "training.json").read_text()
    for damaged in (text[: len(text) // 2], text.replace("1", "2"), text + "\x00"):
        (tmp_path / "training.json").write_text(damaged)
        check_run_folder(tmp_path)


def test_an_empty_folder_and_earlier_evaluations_are_no_hindrance(tmp_path: Path) -> None:
    check_run_folder(tmp_path / "absent")
    check_run_folder(tmp_path)
    (tmp_path / ".git").mkdir()
    for name in ("zero-shot", "4-shot-limit-5"):
        shutil.copytree(HEAD_RUN / "zero-shot", tmp_path / name)
    check_run_folder(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"no training of ours made \(link\)"):
        check_run_folder(tmp_path)
    (tmp_path / "link").unlink()
    (tmp_path / "zero-shot/results.json").write_text('{"results": {}, "config": {}}')
    with pytest.raises(UserError, match=r"no training of ours made \(zero-shot\)"):
        check_run_folder(tmp_path)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "Trainer's": lambda run: copied(run, f"{CHECKPOINT}/optimizer.pt", f"{CHECKPOINT}/manifest.json"),
    "an adapter": lambda run: (run / "adapter").mkdir(),
    "a history": lambda run: (run / "history.jsonl").write_text("{}\n"),
    "a recipe of cooking": lambda run: (run / "recipe.yaml").write_text("name: soup\n"),
    "a recipe to train": lambda run: (run / "recipe.yaml").write_text("task: classification\n"),
    "a broken recipe": lambda run: (run / "recipe.yaml").write_text("task: [\n"),
    "a record of training": lambda run: (run / "training.json").write_text('{"steps": 4}'),
    "one note": lambda run: (run / "notes.txt").write_text("mine"),
    "spent money": lambda run: [copied(run, f"{CHECKPOINT}/optimizer.pt"),
                                (run / CHECKPOINT / "spent.json").write_text('{"seconds": 4}')],
}  # fmt: skip


@pytest.mark.parametrize("made", FOREIGN)
def test_a_folder_of_another_tool_is_refused(made: str, tmp_path: Path) -> None:
    FOREIGN[made](tmp_path)
    before = tree(tmp_path)
    with pytest.raises(UserError, match="holds something that no training of ours made") as error:
        check_run_folder(tmp_path)
    assert "\n" not in str(error.value) and tree(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        "recipe.yaml", "history.jsonl", "training.json", "head.safetensors", "comparison.json",
        "checkpoints", "adapter", "tuned", "tuned-limit-5", ".previous", ".previous.partial",
        "checkpoints/checkpoint-9", "checkpoints/README.md", f"{CHECKPOINT}/optimizer.pt",
        "adapter/adapter_model.safetensors", "tuned/results.json", ".previous/checkpoints",
    ],
)  # fmt: skip
def test_what_we_write_is_neither_a_link_nor_a_pipe(name: str, tmp_path: Path) -> None:
    run = copied(tmp_path / "run", "training.json")
    path = run / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    (run / "split.json").touch()
    for target in (tmp_path, tmp_path / "absent", run / "split.json", path):
        path.symlink_to(target)
        with pytest.raises(UserError, match=f"{path}: this .*link"):
            check_run_folder(run)
        path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="not the kind of file that we write"):
        check_run_folder(run)


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    run = copied(tmp_path, "training.json")
    for name in ("history.jsonl", "adapter/adapter_model.safetensors"):
        (run / name).mkdir(parents=True)
        with pytest.raises(UserError, match=f"{name}: this is not the kind of file"):
            check_run_folder(run)
        (run / name).rmdir()


def test_a_run_folder_may_be_a_link_itself(tmp_path: Path) -> None:
    copied(tmp_path / "run", "recipe.yaml", f"{CHECKPOINT}/optimizer.pt", "tuned/results.json")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    check_run_folder(tmp_path / "link")
    assert run_files(tmp_path / "link") == run_files(tmp_path / "run") != []


@pytest.mark.parametrize("folder", ["/dev/null", "/proc/self/mem", "x" * 300, "a\x00b"])
def test_an_odd_folder_is_no_traceback(folder: str, tmp_path: Path) -> None:
    for check in (check_run_folder, check_evaluation_folder):
        try:
            check(tmp_path / folder)
        except UserError as error:
            assert "cannot be read" in str(error)


def test_the_files_of_a_run_are_all_that_we_wrote(tmp_path: Path) -> None:
    """Neither zero-shot results nor a lock nor anything of the user's."""
    run = Path(shutil.copytree(HEAD_RUN, tmp_path / "run"))
    ours = {name for name in tree(run) if (run / name).is_file() and "zero-shot" not in name}
    for name in (
        "notes.txt", "README.md", "adapter/x.txt", "checkpoints/plan.md", f"{CHECKPOINT}/notes.txt",
        f"{CHECKPOINT}/README.md", "tuned/notes.txt", "checkpoints/checkpoint-7/notes.txt",
    ):  # fmt: skip
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    assert set(run_files(run)) == ours and len(run_files(run)) == len(ours)
    (run / "README.md").write_text(signed_card("# The run\n"))
    assert set(run_files(run)) == ours | {"README.md"}


def test_a_card_that_its_user_changed_is_the_users() -> None:
    card = signed_card("# A run\n\n<!-- a comment -->\n")
    assert is_our_card(card) and card.startswith("# A run\n") and signed_card(card) != card
    for changed in (card.replace("A run", "My run"), f"{card}mine\n", f"mine\n{card}", "", "# A\n"):
        assert not is_our_card(changed)


OURS = (layout.RESULTS, layout.PREDICTIONS)
KEY = '0a1b2c3d {"key": "0"}\n'


@pytest.mark.parametrize(
    "held",
    [
        {},
        {"notes.txt": "mine"},
        {layout.RESULTS: ""},
        {layout.RESULTS: None},
        {layout.PREDICTIONS: None},
        {layout.RESULTS: '{"results": {', layout.PREDICTIONS: None},
        {layout.RESULTS: None, layout.PREDICTIONS: '{"id'},
        {layout.UNFINISHED_PREDICTIONS: KEY},
        {layout.UNFINISHED_PREDICTIONS: KEY, layout.RESULTS: '{"res'},
    ],
    ids=str,
)
def test_an_evaluation_goes_on_in_its_folder(held: dict[str, str | None], tmp_path: Path) -> None:
    """None stands for the file of a run."""
    for name, text in held.items():
        text = (HEAD_RUN / "tuned" / name).read_text() if text is None else text
        (tmp_path / name).write_text(text)
    check_evaluation_folder(tmp_path)


@pytest.mark.parametrize(
    "held",
    [
        {layout.RESULTS: json.dumps({"results": {}, "configs": {}, "config": {"model": "hf"}})},
        {layout.RESULTS: json.dumps({"config": {"model_kind": "hf"}})},
        {layout.RESULTS: '{"results": {'},
        {layout.RESULTS: "[" * 100_000},
        {layout.PREDICTIONS: '{"id": "1", "prediction": "good"}\n'},
        {layout.PREDICTIONS: '[\n{"id": "1"}\n]'},
        {layout.RESULTS: "{}", layout.UNFINISHED_PREDICTIONS: KEY},
        {layout.RESULTS: None, layout.PREDICTIONS: '{"id": "1", "prediction": "good"}\n'},
        {layout.UNFINISHED_VALIDATION: '{"id": 1}\n'},
    ],
    ids=lambda held: str(held)[:60],
)
def test_results_of_another_tool_are_not_replaced(
    held: dict[str, str | None], tmp_path: Path
) -> None:
    for name, text in held.items():
        text = (HEAD_RUN / "tuned" / name).read_text() if text is None else text
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="no evaluation of ours wrote this file"):
        check_evaluation_folder(tmp_path)


@pytest.mark.parametrize("name", [*layout.EVALUATION_FILES, ".lock", ".holder"])
def test_a_link_among_results_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to("/etc/passwd")
    with pytest.raises(UserError, match=f"{name}: this is a link"):
        check_evaluation_folder(tmp_path)


def test_damaged_results_in_a_run_are_made_again(tmp_path: Path) -> None:
    """By the name of their folder; but a link in a run is not a folder of ours."""
    run = copied(tmp_path / "run", "training.json")
    for name in ("tuned", "zero-shot-limit-5", "4-shot", "mine"):
        (run / name).mkdir()
        (run / name / "results.json").write_text('{"res')
    for name in ("tuned", "zero-shot-limit-5", "4-shot"):
        check_evaluation_folder(run / name)
    with pytest.raises(UserError, match="no evaluation of ours"):
        check_evaluation_folder(run / "mine")
    (tmp_path / "elsewhere").mkdir()
    (run / "tuned-link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="tuned-link: this is a link"):
        check_evaluation_folder(run / "tuned-link")
    (tmp_path / "named").symlink_to(tmp_path / "elsewhere")
    check_evaluation_folder(tmp_path / "named")

"""The staged copy of a run: it loads elsewhere, gives the run's scores, and is evaluated on the
run's own split.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from eval import harness
from eval.job import Job
from llama_peft.errors import UserError
from llama_peft.export import push as push_module
from llama_peft.export import stage
from llama_peft.export.push import check_reload, push
from llama_peft.recipe import Recipe
from llama_peft.run_folder import layout
from llama_peft.run_folder.ownership import signed_card
from llama_peft.run_folder.run import open_run
from llama_peft.system.files import sha256, write_summed
from llama_peft.training.fit import train
from tests.support import runs
from tests.support.paths import RUNS_0_1_0


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
    other = staged.recipe.changed(dataset={"seed": 7})
    with pytest.raises(UserError, match="no longer give the split that this run was trained on"):
        harness.run(replace(job, recipe=other))


SECRET = "what only this machine holds"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of a run with an adapter, both evaluations, a comparison and a report."""
    return Path(shutil.copytree(RUNS_0_1_0 / "classifier", tmp_path / "run"))


def change(run: Path, name: str, **values: object) -> None:
    """Change a record and its sum, as anybody can."""
    found = json.loads((run / name).read_text("utf-8"))
    write_summed(run, name, {**found, **values})


def staged(run: Path, place: Path) -> Path:
    place.mkdir()
    stage.stage(open_run(run), place)
    return place


def test_what_was_measured_by_half_is_said(
    old: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The card of a run without its zero-shot says that it was not evaluated."""
    shutil.rmtree(old / "zero-shot")
    with caplog.at_level("WARNING"):
        assert not (staged(old, tmp_path / "staged") / "tuned").exists()
    assert "zero-shot/results.json is missing; make it with: llama-eval run" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "report.html", "threshold.json", "comparison.json", "tuned/results.json", "adapter", "tuned",
        "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "recipe.yaml", "training.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["link", "pipe", "loop"])
def test_nothing_outside_the_run_is_staged(old: Path, tmp_path: Path, name: str, kind: str) -> None:
    """The sums are those of the file outside, because a stranger can write any sum."""
    outside, place = tmp_path / "outside", old / name
    if place.exists():
        place.rename(outside)
    else:
        outside.write_text(SECRET)
    if kind == "link":
        place.symlink_to(outside)
    elif kind == "loop":
        place.symlink_to(place)
    else:
        os.mkfifo(place)
    try:
        found = staged(old, tmp_path / "staged")
    except UserError as error:
        assert "\n" not in str(error) and SECRET not in str(error)
    else:  # a run without evaluations is pushed as such
        assert name == "tuned" and kind != "link" and not (found / name).exists()


@pytest.mark.parametrize(
    "added",
    [
        "<script>alert(1)</script>", '<img src="x" onerror="alert(1)">', '<p onclick="alert(1)">x</p>',
        '<a href="https://example.org">more</a>', "<!-- <p> -->", "<SCRIPT src=//example.org>", "<p/onclick=x>",
        '<meta http-equiv="refresh" content="0;url=https://example.org">', '<svg><use href="#x"/></svg>',
        '<td style="background: url(https://example.org)">', "<style>@import 'https://example.org'</style>",
        "<style>p{background:u\\72l(//example.org)}</style>", "<iframe>", "<form action=x>", "<",
    ],
)  # fmt: skip
def test_a_report_that_holds_more_than_ours_is_not_pushed(
    old: Path, tmp_path: Path, added: str
) -> None:
    assert (staged(old, tmp_path / "whole") / layout.REPORT).is_file()
    page = (old / layout.REPORT).read_text("utf-8").replace("</body>", f"{added}</body>")
    (old / layout.REPORT).write_text(page, "utf-8")
    change(old, layout.COMPARISON, report_sha256=sha256(old / layout.REPORT))
    with pytest.raises(UserError, match=r"report\.html: this file is damaged .*llama-eval html"):
        staged(old, tmp_path / "staged")


def test_a_report_without_its_policy_or_its_sum_is_not_pushed(old: Path, tmp_path: Path) -> None:
    change(old, layout.COMPARISON, report_sha256=None)
    with pytest.raises(UserError, match="does not record its sum"):
        staged(old, tmp_path / "unsummed")
    page = (old / layout.REPORT).read_text("utf-8").replace("default-src 'none'", "default-src *")
    (old / layout.REPORT).write_text(page, "utf-8")
    change(old, layout.COMPARISON, report_sha256=sha256(old / layout.REPORT))
    with pytest.raises(UserError, match="does not begin as"):
        staged(old, tmp_path / "staged")


def test_weights_that_the_record_does_not_name_are_not_pushed(old: Path, tmp_path: Path) -> None:
    """The recipe asks for an adapter, but the record proves a head only."""
    files = json.loads((old / layout.TRAINING).read_text("utf-8"))["files"]
    kept = {name: files[name] for name in files if not name.startswith("adapter/")}
    (old / layout.HEAD).write_bytes(b"")
    change(old, layout.TRAINING, files={**kept, layout.HEAD: sha256(old / layout.HEAD)})
    with pytest.raises(UserError, match="has no sum of this file"):
        staged(old, tmp_path / "staged")


@pytest.mark.parametrize(
    "path", ["/a  b/data.csv", "/a\nb", "/" + " x" * 40, "/a" + " " * 60 + "b"]
)
def test_a_path_with_any_spaces_is_replaced_at_once(path: str) -> None:
    replace = stage._replacement({path: "name"})
    assert replace(f"see {path} here") == "see name here"
    replace("/a" + " " * 5_000)


@pytest.mark.parametrize(
    "text", [None, "# My own notes\n", b"\xff\xfe", "link", "pipe", "ours", "edited"]
)
def test_the_card_replaces_nothing_that_is_not_ours(
    old: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | bytes | None
) -> None:
    card, outside = old / layout.CARD, tmp_path / "mine"
    outside.write_text(SECRET)
    if text == "link":
        card.symlink_to(outside)
    elif text == "pipe":
        os.mkfifo(card)
    elif text in ("ours", "edited"):
        card.write_text(signed_card("# An older card\n") + ("mine" if text == "edited" else ""))
    elif text is not None:
        card.write_bytes(text if isinstance(text, bytes) else text.encode())
    kept = card.read_bytes() if card.is_file() else b""
    push_module._keep_card(old, "# The new card\n")
    assert outside.read_text() == SECRET
    if text in (None, "ours"):
        assert card.read_text().startswith("# The new card\n") and not caplog.messages
        push_module._keep_card(old, "# A newer card\n")
        assert card.read_text().startswith("# A newer card\n")
    else:
        assert not card.is_file() or card.read_bytes() == kept
        (message,) = caplog.messages
        assert "README.md" in message and "\n" not in message

"""Push a run to the Hub: check access, stage a copy, scan it, check that it reloads, commit once.

    check_access        who pushes, and what the repository holds; private stays private
    stage               the files that are pushed
    card.render         the card
    secret_scan.scan    they hold no secret
    check_reload        they give the scores that the run gives
    _send               create the repository, upload and commit; retried until a deadline

After a push, the run gets its card too, unless it holds a README.md that is not our own. Nothing
else is written into the run, and a push that fails, or a dry run, writes nothing there.
"""

import logging
import math
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from llama_peft.errors import UserError
from llama_peft.export import card, card_metadata, licences, load_snippet, retry, secret_scan
from llama_peft.export.access import (
    Target,
    check_access,
    check_privacy,
    default_name,
    full_name,
    warn_of_name,
)
from llama_peft.export.stage import Bundle, stage
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.run_folder import ownership
from llama_peft.run_folder.layout import CARD, HUB_RESULTS, NOTICE
from llama_peft.run_folder.run import Run, open_run
from llama_peft.run_folder.self_check import largest_difference, sample_scores
from llama_peft.run_folder.weights import load_tuned, replace_weights
from llama_peft.system.files import make_folder, read_text, write_text
from llama_peft.tokens.prompts import PromptEncoder

log = logging.getLogger(__name__)

Result = TypeVar("Result")
DEADLINE = 900.0
"""Seconds that creating, uploading and committing may take together, waits included."""
_OWNER = "YOUR-NAME"
"""The owner that a dry run shows, because it does not ask the Hub who the user is."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """The pushed files. A dry run lists the files that a push would send."""

    repo_id: str
    files: dict[str, int]
    """Bytes of each file, by its name in the repository."""
    commit_url: str | None
    """None after a dry run."""
    card: str
    """The text of the card."""


def push(
    run: Path,
    repo_id: str | None = None,
    private: bool | None = None,
    dry_run: bool = False,
    eval_results: bool = False,
    deadline: float = DEADLINE,
) -> Pushed:
    """Push a finished run in one commit. A dry run stages and searches the files, but sends nothing
    and writes nothing into the run.

    Raises UserError, with the command that tries again, if the push is not possible; the run is
    then unchanged.
    """
    opened = open_run(run)
    recipe = opened.written
    name = repo_id or default_name(recipe)
    private = recipe.hub.hub_private_repo if private is None else private
    if dry_run:
        target = Target(repo_id=full_name(name, _OWNER), parent=None)
    else:
        target = _within_deadline(
            lambda until: retry.with_retries(lambda: check_access(name), until),
            *(run, name, private, deadline),
        )
        check_privacy(target.repo_id, private, target.private)
    warn_of_name(target.repo_id, recipe)
    with tempfile.TemporaryDirectory(prefix="push-") as staged:
        bundle = prepare(opened, Path(staged), target.repo_id, eval_results)
        text = read_text(bundle.folder, CARD)
        sizes = {name: file.stat().st_size for name, file in _names(bundle).items()}
        if dry_run:
            return Pushed(repo_id=target.repo_id, files=sizes, commit_url=None, card=text)
        check_reload(opened, bundle)
        url = _within_deadline(
            lambda until: _send(bundle, target, private, until),
            *(run, target.repo_id, private, deadline),
        )
    log.info("%d files are now in %s", len(sizes), url)
    _keep_card(run, text)
    return Pushed(repo_id=target.repo_id, files=sizes, commit_url=url, card=text)


def prepare(run: Run, folder: Path, repo_id: str, eval_results: bool) -> Bundle:
    """Stage a run into an empty folder, with its card, and search all files for secrets."""
    bundle = stage(run, folder)
    model = bundle.recipe.model
    duties = licences.duties(model.model_name_or_path)
    if duties:
        write_text(folder, NOTICE, duties.notice)
    encoder = PromptEncoder(backbone.load_tokenizer(model), bundle.recipe.prompt)
    reader = load_snippet.reader_prefix(bundle.recipe)
    packs_head = load_snippet.packs_head(bundle.recipe)
    write_text(folder, CARD, card.render(bundle, repo_id, encoder, reader, packs_head))
    if eval_results:
        make_folder(folder, str(Path(HUB_RESULTS).parent))
        write_text(folder, HUB_RESULTS, card_metadata.hub_results(bundle))
    secret_scan.scan(folder, run.folder)
    return bundle


def check_reload(run: Run, bundle: Bundle) -> None:
    """Raise UserError unless the staged files give the scores of the run, as exactly as it does.

    The base is loaded once. The run's own weights are erased before the staged ones are loaded onto
    the same base.
    """
    loaded = load_tuned(run)
    expected = sample_scores(loaded)
    # Above 0 only on devices that add the same numbers in another order each time.
    noise = largest_difference(sample_scores(loaded), expected)
    staged = open_run(bundle.folder)
    difference = math.inf
    if _settings(staged.recipe) == _settings(run.recipe):
        scores = sample_scores(replace_weights(loaded, staged))
        difference = largest_difference(scores, expected)
    if not (math.isfinite(difference) and difference <= 2 * noise):
        raise UserError(
            f"{run.folder}: the files to be pushed give other scores than the run (largest "
            f"difference: {difference:.3g}), so nothing is pushed. Please report this with the "
            "recipe"
        )


def _settings(recipe: Recipe) -> tuple[object, ...]:
    """Every setting that scores depend on, besides the weights."""
    sections = (recipe.model, recipe.quantization, recipe.lora, recipe.head, recipe.prompt)
    return (recipe.kind, *sections, recipe.dataset.labels, recipe.train.max_length)


def _keep_card(run: Path, text: str) -> None:
    """Write the card into the run too, if it holds none or our own. A failure is only a warning,
    because the push is finished.
    """
    try:
        if not _has_own_readme(run):
            write_text(run, CARD, ownership.signed_card(text))
            return
        reason = f"{run / CARD}: this file is not our card, so it is kept as it is"
    except UserError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{run / CARD}: the card cannot be written here: {error.strerror}"
    log.warning("%s; the pushed card is in the repository", reason)


def _has_own_readme(run: Path) -> bool:
    """Whether the run holds a README.md that the user wrote or changed."""
    try:
        return not ownership.is_our_card(read_text(run, CARD))
    except FileNotFoundError:
        return False
    except ValueError:  # it is not UTF-8
        return True


def _names(bundle: Bundle) -> dict[str, Path]:
    """The staged files by their names in the repository."""
    return {file.relative_to(bundle.folder).as_posix(): file for file in bundle.files}


def _send(bundle: Bundle, target: Target, private: bool, until: float) -> str:
    """Create the repository if needed, and commit. Returns the address of the commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, repo_id = HfApi(), target.repo_id
    parent = target.parent
    if parent is None:
        retry.with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True), until)
        created = retry.with_retries(lambda: api.model_info(repo_id), until)
        check_privacy(repo_id, private, created.private)  # somebody may have created it first
        parent = created.sha
    names = _names(bundle)
    stale = sorted(target.files - names.keys())

    def commit() -> str:
        # Each try makes new operations, because the client marks those that it has uploaded.
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(file))
            for name, file in names.items()
        ]
        present = {file.rfilename for file in api.model_info(repo_id).siblings or ()}
        operations += [CommitOperationDelete(name) for name in stale if name in present]
        done = api.create_commit(
            repo_id,
            operations,
            commit_message=f"{bundle.recipe.name}: weights, results and card",
            parent_commit=parent,
            num_threads=1,
        )
        return str(done.commit_url)

    return retry.with_retries(commit, until)


def _within_deadline(
    work: Callable[[float], Result], run: Path, repo_id: str, private: bool, deadline: float
) -> Result:
    """The result of `work`. Raises UserError, with the command that tries again, if it fails."""
    try:
        return retry.within(deadline, work)
    except retry.failures() as error:
        words = ["llama-peft", "push", str(run), "--repo-id", repo_id]
        command = shlex.join([*words, "--private" if private else "--public"])
        log.debug("the push failed", exc_info=error)
        raise UserError(
            f"{repo_id}: the push failed: {retry.reason(error)}. The run is unchanged; try again "
            f"with: {command}"
        ) from error

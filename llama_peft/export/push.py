"""Push a run to the Hub: check access, stage a copy, search it for secrets, check that it reloads, and commit once.

    check_access        who pushes, whether they may, and what is there now; nothing private goes where all can read
    stage.stage         the allowed files          secret_scan.check   no secret is in them
    card.render         the card                   check_reload        they give the scores that the run gives
    _send               create, upload, commit: tried again until a deadline

Nothing is written into the run except its card, so a push that fails leaves it whole.
"""

import logging
import math
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llama_peft.errors import UserError
from llama_peft.export import card, card_metadata, licences, load_snippet, retry, secret_scan
from llama_peft.export.stage import Bundle, stage
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.run_folder.layout import (
    ADAPTER_FILES,
    CARD,
    HEAD,
    HUB_RESULTS,
    NOTICE,
    PUSHED_FILES,
    TRAINING,
)
from llama_peft.run_folder.run import Run, open_run
from llama_peft.run_folder.self_check import largest_difference, sample_scores
from llama_peft.run_folder.weights import load_tuned, replace_weights
from llama_peft.system.files import write_durably
from llama_peft.tokens.prompts import PromptEncoder

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

Result = TypeVar("Result")
DEADLINE = 900.0
"""Seconds that creating, uploading and committing may take together, waits included."""
_YOU = "YOUR-NAME"


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What was pushed, or with a dry run would be."""

    repo_id: str
    files: dict[str, int]
    """Bytes by name in the repository."""
    commit_url: str | None
    card: Path | None
    """Where the run has its card; None where the run cannot be written to."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A repository that the user may write to."""

    repo_id: str
    parent: str | None
    """Its newest commit; None where it is still to be made."""
    private: bool | None = None
    files: frozenset[str] = frozenset()


def push(
    run: Path,
    repo_id: str | None = None,
    private: bool | None = None,
    dry_run: bool = False,
    eval_results: bool = False,
    deadline: float = DEADLINE,
) -> Pushed:
    """Push a finished run in one commit. A dry run stages and searches the files and writes the card, and sends nothing.

    Raises UserError, with the command to try again, if anything stands in the way; the run then stays as it was.
    """
    opened = open_run(run)
    recipe = opened.written
    name = repo_id or default_name(recipe)
    private = recipe.hub.hub_private_repo if private is None else private
    if dry_run:
        target = Target(repo_id=_checked_name(name, _YOU), parent=None)
    else:
        target = _or_say_how(
            lambda: retry.patiently(lambda: check_access(name), time.monotonic() + deadline),
            *(run, name, private, deadline),
        )
        _check_private(target.repo_id, private, target.private)
    _warn_of_name(target.repo_id, recipe)
    with tempfile.TemporaryDirectory(prefix="push-") as staged:
        bundle = prepare(opened, Path(staged), target.repo_id, eval_results)
        kept = _keep_card(run, (bundle.folder / CARD).read_text("utf-8"))
        files = {str(f.relative_to(bundle.folder)): f.stat().st_size for f in bundle.files}
        if dry_run:
            return Pushed(repo_id=target.repo_id, files=files, commit_url=None, card=kept)
        check_reload(opened, bundle)
        url = _or_say_how(
            lambda: _send(bundle, target, private, time.monotonic() + deadline),
            *(run, target.repo_id, private, deadline),
        )
    log.info("%d files are now in %s", len(files), url)
    return Pushed(repo_id=target.repo_id, files=files, commit_url=url, card=kept)


def prepare(run: Run, folder: Path, repo_id: str, eval_results: bool = False) -> Bundle:
    """Stage a run into an empty folder, with its card, and search everything for secrets."""
    bundle = stage(run, folder)
    model = bundle.recipe.model
    duties = licences.duties(model.model_name_or_path)
    if duties:
        (folder / NOTICE).write_text(duties.notice, "utf-8")
    encoder = PromptEncoder(backbone.load_tokenizer(model), bundle.recipe.prompt)
    (folder / CARD).write_text(
        card.render(bundle, repo_id, encoder, load_snippet.reader_prefix(bundle.recipe)), "utf-8"
    )
    if eval_results:
        path = folder / HUB_RESULTS
        path.parent.mkdir()
        path.write_text(card_metadata.hub_results(bundle), "utf-8")
    secret_scan.check(folder, run.folder)
    return bundle


def check_reload(run: Run, bundle: Bundle) -> None:
    """Law 12: the staged files give the scores that the run gives, as exactly as the run itself repeats them.

    The base is loaded once; the run's own weights are erased before the staged ones are loaded onto it. Raises UserError if
    the scores differ.
    """
    loaded = load_tuned(run)
    expected = sample_scores(loaded)
    # Not 0 only on devices that add the same numbers in another order each time.
    noise = largest_difference(sample_scores(loaded), expected)
    staged = open_run(bundle.folder)
    difference = math.inf
    if _settings(staged.recipe) == _settings(run.recipe):
        scores = sample_scores(replace_weights(loaded, staged))
        difference = largest_difference(scores, expected)
    if not (math.isfinite(difference) and difference <= 2 * noise):
        raise UserError(
            f"{run.folder}: the files to be pushed give other scores than the run (largest difference: {difference:.3g}), "
            "so nothing is pushed. Please report this with the recipe"
        )


def _settings(recipe: Recipe) -> tuple[object, ...]:
    """Every setting that scores depend on, besides the weights."""
    labels, length = recipe.dataset.labels, recipe.train.max_length
    return (
        recipe.task,
        recipe.model,
        recipe.quantization,
        recipe.lora,
        recipe.head,
        recipe.prompt,
        labels,
        length,
    )


def _keep_card(run: Path, text: str) -> Path | None:
    """Write the card into the run too; a push does not need it, so a folder that refuses it is only reported."""
    path = run / CARD
    try:
        write_durably(path, text)
    except OSError as error:
        log.warning("%s: the card cannot be written here: %s", path, error.strerror)
        return None
    return path


def _checked_name(name: str, owner: str) -> str:
    """The repository of a name, under `owner` where it says no other. Raises UserError where the Hub could have none of it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repo_id = name if "/" in name else f"{owner}/{name}"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id}: no name for a repository: {error}") from None
    return repo_id


def _check_private(repo_id: str, wanted: bool, found: bool | None) -> None:
    """Raise UserError where a private push would be published; `found` is None where the repository is still to be made."""
    if wanted and found is False:
        raise UserError(
            f"{repo_id}: is public, and the push is to be private; say --public to push there "
            "(in a recipe hub.hub_private_repo: false), choose another --repo-id, or make it private on the Hub"
        )
    if not wanted and found:
        log.warning("%s: is private, and stays so; make it public on the Hub", repo_id)


def default_name(recipe: Recipe) -> str:
    """The recipe's name; for a Llama behind the base's, as its licence asks."""
    if recipe.hub.hub_model_id:
        return recipe.hub.hub_model_id
    base = recipe.model.model_name_or_path
    duties = licences.duties(base)
    short = base.split("/")[-1]
    if duties and duties.name_start and short.startswith(duties.name_start):
        return f"{short}-{recipe.name}"
    return recipe.name


def _warn_of_name(repo_id: str, recipe: Recipe) -> None:
    duties = licences.duties(recipe.model.model_name_or_path)
    start = duties.name_start if duties else ""
    if not repo_id.split("/")[-1].startswith(start):
        log.warning(
            "%s: the licence of %s asks for a name that begins with %r; choose one with --repo-id",
            *(repo_id, recipe.model.model_name_or_path, start),
        )


def check_before_training(recipe: Recipe) -> None:
    """Raise UserError in seconds, before hours of training, where the push that will follow them is bound to fail."""
    base = recipe.model.model_name_or_path
    if base != "tiny" and Path(base).is_dir():
        raise UserError(
            f"hub.push_to_hub is set, and {base} is a folder of this machine, which nobody else could load what is pushed on; "
            "name a base by its Hub id"
        )
    name, until = default_name(recipe), time.monotonic() + retry.IDLE
    try:
        target = retry.within(
            retry.IDLE, lambda: retry.patiently(lambda: check_access(name), until)
        )
    except retry.failures() as error:
        raise UserError(
            f"hub.push_to_hub is set, and the Hub cannot be asked: {retry.reason(error)}; "
            "try later, or train with hub.push_to_hub=false and push by hand"
        ) from error
    _check_private(target.repo_id, recipe.hub.hub_private_repo, target.private)


def check_access(name: str) -> Target:
    """Who the token belongs to, and whether it may write to the repository or make it.

    Raises UserError where it may not; errors of the network as they come.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    if get_token() is None:
        raise UserError(
            "to push, log in with `hf auth login` (or set HF_TOKEN) with a token that may write"
        )
    api = HfApi()
    retry.be_impatient()
    who = api.whoami()
    repo_id = _checked_name(name, who["name"])
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise UserError(
            "your Hub token may only read: make one that may write, then `hf auth login`"
        )
    try:
        api.auth_check(repo_id, write=True)
        info = api.model_info(repo_id)
    except RepositoryNotFoundError:
        owners = {who["name"], *(organisation["name"] for organisation in who.get("orgs", ()))}
        if repo_id.split("/")[0] not in owners:
            raise UserError(
                f"{repo_id}: you are {who['name']}, who may not make it; choose another --repo-id"
            ) from None
        return Target(repo_id=repo_id, parent=None)
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise UserError(
                f"{repo_id}: your token may not write to it; choose another --repo-id"
            ) from None
        raise
    files = frozenset(sibling.rfilename for sibling in info.siblings or ()) - {".gitattributes"}
    foreign = sorted(files - set(PUSHED_FILES))
    if foreign:
        raise UserError(
            f"{repo_id}: holds files that are no pushed run's, first {foreign[0]}; choose another --repo-id"
        )
    weights = sorted(files & {*ADAPTER_FILES, HEAD})
    if weights and TRAINING not in files:
        raise UserError(
            f"{repo_id}: holds {weights[0]} of no pushed run (no {TRAINING}); choose another --repo-id"
        )
    return Target(repo_id=repo_id, parent=info.sha, private=info.private, files=files)


def _send(bundle: Bundle, target: Target, private: bool, until: float) -> str:
    """Make the repository where needed, and commit; returns the commit's address."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, repo_id = HfApi(), target.repo_id
    parent = target.parent
    if parent is None:
        retry.patiently(lambda: api.create_repo(repo_id, private=private, exist_ok=True), until)
        made = retry.patiently(lambda: api.model_info(repo_id), until)
        _check_private(repo_id, private, made.private)  # somebody may have made it meanwhile
        parent = made.sha
    names = {str(file.relative_to(bundle.folder)): file for file in bundle.files}
    stale = sorted(target.files - names.keys())

    def commit() -> str:
        # Made anew at each try: the client marks its operations as it goes.
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

    return retry.patiently(commit, until)


def _or_say_how(
    work: Callable[[], Result], run: Path, repo_id: str, private: bool, deadline: float
) -> Result:
    """Do it within the deadline; what goes wrong becomes one line, with the command that tries it again."""
    try:
        return retry.within(deadline, work)
    except retry.failures() as error:
        words = ["llama-peft", "push", str(run), "--repo-id", repo_id]
        command = shlex.join([*words, "--private" if private else "--public"])
        log.debug("the push failed", exc_info=error)
        raise UserError(
            f"{repo_id}: not pushed: {retry.reason(error)}. The run is whole; to try again: {command}"
        ) from error

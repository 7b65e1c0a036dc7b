"""Checks who may push, and to which repository, before anything is sent."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llama_peft.errors import UserError
from llama_peft.export import licences, retry
from llama_peft.recipe import Recipe
from llama_peft.run_folder.layout import ADAPTER_FILES, HEAD, PUSHED_FILES, TRAINING
from llama_peft.system.secrets import is_web_address

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)


_QUICK = 10.0
"""Seconds that the Hub has to answer before a training."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A repository that the user may write to."""

    repo_id: str
    parent: str | None
    """Its newest commit; None if the repository does not exist yet."""
    private: bool | None = None
    """None if the repository does not exist yet."""
    files: frozenset[str] = frozenset()


class _User(NamedTuple):
    """The owner of the token."""

    name: str
    owners: frozenset[str]
    """The user and their organisations: repositories can be created for each of them."""


def default_name(recipe: Recipe) -> str:
    """The repository name if the user gives none; it begins as the licence of the base asks."""
    if recipe.hub.hub_model_id:
        return recipe.hub.hub_model_id
    base = recipe.model.model_name_or_path
    duties = licences.duties(base)
    short = base.split("/")[-1]
    if duties and duties.name_start and short.startswith(duties.name_start):
        return f"{short}-{recipe.name}"
    return recipe.name


def full_name(name: str, owner: str) -> str:
    """A name with its owner: `owner`, unless it has one. Raises UserError if it is not valid."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if is_web_address(name):
        raise UserError(
            f"{name}: this is a web address; write the name of the repository: owner/name"
        )
    repo_id = name if "/" in name else f"{owner}/{name}"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id}: this is not a valid repository name: {error}") from None
    return repo_id


def warn_of_name(repo_id: str, recipe: Recipe) -> None:
    """Log a warning if the licence of the base asks for another name."""
    base = recipe.model.model_name_or_path
    duties = licences.duties(base)
    start = duties.name_start if duties else ""
    if not repo_id.split("/")[-1].startswith(start):
        log.warning(
            "%s: the licence of %s asks for a repository name that begins with %r; choose one "
            "with --repo-id",
            *(repo_id, base, start),
        )


def check_privacy(repo_id: str, wanted: bool, found: bool | None) -> None:
    """Raise UserError if a private push would become public. found: None for a new repository."""
    if wanted and found is False:
        raise UserError(
            f"{repo_id}: this repository is public, but the push is private; pass --public to "
            "push there (in a recipe: hub.hub_private_repo: false), choose another --repo-id, or "
            "make the repository private on the Hub"
        )
    if not wanted and found:
        log.warning(
            "%s: this repository is private, and a push does not change that; make it public on "
            "the Hub",
            repo_id,
        )


def check_before_training(recipe: Recipe) -> None:
    """Raise UserError, within seconds, if the push that follows the training would fail."""
    base = recipe.model.model_name_or_path
    if base != "tiny" and Path(base).is_dir():
        raise UserError(
            f"hub.push_to_hub is true, but {base} is a local folder, so nobody else could load "
            "the pushed adapter; name a base by its Hub id (model.model_name_or_path)"
        )
    name = default_name(recipe)
    try:
        target = retry.within(
            min(retry.SILENCE, _QUICK),
            lambda until: retry.with_retries(lambda: check_access(name), until),
        )
    except retry.failures() as error:
        raise UserError(
            f"hub.push_to_hub is true, but the Hub cannot be asked: {retry.reason(error)}; try "
            "again later, or train with hub.push_to_hub=false and use llama-peft push afterwards"
        ) from error
    check_privacy(target.repo_id, recipe.hub.hub_private_repo, target.private)


def check_access(name: str) -> Target:
    """The repository of a name, which the user may create or write to.

    Raises UserError if they may not, or if the repository holds other files than a pushed run.
    Errors of the network are not changed.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api = HfApi()
    user = _user(api)
    repo_id = full_name(name, user.name)
    try:
        api.auth_check(repo_id, write=True)
        info = api.model_info(repo_id)
    except RepositoryNotFoundError:
        if repo_id.split("/")[0] not in user.owners:
            raise UserError(
                f"{repo_id}: your account, {user.name}, may not create this repository; choose "
                "another --repo-id"
            ) from None
        return Target(repo_id=repo_id, parent=None)
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise UserError(
                f"{repo_id}: your token may not write to this repository; choose another --repo-id"
            ) from None
        raise
    files = frozenset(sibling.rfilename for sibling in info.siblings or ()) - {".gitattributes"}
    _check_files(repo_id, files)
    return Target(repo_id=repo_id, parent=info.sha, private=info.private, files=files)


def _user(api: "HfApi") -> _User:
    """The owner of the token. Raises UserError if there is no token, or if it may not write."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError(
            "there is no Hub token on this machine; log in with `hf auth login` (or set "
            "HF_TOKEN), with a token that may write"
        )
    retry.limit_silence()
    found = api.whoami()
    if found.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(
            "your Hub token may only read; create one that may write, and log in with `hf auth "
            "login`"
        )
    organisations = (organisation["name"] for organisation in found.get("orgs", ()))
    return _User(found["name"], frozenset({found["name"], *organisations}))


def _check_files(repo_id: str, files: Iterable[str]) -> None:
    """Raise UserError if a repository holds somebody's own files: a push must not replace them."""
    others = sorted(set(files) - set(PUSHED_FILES))
    if others:
        raise UserError(
            f"{repo_id}: this repository holds files that do not belong to a pushed run, first "
            f"{others[0]}; choose another --repo-id"
        )
    weights = sorted(set(files) & {*ADAPTER_FILES, HEAD})
    if weights and TRAINING not in files:
        raise UserError(
            f"{repo_id}: this repository holds {weights[0]} but no {TRAINING}, so it is not a "
            "pushed run; choose another --repo-id"
        )

"""Finds runs by name: a folder on this machine, or a repository on the Hub that a run was pushed
to.

Only the files that a pushed run may hold are downloaded, and they are verified as those of any run
folder. `user/repo@revision` names a branch, tag or commit.
"""

from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.model.hub import hub_problem
from llama_peft.run_folder.layout import (
    ADAPTER_FILES,
    CARD_CHARTS,
    HEAD,
    HUB_RESULTS,
    NOTICE,
    PUSHED_FILES,
    REPORT,
    TRAINING,
)
from llama_peft.system.files import is_file
from llama_peft.system.progress.downloads import download

_NOT_LOADED = (REPORT, *CARD_CHARTS, NOTICE, HUB_RESULTS)


def is_hub_name(name: str) -> bool:
    """Whether a name can be a repository on the Hub, and is not a folder on this machine."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repo = name.partition("@")[0]
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return False
    return repo.count("/") == 1 and not Path(name).exists()


def run_folder(name: str | Path) -> Path:
    """The folder of a run, downloaded first if the name is on the Hub. Raises UserError if there is
    no such run there.
    """
    if not is_hub_name(str(name)):
        return Path(name)
    found = fetch(str(name))
    if found is None:
        raise UserError(
            f"{name}: this repository is not a pushed run (it holds no {TRAINING}); to evaluate "
            "an adapter or a whole model, use: llama-eval run --task TASK --model NAME"
        )
    return found


def fetch(name: str) -> Path | None:
    """The folder of a pushed run in the Hub's cache; None if the repository holds something else."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import httpx

    repo, _, revision = name.partition("@")
    try:
        try:
            hf_hub_download(repo, TRAINING, revision=revision or None)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None
        allowed = [file for file in PUSHED_FILES if file not in _NOT_LOADED]
        with download() as bar:
            folder = Path(
                snapshot_download(
                    repo, revision=revision or None, allow_patterns=allowed, tqdm_class=bar
                )
            )
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise UserError(
            f"{name}: no such folder, and {hub_problem(error, repo, revision or 'main')}; to make a run, use: "
            "llama-peft train RECIPE"
        ) from None
    if not is_file(folder, HEAD) and not all(is_file(folder, name) for name in ADAPTER_FILES):
        raise UserError(
            f"{name}: this repository holds neither {HEAD} nor {' and '.join(ADAPTER_FILES)}, so "
            "it is not a pushed run"
        )
    return folder

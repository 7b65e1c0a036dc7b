"""Runs by name: a folder here, or a repository on the Hub that one was pushed to.

Only the files that a pushed run may hold are downloaded, and they are treated as a run folder: same seals, same checks.
`user/repo@revision` takes a branch, tag or commit.
"""

from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.model.hub import hub_problem
from llama_peft.run_folder.layout import (
    ADAPTER_FILES,
    HEAD,
    HUB_RESULTS,
    NOTICE,
    PUSHED_FILES,
    REPORT,
    TRAINING,
)

_NOT_LOADED = (REPORT, NOTICE, HUB_RESULTS)


def is_hub_name(name: str) -> bool:
    """Whether a name could be a repository's, and is no folder here."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repo = name.partition("@")[0]
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return False
    return repo.count("/") == 1 and not Path(name).exists()


def run_folder(name: str | Path) -> Path:
    """The folder of a run: as it is named, or fetched from the Hub. Raises UserError where the Hub has none of that name."""
    if not is_hub_name(str(name)):
        return Path(name)
    found = fetch(str(name))
    if found is None:
        raise UserError(
            f"{name}: this repository holds no run (no {TRAINING}); "
            "llama-eval run --task TASK --model NAME measures adapters and whole models"
        )
    return found


def fetch(name: str) -> Path | None:
    """The cached snapshot of a pushed run; None where the repository holds something else."""
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
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=allowed))
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise UserError(
            f"{name}: {hub_problem(error, repo, revision or 'main')}; "
            "`llama-peft train RECIPE` makes a run"
        ) from None
    if not (folder / HEAD).is_file() and not all(
        (folder / file).is_file() for file in ADAPTER_FILES
    ):
        raise UserError(f"{name}: holds neither {HEAD} nor {' and '.join(ADAPTER_FILES)}")
    return folder

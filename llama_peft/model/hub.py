"""What is known of a base before it is loaded: its config.json, and what the Hub says about it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from llama_peft.errors import UserError
from llama_peft.model import bounds
from llama_peft.model.backbone import first_line, source_of
from llama_peft.recipe import Model

_MIRROR = 'or use an ungated copy: SET="model.model_name_or_path=unsloth/Llama-3.2-1B"'


_SILENCE = 8.0
"""Seconds without a byte after which the Hub does not answer."""


BAD_TOKEN = "the Hub does not know your token: log in again with `hf auth login`, or unset HF_TOKEN"


class Weights(NamedTuple):
    """The weights of a base, and what prevents loading them."""

    problems: list[str]
    parameters: int = 0
    download: int = 0
    """Bytes; 0 if the weights are on this machine."""
    config: Mapping[str, object] = {}
    """What its config.json says; empty if it has none, as an adapter."""


def read_config(name: str, revision: str) -> dict[str, object]:
    """Return a model's config.json. Raises UserError if it cannot be read."""
    path = Path(source_of(name))
    file = path / "config.json" if path.is_dir() else _download_config(name, revision)
    return bounds.read_config(file)


def _download_config(name: str, revision: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import httpx

    _limit_silence()
    try:
        if not isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            # Without this, a download tries for half a minute.
            HfApi().model_info(name, revision=revision, timeout=_SILENCE)
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except (HFValidationError, httpx.HTTPError, OSError) as error:
        raise UserError(f"{name}: {hub_problem(error, name, revision)}") from None


def local_weights(folder: Path) -> Weights:
    """Return the weights of a folder; each is assumed to have 16 bits."""
    size = _bytes_of(folder)
    names = [] if size else [path.name for path in folder.iterdir()]
    file = folder / "config.json"
    config = bounds.read_config(file) if file.is_file() else {}
    return Weights([] if size else [_no_weights(names)], size // 2, config=config)


def hub_weights(model: Model) -> Weights:
    """Return the weights of a base on the Hub. The network is not used if they are in the cache."""
    from huggingface_hub import HfApi, auth_check
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import httpx

    name, revision = model.model_name_or_path, model.revision
    if size := _cached(name, revision):
        return Weights([], size // 2, config=read_config(name, revision))
    _limit_silence()
    try:
        auth_check(name)
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=_SILENCE)
    except (httpx.HTTPError, HFValidationError, OSError) as error:
        return Weights([hub_problem(error, name, revision)])
    files = info.siblings or ()
    size = sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))
    if not size:
        return Weights([_no_weights(file.rfilename for file in files)])
    total = info.safetensors.total if info.safetensors else size // 2
    described = any(file.rfilename == "config.json" for file in files)
    return Weights([], total, size, read_config(name, revision) if described else {})


def _limit_silence() -> None:
    """Limit how long the client waits for a byte: it would wait for ever."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import httpx

    get_session().timeout = httpx.Timeout(_SILENCE)


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _cached(name: str, revision: str) -> int:
    """Return the bytes of the weights in the Hub cache; 0 if config or weights are missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return 0
    return _bytes_of(folder) if (folder / "config.json").is_file() else 0


def _no_weights(names: Iterable[str]) -> str:
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickled:
        return (
            f"{pickled[0]} is a pickle, and reading a pickle can run any code: "
            "convert it to safetensors"
        )
    return "it holds no safetensors weights: name a model that has some"


def hub_problem(error: Exception, name: str, revision: str) -> str:
    """Return why the Hub did not give `name`, and what to do, in one line."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    known = get_token() is not None
    if isinstance(error, GatedRepoError):
        step = "" if known else " and log in with `hf auth login` (or set HF_TOKEN)"
        page = f"https://huggingface.co/{name}"
        return f"its licence must be accepted first: open {page}{step}; {_MIRROR}"
    if isinstance(error, RevisionNotFoundError):
        return f"the Hub has no revision {revision!r} of it: change model.revision"
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        hint = "" if known else "; if it is private, log in with `hf auth login` (or set HF_TOKEN)"
        return f"no such folder here and no such model on the Hub: check the name{hint}"
    if isinstance(error, RemoteEntryNotFoundError):
        return f"the Hub has no such file of it ({first_line(error)}): check the name"
    if isinstance(error, HfHubHTTPError) and error.response.status_code == 401:
        return BAD_TOKEN
    offline = isinstance(error.__cause__, OfflineModeIsEnabled)
    if isinstance(error, OfflineModeIsEnabled) or (
        isinstance(error, LocalEntryNotFoundError) and offline
    ):
        return "it is not in the cache and HF_HUB_OFFLINE is set: unset it, or name a folder"
    reason = first_line(error)
    return f"the Hub does not answer ({reason}): name a folder, or try a tiny recipe: make demo"

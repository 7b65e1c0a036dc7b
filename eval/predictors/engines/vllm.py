"""vLLM as a child of this process, for one evaluation: `vllm serve` with prefix caching, and with the
adapter of a run beside its base.

It is asked as any other server. So it may be installed apart, and needs not share our versions of torch
and transformers: only its command must be found. Not measured: the project has no GPU with vLLM.
"""

import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.run_folder.layout import ADAPTER_CONFIG
from llama_peft.system.files import parse_json, read_whole
from llama_peft.system.processes import guard
from llama_peft.system.progress import Phase

from .server import Place

BASE, TUNED = "base", "tuned"
"""What the server calls the base, and the base with the adapter."""
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The highest ranks that --max-lora-rank takes."""
_START = 3600.0
"""Seconds until a server must answer: it may have to download the base first."""


class Child:
    """A `vllm serve` that starts when it is first asked for."""

    def __init__(self, recipe: Recipe, adapter: Path | None) -> None:
        """recipe: names the base. Raises UserError if there is no vLLM here, or if it cannot serve this."""
        program = shutil.which("vllm")
        if program is None:
            raise UserError(
                "--engine vllm: the command vllm is not found; install it in an environment of its own "
                "(uv tool install vllm), or ask a server elsewhere with --engine openai"
            )
        self._program, self._options = program, list(_options(recipe, adapter))
        self._process: subprocess.Popen[bytes] | None = None
        self._place: Place | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (close closes it)

    def open(self) -> Place:
        """Return where the server is; the first call starts it, and waits until it answers."""
        if self._place is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            self._place = Place(f"http://127.0.0.1:{port}/v1", secrets.token_hex(16))
            words = [self._program, *self._options, "--host", "127.0.0.1", "--port", str(port)]
            environment = {"VLLM_API_KEY": str(self._place.key)}
            self._process = guard.start(words, self._log, environment)
            with Phase("starting vLLM", "start", 1):
                self._wait(f"http://127.0.0.1:{port}/health", self._process)
        return self._place

    def _wait(self, url: str, process: "subprocess.Popen[bytes]") -> None:
        from huggingface_hub.utils import httpx

        until = time.monotonic() + _START
        while time.monotonic() < until:
            if process.poll() is not None:
                raise UserError(
                    f"vllm serve has ended with {process.returncode}: {self._last_words()}"
                )
            with suppress(httpx.HTTPError):
                if httpx.get(url, timeout=5.0, trust_env=False).is_success:
                    return
            time.sleep(0.2)
        raise UserError(f"vllm serve does not answer after {_START:.0f} s: {self._last_words()}")

    def _last_words(self) -> str:
        """Return the last line that names an error, or the last one."""
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").split("\n")]
        said = [line for line in lines if line] or ["it has said nothing"]
        return next((line for line in reversed(said) if "Error" in line), said[-1])[:300]

    def close(self) -> None:
        if self._process is not None:
            guard.end(self._process)
        self._log.close()


def _options(recipe: Recipe, adapter: Path | None) -> Iterator[str]:
    """Yield the words after `vllm`: the base as the recipe loads it, and no sampling of its own."""
    if recipe.quantization.load_in_8bit:
        raise UserError(
            "--engine vllm: vLLM has no 8-bit bases; set quantization.load_in_8bit=false"
        )
    base, revision = backbone.source(recipe.model), recipe.model.revision
    is_folder = Path(base).is_dir()
    # A stranger's adapter may name both, so neither stands where an option could.
    yield from ("serve", str(Path(base).resolve()) if is_folder else base)
    yield from () if is_folder else (f"--revision={revision}",)
    yield from ("--served-model-name", BASE, "--dtype", recipe.model.dtype or "auto")
    yield from ("--enable-prefix-caching", "--generation-config", "vllm")
    if recipe.quantization.load_in_4bit:
        yield from ("--quantization", "bitsandbytes")
    if adapter is not None:
        yield from ("--enable-lora", "--lora-modules", f"{TUNED}={adapter.resolve()}")
        yield from ("--max-lora-rank", str(_rank(adapter)))


def _rank(adapter: Path) -> int:
    """Return the lowest rank of vLLM that an adapter has room in."""
    config = parse_json(read_whole(adapter / ADAPTER_CONFIG).decode())
    own = config if isinstance(config, dict) else {}
    pattern = own.get("rank_pattern")
    ranks = [own.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    highest = max((rank for rank in ranks if isinstance(rank, int)), default=0)
    for rank in _RANKS:
        if rank >= highest:
            return rank
    raise UserError(
        f"{adapter}: vLLM serves adapters up to rank {_RANKS[-1]}, and this one has {highest}"
    )

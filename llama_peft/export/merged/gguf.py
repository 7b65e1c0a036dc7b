"""A merged model as one GGUF file, by llama.cpp's own converter, with the Modelfile by which Ollama
serves it.
"""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.run_folder.run import Run
from llama_peft.system import files
from llama_peft.tokens.prompts import PromptEncoder

log = logging.getLogger(__name__)

CONVERTER = "convert_hf_to_gguf.py"
PLACE = "LLAMA_CPP"
"""The environment variable that names llama.cpp's folder."""
GGUF, MODELFILE = "model.gguf", "Modelfile"
_MAGIC = b"GGUF"


def check(run: Run) -> None:
    """Raise UserError if the run cannot become a GGUF file here. It is cheap, so it comes first."""
    if run.recipe.kind.head is not None:
        raise UserError(
            f"{run.folder}: llama.cpp reads no head of a {run.recipe.kind.tuned_name} on this base; "
            "leave out --gguf: transformers and vLLM read the merged folder"
        )
    _converter()


def write(run: Run, merged: Path, precision: str) -> Path:
    """Convert a merged folder, write the Modelfile beside it, and return the path of the GGUF file.

    The merged folder stays whatever happens. Raises UserError with the converter's last line.

    precision: the converter's word for the numbers in the file: f32, f16, bf16, q8_0 (8.5 bits a
        weight) or auto (as in the checkpoint).
    """
    with files.new_file(merged, GGUF) as partial:
        words = [*_converter(), str(merged), "--outtype", precision]
        log.info("llama.cpp's converter writes %s", merged / GGUF)
        done = subprocess.run(
            [*words, "--outfile", str(partial)], capture_output=True, text=True, errors="replace"
        )
        if done.returncode or not _is_gguf(partial):
            last = (done.stderr.strip() or f"it ended with code {done.returncode}").splitlines()[-1]
            raise UserError(
                f"{merged}: the merged model is written, but llama.cpp's converter failed: {last}"
            )
    files.write_text(merged, MODELFILE, modelfile(run))
    return merged / GGUF


def modelfile(run: Run) -> str:
    """Return the text of a Modelfile that gives the GGUF file the prompts that the run was trained on.

    `.Prompt` is instruction, passage and question as the recipe writes them.
    """
    recipe = run.recipe
    tokenizer = backbone.load_tokenizer(recipe.model)
    encoder = PromptEncoder(tokenizer, recipe.prompt)
    before, between = encoder.around
    bos = tokenizer.bos_token or ""
    before = before if tokenizer.chat_template else bos + before
    if tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]:
        before = before.removeprefix(bos)  # what runs the file adds it, as the tokenizer does
    question = f"{recipe.prompt.instruction}{recipe.prompt.context}{recipe.prompt.question}"
    lines = [
        f"# {recipe.name}: `ollama create {recipe.name.lower()} -f {MODELFILE}`",
        "# It was trained on prompts of this form:",
        *(f"#   {line}" for line in question.splitlines()),
        f"FROM ./{GGUF}",
        f'TEMPLATE """{before}{{{{ .Prompt }}}}{between}"""',
        "PARAMETER temperature 0",
        f"PARAMETER num_predict {recipe.eval.max_new_tokens}",
        f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(encoder.end_id)}"',
    ]
    return "\n".join([*lines, ""])


def _converter() -> list[str]:
    """Return the words that start llama.cpp's converter. Raises UserError if it is not installed.

    An installed one has a Python of its own. That of a source folder gets ours, which has torch.
    """
    named, installed = os.environ.get(PLACE), shutil.which(CONVERTER)
    if named and Path(named, CONVERTER).is_file():
        return [sys.executable, str(Path(named, CONVERTER))]
    if installed and not named:
        return [installed]
    looked = f"in {named}, which {PLACE} names" if named else "on the PATH"
    raise UserError(
        f"llama.cpp's {CONVERTER} is not {looked}: run `brew install llama.cpp`, or clone "
        f"https://github.com/ggml-org/llama.cpp and set {PLACE} to its folder"
    )


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with files.open_regular(path) as file:
        return file.read(len(_MAGIC)) == _MAGIC

"""GGUF files: llama.cpp's converter is found, gets the merged folder, and its failures cost nothing.

The converter here is a small program in its place: it takes the same words, and writes what it got.
"""

import json
import sys
from pathlib import Path

import pytest
from tokenizers import processors

from llama_peft.errors import UserError
from llama_peft.export.merged import gguf
from llama_peft.model import backbone
from llama_peft.run_folder.run import Run, open_run
from llama_peft.tokens.prompts import PromptEncoder
from tests.support.paths import RUNS_0_1_0

WRITES = """
import json, sys
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--outfile") + 1])
out.write_bytes(b"GGUF" + json.dumps(sys.argv[1:]).encode())
"""
FAILS = "import sys\nsys.stderr.write('one line\\nno such tokenizer\\n')\nsys.exit(3)\n"
SILENT = "import sys\nsys.exit(3)\n"
OTHER = WRITES.replace('b"GGUF"', 'b"JSON"')


@pytest.fixture
def run() -> Run:
    return open_run(RUNS_0_1_0 / "generative")


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    folder = tmp_path / "merged"
    folder.mkdir()
    return folder


def install(place: Path, program: str) -> Path:
    place.mkdir(exist_ok=True)
    file = place / gguf.CONVERTER
    file.write_text(f"#!{sys.executable}\n{program}")
    file.chmod(0o755)
    return place


@pytest.mark.parametrize("variable", ["PATH", gguf.PLACE])
def test_the_converter_gets_the_merged_folder(
    run: Run, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv(gguf.PLACE, raising=False)
    monkeypatch.setenv(variable, str(install(tmp_path / "tools", WRITES)))
    gguf.check(run)
    found = gguf.write(run, merged, "q8_0")
    words = json.loads(found.read_bytes().removeprefix(b"GGUF"))
    assert words[:3] == [str(merged), "--outtype", "q8_0"]
    assert sorted(path.name for path in merged.iterdir()) == ["Modelfile", "model.gguf"]


@pytest.mark.parametrize(
    ("program", "said"),
    [(FAILS, "failed: no such tokenizer"), (SILENT, "ended with code 3"), (OTHER, "code 0")],
)
def test_a_converter_that_fails_leaves_the_merged_folder(
    run: Run, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    (merged / "config.json").write_text("{}")
    monkeypatch.setenv(gguf.PLACE, str(install(tmp_path / "tools", program)))
    with pytest.raises(UserError, match=said):
        gguf.write(run, merged, "auto")
    assert [path.name for path in merged.iterdir()] == ["config.json"]


def test_what_cannot_become_a_gguf_file_is_said_before_the_merge(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(gguf.PLACE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"is not on the PATH: run .brew install"):
        gguf.check(run)
    monkeypatch.setenv(gguf.PLACE, str(tmp_path))
    with pytest.raises(UserError, match=f"is not in {tmp_path}, which LLAMA_CPP names"):
        gguf.check(run)
    with pytest.raises(UserError, match="reads no head"):
        gguf.check(open_run(RUNS_0_1_0 / "classifier"))


def test_a_modelfile_asks_as_the_run_was_trained(run: Run) -> None:
    text = gguf.modelfile(run)
    tokenizer = backbone.load_tokenizer(run.recipe.model)
    encoder = PromptEncoder(tokenizer, run.recipe.prompt)
    end = tokenizer.convert_ids_to_tokens(encoder.end_id)
    assert f'PARAMETER stop "{end}"' in text and "FROM ./model.gguf" in text
    assert 'TEMPLATE """{{ .Prompt }}"""' in text, "no chat template, and the runner adds BOS"
    assert "#   Question: {question}" in text


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("is_chat", [False, True])
def test_a_prompt_in_ollama_begins_with_one_bos(
    run: Run, monkeypatch: pytest.MonkeyPatch, is_chat: bool, adds_bos: bool
) -> None:
    """The runner adds BOS if the tokenizer does. It may also be the first word of the chat template."""
    tokenizer = backbone.load_tokenizer(run.recipe.model)
    bos, end = tokenizer.bos_token, tokenizer.eos_token
    template = f"{bos} $A" if adds_bos else "$A"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    if is_chat:
        tokenizer.chat_template = (
            "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}"
            "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
        )
    monkeypatch.setattr(backbone, "load_tokenizer", lambda model: tokenizer)
    before, between = ("[user] ", f"{end}[assistant]") if is_chat else ("", "")
    expected = ("" if adds_bos else bos) + before + "{{ .Prompt }}" + between
    assert f'TEMPLATE """{expected}"""' in gguf.modelfile(run)

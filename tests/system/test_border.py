"""The laws of the border, read from the syntax tree: files of a run are written and removed in
`system/` alone, text is printed through `system/terminal.py` alone, and no code of a stranger runs.
"""

import ast
import functools
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.support.paths import ROOT

SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in ("llama_peft", "eval")
    for path in (ROOT / package).rglob("*.py")
}
BORDER = "llama_peft.system."

METHODS = {
    "write_text", "write_bytes", "unlink", "rmdir", "mkdir", "touch", "symlink_to", "hardlink_to", "chmod",
    "save_file", "save_pretrained", "save_model", "save_state", "extractall", "extract", "tofile", "to_json",
    "to_csv", "to_parquet", "write_table",
}  # fmt: skip
"""Calls that change a folder, whatever object they are called on."""
FUNCTIONS = {
    "os": {
        "remove", "unlink", "rename", "renames", "replace", "rmdir", "removedirs", "mkdir", "makedirs", "link",
        "symlink", "truncate", "chmod", "chown", "utime", "mkfifo", "open", "write",
    },
    "shutil": {"rmtree", "copy", "copy2", "copyfile", "copytree", "move", "unpack_archive", "make_archive"},
    "torch": {"save"}, "numpy": {"save", "savez", "memmap"}, "pickle": {"dump"},
}  # fmt: skip
PRINTS = {
    "print", "pprint.pprint", "typer.echo", "typer.secho", "click.echo", "sys.stdout.write",
    "sys.stderr.write", "sys.stdout.buffer.write", "warnings.warn", "traceback.print_exc", "rich.print",
}  # fmt: skip
UNPICKLES = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "dill.loads",
    "cloudpickle.load", "cloudpickle.loads", "marshal.load", "marshal.loads", "shelve.open", "pandas.read_pickle",
    "torch.jit.load", "torch.serialization.add_safe_globals",
}  # fmt: skip
PROGRAMS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.posix_spawn", "os.startfile", "pty.spawn",
    "runpy.run_path", "runpy.run_module",
}  # fmt: skip
PROGRAM_STARTS = ("subprocess.", "os.exec", "os.spawn", "ctypes.", "multiprocessing.")

EXCEPTIONS: dict[tuple[str, str], str] = {
    ("llama_peft.features.shards", "save_file"): "writes to the path that files.new_file gives",
    ("llama_peft.run_folder.weights", "save_file"): "writes to the path that files.new_file gives",
    ("llama_peft.run_folder.weights", "save_pretrained"): "writes into the folder that files.scratch gives",
    ("llama_peft.data.sources.remote", "open"): "reads a remote file, into one without a name",
    ("llama_peft.export.merged.folder", "save_pretrained"): "writes into the folder that files.new_folder gives",
    ("llama_peft.export.merged.folder", "mkdir"): "makes the parents of the folder that the user named",
    ("llama_peft.export.stage", "mkdir"): "the staged copy is a temporary folder of its own",
    ("llama_peft.export.stage", "write_bytes"): "the staged copy is a temporary folder of its own",
    ("eval.scoring", "mkdir"): "makes the folder that the user named",
    ("eval.report.page.page", "mkdir"): "makes the folder that the user named",
    ("eval.report.charts.draw", "open"): "opens bytes in memory as a picture",
    ("eval.report.charts.files", "write_bytes"): "writes to the path that files.new_file gives",
    ("eval.report.text", "print"): "draws into a text, which the command line prints",
    ("eval.metrics.words.wordnet", "extractall"): "unpacks a download whose sum was checked, in a temporary folder",
    ("eval.metrics.words.wordnet", "shutil.copytree"): "WordNet's folder belongs to NLTK and is not a run",
    ("eval.metrics.words.wordnet", "write_text"): "WordNet's folder belongs to NLTK and is not a run",
    ("eval.metrics.words.wordnet", "touch"): "WordNet's folder belongs to NLTK and is not a run",
    ("eval.scoring", "subprocess.run"): "asks git for the commit of this code, with fixed words",
    ("llama_peft.ladder.whole", "save_pretrained"): "the library writes a checkpoint, into a new folder of a ladder",
    ("llama_peft.rehearsal.base", "mkdir"): "makes a folder in the temporary one of a rehearsal",
    ("llama_peft.rehearsal.base", "shutil.copy"): "copies into the temporary folder of a rehearsal",
    ("llama_peft.rehearsal.__init__", "mkdir"): "makes a folder in the temporary one of a rehearsal",
    ("llama_peft.rehearsal.child", "os.open"): "takes what a rehearsal prints, in its temporary folder",
    ("llama_peft.rehearsal.child", "multiprocessing.set_start_method"): "forks, and so runs no other program",
    ("llama_peft.rehearsal.child", "multiprocessing.Process"): "runs a function of ours in a fork",
    ("llama_peft.rehearsal.child", "multiprocessing.connection.wait"): "waits for the forks",
    ("llama_peft.rehearsal.child", "traceback.print_exc"): "read by the process that began it, which prints it",
    ("llama_peft.export.merged.gguf", "subprocess.run"): "begins the converter that the user installed, on a folder that was just written",
    ("llama_peft.rehearsal.__init__", "subprocess.run"): "begins a module of ours in a process of its own",
    ("llama_peft.rehearsal.device.fake_cuda", "subprocess.run"): "compiles a file of ours with the user's compiler",
    ("llama_peft.rehearsal.device.fake_cuda", "runpy.run_path"): "reads the version of the installed torch",
    ("llama_peft.rehearsal.device.fake_cuda", "ctypes.CDLL"): "loads what was compiled of a file of ours",
    ("llama_peft.system.processes.guard", "subprocess.Popen"): "starts the user's vLLM, in which no name can become an option",
    ("llama_peft.system.processes.guard", "print"): "says into the log of a program that this was not found",
    ("llama_peft.system.processes.launch", "subprocess.Popen"): "begins a module of ours in several processes",
    ("llama_peft.system.sequences.spool", "pickle.loads"): "reads what this process wrote, in a file without a name",
    ("llama_peft.system.progress.screens", "print"): "rich prints above its bar what the terminal has made printable",
}  # fmt: skip
"""What is allowed by module and call, each with its reason."""


class Offence(NamedTuple):
    law: str
    """writes, prints, unpickles, runs or trusts."""
    call: str
    line: int


def offences(source: str) -> Iterator[Offence]:
    """Everything in a source text that a law of the border forbids."""
    tree = ast.parse(source)
    names = _imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for law, call in _called(node, _dotted(node.func, names)):
                yield Offence(law, call, node.lineno)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if _is(key, "trust_remote_code") and not _is(value, False):
                    yield Offence("trusts", "trust_remote_code", node.lineno)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named = {_dotted(target, {}).split(".")[-1] for target in targets}
            if "trust_remote_code" in named and not _is(node.value, False):
                yield Offence("trusts", "trust_remote_code", node.lineno)


def _called(node: ast.Call, name: str) -> Iterator[tuple[str, str]]:
    first, _, last = name.rpartition(".")
    if not name.startswith(BORDER):
        if last in METHODS and first:
            yield "writes", last
        elif last in FUNCTIONS.get(first, ()):
            yield "writes", name
        elif last in ("rename", "replace") and first and _is_of_a_path(node):
            yield "writes", last
        elif last == "open" and _may_write(node, method=first not in ("", "io", "gzip", "tarfile")):
            yield "writes", "open"
    if name in PRINTS or last == "print":
        yield "prints", name if name in PRINTS else "print"
    if name in UNPICKLES or _is_unsafe_load(node, name):
        yield "unpickles", name
    if name in PROGRAMS or name.startswith(PROGRAM_STARTS):
        yield "runs", name
    for keyword in node.keywords:
        if keyword.arg == "trust_remote_code" and not _is(keyword.value, False):
            yield "trusts", "trust_remote_code"


def _is_of_a_path(node: ast.Call) -> bool:
    """`Path.replace` takes one value, `str.replace` two, and others take keywords."""
    return len(node.args) == 1 and not node.keywords


def _may_write(node: ast.Call, method: bool) -> bool:
    """Whether `open` has a mode that writes, or one that is not written out."""
    place = 0 if method else 1
    given = [keyword.value for keyword in node.keywords if keyword.arg == "mode"]
    modes = [*given, *node.args[place : place + 1]]
    return any(
        not (isinstance(mode, ast.Constant) and isinstance(mode.value, str))
        or bool(set("wax+") & set(mode.value))
        for mode in modes
    )


def _is_unsafe_load(node: ast.Call, name: str) -> bool:
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if name == "torch.load":
        return not _is(given.get("weights_only"), True)
    return "allow_pickle" in given and not _is(given["allow_pickle"], False)


def _is(node: ast.AST | None, value: object) -> bool:
    return (
        isinstance(node, ast.Constant) and node.value == value and type(node.value) is type(value)
    )


def _imported(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for, with dots."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return {name: _PLAIN.get(full, full) for name, full in found.items()}


_PLAIN = {"builtins.print": "print", "builtins.open": "open", "builtins.eval": "eval"}


def _dotted(node: ast.AST, names: dict[str, str]) -> str:
    """The name of what is called, such as "os.replace"; "?" stands for a value without a name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return "?"


@functools.cache
def _all_found() -> list[tuple[str, Offence]]:
    return [
        (module, offence)
        for module, path in SOURCES.items()
        for offence in offences(path.read_text("utf-8"))
    ]


def _found(law: str) -> Iterator[tuple[str, Offence]]:
    return (found for found in _all_found() if found[1].law == law)


def _broken(law: str, but: str = "") -> list[str]:
    return [
        f"{module}, line {offence.line}: {offence.call}"
        for module, offence in _found(law)
        if (module, offence.call) not in EXCEPTIONS and not (but and module.startswith(but))
    ]


def test_only_the_border_changes_files() -> None:
    assert not _broken("writes", BORDER)


def test_only_the_border_prints() -> None:
    assert not _broken("prints", f"{BORDER}terminal")


@pytest.mark.parametrize("law", ["unpickles", "runs", "trusts"])
def test_no_code_of_a_stranger_runs(law: str) -> None:
    assert not _broken(law)


def test_every_exception_is_used() -> None:
    laws = ("writes", "prints", "unpickles", "runs", "trusts")
    used = {(module, offence.call) for law in laws for module, offence in _found(law)}
    assert not EXCEPTIONS.keys() - used


@pytest.mark.parametrize(
    ("source", "law"),
    [
        ("path.write_text(text)", "writes"),
        ("(folder / name).write_bytes(raw)", "writes"),
        ("open(path, 'w')", "writes"),
        ("open(path, mode='r+')", "writes"),
        ("open(path, mode)", "writes"),
        ("path.open('a')", "writes"),
        ("import io\nio.open(path, 'x')", "writes"),
        ("path.unlink(missing_ok=True)", "writes"),
        ("path.rename(other)", "writes"),
        ("path.replace(other)", "writes"),
        ("import os\nos.replace(a, b)", "writes"),
        ("import os as o\no.remove(a)", "writes"),
        ("from os import replace\nreplace(a, b)", "writes"),
        ("import os\nos.open(path, os.O_WRONLY)", "writes"),
        ("import shutil\nshutil.rmtree(folder)", "writes"),
        ("def f():\n    from shutil import rmtree as gone\n    gone(folder)", "writes"),
        ("folder.mkdir()", "writes"),
        ("path.touch()", "writes"),
        ("path.symlink_to(other)", "writes"),
        ("from safetensors.torch import save_file\nsave_file(tensors, path)", "writes"),
        ("model.save_pretrained(folder)", "writes"),
        ("import torch\ntorch.save(state, path)", "writes"),
        ("import numpy as np\nnp.save(path, array)", "writes"),
        ("print(label)", "prints"),
        ("import sys\nsys.stdout.write(label)", "prints"),
        ("from sys import stderr\nstderr.write(label)", "prints"),
        ("console.print(label)", "prints"),
        ("import typer\ntyper.echo(label)", "prints"),
        ("from typer import echo\necho(label)", "prints"),
        ("import torch\ntorch.load(path)", "unpickles"),
        ("import torch\ntorch.load(path, weights_only=False)", "unpickles"),
        ("import torch\ntorch.load(path, weights_only=safe)", "unpickles"),
        ("from torch import load\nload(path)", "unpickles"),
        ("import pickle\npickle.loads(raw)", "unpickles"),
        ("import pickle as p\np.Unpickler(file)", "unpickles"),
        ("import joblib\njoblib.load(path)", "unpickles"),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "unpickles"),
        ("import subprocess\nsubprocess.run(words)", "runs"),
        ("from subprocess import check_output\ncheck_output(words)", "runs"),
        ("import os\nos.system(line)", "runs"),
        ("import os\nos.execv(path, words)", "runs"),
        ("eval(text)", "runs"),
        ("exec(text)", "runs"),
        ("exec(compile(text, name, 'exec'))", "runs"),
        ("AutoModel.from_pretrained(name, trust_remote_code=True)", "trusts"),
        ("AutoModel.from_pretrained(name, trust_remote_code=model.trust)", "trusts"),
        ("keys = {'trust_remote_code': True}", "trusts"),
        ("trust_remote_code = True", "trusts"),
        ("config.trust_remote_code: bool = asked", "trusts"),
    ],
)
def test_the_laws_bite(source: str, law: str) -> None:
    assert law in {offence.law for offence in offences(source)}


@pytest.mark.parametrize(
    "source",
    [
        "from llama_peft.system.files import write_text\nwrite_text(folder, name, text)",
        "from llama_peft.system import files\nfiles.remove_tree(folder, name)",
        "text.replace('a', 'b')",
        "now.replace(tzinfo=None)",
        "open(path)",
        "open(path, 'rb')",
        "path.open()",
        "path.open('r', encoding='utf-8')",
        "import torch\ntorch.load(path, weights_only=True)",
        "import re\nre.compile(pattern)",
        "model.eval()",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
    ],
)
def test_what_the_laws_allow(source: str) -> None:
    assert not list(offences(source))

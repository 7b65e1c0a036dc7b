"""What a user gets who installs the wheel and works in a folder that has an eval.py and recipes of its own.

The wheel is built from a copy of the sources and installed into a temporary folder, without a network.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT

INSTALLED_NAMES = {"llama_peft": "llama_peft", "eval": "llama_peft_eval"}
"""Folders of the repository, and what they are called once installed."""
MINE = """\
task: classification
model: {model_name_or_path: tiny}
dataset: {path: tiny, name: reviews, parts: {train: 24, validation: 8, test: 16}}
"""
PROGRAMS = [
    ["llama-peft"],
    ["llama-eval"],
    ["python", "-m", "llama_peft"],
    ["python", "-m", "llama_peft_eval"],
]


def pip(*words: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the checkout gets no build folder."""
    copy, built = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("llama_peft", "eval", "recipes"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", built, copy)
    (file,) = built.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel, as site-packages would."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", folder, wheel)
    return folder


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    """A user's working folder. To import its eval.py leaves a trace."""
    (tmp_path / "eval.py").write_text("open('imported', 'w').close()\n")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/mine.yaml").write_text(MINE)
    return tmp_path


def run(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the installed wheel in a folder; "python" is this Python."""
    program = sys.executable if words[0] == "python" else str(site / "bin" / words[0])
    no_network = str(ROOT / "tests/support/no_network")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), no_network])}
    done = subprocess.run(
        [program, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert not (folder / "imported").exists(), "the user's own eval.py was imported"
    return done


def test_the_wheel_holds_every_file_and_no_common_name(wheel: Path) -> None:
    expected = {
        f"{name}/{path.relative_to(ROOT / folder)}"
        for folder, name in INSTALLED_NAMES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"
    }
    recipes = (path for kind in ("yaml", "ipynb") for path in (ROOT / "recipes").rglob(f"*.{kind}"))
    expected |= {f"llama_peft/recipes/{path.relative_to(ROOT / 'recipes')}" for path in recipes}
    found = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in found if ".dist-info/" not in name} == expected


def test_what_lies_at_the_top_of_site_packages(site: Path) -> None:
    names = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    assert names == {*INSTALLED_NAMES.values(), "bin"}


@pytest.mark.parametrize("program", PROGRAMS, ids=" ".join)
def test_every_program_starts(site: Path, user_folder: Path, program: list[str]) -> None:
    done = run(site, user_folder, *program, "--help")
    assert done.returncode == 0 and "Usage" in done.stdout, done.stderr


def test_the_installed_package_is_the_one_that_runs(site: Path, user_folder: Path) -> None:
    """No module comes from the checkout. (Modules that need torch are left out, to save time.)"""
    code = (
        "import sys, llama_peft_eval.report, llama_peft_eval.scoring, llama_peft_eval.job;"
        "ours = [m for name, m in sys.modules.items() if name.startswith('llama_peft')];"
        "print(*(m.__file__ for m in ours), sep='\\n')"
    )
    done = run(site, user_folder, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    files = done.stdout.splitlines()
    assert len(files) > 20 and all(Path(file).is_relative_to(site) for file in files)


def test_packaged_recipes_are_found_by_name(site: Path, user_folder: Path) -> None:
    done = run(site, user_folder, "llama-peft", "params", "tiny-sst2")
    assert done.returncode == 0 and "1,181,056" in done.stdout, done.stderr
    unknown = run(site, user_folder, "llama-peft", "params", "tiny-sst22")
    assert unknown.returncode == 2 and len(unknown.stderr.splitlines()) == 1


def test_a_user_s_own_recipe_is_found_by_name(site: Path, user_folder: Path) -> None:
    done = run(site, user_folder, "llama-peft", "validate", "mine")
    assert done.returncode == 0, done.stderr
    assert "mine: classification" in done.stdout and "train: 24 examples" in done.stdout


@pytest.mark.parametrize("module", ["llama_peft", "llama_peft_eval"])
def test_the_command_to_continue_names_the_installed_module(
    site: Path, user_folder: Path, module: str
) -> None:
    """A real SIGTERM, sent when the command first imports a room of its own."""
    rooms = {"llama_peft": "llama_peft.recipe", "llama_peft_eval": "llama_peft_eval.report"}
    words = {"llama_peft": ["train", "mine", "--fresh"], "llama_peft_eval": ["compare", "a b"]}
    code = f"""\
import os, runpy, signal, sys
def stop(event, arguments):
    if event == "import" and arguments[0] == {rooms[module]!r}:
        os.kill(os.getpid(), signal.SIGTERM)
sys.addaudithook(stop)
sys.argv[1:] = {words[module]!r}
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
    done = run(site, user_folder, "python", "-c", code)
    assert done.returncode == 128 + 15, done.stderr
    typed = {"llama_peft": "train mine", "llama_peft_eval": "compare 'a b'"}
    last = done.stderr.splitlines()[-1]
    assert last.startswith("stopped; to continue: ")
    assert last.endswith(f"python -m {module} {typed[module]}")

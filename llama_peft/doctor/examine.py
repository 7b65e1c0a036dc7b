"""Looks at the machine, the Hub, the libraries and the recipes that come with the project."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from llama_peft.doctor import blocking
from llama_peft.errors import UserError
from llama_peft.export import retry
from llama_peft.model import backbone, counts, preflight, room
from llama_peft.model.hub import BAD_TOKEN, Weights
from llama_peft.model.quantize import packing_trouble
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.recipe.load import RECIPES
from llama_peft.run_folder.record import read_record
from llama_peft.system import files, memory
from llama_peft.system.disk import free_disk
from llama_peft.system.formatting import disk_space, duration

_ANSWER = 10.0
"""Seconds that the Hub has to answer."""
_PACKAGE = "llama-peft"


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something that was looked at. blocker: what is wrong and what to do; None if nothing is."""

    name: str
    found: str
    blocker: str | None = None


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether a recipe can run here."""

    recipe: str
    base: str
    here: str
    fits: bool
    trained_in: float | None
    """Seconds of a finished training of it in its run folder; None if there is none."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found: blockers first."""

    blockers: list[str]
    facts: list[Fact]
    bases: dict[str, str]
    """By base of the recipes: whether it is here, can be downloaded, or what is wrong."""
    recipes: list[Fit]


Shapes = Mapping[str, Mapping[str, object]]
"""The published config.json of bases by name, as far as it is their shape."""


def examine(recipe: Recipe | None, shapes: Shapes) -> Report:
    """Return a report about one recipe, or about the machine and every recipe of the project.

    shapes: of bases whose own config.json may not be read before a licence is accepted.

    Without a recipe, what hinders every one of them blocks; with one, whatever hinders it does.
    """
    recipes = [recipe] if recipe is not None else _packaged()
    facts = list(_facts(recipes[0]))
    weights: dict[str, Weights] = {}
    for one in recipes:
        weights.setdefault(one.model.model_name_or_path, _weights(one))
    libraries = [fact.blocker for fact in facts if fact.name == "libraries" and fact.blocker]
    if recipe is None:
        blockers = [fact.blocker for fact in facts if fact.blocker is not None]
    else:
        known = weights[recipe.model.model_name_or_path]
        blockers = libraries + blocking.find(recipe, known, recipe.hub.push_to_hub)
    return Report(
        blockers=list(dict.fromkeys(blockers)),
        facts=facts,
        bases={name: _state(found) for name, found in weights.items() if name != "tiny"},
        recipes=[_fit(one, weights[one.model.model_name_or_path], shapes) for one in recipes],
    )


def _packaged() -> list[Recipe]:
    return [load_recipe(path) for path in sorted(RECIPES.glob("*.yaml"))]


def _weights(recipe: Recipe) -> Weights:
    try:
        return preflight.weights_of(recipe)
    except UserError as error:
        return Weights([str(error)])


def _facts(recipe: Recipe) -> Iterator[Fact]:
    """Yield what is found of the machine. recipe: whose folder holds the runs."""
    seen = preflight.machine()
    trouble = preflight.gpu_trouble(seen)
    system = f"{seen.system}, Python {platform.python_version()}, {os.cpu_count()} CPU cores"
    yield Fact(name="system", found=system)
    built = f"CUDA {seen.cuda}" if seen.cuda else "ROCm" if seen.rocm else "no CUDA"
    yield Fact(name="torch", found=f"{seen.torch}, built for {built}")
    yield _gpu(seen, trouble)
    yield Fact(name="type", found=_type(trouble))
    yield Fact(name="memory", found=_memory(trouble))
    yield _packing(trouble)
    yield from _disks(Path(recipe.run_folder))
    yield from _hub()
    yield _libraries()


def _gpu(seen: preflight.Machine, trouble: str | None) -> Fact:
    if trouble is not None:
        there = seen.nvidia or seen.amd
        found = "one that cannot be used" if there else f"none ({trouble})"
        return Fact(name="GPU", found=found, blocker=trouble if there else None)
    can = (
        ""
        if seen.capability is None
        else f", compute capability {seen.capability[0]}.{seen.capability[1]}"
    )
    return Fact(name="GPU", found=f"{seen.usable}{can}")


def _type(trouble: str | None) -> str:
    """Return the type that a base computes in, and why."""
    import torch

    place = backbone.device() if trouble is None else torch.device("cpu")
    fast = str(backbone.fast_dtype(place)).removeprefix("torch.")
    if fast == "bfloat16":
        return "bfloat16"
    what = "only emulates bfloat16" if trouble is None else "has no instructions for bfloat16"
    return f"{fast}, because the {'GPU' if trouble is None else 'CPU'} {what}"


def _memory(trouble: str | None) -> str:
    host = f"{room.gb(memory.available())} free"
    return host if trouble is not None else f"{room.gb(memory.gpu_available())} of the GPU, {host}"


def _packing(trouble: str | None) -> Fact:
    place = "cpu" if trouble is not None else str(backbone.device())
    broken = packing_trouble(place)
    found = "broken" if broken else f"a 4-bit product is right on {place}"
    return Fact(name="bitsandbytes", found=found, blocker=broken)


def _disks(runs: Path) -> Iterator[Fact]:
    from huggingface_hub import constants

    for name, folder in (("cache", Path(constants.HF_HUB_CACHE)), ("runs", runs.parent)):
        free = free_disk(folder)
        full = f"the disk of the {name} has {disk_space(free)} free: make room"
        blocker = full if free < blocking.LEAST_DISK else None
        yield Fact(name=f"disk of the {name}", found=f"{disk_space(free)} free", blocker=blocker)


def _hub() -> Iterator[Fact]:
    """Yield whether the Hub answers, and what the token may do."""
    from huggingface_hub import HfApi, constants, get_session, get_token
    from huggingface_hub.errors import HfHubHTTPError

    token = get_token()
    if constants.is_offline_mode():
        yield Fact(name="Hub", found="not asked: HF_HUB_OFFLINE is set")
        return
    try:
        retry.within(_ANSWER, lambda until: get_session().head(constants.ENDPOINT, timeout=_ANSWER))
    except retry.failures() as error:
        why = f"the Hub does not answer ({retry.reason(error)}): check the network"
        yield Fact(
            name="Hub", found="does not answer", blocker=f"{why}; the tiny recipes need none"
        )
        return
    yield Fact(name="Hub", found="answers")
    if token is None:
        needed = "none; gated bases and a push need one: `hf auth login`"
        yield Fact(name="token", found=needed)
        return
    try:
        known = retry.within(_ANSWER, lambda until: HfApi().whoami())
    except retry.failures() as error:
        bad = isinstance(error, HfHubHTTPError) and error.response.status_code == 401
        blocker = BAD_TOKEN if bad else f"the token cannot be checked: {retry.reason(error)}"
        yield Fact(name="token", found="not valid" if bad else "not checked", blocker=blocker)
        return
    role = known.get("auth", {}).get("accessToken", {}).get("role")
    may = {"read": "may only read", "write": "may write"}.get(role, "has rights of its own")
    yield Fact(name="token", found=f"valid, {may}")


def _libraries() -> Fact:
    """Compare the installed versions with those that this package asks for."""
    from transformers.utils.versions import require_version

    try:
        every = importlib.metadata.requires(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return Fact(name="libraries", found=f"not checked: {_PACKAGE} is not installed")
    asked, wrong = [one for one in every if "extra ==" not in one], []
    for wanted in asked:
        try:
            require_version(wanted.replace(" ", ""))
        except (ImportError, importlib.metadata.PackageNotFoundError, ValueError):
            wrong.append(wanted)
    if not wrong:
        return Fact(name="libraries", found=f"all {len(asked)} as they should be")
    missing = ", ".join(wrong)
    blocker = f"these libraries are missing or have another version: {missing}: `make clean setup`"
    return Fact(name="libraries", found=f"{len(wrong)} are wrong", blocker=blocker)


def _state(weights: Weights) -> str:
    if weights.problems:
        return "; ".join(weights.problems)
    if weights.download:
        return f"{disk_space(weights.download)} to download"
    return "on this machine"


def _fit(recipe: Recipe, weights: Weights, shapes: Shapes) -> Fit:
    here, fits = _here(recipe, preflight.problems(recipe, weights, long=True))
    if weights.problems and (shape := shapes.get(recipe.model.model_name_or_path)) is not None:
        here += f" (from its published shape: {_here_with(recipe, shape)})"
    return Fit(
        recipe=recipe.name,
        base=recipe.model.model_name_or_path,
        here=here,
        fits=fits,
        trained_in=_trained_in(Path(recipe.run_folder)),
    )


def _here_with(recipe: Recipe, shape: Mapping[str, object]) -> str:
    """Return in a few words whether a recipe could run on a base of this config.json."""
    with TemporaryDirectory(prefix="llama-peft-") as folder:
        files.write_text(Path(folder), "config.json", json.dumps(shape))
        placed = recipe.changed(model={"model_name_or_path": folder})
        counted = counts.count(shape).base
        weights = Weights([], counted, 2 * counted, shape)
        return _here(placed, preflight.problems(placed, weights, long=True))[0]


def _here(recipe: Recipe, problems: Sequence[str]) -> tuple[str, bool]:
    """Return in a few words whether a recipe can run, and whether it can."""
    if problems:
        return problems[0].partition(": ")[0], False
    found = blocking.full_rows(recipe)
    if found is None:
        return "not known: there is no memory formula for its base", True
    free = room.free_memory(recipe)
    takes = f"{room.gb(found.memory_total)} at most, {room.gb(free)} are free"
    if found.memory_total <= free:
        return f"fits: {takes}", True
    if found.smallest <= free:
        return f"fits in small pieces: {takes}", True
    return f"does not fit if a row has train.max_length tokens: {takes}", False


def _trained_in(folder: Path) -> float | None:
    try:
        return read_record(folder).wall_seconds or None
    except UserError:
        return None


def time_of(fit: Fit) -> str:
    """Return how long a recipe takes, if it is known."""
    return (
        "not measured" if fit.trained_in is None else f"trained here in {duration(fit.trained_in)}"
    )

"""Pushed runs: the real client and a loopback Hub, from the run folder to an empty cache and back."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_peft.__main__ import app
from llama_peft.errors import UserError
from llama_peft.export.push import push
from llama_peft.recipe import Recipe
from llama_peft.run_folder import fetch, layout
from llama_peft.system.files import sha256
from llama_peft.training.fit import train
from tests.support import forked, runs
from tests.support.hub import user
from tests.support.hub.server import Fault, Hub, serve
from tests.support.hub.walk import KINDS, fail_all, pull_all, push_all

TOKEN = "hf_" + "loopback" * 4
BASE = "acme/Llama-3.2-nano"


Walk = Callable[[Callable[[], object]], tuple[Any, str]]
"""Lets a user do something, who finds an empty cache; returns the result, and all that was printed."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("user") / "home"


@pytest.fixture(scope="module")
def walk(hub: Hub, home: Path) -> Walk:
    return lambda work: user.asks(work, hub.endpoint, home, TOKEN)


@pytest.fixture(scope="module")
def hub(make_base: Callable[..., Path]) -> Iterator[Hub]:
    """A Hub with one gated base and one user, who may read it and may write to what is theirs."""
    hub = Hub(users={TOKEN: {"name": "me", "role": "write", "may_read": [BASE]}})
    hub.add_folder(BASE, make_base(num_hidden_layers=3))
    hub.repos[BASE].gated = True
    with serve(hub):
        yield hub


@pytest.fixture(scope="module")
def pushed(walk: Walk, home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of every kind, trained and pushed: its scores, and its folder."""
    folder = tmp_path_factory.mktemp("runs")
    found, _ = walk(lambda: push_all(BASE, folder))
    return {"runs": found, "folder": folder, "home": home}


@pytest.fixture(scope="module")
def pulled(
    walk: Walk, pushed: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The same runs in another process with an empty cache, by name and as their cards say."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    found, _ = walk(lambda: pull_all([*pushed["runs"]], elsewhere))
    return found


def test_an_empty_cache_gives_the_same_scores(
    pushed: dict[str, Any], pulled: dict[str, Any]
) -> None:
    """By name, and by the card's lines of transformers and PEFT alone; every kind, and heads alone."""
    for name, run in pushed["runs"].items():
        assert pulled[name]["outputs"] == run["outputs"], name
        for row, expected in zip(pulled[name]["library"], run["outputs"], strict=True):
            if run["kind"].startswith("extractive_qa"):  # ours are -inf outside of the passage
                row = [a if b > -1e30 else b for a, b in zip(row, expected, strict=True)]
            assert row == pytest.approx(expected, abs=1e-5), name
        most = 11 if run["kind"].startswith("extractive_qa") else 5
        assert pulled[name]["lines"] <= most, name
    kinds = [run["kind"] for run in pushed["runs"].values()]
    outputs = {json.dumps(run["outputs"]) for run in pushed["runs"].values()}
    assert len(outputs) == len(kinds) == len(KINDS)


def test_a_push_opens_the_run_once_and_loads_the_base_once(pushed: dict[str, Any]) -> None:
    for name, run in pushed["runs"].items():
        counts = {key: run[key] for key in ("base_loads", "record_reads", "recipe_reads")}
        assert set(counts.values()) == {1}, (name, counts)


def test_a_card_s_commands_run_as_they_stand(
    pulled: dict[str, Any], pushed: dict[str, Any]
) -> None:
    predicted, evaluated = pulled["said"]
    assert predicted.split()[0] in ("negative", "positive")
    tuned = json.loads((pushed["folder"] / "classification/tuned/results.json").read_text())
    assert f"{tuned['results']['classification']['accuracy']:.4f}" in evaluated
    assert "runs/me-Llama-3.2-nano-classification/tuned" in evaluated


def test_what_is_pushed_is_allow_listed_and_of_no_machine(
    hub: Hub, pushed: dict[str, Any], pulled: dict[str, Any]
) -> None:
    for name, run in pushed["runs"].items():
        head = hub.repos[name].head
        assert set(head.files) - {".gitattributes"} <= set(layout.PUSHED_FILES)
        assert len(hub.repos[name].commits) == 2 and hub.repos[name].private
        for path, raw in head.files.items():
            assert isinstance(raw, bytes)
            for secret in (str(pushed["folder"]), str(pushed["home"]), str(Path.home()), TOKEN):
                assert secret.encode() + b"/" not in raw and TOKEN.encode() not in raw, path
        sealed = json.loads(bytes(head.files["training.json"]))  # type: ignore[arg-type]
        assert sealed["base_fingerprint"] == hub.repos[BASE].commits[0].sha
        if "adapter_config.json" in head.files:
            config = json.loads(bytes(head.files["adapter_config.json"]))  # type: ignore[arg-type]
            assert config["base_model_name_or_path"] == BASE
            assert config["revision"] == hub.repos[BASE].commits[0].sha
        assert head.files["NOTICE"].startswith(b"Llama 3.2 is licensed")  # type: ignore[union-attr]
        assert run["bytes"] < 200_000  # most of them are the report and its charts


@pytest.fixture(scope="module")
def said(
    hub: Hub, walk: Walk, pushed: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Every obstacle, one after the other in one process, and the result or the message of each."""
    folder, reader = pushed["folder"], "hf_" + "onlyreading" * 3
    hub.users[reader] = {"name": "me", "role": "read"}
    # The base moves on: what was trained on its old commit is pushed on that.
    hub.repos[BASE].add(hub.repos[BASE].head.files | {"model.safetensors": b"others"})
    hub.add("acme/gated", {"training.json": b"{}"}, gated=True)
    hub.add("acme/hidden", {"training.json": b"{}"}, private=True)
    hub.add("acme/model", {"config.json": b"{}"})
    hub.add("acme/pickled", {"training.json": b"{}", "adapter_model.bin": b"no", "x.py": b"no"})
    hub.add("me/Llama-taken", {"model.safetensors": b"somebody's"})
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"precious"}
    hub.add("me/Llama-adapter", {"README.md": b"by hand", **adapter}, private=True)
    for name in ("Llama-public", "Llama-open", "published"):
        hub.add(f"me/{name}", {"README.md": b"of everybody"})
    hub.add("me/Llama-closed", {"README.md": b"of nobody"}, private=True)
    weights = sha256(folder / "classification-head" / layout.HEAD)
    del hub.blobs[weights]  # so that it is uploaded again
    hub.faults += [
        Fault(f"lfs/{weights}", 403),
        Fault(f"lfs/{weights}", 425, times=7),
        Fault(f"lfs/{weights}", how="reset"),
        Fault("me/trained/auth-check", 503),
        Fault("Llama-busy", 503, times=2),
        Fault("Llama-throttled/commit", 429, headers={"Retry-After": "1"}),
        Fault("Llama-cut/commit", how="reset"),
        Fault("Llama-lost/commit", how="reset", late=True),
        Fault("Llama-silent/commit", how="hang", times=9),
        Fault("Llama-slow/commit", how="hang"),
        Fault("Llama-changed/commit", how="meddle"),
        Fault("Llama-down/commit", 503, times=99),
        Fault("Llama-exists", how="reset", late=True),
        Fault("create unlucky", 403),
        Fault("validate-yaml", 502),
    ]
    secret = tmp_path_factory.mktemp("secret") / "classification-head"
    shutil.copytree(folder / "classification-head", secret)
    with (secret / "history.jsonl").open("a") as file:
        file.write(json.dumps({"note": f"logged in with {TOKEN}"}) + "\n")
    run = str(folder / "classification-head")
    (folder / "trained/zero-shot").mkdir(parents=True)
    (folder / "trained/zero-shot/results.json").write_text("")
    names = [
        "put403",
        "put425",
        "putreset",
        "busy",
        "throttled",
        "cut",
        "lost",
        "silent",
        "slow",
        "changed",
        "down",
        "taken",
        "exists",
    ]
    plans: list[dict[str, Any]] = [
        {"name": name, "run": run, "repo": f"me/Llama-{name}"} for name in names
    ]
    plans[names.index("silent")] |= {"deadline": 8.0}
    plans[names.index("slow")] |= {"silence": 1.0}
    plans += [
        {"name": "adapter", "run": run, "repo": "me/Llama-adapter"},
        {"name": "public", "run": run, "repo": "me/Llama-public"},
        {"name": "open", "run": run, "repo": "me/Llama-open", "private": False},
        {"name": "closed", "run": run, "repo": "me/Llama-closed", "private": False},
        {"name": "others", "run": run, "repo": "acme/Llama-mine"},
        {"name": "reader", "run": run, "repo": "me/Llama-reader", "token": reader},
        {"name": "unknown", "run": run, "repo": "me/Llama-unknown", "token": "hf_nobody"},
        {"name": "nobody", "run": run, "repo": "me/Llama-nobody", "token": ""},
        {"name": "spoiled", "run": run, "repo": "me/Llama-spoiled", "spoiled": True},
        {"name": "secret", "run": str(secret), "repo": "me/Llama-secret"},
    ]
    small = ["tiny-sst2", "hub.push_to_hub=true", "train.max_steps=1"]
    small.append("dataset.parts={train: 24, validation: 8, test: 8}")
    tokens = {"never": reader, "trained": TOKEN, "unlucky": TOKEN, "published": TOKEN}
    for name, token in tokens.items():
        words = [f"train.output_dir={folder / name}", f"hub.hub_model_id={name}"]
        plans.append({"name": name, "train": [*small, *words], "token": token})
    for again, kind in enumerate(("classification-head", "classification-head", "classification")):
        one = {"name": f"again{again}", "run": str(folder / kind), "repo": "me/Llama-again"}
        plans.append(one)
    files = hub.repos["me/Llama-3.2-nano-classification"].head.files
    hub.add("acme/more", files | {"run.py": b"no", "pytorch_model.bin": b"no"})
    own = "me/Llama-3.2-nano-generative_qa"
    plans += [
        {"name": "more", "fetch": "acme/more"},
        {"name": "online", "fetch": own},
        {"name": "offline", "fetch": own, "offline": True},
        {"name": "uncached", "fetch": "me/Llama-3.2-nano-extractive_qa", "offline": True},
    ]
    fetched = [
        "acme/gated",
        "acme/hidden",
        "acme/model",
        "acme/pickled",
        "acme/none",
        "acme/model@v9",
    ]
    plans += [{"name": name, "fetch": name} for name in fetched]
    before = {kind: runs.sums(folder / kind) for kind in KINDS}
    found: dict[str, str]
    found, text = walk(lambda: fail_all(plans))
    found["warnings"] = text.rpartition("\n{")[0]
    assert {kind: runs.sums(folder / kind) for kind in KINDS} == before, "a push changed the run"
    return found


def test_a_push_outlasts_temporary_failures(hub: Hub, said: dict[str, str]) -> None:
    """503, 429, a cut connection or upload, silence, and answers that are lost after the request
    was carried out.
    """
    for name in ("putreset", "busy", "throttled", "cut", "lost", "slow", "exists"):
        repo = hub.repos[f"me/Llama-{name}"]
        assert said[name].endswith(f"/{repo.head.sha}"), name
        assert len(repo.commits) == 2 and "head.safetensors" in repo.head.files, name


def test_nothing_is_sent_before_it_gives_the_scores_of_the_run(
    hub: Hub, said: dict[str, str]
) -> None:
    """Law 12."""
    assert (
        "give other scores than the run" in said["spoiled"] and "me/Llama-spoiled" not in hub.repos
    )


def test_only_a_run_s_own_files_are_fetched(hub: Hub, said: dict[str, str]) -> None:
    fetched = {path.name for path in Path(said["more"]).iterdir()}
    assert {"adapter_model.safetensors", "recipe.yaml"} <= fetched
    assert fetched <= {Path(name).parts[0] for name in layout.PUSHED_FILES} - {"report.html"}


def test_the_next_push_replaces_what_the_last_one_left(hub: Hub, said: dict[str, str]) -> None:
    """The same run makes no commit; a run of another kind removes the old weights in its one
    commit.
    """
    _, first, second = hub.repos["me/Llama-again"].commits
    assert said["again0"].endswith(first.sha) and said["again1"].endswith(first.sha)
    assert said["again2"].endswith(second.sha)
    assert "head.safetensors" in first.files and "head.safetensors" not in second.files
    assert "adapter_model.safetensors" in second.files


def test_a_fetched_run_is_there_offline(said: dict[str, str]) -> None:
    assert said["offline"] == said["online"] and Path(said["online"], "recipe.yaml").is_file()
    assert "not in the cache and HF_HUB_OFFLINE is set" in said["uncached"]


def test_a_push_that_fails_says_how_to_try_again(
    hub: Hub, pushed: dict[str, Any], said: dict[str, str]
) -> None:
    run = pushed["folder"] / "classification-head"
    for name, reason in (
        ("silent", "it did not end within 8 s"),
        ("down", "503"),
        ("changed", "somebody"),
    ):
        assert reason in said[name], name
        command = f"llama-peft push {run} --repo-id me/Llama-{name} --private"
        assert said[name].endswith(f"The run is unchanged; try again with: {command}"), name
        assert "head.safetensors" not in hub.repos[f"me/Llama-{name}"].head.files
    assert hub.repos["me/Llama-changed"].head.files["README.md"] == b"somebody else's"


def test_an_upload_that_fails_says_why(
    hub: Hub, pushed: dict[str, Any], said: dict[str, str]
) -> None:
    """The client raises a RuntimeError, which hides the cause."""
    run = pushed["folder"] / "classification-head"
    for name, reason in (("put403", "your token may not write there"), ("put425", "answers 425")):
        command = f"llama-peft push {run} --repo-id me/Llama-{name} --private"
        assert f"the push failed: {reason}" in said[name] or f"the Hub {reason}" in said[name]
        assert said[name].endswith(f"The run is unchanged; try again with: {command}"), name


def test_nothing_private_is_published_and_nobody_s_weights_are_replaced(
    hub: Hub, pushed: dict[str, Any], said: dict[str, str]
) -> None:
    assert "me/Llama-public: this repository is public" in said["public"]
    assert "pass --public" in said["public"]
    assert "this repository is public" in said["published"]
    assert not (pushed["folder"] / "published/split.json").exists(), "nothing may be trained"
    assert "holds adapter_config.json but no training.json" in said["adapter"]
    for name in ("Llama-public", "published", "Llama-adapter"):
        assert len(hub.repos[f"me/{name}"].commits) == 1, name
    for name in ("open", "closed"):
        assert said[name].endswith(hub.repos[f"me/Llama-{name}"].head.sha)
    assert hub.repos["me/Llama-closed"].private
    assert said["warnings"].count("this repository is private") == 1
    assert "me/Llama-closed: this repository is private" in said["warnings"]


def test_who_may_not_write_is_told_before_anything_is_sent(
    hub: Hub, pushed: dict[str, Any], said: dict[str, str]
) -> None:
    assert "may not create this repository" in said["others"]
    assert "may only read" in said["reader"]
    assert "hf auth login" in said["unknown"] and "does not know your token" in said["unknown"]
    assert "hf auth login" in said["nobody"]
    assert (
        "holds files that do not belong to a pushed run, first model.safetensors" in said["taken"]
    )
    assert not {"me/Llama-reader", "acme/Llama-mine", "me/Llama-nobody"} & hub.repos.keys()
    assert "may only read" in said["never"]
    assert not (pushed["folder"] / "never/split.json").exists(), "nothing may be trained"


def test_push_to_hub_pushes_what_was_trained_and_costs_no_training(
    hub: Hub, pushed: dict[str, Any], said: dict[str, str]
) -> None:
    head = hub.repos["me/trained"].head
    assert head.sha in said["trained"] and b"Not evaluated yet" in head.files["README.md"]  # type: ignore[operator]
    assert "warning: me/unlucky: the push failed: your token may not write there" in said["unlucky"]
    assert (pushed["folder"] / "unlucky/training.json").is_file()
    assert "me/unlucky" not in hub.repos


def test_a_planted_token_stops_the_push_and_names_the_file(hub: Hub, said: dict[str, str]) -> None:
    assert "history.jsonl holds the value of one of your secrets" in said["secret"]
    assert TOKEN not in said["secret"]
    assert "me/Llama-secret" not in hub.repos


def test_what_cannot_be_fetched_says_why(said: dict[str, str]) -> None:
    assert "licence must be accepted" in said["acme/gated"]
    assert "no such" in said["acme/hidden"] and "no such" in said["acme/none"]
    assert "no revision 'v9'" in said["acme/model@v9"]
    assert "is not a pushed run" in said["acme/model"]
    assert "neither head.safetensors nor adapter_config.json" in said["acme/pickled"]


def test_offline_says_so(monkeypatch: pytest.MonkeyPatch, pushed: dict[str, Any]) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it to push"):
        push(pushed["folder"] / "classification-head", "me/Llama-offline")
    with pytest.raises(UserError, match="not in the cache and HF_HUB_OFFLINE is set"):
        fetch.run_folder("me/Llama-offline")


def test_a_dry_run_lists_files_and_shows_the_card(
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = {"output_dir": str(tmp_path / "run"), "max_steps": 1}
    run = train(make_recipe("classification", "tiny", train=keys))
    (run / "README.md").write_text("# My own notes\n")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    app(["push", str(run), "--dry-run"], standalone_mode=False)
    out = capsys.readouterr().out
    assert "head.safetensors" in out and "YOUR-NAME/small" in out and "nothing was sent" in out
    assert "Not evaluated yet" in out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    (run / "notes.ipynb").write_text(json.dumps({"outputs": [{"text": f"token: {TOKEN}"}]}))
    code, said = forked.run(["push", str(run), "--dry-run"], tmp_path / "log")
    assert code == 2 and "notes.ipynb holds a Hugging Face token" in said
    assert TOKEN not in said
    for name in ("a b", "me/..", "me/x/y", "me/-x"):
        with pytest.raises(UserError, match=f"{name}: this is not a valid repository name"):
            push(run, name, dry_run=True)
    (run / "notes.ipynb").unlink()
    app(["push", str(run), "--if-asked"], standalone_mode=False)
    assert not capsys.readouterr().out, "a recipe without hub.push_to_hub asks for nothing"

"""All problems with a base are reported before any download, against a loopback Hub."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama_peft.errors import UserError
from llama_peft.model import backbone, preflight, room
from llama_peft.model.preflight import gpu_trouble
from llama_peft.recipe import Recipe, load_recipe
from tests.support.hub import user
from tests.support.hub.server import loopback_hub

GB = 10**9
CPU_TORCH = preflight.Machine(system="Linux", torch="2.13.0+cpu")
CUDA_TORCH = preflight.Machine(
    system="Linux",
    torch="2.13.0+cu130",
    cuda="13.0",
    driver_cuda=13000,
    nvidia=True,
    built_for=frozenset({"sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"}),
)
MODELS = {
    "meta/gated": {"gated": True, "files": {"model.safetensors": GB}},
    "open/large": {"files": {"config.json": b"{}", "model.safetensors": 3 * GB}},
    "open/gptq": {
        "files": {
            "config.json": b'{"quantization_config": {"quant_method": "gptq"}}',
            "model.safetensors": GB // 10,
        }
    },
    "open/huge": {"files": {"model.safetensors": 10**6 * GB}},
    "open/pickled": {"files": {"pytorch_model.bin": GB}},
}


def check(names: list[str]) -> dict[str, str]:
    """What is said of each name."""
    said = {}
    for name in names:
        model, _, revision = name.partition("@")
        words = [f"model.model_name_or_path={model}", f"model.revision={revision or 'main'}"]
        try:
            preflight.check(load_recipe("sst2", words), long=True)
            said[name] = ""
        except UserError as error:
            said[name] = str(error)
    return said


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    names = [*MODELS, "no/such", "open/large@v9", "not a name"]
    with loopback_hub(MODELS) as endpoint:
        home = tmp_path_factory.mktemp("user") / "home"
        found: dict[str, str] = user.asks(lambda: check(names), endpoint, home)[0]
    return found


def test_each_problem_says_what_to_do(said: dict[str, str]) -> None:
    assert "licence must be accepted" in said["meta/gated"]
    assert "hf auth login" in said["meta/gated"] and "ungated" in said["meta/gated"]
    assert "no GPU here" in said["open/large"] and "make demo" in said["open/large"]
    assert "pytorch_model.bin is a pickle" in said["open/pickled"]
    assert "no such model" in said["no/such"] and "no such model" in said["not a name"]
    assert "no revision 'v9'" in said["open/large@v9"]


def test_a_form_that_cannot_be_trained_is_refused_before_the_download(said: dict[str, str]) -> None:
    (_, problem) = said["open/gptq"].splitlines()
    assert "packed as 'gptq'" in problem and "name the base" in problem


def test_several_problems_are_reported_together(said: dict[str, str]) -> None:
    lines = said["open/huge"].splitlines()
    assert "no GPU here" in lines[1] and "GB free" in lines[2] and "of memory" in lines[3]


def test_offline_without_a_cache_says_so(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        preflight.check(make_recipe("classification", "some/model"), long=True)


def test_a_local_base_that_fits_passes(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    preflight.check(make_recipe("classification", make_base()), long=True)
    preflight.check(make_recipe("classification", "tiny"), long=True)


def test_dora_on_eight_bits_needs_a_gpu(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    """bitsandbytes' matrix product in 8 bits then finds no scales on a CPU."""
    words = {"bits": 8, "lora": {"r": 2, "use_dora": True}}
    with pytest.raises(UserError, match="use_dora needs CUDA"):
        preflight.check(make_recipe("classification", make_base(), **words), long=True)
    preflight.check(make_recipe("classification", make_base(), **words | {"bits": 4}), long=True)


def test_a_folder_without_weights_is_refused(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    shutil.copytree(make_base(), tmp_path / "base")
    (tmp_path / "base/model.safetensors").unlink()
    recipe = make_recipe("classification", tmp_path / "base")
    with pytest.raises(UserError, match="no safetensors weights"):
        preflight.check(recipe, long=True)
    (tmp_path / "base/pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle"):
        preflight.check(recipe, long=True)


def test_answers_as_long_as_the_model_reads_are_refused(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    base = make_base(max_position_embeddings=64)
    for longest, refused in ((63, False), (64, True)):
        recipe = make_recipe("generative_qa", base, lora={}, eval={"max_new_tokens": longest})
        if refused:
            with pytest.raises(UserError, match="leaves no room for a prompt in its 64 positions"):
                preflight.check(recipe, long=True)
        else:
            preflight.check(recipe, long=True)


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (CPU_TORCH, "no driver of a GPU was found: install"),
        (CPU_TORCH._replace(hidden_by="CUDA_VISIBLE_DEVICES"), "no driver of a GPU was found"),
        (CPU_TORCH._replace(system="Darwin"), "the GPU of a Mac is not used, because bitsandbytes"),
        (
            CPU_TORCH._replace(nvidia=True),
            r"driver of NVIDIA, but torch 2\.13\.0\+cpu is not built for it: .*CUDA=cu130.*CUDA=cu126",
        ),
        (CPU_TORCH._replace(amd=True), "driver of AMD, but torch .* ROCm build .*CUDA=rocm"),
        (CUDA_TORCH._replace(nvidia=False, amd=True), "driver of AMD, but torch"),
        (
            CUDA_TORCH._replace(hidden_by="CUDA_VISIBLE_DEVICES"),
            "^CUDA_VISIBLE_DEVICES hides every",
        ),
        (
            CUDA_TORCH._replace(driver_cuda=12040),
            r"needs CUDA 13\.0, but .* CUDA 12\.4 at most: update the driver, or .*CUDA=cu126",
        ),
        (CUDA_TORCH._replace(cuda="12.6", driver_cuda=12020), "shows torch no GPU.*--gpus all"),
        (CUDA_TORCH, "shows torch no GPU: see what nvidia-smi"),
        (
            CUDA_TORCH._replace(usable="Tesla V100", capability=(7, 0)),
            r"no kernels for Tesla V100, whose compute capability is 7\.0, .*CUDA=cu126",
        ),
        (
            CUDA_TORCH._replace(
                usable="RTX 5090", capability=(12, 0), built_for=frozenset({"sm_50", "sm_90"})
            ),
            r"no kernels for RTX 5090, whose compute capability is 12\.0, .*CUDA=cu130",
        ),
    ],
)
def test_what_is_wrong_with_a_gpu_is_said_with_what_to_do(
    seen: preflight.Machine, said: str
) -> None:
    found = gpu_trouble(seen)
    assert found is not None and re.search(said, found) and "\n" not in found


@pytest.mark.parametrize(
    ("name", "capability", "built_for"),
    [
        ("Tesla T4", (7, 5), CUDA_TORCH.built_for),
        ("RTX 4090", (8, 9), CUDA_TORCH.built_for),  # by the kernels for 8.6
        ("a later one", (13, 0), frozenset({"sm_90", "compute_120"})),  # compiled when it is loaded
        ("H100", (9, 0), frozenset({"sm_90a"})),
        ("an AMD or Intel GPU", None, frozenset({"gfx1100"})),
    ],
)
def test_a_gpu_that_torch_has_kernels_for_is_used(
    name: str, capability: tuple[int, int] | None, built_for: frozenset[str]
) -> None:
    seen = CUDA_TORCH._replace(usable=name, capability=capability, built_for=built_for)
    assert gpu_trouble(seen) is None


def test_this_machine_can_be_looked_at() -> None:
    seen = preflight.machine()
    assert seen.torch == torch.__version__
    assert (gpu_trouble(seen) is None) <= (torch.cuda.is_available() or torch.xpu.is_available())


def test_float16_is_refused_for_a_base_whose_activations_are_too_large_for_it(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    for family, refused in (("llama", False), ("gemma2", True), ("gemma3_text", True)):
        recipe = make_recipe("classification", make_base(family), model={"dtype": "float16"})
        if refused:
            with pytest.raises(UserError, match=r"exceed 65,504.*: remove model\.dtype"):
                preflight.check(recipe, long=True)
        else:
            preflight.check(recipe, long=True)


def test_a_gpu_without_kernels_is_refused_unless_the_cpu_is_asked_for(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A small base too: it would be loaded there, and fail. An emulated bfloat16 is a warning."""
    seen = CUDA_TORCH._replace(usable="Tesla V100", capability=(7, 0))
    monkeypatch.setattr(preflight, "machine", lambda: seen)
    monkeypatch.setattr(room, "gpu_kind", lambda: "cuda")
    monkeypatch.setattr(room, "gpu_available", lambda: 16 * GB)
    monkeypatch.setattr(backbone, "fast_dtype", lambda place: torch.float16)
    base, given = make_base(), {"dtype": "bfloat16"}
    with pytest.raises(UserError, match=r"no kernels for Tesla V100.*or set train\.use_cpu: true"):
        preflight.check(
            make_recipe("classification", base, model=given, train={"use_cpu": False}), long=False
        )
    assert "only emulates bfloat16" in caplog.text and "computes in float16" in caplog.text
    preflight.check(make_recipe("classification", base, train={"use_cpu": True}), long=True)

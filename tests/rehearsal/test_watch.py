"""Live bytes by kind are exact on a sequence that is counted by hand."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from llama_peft.rehearsal.device.watch import Watch


@pytest.fixture
def watch() -> Watch:
    return Watch()


def made(*shape: int) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(*shape, device="cuda")


def test_bytes_are_counted_from_birth_to_death(watch: Watch) -> None:
    """Blocks have 512 bytes: 200 numbers of 4 bytes take two of them."""
    one, other = made(128), made(200)
    watch.seen(one)
    watch.seen(other)
    watch.seen(other)  # again: nothing changes
    assert watch.live["temporaries"] == 512 + 1024
    view = torch.ops.aten.slice(one, 0, 3, 7)
    watch.seen(view)
    del one
    assert watch.live["temporaries"] == 512 + 1024, "a view keeps its whole storage"
    del view, other
    assert sum(watch.live.values()) == 0
    assert watch.peak.total == 1536


def test_a_tensor_has_one_kind_at_a_time(watch: Watch) -> None:
    weight, kept, left = made(128), made(128), made(256)
    watch.mark(weight, "weights")
    watch.keep(kept)
    watch.keep(weight)
    watch.seen(left)
    assert watch.live["weights"] == watch.live["activations"] == 512
    watch.keep_all()
    assert watch.live["activations"] == 512 + 1024 and watch.live["temporaries"] == 0
    watch.mark(kept, "gradients")
    del kept, left
    assert {kind: size for kind, size in watch.live.items() if size} == {"weights": 512}


def test_the_peak_says_what_was_live_and_what_a_kernel_held(watch: Watch) -> None:
    weight = made(1000)
    watch.mark(weight, "weights")
    watch.doing = "a product"
    watch.note(extra=300)
    watch.doing = "later"
    watch.note()
    assert watch.peak.total == 4096 + 300 and watch.peak.at == "a product"
    assert (watch.peak.by_kind["weights"], watch.peak.by_kind["temporaries"]) == (4096, 300)
    watch.start()
    assert watch.peak.total == 4096


def test_tensors_on_the_cpu_do_not_count(watch: Watch) -> None:
    tensor = torch.zeros(100)
    watch.seen(tensor)
    watch.mark(tensor, "weights")
    assert sum(watch.live.values()) == 0

"Where things are computed: the device that is picked, what it can do, and the option that names it."
import pytest
import torch

from scene4m import core
from scene4m.core import BadInput, has_fast_bf16, pick_device


@pytest.mark.parametrize("capability, fast", [((6, 1), False), ((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True)])
def test_a_gpu_that_only_emulates_bfloat16_is_not_fast_at_it(monkeypatch, capability, fast):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kw: True)      # what torch says of every GPU
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: asked.append(device) or capability)
    assert has_fast_bf16("cuda:1") is fast
    assert asked == [torch.device("cuda:1")]


@pytest.fixture
def devices(monkeypatch):
    "A function that says which devices there are; tensors stay on the CPU."
    def there(*names):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in names)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in names)
        zeros = torch.zeros
        monkeypatch.setattr(core.torch, "zeros", lambda n, device=None: zeros(n) if device.type in names else zeros(n, device=device))
    return there


@pytest.mark.parametrize("there, picked", [(("cpu",), "cpu"), (("cpu", "mps"), "mps"), (("cpu", "mps", "cuda"), "cuda")])
def test_the_best_device_is_picked(devices, there, picked):
    devices(*there)
    assert pick_device().type == picked
    assert pick_device("cpu").type == "cpu"


def test_a_device_that_is_not_there_is_refused(devices):
    devices("cpu")
    for name in ("mps", "cuda", "cuda:9", "meta", "abacus"):
        with pytest.raises(BadInput, match=f"device '{name}' cannot be used here"):
            pick_device(name)


def test_mps_has_no_fast_bfloat16():
    assert has_fast_bf16("mps") is False

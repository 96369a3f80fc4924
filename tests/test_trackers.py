"A run that is stopped and resumed is one run for the services that keep its figures."

import importlib.machinery
import sys
import types

import pytest

from scene4m.base.core import TrainingFailed
from scene4m.base.training import ServiceLog
from scene4m.finetune import FinetuneConfig, finetune
from test_diverging import always_due, poison, tokens  # noqa: F401  fixtures
from test_finetune import TEST


class Service(types.ModuleType):
    "A stand-in that knows a run by its id, or by its name where `init` has none, and keeps what is logged to it."

    def __init__(self, name, by):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.by, self.runs, self.begun, self.refused = by, {}, [], []

    def init(self, project, config, resume="never", **how):
        key = how[self.by]
        if key in self.runs and resume != "allow":
            raise RuntimeError(f"the run {key} is there already")
        if self.by == "id" and key in self.runs and not how.get("allow_val_change"):
            assert self.runs[key]["config"] == config, "the settings may not change"
        self.now = self.runs.setdefault(key, dict(config=config, steps=[]))
        self.begun.append(key)
        return self.now

    def log(self, numbers, step):
        if self.now["steps"] and step <= self.now["steps"][-1]:
            self.refused.append(step)
        else:
            self.now["steps"].append(step)

    def finish(self):
        self.now = None


@pytest.fixture(params=[("wandb", "id"), ("trackio", "name")], ids=lambda p: p[0])
def service(request, monkeypatch):
    name, by = request.param
    module = Service(name, by)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_a_resumed_run_goes_on_as_one(service, tokens, tmp_path, poison):  # noqa: F811
    settings = dict(TEST, steps=8, save_every=0.0, trackers=(service.__name__,))
    poison(5, "gradient")
    with pytest.raises(TrainingFailed):
        finetune(tokens, tmp_path / "r", FinetuneConfig(**settings))
    poison()
    finetune(tokens, tmp_path / "r", FinetuneConfig(**settings, lr=1e-4))
    (run,) = service.runs.values()
    assert len(service.begun) == 2 and run["steps"] == list(range(1, 9)) and not service.refused


def test_another_folder_is_another_run(service, tmp_path):
    for folder in ("one/training", "two/training", "one/training"):
        ServiceLog(service.__name__, tmp_path / folder, {}).close()
    first, second, again = service.begun
    assert first == again != second


def test_wandb_itself_takes_what_it_is_given(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    seen = []
    for lr in (1.0, 0.5):
        log = ServiceLog("wandb", tmp_path, dict(lr=lr))
        log.log(dict(loss=lr), 1)
        seen.append((wandb.run.id, wandb.run.config["lr"]))
        log.close()
    assert seen[0][0] == seen[1][0] and [lr for _, lr in seen] == [1.0, 0.5]

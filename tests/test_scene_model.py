"""One checkpoint: saved, pushed, fetched when asked, and read again to the last weight."""

import shutil
from types import SimpleNamespace

import huggingface_hub as hf
import pytest
import torch

from scene4m.base.core import BadInput
from scene4m.scene_model import SHIPPED, SceneModel

pytestmark = pytest.mark.skipif(
    not (SHIPPED / "config.json").exists(),
    reason="no checkpoint is in the package; make one with make pretrained",
)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A stand-in for the Hub: `there` is what was uploaded, `cache` what was fetched."
    there, cache = tmp_path / "there", tmp_path / "cache"

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo, private, exist_ok):
            assert private

        def upload_folder(self, repo_id, folder_path):
            shutil.copytree(folder_path, there / repo_id)
            return f"https://huggingface.co/{repo_id}"

        def model_info(self, repo, files_metadata):
            files = [f for f in (there / repo).rglob("*") if f.is_file()]
            return SimpleNamespace(siblings=[SimpleNamespace(size=f.stat().st_size) for f in files])

    def snapshot_download(repo, local_files_only, allow_patterns, token=None):
        if not (cache / repo).exists():
            if local_files_only:
                raise hf.errors.LocalEntryNotFoundError("not in the cache")
            shutil.copytree(there / repo, cache / repo)
        return str(cache / repo)

    monkeypatch.setattr(hf, "HfApi", Api)
    monkeypatch.setattr(hf, "snapshot_download", snapshot_download)


def test_a_model_goes_to_the_hub_and_comes_back_only_when_asked(hub):
    own = SceneModel.from_pretrained(device="cpu")
    assert own.push_to_hub("someone/street").endswith("someone/street")
    with pytest.raises(BadInput, match="someone/street: there is no model folder here"):
        SceneModel.from_pretrained("someone/street", "cpu")
    got = SceneModel.from_pretrained("someone/street", "cpu", download=True)
    again = SceneModel.from_pretrained("someone/street", "cpu")  # from the cache
    for m in (got, again):
        assert torch.equal(m.model.mask_token, own.model.mask_token)
        assert m.settings == own.settings and m.world == own.world and m.clip == own.clip
        assert list(m.tokenizers) == list(own.tokenizers) == list(m.detectors)

"""The paper's whole way at a tiny size: VGG-Sound's list and clips, COSMOS and mel tokens, a trained 4M with new modalities, a report, and T5."""

import csv
import json
from dataclasses import replace

import pytest
import torch

from scene4m.captions import TextTokenizer
from scene4m.worlds.street import BUS, DOG, grammar_texts
from scene4m.base.core import BadInput, ClipSpec, get_preset, read_json
from cosmos_pair import write_pair
from scene4m.fourm import FourM
from scene4m.masking import Pixels, Text
from scene4m.app.run import run_pipeline
from scene4m.worlds.toystreet import sample_scene, write_scene
from scene4m.transfer import Summariser, Transfer, load_captioner, small_summariser


@pytest.fixture(scope="module")
def vggsound(tmp_path_factory):
    "Ten clips of two categories under VGG-Sound's names, and the list that names them; one clip of the list is gone."
    root = tmp_path_factory.mktemp("vggsound")
    (root / "clips").mkdir()
    scenes = [
        s for s in map(sample_scene, range(500)) if s.label in (BUS, DOG) and s.seen and s.heard
    ][:10]
    rows = [
        [f"-street{i:04d}", 30 * i, s.label, "test" if i % 3 == 2 else "train"]
        for i, s in enumerate(scenes)
    ]
    for (name, start, *_), scene in zip(rows, scenes):
        write_scene(scene, root / "clips" / f"{name}_{start:06d}.mp4")
    with open(root / "vggsound.csv", "w", newline="") as f:
        csv.writer(f).writerows([*rows, ["gone0000000", 10, BUS, "train"]])
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A tiny model of pixels and words in 4M's files, with its text tokenizer, and a pair of TorchScript files with COSMOS's signature."
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    text = TextTokenizer.train(grammar_texts())
    FourM.toy(
        [Pixels("rgb@32", 32, 16), Text("caption", text.vocab_size, 48)],
        dim=32,
        encoder_depth=1,
        decoder_depth=1,
        num_heads=2,
        share_embedding=False,
    ).save_pretrained(root / "base")
    text.save(root / "base" / "text_tokenizer.json")
    write_pair(root / "cosmos")
    small_summariser(grammar_texts(), dim=32, layers=1).save_pretrained(root / "t5")
    return root


def paper(trained, **train):
    preset = get_preset(
        "paper",
        audio=dict(steps=3),
        video=dict(cosmos=str(trained / "cosmos")),
        model=dict(pretrained=str(trained / "base")),
        train=dict(epochs=None, steps=4, batch_size=4, budgets=(16, 16), log_every=1, **train),
    )
    return replace(preset, clip=ClipSpec(frames=17, size=32))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_from_the_list_to_a_report(vggsound, trained, tmp_path):
    said = []
    where = dict(
        data=vggsound / "vggsound.csv", clips=vggsound / "clips", preset=paper(trained), workers=1
    )
    report = run_pipeline(tmp_path / "run", **where, say=said.append)
    model = FourM.from_pretrained(tmp_path / "run" / "model")
    assert {"audio", "video", "caption", "rgb@32"} <= set(model.modalities) and model.modalities[
        "video"
    ].vocab_size == 64_000
    old = FourM.from_pretrained(trained / "base").state_dict()
    trunk = "encoder.0.mlp.fc1.weight"  # opened for the second half of the steps
    assert not torch.equal(old[trunk], model.state_dict()[trunk])
    assert read_json(tmp_path / "run" / "training" / "run.json")["settings"]["budgets"] == [16, 16]
    assert (
        report["n"] >= 1
        and 0 <= report["category_accuracy"] <= 1
        and (tmp_path / "run" / "report.html").exists()
    )
    gone = run_rows(tmp_path / "run")["gone0000000"]
    assert gone["status"] == "refused" and gone["reason"]
    again = []
    run_pipeline(tmp_path / "run", **where, say=again.append)
    assert all(line.startswith("✓") for line in again)


def run_rows(run):
    import pandas

    table = pandas.read_parquet(run / "data" / "manifest.parquet")
    return {str(r["key"])[:11]: r for r in json.loads(table.to_json(orient="records"))}


def test_the_transfer_study_on_a_clip(vggsound, trained):
    study = Transfer(load_captioner(trained / "base"), Summariser.from_pretrained(trained / "t5"))
    found = study(next((vggsound / "clips").glob("*.mp4")))
    assert len(found.captions) == 16 and isinstance(found.summary, str)


def test_a_list_without_its_clips(vggsound, trained, tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        run_pipeline(tmp_path / "a", data=vggsound / "vggsound.csv", preset=paper(trained))
    with pytest.raises(BadInput, match="no such list"):
        run_pipeline(
            tmp_path / "b",
            data=vggsound / "nowhere.csv",
            clips=vggsound / "clips",
            preset=paper(trained),
        )

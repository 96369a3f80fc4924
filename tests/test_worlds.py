"""Any clips, any labels: the world is data, from a folder to what is said in the end."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from scene4m.base.core import BadInput, get_preset
from scene4m.curation import ClipDataset, curate
from scene4m.describe import Describer, category_probabilities
from scene4m.scene_model import SceneModel
from scene4m.app.report import evaluate_folder
from scene4m.evaluate import read_truth
from scene4m.base.media import write_clip
from scene4m.world import World, labels_in, read_captions, world_of

ROOT = Path(__file__).resolve().parents[1]
PETS = {
    "cat meowing": "A cat meows.",
    "rain": "Rain falls on leaves.",
    "church bell": "A bell rings in a tower.",
}


def clip(kind: int, seed: int, frames: bool = True):
    "Ten seconds of one kind: a coloured bar that moves, and a tone, a noise or strokes."
    rng, t = np.random.default_rng(seed), np.arange(160_000) / 16_000
    wave = [
        np.sin(2 * np.pi * 500 * t * (1 + 0.1 * np.sin(6 * t))),
        rng.normal(size=t.size) / 3,
        np.sin(2 * np.pi * 200 * t) * np.exp(-3 * (t % 1)),
    ][kind % 3]
    picture = np.zeros((20, 64, 64, 3), np.uint8)
    for k in range(20):
        at = (2 * k + seed) % 40
        picture[k, at : at + 20, :, kind % 3] = 200
    return (picture if frames else None), np.float32(wave * 0.5 * rng.uniform(0.7, 1))


def make_folder(
    folder: Path,
    labels=tuple(PETS),
    n: int = 15,
    captions=True,
    attributes=None,
    by_class=False,
    lists=True,
) -> Path:
    rows = []
    for i in range(n):
        label = labels[i % len(labels)]
        place = folder / (label if by_class else "")
        place.mkdir(parents=True, exist_ok=True)
        write_clip(place / f"c{i}.mp4", *clip(i, i), fps=2, sr=16_000)
        told = dict(attributes=json.dumps(attributes(i))) if attributes else {}
        rows.append(
            dict(
                file=f"c{i}.mp4",
                label=label,
                captions=PETS.get(label, "") if captions else "",
                **told,
            )
        )
    if lists and not by_class:
        with open(folder / "labels.csv", "w", newline="") as f:
            writer = csv.DictWriter(f, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return folder


TINY = dict(
    audio=dict(seconds=None, steps=40),
    video=dict(seconds=None, steps=40),
    model=dict(dim=48, encoder_depth=1, decoder_depth=2, num_heads=2, share_embedding=False),
    train=dict(seconds=None, steps=150, batch_size=12, targets=4),
)


def tiny(**more):
    from dataclasses import replace

    toy = get_preset("toy")
    return replace(
        toy,
        audio={**toy.audio, **TINY["audio"]},
        video={**toy.video, **TINY["video"]},
        model=TINY["model"],
        train={**toy.train, **TINY["train"], **more},
    )


# --- the record


def test_labels_come_alone_or_several():
    assert (
        labels_in("a, b") == ("a, b",)
        and labels_in("a|b | a") == ("a", "b")
        and labels_in('["a", "b"]') == ("a", "b")
    )
    assert labels_in("[oops") == ("[oops",) and labels_in("") == labels_in(None) == ()


def test_a_world_is_made_of_what_clips_say():
    rows = [
        dict(label="dog|cat", attributes=dict(breed="poodle", indoors=True, tail=None)),
        dict(label="rain", attributes=dict(breed="beagle")),
    ]
    world = world_of(rows, dict(rain=("It rains.",), snow=("It snows.",)))
    assert world.labels == ("cat", "dog", "rain") and world.captions == dict(rain=("It rains.",))
    assert world.attributes == dict(
        breed=dict(beagle=("beagle",), poodle=("poodle",)), indoors={True: ("indoors",)}
    )
    assert World.from_dict(json.loads(json.dumps(world.to_dict()))) == world
    assert (
        world.version
        == world_of(rows, dict(rain=("It rains.",))).version
        != world_of(rows[:1]).version
    )


def test_what_is_written_is_read():
    rng, world = (
        np.random.default_rng(0),
        world_of(
            [dict(label=k, attributes=dict(breed="poodle")) for k in PETS],
            {k: (v,) for k, v in PETS.items()},
        ),
    )
    for label, sentence in PETS.items():
        assert (
            world.write((label,), {}, (), rng) == sentence
            and world.parse(sentence)["label"] == label
        )
        assert world.write((label,), dict(breed="poodle"), ("Hm.",), rng) == "Hm, poodle."
        assert world.parse(world.write((label,), dict(breed="poodle"), (), rng)) == dict(
            breed="poodle", label=label
        )
    assert world.parse("nothing of it") == dict(breed=None, label=None)


@pytest.mark.parametrize(
    "record",
    [
        [],
        {"labels": "cat"},
        {"labels": ["a", "a"]},
        {"labels": [3]},
        {"moods": []},
        {"hints": [3]},
        {"attributes": {"a": 3}},
        {"captions": {"a": 3}},
    ],
)
def test_what_is_no_world_is_refused(tmp_path, record):
    (tmp_path / "world.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match="world.json"):
        World.load(tmp_path)


@pytest.mark.parametrize("grammar", ["os", "../street", "nowhere", "street.WORLD"])
def test_a_world_cannot_name_any_module_as_its_grammar(grammar):
    with pytest.raises(BadInput, match="grammar"):
        World(grammar=grammar).parse("a dog")


@pytest.mark.parametrize(
    "name,text",
    [
        ("c.json", json.dumps({k: [v] for k, v in PETS.items()})),
        ("c.yaml", "\n".join(f"{k}: {v}" for k, v in PETS.items())),
        ("c.csv", "label,caption\n" + "\n".join(f"{k},{v}" for k, v in PETS.items())),
    ],
)
def test_a_dictionary_of_captions(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_captions(tmp_path / name) == {k: (v,) for k, v in PETS.items()}


@pytest.mark.parametrize(
    "name,text",
    [
        ("c.json", "[3]"),
        ("c.json", '{"a": []}'),
        ("c.yaml", "a: {b: 3}"),
        ("c.csv", "label,text\na,b\n"),
        ("none.json", None),
    ],
)
def test_what_is_no_dictionary_is_refused(tmp_path, name, text):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=name):
        read_captions(tmp_path / name)


# --- clips


@pytest.mark.parametrize("kind", ["list", "classes", "dictionary"])
def test_curation_derives_a_world(tmp_path, kind):
    folder = make_folder(
        tmp_path / "clips",
        n=6,
        by_class=kind == "classes",
        captions=kind == "list",
        attributes=(lambda i: dict(loud=i % 2 == 0)) if kind == "list" else None,
    )
    words = None
    if kind == "dictionary":
        words = tmp_path / "words.json"
        words.write_text(json.dumps(PETS))
    curate(folder, tmp_path / "data", captions=words, store=("frames",))
    world = ClipDataset(tmp_path / "data").world
    assert world.labels == tuple(sorted(PETS)) and world.captions == (
        {k: (v,) for k, v in PETS.items()} if words else {}
    )
    assert world.attributes == (
        {"loud": {False: ("no loud",), True: ("loud",)}} if kind == "list" else {}
    )


def test_a_world_beside_the_clips_comes_first(tmp_path):
    folder = make_folder(tmp_path / "clips", n=3)
    World("mine", "7", ("rain", "snow")).save(folder)
    curate(folder, tmp_path / "data", store=("frames",))
    world = ClipDataset(tmp_path / "data").world
    assert (world.name, world.version) == ("mine", "7") and world.labels == (
        "rain",
        "snow",
        "cat meowing",
        "church bell",
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "The whole run over labels, captions and attributes that nobody foresaw."
    from scene4m.app.run import run_pipeline

    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("world")
    folder = make_folder(
        place / "clips",
        n=30,
        attributes=lambda i: dict(breed=("poodle", "beagle", "collie")[i % 3]),
    )
    return (
        folder,
        place / "run",
        run_pipeline(place / "run", data=folder, preset=tiny(), workers=1, say=lambda *_: None),
    )


def test_strange_labels_are_learnt_and_said(run):
    folder, out, report = run
    ck = SceneModel.from_pretrained(out / "model")
    assert ck.labels == tuple(sorted(PETS)) and set(ck.world.attributes) == {"breed"}
    assert (
        report["n"] == 6
        and report["category_accuracy"] > 0.8
        and report["attribute_accuracy"]["breed"] > 0.8
    )
    assert report["world_version"] == ck.world.version and report["abstention"]["abstains"] < 0.5
    described = [Describer(ck)(folder / f"c{i}.mp4") for i in range(6)]
    said = [d for d in described if not d.abstains]
    assert len(said) >= 4, [d.description for d in described]
    assert all(d.categories[0]["label"] in PETS and len(d.categories) == 3 for d in described)
    right = [
        PETS[list(PETS)[i % 3]].rstrip(".") in d.description
        for i, d in enumerate(described)
        if not d.abstains
    ]
    assert np.mean(right) > 0.7, [d.description for d in described]


def test_the_report_shows_the_folders_own_labels(run):
    _, out, _ = run
    page = (out / "report.html").read_text()
    assert "church bell" in page and "breed" in page and "dog barking" not in page


def test_another_folder_of_the_same_world_is_evaluated(run, tmp_path):
    _, out, _ = run
    folder = make_folder(
        tmp_path / "more", labels=("rain|cat meowing", "opera", "church bell"), n=6
    )
    report = evaluate_folder(folder, out / "model", workers=0)
    assert report["n"] == 4 and report["unknown_labels"] == ["opera"]
    assert [c.labels for c in read_truth(folder, ("rain",))] == [("rain", "cat meowing")] * 2


def test_without_labels_the_sentence_stands_alone(run, monkeypatch):
    "Captions without labels: there are no categories, and the confidence is that of the words."
    from dataclasses import replace

    folder, out, _ = run
    ck = SceneModel.from_pretrained(out / "model")
    bare = replace(ck, world=replace(ck.world, labels=()))
    d = Describer(bare)(folder / "c0.mp4")
    assert d.categories == [] and 0 < d.confidence <= 1 and (d.abstains or d.description)
    assert category_probabilities(np.zeros((2, 0))).shape == (2, 0)


# --- nothing of one world in the parts that serve all

COMPONENTS = (
    "captions",
    "tokenize",
    "masking",
    "fourm",
    "generate",
    "finetune",
    "ood",
    "scene_model",
    "describe",
    "base/metrics",
    "evaluate",
    "transfer",
)
STREET = (
    r"\bLABELS\b|\bNOUNS\b|\bPHRASES\b|\bATTRIBUTE_VALUES\b|\bparse_caption\b|\bwrite_caption\b"
    r"|\bworlds\b(?!`)|\bon_screen\b|dog barking|\bBUS\b|\bDOG\b"
)


@pytest.mark.parametrize("module", COMPONENTS)
def test_components_know_no_world(module):
    source = (ROOT / "scene4m" / f"{module}.py").read_text(encoding="utf-8")
    source = re.sub(r"^# (?:%%|AUTOGENERATED).*$", "", source, flags=re.M)  # names of notebooks
    assert not re.findall(STREET, source)

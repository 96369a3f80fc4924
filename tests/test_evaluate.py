"""The evaluation: figures against ones worked out by hand, and the report against both."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scene4m import evaluate as ev
from scene4m.app.report import evaluate_folder, percent
from scene4m.worlds.street import BUS, DOG, LABELS, MAN, WORLD, Attributes, write_captions
from scene4m.base.core import BadInput
from scene4m.describe import ClipTokens, write_sentences
from scene4m.scene_model import SHIPPED, SceneModel

shipped = pytest.mark.skipif(
    not (SHIPPED / "config.json").exists(),
    reason="no checkpoint is in the package; make one with make pretrained",
)


def known(label, heard=True, group="", detailed=True, **attributes):
    a = Attributes(
        label, **{"night": False, "rain": False, "near": True, "on_screen": True, **attributes}
    )
    truth = {k: v for k, v in a.to_dict().items() if k != "label"}
    return ev.KnownClip(
        None, label, truth, write_captions(a, 2, 0), group, detailed, heard, seen=a.on_screen
    )


def says(*labels):
    return [write_captions(Attributes(label), 1, 0)[0] for label in labels]


# --- lists of known clips


def test_lists_say_what_they_know(tmp_path):
    (tmp_path / "manifest.csv").write_text(
        'file,label,group,captions,attributes,heard\na.mp4,dog barking,g1,"[""one"", ""two""]",'
        '"{""night"": true, ""on_screen"": false}",False\n'
        "b.flac,dog barking,,a dog,,\nc.mp4,opera,,,,\n"
    )
    a, b = ev.read_truth(tmp_path, LABELS)
    assert (a.group, a.captions, a.heard, a.detailed, a.attributes["night"]) == (
        "g1",
        ["one", "two"],
        False,
        True,
        True,
    )
    assert (b.group, b.captions, b.heard, b.detailed, b.attributes) == (
        "b.flac",
        ["a dog"],
        None,
        False,
        {},
    )
    (tmp_path / "truth.csv").write_text("file,label\nz.mp4,driving buses\n")
    assert [c.file.name for c in ev.read_truth(tmp_path)] == ["z.mp4"], (
        "truth.csv comes before manifest.csv"
    )


@pytest.mark.parametrize(
    "text,match",
    [
        ("", "columns"),
        ("name,kind\na,b\n", "columns"),
        ("file,label\na.mp4,opera\n", "none of its labels"),
        ("\xff\xfe\x80", "UTF-8"),
        ('file,label,attributes\na.mp4,dog barking,"{night"\n', "a.mp4: its row"),
        ('file,label,attributes\na.mp4,dog barking,"{""mood"": [3]}"\n', "a.mp4: its row.*mood"),
    ],
    ids=[
        "empty",
        "other columns",
        "unknown label",
        "not a text",
        "attributes",
        "unknown attribute",
    ],
)
def test_lists_that_are_of_no_use(tmp_path, text, match):
    (tmp_path / "truth.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput, match=match) as e:
        ev.read_truth(tmp_path, LABELS)
    assert "\n" not in str(e.value)


def test_a_place_for_the_report_is_looked_for_first(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="file/report: this folder cannot be made"):
        evaluate_folder(tmp_path, out=tmp_path / "file" / "report")


@pytest.mark.parametrize("counts", [(1, 1), (5, 3, 2), (4, 4), (3, 1, 1, 1), (10,) * 14])
def test_every_clip_gets_the_sound_of_another_category(counts):
    labels = list(
        np.random.default_rng(0).permutation(
            [LABELS[i] for i, n in enumerate(counts) for _ in range(n)]
        )
    )
    swap = ev.derange(labels, seed=3)
    assert sorted(swap) == list(range(len(labels))) and all(
        labels[i] != labels[j] for i, j in enumerate(swap)
    )
    assert list(swap) == list(ev.derange(labels, seed=3))


def test_where_one_category_is_too_common_most_are_still_swapped():
    labels = [DOG] * 6 + [BUS] * 2
    assert sum(labels[i] != labels[j] for i, j in enumerate(ev.derange(labels))) == 4


# --- figures by hand


def test_by_what_there_is_to_perceive():
    clips = [
        known(DOG),
        known(DOG, on_screen=False),
        known(BUS, on_screen=False, near=False),
        known(MAN, heard=False),
        known(MAN, detailed=False),
    ]
    said = says(DOG, DOG, DOG, BUS, MAN)
    said[1] = write_captions(Attributes(DOG, colour="red"), 1, 0)[
        0
    ]  # of what is off screen nobody knows the colour
    got = ev.scene_figures([DOG, DOG, DOG, BUS, MAN], said, clips, WORLD)
    assert {k: (v["n"], v["accuracy"], v["invented_rate"]) for k, v in got.items()} == {
        "seen and heard": (1, 1.0, 0.0),
        "only heard": (2, 0.5, 0.5),
        "only seen": (1, 0.0, 0.0),
    }
    assert got["only heard"]["chance"] == 0.5 and got["seen and heard"]["interval"] == [1.0, 1.0]
    assert all(
        v["n"] == 0 and v["accuracy"] is None
        for v in ev.scene_figures([DOG], says(DOG), [known(DOG, detailed=False)], WORLD).values()
    )


def test_knowing_when_not_to_speak():
    p = np.full((4, len(LABELS)), 0.01)
    labels = [DOG, DOG, BUS, BUS]
    for i, q in enumerate((0.9, 0.3, 0.9, 0.2)):
        p[i, LABELS.index(DOG)] = q
    tokens = SimpleNamespace(ood=dict(audio=np.full(4, np.nan), video=np.full(4, np.nan)))
    checkpoint = SimpleNamespace(settings=dict(threshold=0.5), labels=LABELS, world=WORLD)
    got = ev.abstention_figures(
        checkpoint, tokens, says(DOG, DOG, DOG, DOG), p, [(name,) for name in labels]
    )
    assert got == dict(n=4, abstains=0.5, right_when_sure=0.5, right_when_unsure=0.5)
    tokens.ood = dict(
        audio=np.full(4, 0.9), video=np.array([0.1, 0.9, 1.8, np.nan])
    )  # the third picture is like nothing in training
    got = ev.abstention_figures(
        checkpoint, tokens, says(DOG, DOG, DOG, DOG), p, [(name,) for name in labels]
    )
    assert got == dict(n=4, abstains=0.75, right_when_sure=1.0, right_when_unsure=1 / 3)


def test_nats_are_differences_to_knowing_nothing(monkeypatch):
    table = {
        (): [-9.0, -9.0],
        ("audio",): [-4.0, -6.0],
        ("video",): [-8.0, -8.0],
        ("audio", "video"): [-2.0, -4.0],
    }
    tokens = ClipTokens(
        dict(audio=torch.tensor([[1], [2]])), dict(audio=np.array([True, True])), {}
    )

    def nats(checkpoint, given, texts, allowed=("audio", "video")):
        own = given.ids["audio"][0, 0] == 1
        return np.array(
            table[allowed] if own else [-10.0, -10.0]
        )  # with another clip's sound it is worse than nothing

    monkeypatch.setattr(ev, "caption_nats", nats)
    checkpoint = SimpleNamespace(text=SimpleNamespace(encode=lambda t: [1]))
    got = ev.nats_gained(checkpoint, tokens, ["a", "b"], np.array([1, 0]), ["g", "h"])
    assert (got["audio"], got["video"], got["both"], got["synergy"], got["swapped"]) == (
        4.0,
        1.0,
        6.0,
        2.0,
        -1.0,
    )
    assert got["intervals"]["audio"] == [3.0, 5.0]


def test_chance_is_the_best_constant_answer():
    clips = [
        known(DOG, colour="red", count=1),
        known(DOG, colour="red", count=2),
        known(BUS, colour="blue", night=True),
        known(MAN, colour="red", count=2),
    ]
    got = ev.attribute_figures(says(DOG, DOG, BUS, MAN), clips, WORLD)
    assert (
        got["chance"]["category_accuracy"] == 0.5
        and got["chance"]["attribute_accuracy"]["colour"] == 0.75
    )
    assert (
        got["chance"]["attribute_accuracy"]["count"] == pytest.approx(2 / 3)
        and got["chance"]["attribute_accuracy"]["night"] == 0.75
    )
    assert got["attribute_accuracy"]["colour"] == 0.0, "what is left out is not right"
    bare = ev.attribute_figures(says(DOG), [known(DOG, detailed=False)], WORLD)
    assert (
        bare["exact_accuracy"] is None
        and set(bare["attribute_accuracy"].values()) == {None}
        and bare["chance"]["category_accuracy"] == 1.0
    )


def test_intervals_draw_sources_together():
    right = [1.0] * 20 + [0.0] * 20
    alone, together = (
        ev.share_right(right, g)["interval"] for g in (range(40), ["a"] * 20 + ["b"] * 20)
    )
    assert together == [0.0, 1.0] and 0.3 < alone[0] < alone[1] < 0.7
    assert ev.share_right([], []) == dict(n=0, accuracy=None, interval=None)


def test_the_probe_is_kept_beside_the_model(tmp_path):
    mels = np.random.default_rng(0).normal(size=(14, 80, 64)).astype(np.float32)
    probe = ev.train_probe(mels, list(LABELS), LABELS, steps=5)
    assert ev.load_probe(tmp_path) is None
    ev.save_probe(probe, tmp_path)
    again = ev.load_probe(tmp_path)
    x = torch.from_numpy(mels)
    assert torch.allclose(probe(x), again(x), atol=0.02)  # kept in 16 bits
    assert (
        ev.imagined_accuracy(SimpleNamespace(tokenizers={}), None, [], [], again)
        == ev.imagined_accuracy(SimpleNamespace(tokenizers={}), None, [1, 2], [], None)
        == dict(n=0, accuracy=None, interval=None)
    )


# --- with a model


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    "Eight clips and one broken file, evaluated once, with the report."
    from scene4m.worlds.toystreet import write_street

    folder = write_street(tmp_path_factory.mktemp("street") / "clips", 8, seed=77, workers=1)
    (folder / "broken.mp4").write_bytes(b"\0" * 2000)
    rows = (folder / "truth.csv").read_text().splitlines()
    first = rows[1].split(",", 1)[1]
    unknown = ",".join("opera" if c == "label" else "" for c in rows[0].split(","))
    (folder / "truth.csv").write_text("\n".join([*rows, "broken.mp4," + first, unknown]) + "\n")
    out = folder.parent / "report"
    return evaluate_folder(folder, workers=0, out=out), out, folder


@shipped
def test_the_report_counts_what_it_could_not_read(evaluated):
    report, out, folder = evaluated
    assert report["n"] == 8 and report["refused"] == 1 and report["unknown_labels"] == ["opera"]
    assert (
        report["world_version"] == json.loads((folder / "street.json").read_text())["world_version"]
    )
    assert (
        "8 clips" in (page := (out / "report.html").read_text())
        and "1 more that could not be read" in page
    )
    for sense, d in report["by_sense_details"].items():
        assert report["category_accuracy_by_sense"][sense] == d["accuracy"] and d["n"] <= 8
    assert set(report["nats_gained"]) == {
        "audio",
        "video",
        "both",
        "swapped",
        "synergy",
        "intervals",
    }
    assert (
        report["nats_gained"]["intervals"]["both"][0]
        <= report["nats_gained"]["both"]
        <= report["nats_gained"]["intervals"]["both"][1]
    )
    assert sum(d["n"] for d in report["by_scene"].values()) == 8


@shipped
def test_the_page_and_the_file_agree(evaluated):
    report, out, _ = evaluated
    stored, page = json.loads((out / "report.json").read_text()), (out / "report.html").read_text()
    assert (
        stored["category_accuracy"] == report["category_accuracy"]
        and percent(stored["category_accuracy"]) in page
    )
    for name in ("both", "audio", "swapped"):
        assert str(round(stored["nats_gained"][name], 2)) in page
    for name in report["chance"]["attribute_accuracy"]:
        assert name.replace("_", " ") in page
    assert (
        all("alt=" in tag for tag in re.findall("<img[^>]*>", page))
        and page.count("<audio") >= 8
        and not re.search(r"(src|href)=.https?:", page)
    )


@shipped
def test_the_same_clips_give_the_same_figures(evaluated):
    report, _, folder = evaluated
    again = evaluate_folder(folder, workers=0)
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in report.items() if k != "seconds"
    }


@shipped
def test_nothing_is_said_of_nothing_and_single_clips_score_like_many(evaluated):
    _, _, folder = evaluated
    checkpoint = SceneModel.from_pretrained()
    clips = ev.read_truth(folder)[:4]
    tokens = ev.tokenize_arrays(checkpoint, ev.read_clips(checkpoint, [c.file for c in clips], 0))
    swap = np.array([1, 2, 3, 0])
    said, believed = ev.scenario_answers(checkpoint, tokens, swap)
    assert said["none"] == write_sentences(checkpoint, tokens, ()) and len(set(said["none"])) == 1
    assert (
        all(p.shape == (4, 14) and np.allclose(p.sum(1), 1) for p in believed.values())
        and np.ptp(believed["none"], 0).max() == 0
    )
    swapped = ev.swap_sounds(tokens, swap)
    assert (swapped.ids["audio"][0] == tokens.ids["audio"][1]).all() and (
        swapped.ids["video"] == tokens.ids["video"]
    ).all()
    texts = [checkpoint.text.encode(c.captions[0]) for c in clips]
    many = ev.caption_nats(checkpoint, tokens, texts)
    for i in range(4):
        assert ev.caption_nats(checkpoint, tokens.take([i]), texts[i : i + 1])[0] == pytest.approx(
            many[i], abs=1e-3
        )
    deaf = ClipTokens(tokens.ids, dict(tokens.has, audio=np.zeros(4, bool)), tokens.ood)
    assert ev.caption_nats(checkpoint, deaf, texts, ("audio",)) == pytest.approx(
        ev.caption_nats(checkpoint, tokens, texts, ()), abs=1e-3
    )

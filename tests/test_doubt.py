"""Doubt comes first, and nothing that could be taken for an answer; what part was looked at."""

import html
import json
import pickle
import re
import shutil
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from scene4m import describe, evaluate
from scene4m.app.report import evaluate_folder
from scene4m.app import long, cli, widgets
from scene4m.worlds.street import LABELS, parse_caption
from scene4m.base.core import ClipSpec
from scene4m.app.long import describe_long, to_vtt
from scene4m.describe import Describer, load_arrays
from scene4m.scene_model import SHIPPED, SceneModel
from scene4m.base.media import read_clip, write_clip
from scene4m.worlds.toystreet import sample_scene, street_clip, street_seed, write_scene

pytestmark = pytest.mark.skipif(
    not (SHIPPED / "config.json").exists(), reason="no checkpoint is in the package"
)
COLOURS = (
    (255, 255, 255),
    (255, 255, 0),
    (0, 255, 255),
    (0, 255, 0),
    (255, 0, 255),
    (255, 0, 0),
    (0, 0, 255),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_bars(path, seconds):
    "A test pattern: seven bars of colour, and a tone of 1 kHz."
    bars = np.array(COLOURS, np.uint8)[None].repeat(64, 0).repeat(12, 1)
    tone = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(round(seconds * 16_000)) / 16_000)
    return write_clip(
        path,
        np.ascontiguousarray(np.broadcast_to(bars, (round(seconds * 4), *bars.shape))),
        tone.astype(np.float32),
        4,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A test pattern of ten seconds and one of a minute, and a clip of the street."
    place = tmp_path_factory.mktemp("doubt")
    write_bars(place / "bars.mp4", 10)
    write_bars(place / "minute.mp4", 60)
    write_scene(sample_scene(street_seed("test", 11)), place / "street.mp4")
    return place


@pytest.fixture(scope="module")
def describer():
    return Describer.from_pretrained()


@pytest.fixture(scope="module")
def doubter(describer):
    "A model for which nothing is ever likely enough."
    settings = dict(describer.checkpoint.settings, threshold=1.1)
    return Describer(replace(describer.checkpoint, settings=settings))


@pytest.fixture(scope="module")
def doubting_folder(tmp_path_factory):
    "The same model as a folder."
    model = shutil.copytree(SHIPPED, tmp_path_factory.mktemp("model") / "model")
    settings = json.loads((model / "describe.json").read_text())
    (model / "describe.json").write_text(json.dumps(dict(settings, threshold=1.1)))
    return model


def command(*args):
    return CliRunner().invoke(cli.app, [str(a) for a in args])


def words_of(page):
    "The text of a page, alternative texts included, without its pictures and sounds."
    page = re.sub(r'(src|style|d|points)="[^"]*"', "", page)
    return html.unescape(re.sub(r"<style.*?</style>|<script.*?</script>", "", page, flags=re.S))


def gives_no_answer(text):
    "Whether a text holds no probability and no sentence or label that names a category."
    assert "I do not know" in text
    assert "%" not in text and not any(label in text for label in LABELS)
    assert parse_caption(text).label is None and "best guess" not in text
    return True


# ---- the description itself


@pytest.mark.parametrize("name", ["bars.mp4", "street.mp4"])
def test_a_description_that_abstains_says_so_first_and_names_nothing(
    folder, describer, doubter, name
):
    d = (describer if name == "bars.mp4" else doubter)(folder / name)
    assert d.abstains and d.description.startswith("I do not know") and d.reason in d.description
    assert gives_no_answer(d.description) and d.direction == ""
    whole = d.to_dict()
    assert {"confidence", "categories", "guess", "reason", "senses"} <= set(whole) and len(
        whole["categories"]
    ) == len(LABELS)


def test_of_nothing_nothing_is_said(folder, describer):
    settings = dict(describer.checkpoint.settings, threshold=0.0)
    rash = Describer(replace(describer.checkpoint, settings=settings))
    d = rash(folder / "street.mp4", senses=())
    assert (
        d.abstains
        and gives_no_answer(d.description)
        and "nothing to hear and nothing to see" in d.reason
    )


def test_subtitles_hold_no_guess(folder, doubter):
    text = to_vtt(list(describe_long(doubter, folder / "street.mp4")))
    assert gives_no_answer(text) and text.count("-->") == 1


# ---- the command line


def test_the_command_line_prints_no_number_where_the_model_abstains(folder, doubting_folder):
    done = command("describe", "--model", doubting_folder, folder / "street.mp4")
    assert done.exit_code == 0, done.output
    said = done.stdout.replace(str(folder / "street.mp4"), "")
    assert gives_no_answer(said) and "sure" not in said and "likely:" not in said
    assert "sound used, picture used" in said


def test_the_command_line_says_how_sure_it_is_where_it_is(folder):
    done = command("describe", folder / "street.mp4")
    assert (
        "I do not know" not in done.stdout
        and re.search(r"sure: \d+%", done.stdout)
        and "likely: " in done.stdout
    )


def test_json_keeps_its_fields_where_the_model_abstains(folder, doubting_folder):
    done = command("describe", "--json", "--model", doubting_folder, folder / "street.mp4")
    d = json.loads(done.stdout)
    assert (
        d["abstains"]
        and 0 < d["confidence"] <= 1
        and len(d["categories"]) == len(LABELS)
        and parse_caption(d["guess"]).label
    )


def test_the_subtitle_file_holds_no_guess(folder, doubting_folder, tmp_path):
    done = command(
        "describe",
        "--model",
        doubting_folder,
        "--vtt",
        tmp_path / "said.vtt",
        folder / "street.mp4",
    )
    assert done.exit_code == 0 and gives_no_answer(
        (tmp_path / "said.vtt").read_text(encoding="utf-8")
    )


def test_what_is_spoken_holds_no_guess(folder, doubting_folder, monkeypatch):
    spoken = []
    monkeypatch.setattr(long, "speech_command", lambda text: ["voice", text])
    monkeypatch.setattr(long, "speak", spoken.append)
    done = command("describe", "--speak", "--model", doubting_folder, folder / "street.mp4")
    assert done.exit_code == 0 and gives_no_answer(" ".join(spoken))


# ---- the widgets and the app, which shows one of them


def shown(panel):
    "Everything that stands on a panel: texts, and the words of its pictures."

    def one(w):
        if isinstance(w, widgets.widgets.Box):
            return " ".join(map(one, w.children))
        return words_of(str(getattr(w, "value", ""))) if isinstance(w, widgets.widgets.HTML) else ""

    return one(panel)


def test_the_widget_shows_doubt_and_clears_what_it_said_before(folder, describer, doubter):
    panel = widgets.DescribeWidget(describer, [folder / "street.mp4"])
    p = panel.parts
    p.temperature.value = 0.5
    p.run.click()
    assert "Confidence" in shown(panel) and p.categories in panel.children and p.categories.png
    panel.describer = doubter
    p.run.click()
    assert (
        gives_no_answer(shown(panel))
        and "Confidence" not in shown(panel)
        and p.sentence in panel.children
    )
    for part in (p.categories, p.attention, p.words, p.drawn):
        assert part not in panel.children and not part.value
    p.word.value = p.word.max
    assert gives_no_answer(shown(panel)) and gives_no_answer(words_of(panel.static()))
    panel.describer = describer
    p.run.click()
    assert p.categories in panel.children and "Confidence" in shown(panel)


def test_the_test_pattern_in_the_widget(folder, describer):
    panel = widgets.DescribeWidget(describer, [folder / "bars.mp4"])
    panel.parts.run.click()
    assert panel.said.abstains and gives_no_answer(shown(panel))


def test_the_table_of_senses_names_nothing(folder, doubter):
    table = words_of(widgets.modality_table(doubter, widgets.open_clip(folder / "street.mp4")))
    assert gives_no_answer(table) and table.count("I do not know") == 3


def test_words_are_not_drawn_from_a_clip_that_the_model_does_not_know(folder, describer, doubter):
    panel = widgets.ImagineWidget(doubter, [folder / "street.mp4"])
    p = panel.parts
    p.wanted.value = "words"
    p.run.click()
    assert gives_no_answer(shown(panel)) and p.back.disabled
    panel.describer = describer
    p.run.click()
    assert parse_caption(p.outcome.value).label and not p.back.disabled
    panel.describer = doubter
    p.run.click()
    assert gives_no_answer(shown(panel)) and gives_no_answer(p.message.value) and p.back.disabled


def test_masking_hides_no_words_that_the_model_does_not_stand_by(folder, doubter):
    panel = widgets.MaskingWidget(folder / "street.mp4", doubter)
    assert gives_no_answer(shown(panel)) and "give a caption" in panel.parts.message.value
    panel.parts.seen.value = 32
    assert "Words shown" in panel.parts.words.value and parse_caption(shown(panel)).label is None
    assert (
        parse_caption(
            shown(widgets.MaskingWidget(folder / "street.mp4", doubter, "a dog is barking"))
        ).label
        == "dog barking"
    )


# ---- the report


@pytest.fixture(scope="module")
def report(tmp_path_factory, doubting_folder):
    "The report of four clips by a model that always abstains, and its examples alone."
    from scene4m.worlds.toystreet import write_street

    place = tmp_path_factory.mktemp("report")
    street = write_street(place / "clips", 4, seed=78, workers=1)
    evaluate_folder(street, doubting_folder, workers=0, out=place)
    page = (place / "report.html").read_text(encoding="utf-8")
    return page, re.findall(
        r"<table.*?</table>", page[page.index("Clips and what is said") :], flags=re.S
    )


def test_examples_of_the_report_hold_no_answer_of_the_model(report):
    page, tables = report
    tables = [t for t in tables if "What is said about" in t]
    assert len(tables) == 4
    for table in tables:
        rows = re.findall(r"<tr>.*?</tr>", table, flags=re.S)
        models = [words_of(r) for r in rows if "the model" in r]
        assert len(models) == 3 and all(map(gives_no_answer, models)) and "likeliest" not in table
    assert page.count("Does not know: ") >= 4 and "Right: " not in page and "Wrong: " not in page


# ---- how much of a recording was looked at


def test_a_minute_is_said_to_be_described_by_its_first_ten_seconds(folder, describer):
    d = describer(folder / "minute.mp4")
    assert (
        "first 10 seconds of 60" in d.part and "--vtt" in d.part and d.to_dict()["part"] == d.part
    )
    assert "seconds 20 to 30 of 60" in describer(folder / "minute.mp4", start=20.0).part
    assert (
        describer(folder / "bars.mp4").part
        == describer(folder / "minute.mp4", start=50.0).part
        == ""
    )


def test_the_command_line_says_it_and_how_to_get_the_rest(folder, tmp_path):
    done = command("describe", folder / "minute.mp4", folder / "bars.mp4")
    assert done.stdout.count("first 10 seconds of 60") == 1 and done.stdout.count("--vtt") == 1
    assert (
        "first 10 seconds of 60"
        in json.loads(command("describe", "--json", folder / "minute.mp4").stdout)["part"]
    )
    done = command("describe", "--vtt", tmp_path / "all.vtt", folder / "minute.mp4")
    text = (tmp_path / "all.vtt").read_text(encoding="utf-8")
    assert "first 10 seconds" not in done.stdout + text and "00:01:00" in text


def test_it_is_spoken(folder, monkeypatch):
    spoken = []
    monkeypatch.setattr(long, "speech_command", lambda text: ["voice", text])
    monkeypatch.setattr(long, "speak", spoken.append)
    command("describe", "--speak", folder / "minute.mp4")
    assert "first 10 seconds of 60" in spoken[-1]


def test_the_widget_says_it(folder, describer):
    panel = widgets.DescribeWidget(describer, [folder / "minute.mp4"])
    panel.parts.run.click()
    assert "first 10 seconds of 60" in shown(panel)
    panel.parts.upload.value = [
        dict(
            name="m.mp4",
            type="",
            size=1,
            content=(folder / "minute.mp4").read_bytes(),
            last_modified=datetime.now(),
        )
    ]
    panel.parts.run.click()
    assert panel.sample.name == "m.mp4" and "first 10 seconds of 60" in shown(panel)


@pytest.mark.parametrize(
    "header, filled, expected",
    [
        (10.0, 10.0, ""),
        (10.3, 10.0, ""),
        (3.0, 3.0, ""),
        (60.0, 4.0, ""),
        (60.0, 10.0, "of 60"),
        (0.0, 10.0, "more may follow"),
        (0.0, 4.0, ""),
        (5.0, 10.0, "more may follow"),
    ],
)
def test_headers_that_say_too_little_too_much_or_nothing(folder, header, filled, expected):
    got = read_clip(folder / "bars.mp4")
    got = replace(got, duration=filled, info=replace(got.info, duration=header))
    said = describe.part_of(got, 0.0, 10.0)
    assert bool(said) == bool(expected) and expected in said


# ---- found by reading


def test_keeping_a_probe_leaves_the_callers_weights_alone(tmp_path):
    probe = evaluate.MelProbe(14).eval()
    with torch.no_grad():
        for p in probe.parameters():
            p.add_(1e-5)
    before = {k: v.clone() for k, v in probe.state_dict().items()}
    evaluate.save_probe(probe, tmp_path)
    after = probe.state_dict()
    assert all(v.dtype == after[k].dtype and torch.equal(v, after[k]) for k, v in before.items())
    kept = evaluate.load_probe(tmp_path).state_dict()
    assert all(
        torch.allclose(v.float(), kept[k].float(), rtol=1e-2, atol=1e-2) for k, v in before.items()
    )


def test_the_likelihood_of_many_captions_is_computed_in_batches(folder, describer, monkeypatch):
    ck = describer.checkpoint
    frames, wave = street_clip(sample_scene(street_seed("test", 11)))
    clip = describe.ClipArrays(
        frames, ck.front(torch.from_numpy(wave)).numpy(), dict(audio="used", video="used")
    )
    tokens = describe.tokenize_arrays(ck, [clip]).take([0] * 80)
    tokens.has["audio"][70:] = False
    texts = [
        ck.text.encode(
            "a dog is barking"
            if i % 3
            else "close by and in view, a red bus is driving by at night"
        )
        for i in range(80)
    ]
    rows, encode = [], ck.model.encode
    monkeypatch.setattr(
        ck.model,
        "encode",
        lambda batch, *a: rows.append(len(batch["video"]["tensor"])) or encode(batch, *a),
    )
    batched = evaluate.caption_nats(ck, tokens, texts)
    assert max(rows) <= 64 and sum(rows) == 80
    rows.clear()
    at_once = evaluate.caption_nats(ck, tokens, texts, batch_size=80)
    assert (
        max(rows) == 70
        and np.allclose(batched, at_once, atol=1e-3)
        and len(set(batched.round(2))) == 4
    )


@pytest.fixture(scope="module")
def with_cosmos(tmp_path_factory):
    "An untrained model that sees through COSMOS."
    from scene4m.audio_tokenizer import AudioTokenizer, AudioTokenizerConfig
    from scene4m.captions import TextTokenizer
    from scene4m.worlds.street import WORLD, grammar_texts
    from cosmos_pair import write_pair
    from scene4m.app.cosmos import CosmosTokenizer
    from scene4m.fourm import FourM
    from scene4m.masking import Text, TokenGrid

    place = tmp_path_factory.mktemp("cosmos")
    audio = AudioTokenizer(AudioTokenizerConfig()).eval()
    video = CosmosTokenizer.from_pretrained(write_pair(place / "pair"), device="cpu", size=32)
    text = TextTokenizer.train(grammar_texts())
    grids = [
        TokenGrid(n, t.vocab_size, tuple(t.grid())) for n, t in (("audio", audio), ("video", video))
    ]
    net = FourM.toy(
        [*grids, Text("caption", text.vocab_size, 48), TokenGrid("category", 14, (1, 1))],
        dim=32,
        encoder_depth=1,
        decoder_depth=1,
        num_heads=2,
    )
    tokenizers = dict(audio=audio, video=video)
    model = SceneModel(net, tokenizers, text, WORLD, ClipSpec(frames=17, size=32))
    return model.save_pretrained(place / "model")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_on_standard_output_there_are_answers_only(with_cosmos, folder, tmp_path, monkeypatch):
    "A model with COSMOS prints checksums when it is loaded: not among the lines of JSON."
    (tmp_path / "labels.csv").write_text("file,label\nstreet.mp4,dog barking\n")
    shutil.copy(folder / "street.mp4", tmp_path)
    read = evaluate.read_clips
    monkeypatch.setattr(evaluate, "read_clips", lambda ck, files, _: read(ck, files, 0))
    ways = [["describe", folder / "street.mp4", folder / "bars.mp4"], ["evaluate", tmp_path]]
    for args, answers in zip(ways, (2, 1)):
        done = command(*args, "--json", "--model", with_cosmos)
        assert done.exit_code == 0 and "sha256" in done.stderr
        assert [isinstance(json.loads(line), dict) for line in done.stdout.splitlines()] == [
            True
        ] * answers


def test_processes_that_read_clips_load_no_model(describer, folder, monkeypatch):
    "What they would print goes past the command line, straight to standard output."
    monkeypatch.setattr(
        SceneModel,
        "from_pretrained",
        lambda *a: pytest.fail("a model was loaded to read a clip"),
    )
    ck = describer.checkpoint
    arrays = evaluate.read_clips(ck, [folder / "street.mp4", folder / "none.mp4"], workers=0)
    assert arrays[0].senses == dict(audio="used", video="used") and "none.mp4" in arrays[1]
    reader = pickle.loads(pickle.dumps((ck.clip, ck.front)))
    assert np.allclose(load_arrays(folder / "street.mp4", *reader).mel, arrays[0].mel)

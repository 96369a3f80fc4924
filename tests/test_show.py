"Figures, players and pages: what goes in comes out, and nothing comes from outside."

import io
import re
import threading
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from scene4m.base import page as html
from scene4m.base import show
from scene4m.base.core import BadInput

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (16, 32, 32, 3)).astype(np.uint8)
WAVE = (0.3 * np.sin(np.arange(16_000) / 9)).astype(np.float32)
MEL = RNG.normal(-40, 10, (80, 62)).astype(np.float32)
MASK = RNG.random((2, 8, 8)) < 0.5
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Reader(HTMLParser):
    "Collects tags, checks that they are closed in order, and keeps every address."

    VOID = {"img", "input", "meta", "br", "link"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.addresses += [v for k, v in attrs.items() if k in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"{tag} closes something else"

    def all(self, tag):
        return [a for t, a in self.tags if t == tag]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


FIGURES = dict(
    sheet=lambda: show.contact_sheet(FRAMES),
    video=lambda: show.video_reconstruction(FRAMES, FRAMES[::-1], difference=True),
    sound=lambda: show.audio_reconstruction(WAVE, MEL, MEL + 1, difference=True),
    wave=lambda: show.waveform_and_mel(WAVE, MEL),
    tokens=lambda: show.token_picture(RNG.integers(0, 9, (5, 13))),
    usage=lambda: show.usage_histogram([3, 0, 1]),
    losses=lambda: show.loss_curves([dict(step=i, loss=1 / (i + 1)) for i in range(9)]),
    bars=lambda: show.bars({"a": {"x": 0.5}}, {"x": 0.1}, title="Bars"),
    confusion=lambda: show.confusion(["a", "b"], ["a", None], ["a", "b"]),
    mask=lambda: show.masked_clip(FRAMES, MEL, [MASK, ~MASK], [MASK[0], ~MASK[0]]),
    reliability=lambda: show.reliability(
        dict(confidence=[0.2, 0.9], accuracy=[0.1, 1.0], n=[3, 4]), 0.1
    ),
)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_ink_titles_and_words_for_those_who_cannot_see_it(name):
    fig = FIGURES[name]()
    picture = pixels(show.figure_png(fig))
    assert len(fig.alt) > 20 and fig.alt.endswith(".") and picture.std() > 5
    assert fig._suptitle or any(ax.get_title() for ax in fig.axes)
    for ax in fig.axes:  # whatever has ticks says what they measure
        if len(ax.get_xticks()) and ax.axison and ax.get_xlim() and ax.get_label() != "<colorbar>":
            assert name in ("sheet", "bars") or ax.get_xlabel() or ax.get_xticklabels()
    assert f'alt="{fig.alt[:10]}' in html.figure_html(fig)


def test_figures_leave_no_trace_in_pyplot_and_can_be_drawn_by_threads():
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    alone = show.figure_png(FIGURES["usage"]())
    out = {}
    jobs = [
        threading.Thread(target=lambda i=i: out.setdefault(i, show.figure_png(FIGURES["usage"]())))
        for i in range(3)
    ]
    for j in jobs:
        j.start()
    for j in jobs:
        j.join()
    assert (
        set(out.values()) == {alone}
        and not plt.get_fignums()
        and dict(matplotlib.rcParams) == before
    )


def test_reconstruction_figures_show_what_they_are_given():
    red, blue = np.zeros((4, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 3), np.uint8)
    red[..., 0] = 255
    blue[..., 2] = 255
    fig = show.video_reconstruction(red, blue, n=3)
    shown = [ax.images[0].get_array() for ax in fig.axes]
    assert (
        len(shown) == 6
        and all((s[0, 0] == [255, 0, 0]).all() for s in shown[:3])
        and all((s[0, 0] == [0, 0, 255]).all() for s in shown[3:])
    )
    fig = show.audio_reconstruction(None, MEL, MEL + 5, difference=True)
    top, low, diff = (ax.images[0] for ax in fig.axes if ax.images and ax.get_title())
    assert top.get_clim() == low.get_clim() == (
        MEL.min(),
        np.float32(MEL + 5).max(),
    ) and np.allclose(diff.get_array(), 5, atol=1e-4)


def test_series_are_told_apart_without_colour():
    lines = (
        show.loss_curves({"step": [1, 2], **{f"loss{i}": [1, 2] for i in range(7)}}).axes[0].lines
    )
    assert len({(line.get_marker(), str(line._unscaled_dash_pattern)) for line in lines}) == 7
    drawn = show.bars({f"s{i}": {"x": 0.5} for i in range(5)}).axes[0].patches
    assert len({p.get_hatch() for p in drawn}) == 5


def lab(linear):
    "CIE L*a*b* of linear sRGB."
    xyz = (
        np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        @ np.clip(linear, 0, 1)
        / [0.9505, 1, 1.089]
    )
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(
    "eyes",
    [
        np.eye(3),  # Machado et al. 2009: protan, deutan, tritan
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    ],
    ids=["usual", "protan", "deutan", "tritan"],
)
def test_palette_stays_apart_for_the_colour_blind(eyes):
    colours = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in show.PALETTE])
    seen = [
        lab(np.array(eyes) @ np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4))
        for c in colours
    ]
    assert min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]) > 15


def test_near_codes_have_near_colours():
    x = RNG.normal(size=(64, 8))
    near = x[:1] + 1e-6
    p = show.code_palette(np.concatenate([x, near])).astype(int)
    assert np.abs(p[0] - p[-1]).max() <= 4 and np.abs(p[:, None] - p[None]).max() > 150


def test_frames_and_sounds_survive_their_files():
    assert (pixels(html.frame_png(FRAMES[0], scale=3))[1::3, 1::3] == FRAMES[0]).all()
    import wave

    with wave.open(
        io.BytesIO(html.wav_bytes(np.array([0, 1, -1, 2, np.nan, np.inf], np.float32)))
    ) as f:
        assert np.frombuffer(f.readframes(9), "<i2").tolist() == [0, 32767, -32767, 32767, 0, 0]
    av = pytest.importorskip("av")
    with av.open(io.BytesIO(html._mp3_bytes(WAVE))) as f:
        heard = np.concatenate([a.to_ndarray()[0] for a in f.decode(audio=0)])
    lag = np.argmax(np.correlate(heard[:4000], WAVE[:2000], "valid"))
    copy = heard[lag : lag + 8000]
    assert np.corrcoef(copy, WAVE[: len(copy)])[0, 1] > 0.95


def test_player_is_whole_labelled_and_safe():
    page = html.clip_player({HOSTILE: FRAMES, "b": FRAMES}, {HOSTILE: WAVE}, title=HOSTILE)
    body, script = page.split("<script>")[0], page.split("<script>")[1]
    r = Reader(body)
    assert not r.all("script") and page.count("<script>") == 1 and HOSTILE not in script
    assert all(a.startswith("data:") for a in r.addresses) and "url(http" not in page
    assert all(a.get("aria-label") for a in r.all("audio") + r.all("section")) and {
        a["role"] for a in r.all("div") if "role" in a
    } == {"img"}
    assert r.all("input")[0]["max"] == "15" and [t for t, _ in r.tags].count("label") == 1


def test_large_frames_are_packed_small_and_small_ones_exactly():
    smooth = np.broadcast_to(
        np.linspace(0, 255, 96).astype(np.uint8)[None, None, :, None], (16, 96, 96, 3)
    ).copy()
    assert "image/jpeg" in html.clip_player(smooth) and "image/webp" in html.clip_player(FRAMES)
    strip = re.search(r"data:image/webp;base64,([^)]+)", html.clip_player(FRAMES))[1]
    import base64

    assert (pixels(base64.b64decode(strip)) == np.concatenate(FRAMES, 1)).all()


def test_strips_stay_exact_where_webp_is_missing(monkeypatch):
    monkeypatch.setattr(html.features, "check", lambda name: False)
    strip = re.search(r"data:image/png;base64,([^)]+)", html.clip_player(FRAMES))[1]
    import base64

    assert (pixels(base64.b64decode(strip)) == np.concatenate(FRAMES, 1)).all()


def test_hidden_is_hidden_and_shown_is_shown():
    fig = show.masked_clip(FRAMES, None, [MASK, ~MASK])
    drawn = [np.asarray(ax.images[0].get_array()) for ax in fig.axes]
    grown = MASK[0].repeat(4, 0).repeat(4, 1)
    frame = FRAMES[4]
    assert (
        len(drawn) == 4
        and (drawn[0][grown] == frame[grown]).all()
        and (drawn[2][~grown] == frame[~grown]).all()
    )
    assert (
        np.unique(drawn[0][~grown]).tolist() == [150, 185]
        and f"picture 1 {MASK[0].sum()} of 64" in fig.alt
    )


def test_attention_dims_what_is_not_looked_at():
    weights = np.zeros((2, 8, 8))
    weights[0, 0, 0] = 1.0
    fig = show.attention_picture(FRAMES, MEL, weights, np.ones((5, 5)) / 25)
    first, second = (np.asarray(ax.images[0].get_array()).astype(int) for ax in fig.axes[:2])
    assert (first[:4, :4] == FRAMES[4][:4, :4]).all() and (
        first[4:, 4:] == (FRAMES[4][4:, 4:] * 0.2).astype(np.uint8)
    ).all()
    assert (
        (second <= FRAMES[12] * 0.21).all()
        and "picture 1: 50%" in fig.alt
        and "sound: 50%" in fig.alt
    )


def test_pictures_stand_side_by_side_with_their_names():
    sheet = pixels(
        html.side_by_side({"a": FRAMES[0], "a rather long name for a picture": FRAMES[1]}, 64)
    )
    assert (sheet[20:84, :64] == FRAMES[0].repeat(2, 0).repeat(2, 1)).all() and (
        sheet[20:84, 72:136] == FRAMES[1].repeat(2, 0).repeat(2, 1)
    ).all()
    assert sheet.shape[1] > 200 and sheet[:20].min() < 100  # room for the name, and the name


def test_a_book_shows_every_page_to_those_without_scripts():
    book = html.flip_book({HOSTILE: "<p>one</p>", "b": "<p>two</p>"}, HOSTILE, HOSTILE)
    body, script = book.split("<script>")
    r = Reader(body)
    assert (
        not r.all("script")
        and HOSTILE not in script
        and "hidden" not in "".join(str(a) for a in r.all("div"))
    )
    assert (
        [a["role"] for a in r.all("div")] == ["group"] * 2
        and r.all("input")[0]["max"] == "1"
        and "hidden" in r.all("label")[0]
    )


def test_tokens_as_a_table():
    r = Reader(
        html.token_table(np.arange(6).reshape(2, 3), np.zeros((6, 3), np.uint8), (HOSTILE, "time"))
    )
    assert (
        len(r.all("td")) == 7
        and {a["scope"] for a in r.all("th")} == {"row", "col"}
        and all("color:white" in a["style"] for a in r.all("td")[1:])
    )


def test_page_and_tables_are_well_formed():
    table = html.table_html(
        [{"name": HOSTILE, "v": 0.12345, "none": None}],
        HOSTILE,
        {"name": HOSTILE, "v": "value", "none": "nothing"},
    )
    r = Reader(
        html.html_page(
            HOSTILE, table + html.clip_player(FRAMES, WAVE).split("<script>")[0], footer="end"
        ).split("\n", 1)[1]
    )
    assert (
        not r.all("script")
        and [t for t, _ in r.tags].count("main") == 1
        and r.all("html")[0]["lang"] == "en"
    )
    assert {a["scope"] for a in r.all("th")} == {"col", "row"}
    assert "0.123" in table and "–" in table
    assert not [a for a in r.addresses if not a.startswith(("data:", "#"))]


def test_a_data_frame_is_a_table_too():
    pd = pytest.importorskip("pandas")
    df = pd.DataFrame(dict(step=[1, 2], loss=[0.5, 0.25]))
    assert (
        html.table_html(df, "losses").count("<tr>") == 3
        and len(show.loss_curves(df).axes[0].lines) == 1
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: show.contact_sheet(FRAMES[0]),
        lambda: show.video_reconstruction(FRAMES, FRAMES[:3]),
        lambda: show.audio_reconstruction(WAVE, MEL, MEL[:, 1:]),
        lambda: show.token_picture(np.array([[-1, 2]])),
        lambda: show.loss_curves([]),
        lambda: show.bars({}),
        lambda: show.confusion(["z"], ["a"], ["a"]),
        lambda: html.clip_player(None),
        lambda: html.wav_bytes(np.zeros((2, 5))),
        lambda: html.figure_html(show.blank_figure()[0]),
        lambda: html.clip_player(FRAMES.astype(np.float32)),
        lambda: show.masked_clip(FRAMES, MEL),
        lambda: html.flip_book({}, "t"),
        lambda: show.attention_picture(FRAMES, MEL),
        lambda: show.category_bars([]),
        lambda: html.side_by_side({"a": FRAMES}),
    ],
)
def test_bad_input_gets_one_sentence(call):
    with pytest.raises(BadInput) as e:
        call()
    assert len(str(e.value)) > 20 and "\n" not in str(e.value)

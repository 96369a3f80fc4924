"Metrics against other people's code, against formulas, and against answers that are known."

import json
import math

import numpy as np
import pytest

from scene4m.worlds.street import Attributes, parse_caption, write_caption, write_captions
from scene4m.base.core import BadInput, make_rng
from scene4m.base.metrics import (
    attribute_accuracy,
    bleu,
    bootstrap_interval,
    caption_diversity,
    chance_level,
    cider_d,
    cider_d_scores,
    expected_calibration_error,
    log_mel_error_db,
    moving_mask,
    moving_psnr,
    perplexity,
    psnr,
    reliability_curve,
    rouge_l,
    spectral_convergence,
    ssim,
    still_picture,
    temporal_psnr,
    words,
)
from scene4m.worlds.toystreet import sample_scene

STATED = ("colour", "count", "motion", "night", "rain", "near", "on_screen")


def sentences(seed: int, n: int = 25, m: int = 3, vocabulary: int = 30, longest: int = 14):
    "Random sentences with a few references each, alike enough to share runs of four words."
    rng = np.random.default_rng(seed)
    names = [f"w{i}" for i in range(vocabulary)]

    def sentence(start=()):
        kept = list(start)[: int(rng.integers(0, len(start) + 1))] if len(start) else []
        return kept + list(rng.choice(names, int(rng.integers(2, longest))))

    refs = [[sentence()] for _ in range(n)]
    for r in refs:
        r.extend(sentence(r[0]) for _ in range(m - 1))
    cands = [sentence(r[int(rng.integers(m))]) for r in refs]
    return [" ".join(c) for c in cands], [[" ".join(r) for r in rs] for rs in refs]


def grammar(n: int = 40):
    truths = [s.attributes for s in map(sample_scene, range(n))]
    return [write_caption(a, make_rng(i)) for i, a in enumerate(truths)], [
        write_captions(a, 4, seed=i) for i, a in enumerate(truths)
    ]


def coco(cands, refs):
    "The form that pycocoevalcap takes: words already cut, so that no Java is needed."
    return {i: [" ".join(words(r)) for r in rs] for i, rs in enumerate(refs)}, {
        i: [" ".join(words(c))] for i, c in enumerate(cands)
    }


CASES = [sentences(0), sentences(1, n=60, m=1), sentences(2, n=20, m=5, vocabulary=8), grammar()]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_sentences_score_as_in_pycocoevalcap(case, capsys):
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    cands, refs = CASES[case]
    gts, res = coco(cands, refs)
    total, each = Cider().compute_score(gts, res)
    assert np.allclose(cider_d(cands, refs), total, atol=1e-9) and np.allclose(
        cider_d_scores(cands, refs), each, atol=1e-9
    )
    assert total > 0.1, "the case compares nothing"
    assert np.isclose(rouge_l(cands, refs), Rouge().compute_score(gts, res)[0], atol=1e-12)
    scorer = BleuScorer(n=4)
    for i in gts:
        scorer += (res[i][0], gts[i])
    assert np.allclose(
        bleu(cands, refs), scorer.compute_score(option="closest", verbose=0)[0], atol=1e-7
    )


@pytest.mark.parametrize("case", range(len(CASES)))
def test_bleu_is_that_of_sacrebleu(case):
    sacrebleu = pytest.importorskip("sacrebleu")
    cands, refs = CASES[case]
    streams = [[" ".join(words(rs[j])) for rs in refs] for j in range(len(refs[0]))]
    theirs = sacrebleu.corpus_bleu(
        [" ".join(words(c)) for c in cands], streams, tokenize="none", force=True
    )
    assert np.isclose(bleu(cands, refs)[3], theirs.score / 100, atol=1e-9)


def test_sentences_at_the_edges():
    assert cider_d([], []) == 0 and rouge_l([], []) == 0 and bleu([], []) == (0, 0, 0, 0)
    assert (
        cider_d(["", "a"], [["a b"], ["a c"]]) >= 0
        and rouge_l([""], [["a"]]) == 0
        and bleu([""], [["a"]])[0] == 0
    )
    cands, refs = grammar(80)
    always = cider_d([cands[0]] * 80, refs)
    assert always < 0.25 * cider_d(cands, refs)  # one sentence for all clips is worth little
    assert caption_diversity([cands[0]] * 80)["unique"] == 1 / 80
    assert np.isclose(
        bleu(["a b c d"], [["a b", "a b c d e"]])[0], np.exp(1 - 5 / 4)
    )  # five words are closer to four than two are
    assert (
        bleu(["a b c d"], [["a b c", "a b c d e"]])[0] == 1
    )  # as close on both sides: the shorter
    with pytest.raises(BadInput):
        cider_d("a dog", ["a dog"])
    with pytest.raises(BadInput):
        bleu(["a dog"], [[]])


def naive_ssim(x, y, R=255.0):
    "One window at a time, one pixel at a time."
    g = np.array([math.exp(-((i - 5) ** 2) / 4.5) for i in range(11)])
    w = np.outer(g, g)
    w /= w.sum()
    out = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            for c in range(3):
                a, b = (
                    x[i : i + 11, j : j + 11, c].astype(float),
                    y[i : i + 11, j : j + 11, c].astype(float),
                )
                ma, mb = (w * a).sum(), (w * b).sum()
                va, vb, ab = (
                    (w * (a - ma) ** 2).sum(),
                    (w * (b - mb) ** 2).sum(),
                    (w * (a - ma) * (b - mb)).sum(),
                )
                out.append(
                    (2 * ma * mb + (0.01 * R) ** 2)
                    * (2 * ab + (0.03 * R) ** 2)
                    / ((ma**2 + mb**2 + (0.01 * R) ** 2) * (va + vb + (0.03 * R) ** 2))
                )
    return np.mean(out)


def test_pictures_by_the_formula():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2, 3, 14, 13, 3)).astype(np.uint8)
    y = np.clip(x + rng.normal(0, 30, x.shape), 0, 255).astype(np.uint8)
    assert np.isclose(
        ssim(x, y),
        np.mean(
            [naive_ssim(a, b) for a, b in zip(x.reshape(-1, 14, 13, 3), y.reshape(-1, 14, 13, 3))]
        ),
    )
    assert np.isclose(psnr(x, y), -10 * np.log10(np.mean((x / 255 - y / 255) ** 2)))
    assert np.isclose(psnr(x / 127.5 - 1, y / 127.5 - 1, data_range=2), psnr(x, y))
    assert np.isclose(
        temporal_psnr(x[0], x[0] // 2),
        psnr(np.diff(x[0].astype(float), axis=0), np.diff(x[0].astype(float) // 2, axis=0), 255),
    )


def test_what_moves_is_found_and_only_that_is_judged():
    x = np.full((8, 12, 12, 3), 100, np.uint8)
    for t in range(8):
        x[t, 4, t, 0] = 200  # one pixel, one colour, walks
    moves = moving_mask(x)
    assert (
        moves.sum() == 8
        and all(moves[t, 4, t] for t in range(8))
        and (still_picture(x) == 100).all()
    )
    y = x.copy()
    y[:, 0] = 0  # a wrong row where nothing moves
    assert moving_psnr(x, y) == float("inf") and psnr(x, y) < 30
    assert moving_psnr(x, still_picture(x)) < psnr(x, still_picture(x))
    assert (
        moving_mask(np.stack([x, x])).shape == (2, 8, 12, 12)
        and moving_mask(x, threshold=0.5).sum() == 0
    )
    assert math.isnan(moving_psnr(still_picture(x), y))


def test_sounds_by_the_formula_and_padding_counts_nothing():
    rng = np.random.default_rng(1)
    x, y = rng.normal(-40, 10, (2, 3, 80, 50))
    lengths = [50, 7, 20]
    real = np.concatenate([np.abs(x - y)[i, :, :n].ravel() for i, n in enumerate(lengths)])
    assert np.isclose(log_mel_error_db(x, y, lengths), real.mean())
    far = y.copy()
    far[1, :, 7:] = 1e3
    far[2, :, 20:] = -1e3
    assert log_mel_error_db(x, far, lengths) == log_mel_error_db(x, y, lengths)
    assert spectral_convergence(x, far, lengths) == spectral_convergence(x, y, lengths)
    a, b = 10 ** (x[0] / 20), 10 ** (y[0] / 20)
    assert np.isclose(spectral_convergence(x[0], y[0]), np.linalg.norm(a - b) / np.linalg.norm(a))
    with pytest.raises(BadInput):
        log_mel_error_db(x, y, [50, 0, 20])


def test_perplexity_of_known_distributions():
    assert np.isclose(perplexity([1, 1, 2]), 2**1.5) and perplexity([0, 7]) == 1
    with pytest.raises(BadInput):
        perplexity([1, -1])


FULL = Attributes(
    "dog barking",
    colour="red",
    count=2,
    motion="left",
    night=True,
    rain=False,
    near=True,
    on_screen=True,
)


def test_attributes_right_wrong_left_out_and_invented():
    off_screen = Attributes("dog barking", night=True, rain=False, on_screen=False)
    said = [FULL, Attributes("dog barking", count=2), FULL, Attributes()]
    got = attribute_accuracy(said, [FULL, FULL, off_screen, FULL], parse_caption)
    assert (
        got["category"] == dict(n=4, accuracy=0.75)
        and got["colour"] == dict(n=3, accuracy=1 / 3)
        and got["count"]["accuracy"] == 2 / 3
    )
    assert (
        got["on_screen"] == dict(n=4, accuracy=0.25) and got["exact"] == 0.25
    )  # the invented colour of the third does not hide its slip
    assert got["invented_rate"] == 0.25 and got["invented"] == dict(
        colour=1, count=1, motion=1, near=1, night=0, rain=0, on_screen=0
    )
    assert (
        tuple(got["invented"])
        == STATED
        == ("colour", "count", "motion", "night", "rain", "near", "on_screen")
    )
    far = attribute_accuracy([Attributes("dog barking", near=False)], [Attributes("dog barking")])
    assert (
        far["invented_rate"] == 1 and far["invented"]["near"] == 1
    )  # "far off" is a statement, not an absence
    json.dumps(got)  # goes into report.json as it is


def test_a_false_value_counts_and_is_not_taken_for_nothing():
    truth = Attributes("dog barking", night=False)
    assert attribute_accuracy(["A dog is barking."], [truth], parse_caption)["night"] == dict(
        n=1, accuracy=0.0
    )
    assert attribute_accuracy(["A dog is barking by day."], [truth], parse_caption)[
        "night"
    ] == dict(n=1, accuracy=1.0)


def test_the_grammar_scores_full_marks_and_noise_none():
    truths = [s.attributes for s in map(sample_scene, range(200))]
    said = [write_caption(a, make_rng(i)) for i, a in enumerate(truths)]
    got = attribute_accuracy(
        said, [t.to_dict() for t in truths], parse_caption
    )  # records may be dicts, as in a manifest
    assert (
        got["exact"] == 1
        and got["invented_rate"] == 0
        and all(got[n]["accuracy"] == 1 for n in STATED)
    )
    noise = attribute_accuracy(["of the the of", ""] * 100, truths, parse_caption)
    assert (
        noise["exact"] == 0 and noise["category"]["accuracy"] == 0 and noise["invented_rate"] == 0
    )


def test_chance_is_reached_by_its_answer_and_by_no_other():
    truths = [s.attributes for s in map(sample_scene, range(150))]
    chance = chance_level(truths)
    for n in STATED:
        scores = {
            v: attribute_accuracy([Attributes(**{n: v})] * 150, truths)[n]["accuracy"]
            for v in {getattr(t, n) for t in truths} - {None}
        }
        assert (
            max(scores.values())
            == pytest.approx(chance[n]["accuracy"])
            == pytest.approx(scores[chance[n]["answer"]])
        )
    best_exact = max(attribute_accuracy([s] * 150, truths)["exact"] for s in set(truths))
    assert chance["exact"] >= best_exact > 0
    assert chance["given_category"]["motion"]["accuracy"] >= chance["motion"]["accuracy"]
    answers = chance["given_category"]["motion"]["answers"]
    by_category = attribute_accuracy(
        [Attributes(motion=answers.get(t.label)) for t in truths], truths
    )["motion"]
    assert (
        by_category["accuracy"] == pytest.approx(chance["given_category"]["motion"]["accuracy"])
        and by_category["n"] == chance["motion"]["n"]
    )


def test_exact_chance_by_trying_every_sentence():
    import itertools

    rng = np.random.default_rng(3)

    def draw():
        return Attributes(
            "dog barking",
            colour=[None, "red", "blue"][int(rng.integers(3))],
            night=[None, True, False][int(rng.integers(3))],
            count=[None, 1, 2][int(rng.integers(3))],
        )

    truths = [draw() for _ in range(31)]
    every = [
        Attributes("dog barking", colour=c, night=n, count=k)
        for c, n, k in itertools.product(("red", "blue"), (True, False), (1, 2))
    ]
    assert chance_level(truths)["exact"] == max(
        attribute_accuracy([s] * 31, truths)["exact"] for s in every
    )


def test_calibration_by_hand_and_at_the_edges():
    c, right = [0.0, 1.0, 0.55, 0.55], [0, 1, 1, 0]
    curve = reliability_curve(c, right)
    assert (
        curve["n"].tolist() == [1, 2, 1]
        and np.allclose(curve["confidence"], [0, 0.55, 1])
        and np.allclose(curve["low"], [0, 0.5, 0.9])
    )
    assert np.isclose(expected_calibration_error(c, right), 0.05 * 2 / 4)
    for bad in (([0.5], [1, 0]), ([], []), ([float("nan")], [1]), ([-0.1], [1])):
        with pytest.raises(BadInput):
            expected_calibration_error(*bad)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(5)
    inside = 0
    for i in range(200):
        low, high = bootstrap_interval(rng.random(100) < 0.7, draws=300, seed=i)
        inside += low <= 0.7 <= high
    assert 0.88 < inside / 200 < 0.99
    low, high = bootstrap_interval([0, 0, 1, 1], groups=["a", "a", "b", "b"], draws=500)
    assert (low, high) == (0, 1)  # two groups: nothing is known
    with pytest.raises(BadInput):
        bootstrap_interval([1, 0], groups=["a"])

"""Modalities, budgets, spans, grids and what they refuse."""

import random

import pytest
import torch

from scene4m.base.core import BadInput, make_generator
from scene4m.masking import (
    EOS,
    FOURM_MIXTURE,
    REGISTRY,
    Alphas,
    Pixels,
    Text,
    TokenGrid,
    UnifiedMasking,
    blank_entry,
    collate,
    count_before,
    cut_target,
    dirichlet,
    get_modality,
    mask_grid,
    mask_text,
    modality_from_config,
    register,
    sample_budgets,
    seen_entry,
    sentinel,
    share_budget,
    sincos_1d,
    sincos_2d,
    span_mask,
)

AUDIO, VIDEO, CAPTION = (
    TokenGrid("audio", 512, (13, 5)),
    TokenGrid("video", 256, (2, 8, 8)),
    Text("caption", 300, 48, 64),
)
MODS = [AUDIO, VIDEO, CAPTION]


def sample(seed=0):
    g = make_generator("sample", seed)
    return dict(
        audio=torch.randint(512, (13, 5), generator=g),
        video=torch.randint(256, (2, 8, 8), generator=g),
        caption=torch.randint(204, 300, (20,), generator=g).tolist(),
    )


def seen_and_said(entry):
    t = entry["tensor"]
    return t[~entry["input_mask"]].tolist(), t[~entry["target_mask"]].tolist()


def refused(word, f, *args, **kw):
    with pytest.raises(BadInput) as e:
        f(*args, **kw)
    message = str(e.value)
    assert word in message and "\n" not in message, message
    return message


# --- modalities


@pytest.mark.parametrize(
    "name, label, vocab, tokens",
    [
        ("rgb@224", 20716, 0, 196),
        ("tok_rgb@224", 11606, 16384, 196),
        ("tok_depth@224", 20063, 8192, 196),
        ("tok_normal@224", 16656, 8192, 196),
        ("tok_semseg@224", 12515, 4096, 196),
        ("tok_clip@224", 11422, 8192, 196),
        ("caption", 32652, 30000, 256),
        ("det", 30982, 30000, 256),
    ],
)
def test_constants_of_4m(name, label, vocab, tokens):
    m = get_modality(name)
    assert (m.id, m.vocab_size, m.num_tokens) == (label, vocab, tokens)


def test_position_tables():
    t = sincos_1d(5, 8)
    assert (
        t.shape == (5, 8)
        and torch.equal(t[0], torch.tensor([0.0] * 4 + [1.0] * 4))
        and abs(t[3, 1] - torch.tensor(0.3).sin()) < 1e-6
    )
    square = sincos_2d(4, 4, 16)
    assert torch.equal(square, sincos_2d(4, 4, 16, divide_by=4)) and torch.equal(
        square[6, :8], sincos_1d(4, 8)[1]
    )
    assert not torch.equal(sincos_2d(2, 5, 16), sincos_2d(2, 5, 16, divide_by=2))
    assert VIDEO.position_table(16).shape == (128, 16) and torch.equal(
        VIDEO.position_table(16)[:64], sincos_2d(8, 8, 16)
    )
    assert CAPTION.position_table(16).shape == (64, 16) and Text("caption", 9).position_table(
        8
    ).shape == (512, 8)


def test_a_film_has_time_a_picture_and_learned_positions_do_not():
    assert (VIDEO.frames, AUDIO.frames, TokenGrid("v", 4, (2, 3, 3), "learned").frames) == (2, 0, 0)


def test_configs_go_round_and_unknown_ones_are_refused():
    import json

    for m in (
        *REGISTRY.values(),
        *MODS,
        Pixels("rgb@24x40", (24, 40), 8),
        TokenGrid("v", 4, (2, 3, 3), "learned"),
    ):
        assert modality_from_config(json.loads(json.dumps(m.to_config()))) == m
    refused("type must be", modality_from_config, dict(type="Smell", name="x"))
    refused(
        "no field 'colour'",
        modality_from_config,
        dict(type="Text", name="x", vocab_size=3, colour=1),
    )
    refused("two or three sizes", TokenGrid, "x", 4, (3,))
    refused("unknown positions", TokenGrid, "x", 4, (3, 3), "somewhere")


def test_the_registry():
    mine = register(TokenGrid("test_only_modality", 7, (2, 2)))
    try:
        assert get_modality("test_only_modality") is mine
    finally:
        del REGISTRY["test_only_modality"]
    assert get_modality("tok_rgb@448").grid == (28, 28) and get_modality("rgb@32x64").grid == (2, 4)
    refused("no modality 'smell'", get_modality, "smell")
    refused("no modality", get_modality, "tok_rgb@big")


def test_patches_run_row_by_row_with_the_channel_innermost():
    image = torch.arange(2 * 3 * 8 * 12).float().view(2, 3, 8, 12)
    p = Pixels("rgb@8x12", (8, 12), 4).flatten(image)
    assert p.shape == (2, 6, 48)
    for patch, py, px, c in ((0, 0, 0, 0), (4, 2, 3, 1), (5, 3, 0, 2)):
        assert (
            p[1, patch, (py * 4 + px) * 3 + c]
            == image[1, c, patch // 3 * 4 + py, patch % 3 * 4 + px]
        )


def test_a_text_side_shifts_by_one():
    mask = torch.tensor([[True, False, False, False, True]])
    ids = torch.tensor([[9, 5, 41, 6, 9]])
    s = CAPTION.as_target(dict(tensor=ids, target_mask=mask, decoder_attention_mask=(~mask).int()))
    assert [
        (int(a), int(b), int(p))
        for a, b, p, m in zip(s.content[0], s.target[0], s.pos[0], s.mask[0])
        if not m
    ] == [(5, 41, 0), (41, 6, 1)]
    assert count_before(torch.tensor([[True, False, True, False]])).tolist() == [[0, 0, 0, 1]]
    long = Text("t", 9, max_tokens=2).as_target(
        dict(tensor=ids * 0, target_mask=torch.zeros(1, 5).bool(), decoder_attention_mask=ids)
    )
    assert long.pos.tolist() == [[0, 1, 0, 0]]  # from max_tokens on, 4M writes position 0


# --- budgets


@pytest.mark.parametrize("alpha", [1e-9, 1e-3, 0.5, 1000.0])
def test_dirichlet_is_a_distribution_with_the_right_mean(alpha):
    g = make_generator("dirichlet", alpha)
    a = torch.tensor([alpha, 2 * alpha, 0.0])
    draws = torch.stack([dirichlet(a, g) for _ in range(3000)])
    assert (
        torch.allclose(draws.sum(1), torch.ones(3000, dtype=draws.dtype)) and not draws[:, 2].any()
    )
    assert abs(draws[:, 1].mean() - 2 / 3) < 0.04
    if alpha < 0.01:
        assert (draws.max(1).values > 0.9).double().mean() > 0.98  # nearly all to one
    expected = 2 / 9 / (3 * alpha + 1)
    assert abs(draws[:, 1].var() - expected) < 0.12 * expected + 1e-5


def test_shares_add_up_and_keep_their_limits():
    g = make_generator("shares")
    for _ in range(200):
        n = share_budget(
            torch.tensor([0.5, 0.1, 0.0, 3.0]), 100, torch.tensor([1000, 20, 1000, 1000]), g
        )
        assert sum(n) <= 100 and n[1] <= 20 and n[2] == 0
    assert share_budget(torch.zeros(3), 10, torch.tensor([9, 9, 9]), g) == [0, 0, 0]


def test_what_4m_was_trained_with():
    mods = dict(REGISTRY)
    g = make_generator("4m")
    seen, said = sample_budgets(mods, FOURM_MIXTURE[0], 128, 128, g)
    assert (
        seen["rgb@224"] == 128
        and sum(seen.values()) == 128
        and said["rgb@224"] == 0
        and sum(said.values()) <= 128
    )
    for _ in range(50):
        seen, said = sample_budgets(mods, FOURM_MIXTURE[1], 128, 128, g)
        assert all(seen[m] + said[m] <= 196 for m in mods if not mods[m].is_sequence)


# --- grids


def test_grid_masks_are_disjoint_and_as_large_as_asked():
    g = make_generator("grid")
    for n_in, n_out in ((0, 0), (0, 128), (128, 0), (50, 30), (100, None)):
        e = mask_grid(VIDEO, torch.arange(128), n_in, n_out, g)
        seen, said = seen_and_said(e)
        n_out = 128 - n_in if n_out is None else n_out
        assert len(seen) == n_in and len(said) == n_out and not set(seen) & set(said)
        counts = e["decoder_attention_mask"]
        assert int(counts.sum()) == n_out and (not n_out or int(counts[said[0]]) == n_out)


def test_every_place_is_equally_likely():
    g = make_generator("even")
    n = sum(
        (~mask_grid(AUDIO, torch.arange(65), 13, 0, g)["input_mask"]).int() for _ in range(2000)
    )
    assert n.min() > 320 and n.max() < 480  # 400 expected, 18 the deviation


def test_whole_time_steps():
    e = mask_grid(VIDEO, torch.arange(128), 64, 64, make_generator(0), by="time")
    assert sorted(seen_and_said(e)[0]) in (list(range(64)), list(range(64, 128)))


# --- spans


def fill(seen, said):
    "The text that an input and its target stand for."
    gaps, current = {}, None
    for t in said:
        if 4 <= t < 204:
            current = t
            gaps[t] = []
        else:
            gaps[current].append(t)
    return [x for t in seen for x in (gaps[t] if 4 <= t < 204 else [t])], gaps


def test_spans_lose_nothing():
    rng = random.Random(0)
    for _ in range(200):
        ids = [rng.randrange(204, 300) for _ in range(rng.randrange(1, 40))]
        keep = [rng.random() < 0.5 for _ in ids]
        seen, said = span_mask(ids, keep)
        text, gaps = fill(seen, said)
        n = len(gaps) - 1
        assert (
            text == ids
            and list(gaps) == [sentinel(i) for i in range(1, n + 2)]
            and said[-1] == sentinel(n + 1)
        )
        assert [t for t in seen if t < 204] == [sentinel(i) for i in range(1, n + 1)]


def test_a_long_target_is_cut_at_a_sentinel():
    g = make_generator("cut")
    said = [5, 301, 302, 6, 303, 7, 304, 305, 306, 8]
    for budget in range(1, 12):
        for _ in range(30):
            cut = cut_target(said, budget, g)
            assert (
                len(cut) <= budget
                and 4 <= cut[0] < 204
                and "".join(map(chr, cut)) in "".join(map(chr, said))
            )
            assert cut != [8]
    assert cut_target(said, 0, g) == [] and cut_target([5, 301, 302], 2, g) == [5, 301]


@pytest.mark.parametrize("keep", ["random", "all", "binary"])
def test_texts_keep_their_budgets(keep):
    g = make_generator("text", keep)
    for n_in in (0, 1, 5, 30):
        for _ in range(30):
            e = mask_text(CAPTION, list(range(204, 234)), n_in, 12, g, keep)
            seen, said = seen_and_said(e)
            assert len(seen) <= n_in and 1 <= len(said) <= 12 and e["tensor"].shape == (98,)
            assert int(e["decoder_attention_mask"].sum()) == len(said)
            if n_in == 0:
                assert not seen and said[0] == 5


def test_a_text_that_is_too_long_loses_its_end():
    e = mask_text(CAPTION, list(range(204, 290)), 0, None, make_generator(0))
    said = seen_and_said(e)[1]
    assert said == [5, *range(204, 252), 6]  # 48 tokens, no room for [EOS]
    short = seen_and_said(mask_text(CAPTION, [210, 211], 0, None, make_generator(0)))[1]
    assert short == [5, 210, 211, EOS, 6]


def test_chunks_stay_together():
    g = make_generator("chunks")
    chunks = [[204, 205, 206], [207], [208, 209]]
    sets = set()
    for _ in range(60):
        seen, said = seen_and_said(mask_text(CAPTION, chunks, 48, None, g))
        sets.add(tuple(seen))
        assert all(len({t in seen for t in c}) == 1 for c in chunks)
        assert fill(seen, said)[0] == [*range(204, 210), EOS]
    assert len(sets) > 8


def test_too_many_gaps():
    refused("no sentinel [S_200]", span_mask, [300] * 500, [i % 2 for i in range(500)])


# --- whole samples


def test_the_same_generator_gives_the_same_question():
    m = UnifiedMasking(MODS, (20, 96), (10, 48))
    a, b, c = (m(sample(), make_generator(s)) for s in (1, 1, 2))

    def same(x, y):
        return all(torch.equal(x[n][k], y[n][k]) for n in x for k in x[n])

    assert same(a, b) and not same(a, c)


def test_no_global_random_state_is_touched():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    UnifiedMasking(MODS)(sample(), make_generator(1))
    assert torch.equal(state, torch.get_rng_state())


def test_budgets_of_samples():
    m = UnifiedMasking(MODS, 96, 48)
    g = make_generator("budgets")
    for i in range(60):
        one = m(sample(i), g)
        assert (
            sum(int((~e["input_mask"]).sum()) for e in one.values()) <= 96
            and sum(int((~e["target_mask"]).sum()) for e in one.values()) <= 48
        )


def test_a_missing_sense_is_padding():
    m = UnifiedMasking(MODS, 96, 48)
    s = sample()
    del s["audio"]
    batch = collate([m(s, make_generator(0)), m(sample(), make_generator(1))])
    assert (
        batch["audio"]["input_mask"][0].all()
        and batch["audio"]["target_mask"][0].all()
        and not batch["audio"]["decoder_attention_mask"][0].any()
    )
    assert torch.equal(blank_entry(Pixels("rgb@32", 32, 8))["tensor"], torch.zeros(3, 32, 32))


def test_a_seen_entry():
    e = seen_entry(torch.arange(6).view(2, 3))
    assert (
        not e["input_mask"].any()
        and e["target_mask"].all()
        and e["decoder_attention_mask"].dtype == torch.int32
    )


# --- refusals


def test_bad_samples_and_settings():
    refused("at least 1", UnifiedMasking, MODS, 0)
    refused("at least 1", UnifiedMasking, MODS, 10, (0, 5))
    refused(
        "mixture names 'smell'", UnifiedMasking, MODS, 10, 10, [Alphas({"smell": 1}, {"audio": 1})]
    )
    refused(
        "no target any share", UnifiedMasking, MODS, 10, 10, [Alphas({"audio": 1}, {"audio": 0})]
    )
    refused("no target any share", UnifiedMasking, [Pixels()], 10, 10)
    m = UnifiedMasking(MODS, 10, 10)
    g = make_generator(0)
    refused("knows audio, video, caption", m, dict(sample(), smell=[1]), g)
    refused("another tokenizer", m, dict(sample(), audio=torch.full((13, 5), 512)), g)
    refused("another tokenizer", UnifiedMasking([CAPTION], 40, 40), dict(caption=[299, 300]), g)


def test_bad_entries():
    e = seen_entry(torch.zeros(2, 65, dtype=torch.long))
    AUDIO.check(e, ("input_mask", "target_mask"))
    refused(
        "no target_mask", AUDIO.check, {k: e[k] for k in ("tensor", "input_mask")}, ("target_mask",)
    )
    refused("must be bool", AUDIO.check, dict(e, input_mask=e["input_mask"].int()))
    refused(
        "no input_mask of shape (2, 65)", AUDIO.check, dict(e, input_mask=e["input_mask"][:, :64])
    )
    counts = ("input_mask", "decoder_attention_mask")
    AUDIO.check(e, counts)
    refused(
        "whole numbers",
        AUDIO.check,
        dict(e, decoder_attention_mask=e["decoder_attention_mask"].float()),
        counts,
    )
    refused(
        "no decoder_attention_mask of shape (2, 65)",
        AUDIO.check,
        dict(e, decoder_attention_mask=e["decoder_attention_mask"][:, :9]),
        counts,
    )
    refused(
        "no decoder_attention_mask",
        AUDIO.check,
        dict(tensor=e["tensor"], input_mask=e["input_mask"]),
        counts,
    )
    refused("does not fit", AUDIO.check, dict(e, tensor=e["tensor"][:, :64]))
    refused("integers", AUDIO.check, dict(e, tensor=e["tensor"].float()))
    refused("-1", AUDIO.check, dict(e, tensor=e["tensor"] - 1))
    refused("does not fit", CAPTION.check, dict(tensor=torch.zeros(4, dtype=torch.long)))
    refused(
        "does not fit",
        Pixels("rgb@32", 32).check,
        dict(tensor=torch.zeros(1, 3, 32, 32, dtype=torch.uint8)),
    )


def test_bad_batches():
    m = UnifiedMasking(MODS, 10, 10)
    one = m(sample(), make_generator(0))
    refused("no sample", collate, [])
    refused("Sample 1 and", collate, [one, dict(audio=one["audio"])])
    refused(
        "Sample 1 and",
        collate,
        [one, dict(one, audio={k: t[:64] for k, t in one["audio"].items()})],
    )

"Generation: with a cache and without it, alone and in a batch, the same tokens come out."

import math

import pytest
import torch
from safetensors import safe_open
from test_golden4m import CASES, Case

from scene4m.base.core import BadInput
from scene4m.fourm import FourM
from scene4m.generate import (
    CLOSE,
    EOS,
    OPEN,
    CrossMemory,
    WordCache,
    Writer,
    any_to_any,
    beam_search,
    candidate_rows,
    decode_rows,
    embed_text,
    encode_once,
    fill_grid,
    filter_logits,
    generate_text,
    given_text,
    grid_logits,
    hide,
    sample_ids,
    score_text,
    text_gap,
    token_schedule,
)
from scene4m.masking import Text, TokenGrid, seen_entry


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    m = FourM.toy(
        [
            TokenGrid("audio", 30, (5, 3)),
            TokenGrid("video", 40, (2, 3, 3)),
            Text("caption", 230, 48),
        ],
        dim=64,
        encoder_depth=2,
        decoder_depth=2,
        num_heads=4,
        share_embedding=False,
    ).eval()
    for name, p in m.named_parameters():
        torch.nn.init.normal_(p, std=1.0 if "token_emb" in name else 0.3)
    texts = generate_text(m, batch(6), max_tokens=20)
    places = {t: [x.index(t) if t in x else 20 for x in texts] for x in texts for t in x}
    word = max(
        places, key=lambda t: len(set(places[t]))
    )  # the word that comes up at the most different places …
    rows = m.decoder_embeddings["caption"].to_logits.weight.data
    rows[6] = 1.01 * rows[word]  # … becomes the end: texts of different lengths
    return m


def batch(n=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return dict(
        audio=seen_entry(torch.randint(30, (n, 15), generator=g)),
        video=seen_entry(torch.randint(40, (n, 18), generator=g)),
    )


@torch.no_grad()
def forward_logits(model, b, ids):
    "Logits by the model's own forward pass: the caption as a target, teacher forced."
    given = torch.tensor([[5, *ids, 6]] * len(next(iter(b.values()))["tensor"]))
    first = torch.arange(given.shape[1]) == 0
    entry = dict(
        tensor=given,
        input_mask=~first.expand_as(given),
        target_mask=first.expand_as(given),
        decoder_attention_mask=(~first).int().expand_as(given),
    )
    out = model({**b, "caption": entry}, order=["caption"])
    return model.decoder_embeddings["caption"].to_logits(out.hidden)


@torch.no_grad()
@pytest.mark.parametrize("hidden", [(), (1,)])
def test_cached_and_uncached_logits_agree(model, hidden):
    b = batch(3)
    for row in hidden:
        b["video"]["input_mask"][row] = True  # one sample has no picture: the encoder pads
    context, pad = encode_once(model, text_gap(model, b))
    assert (pad is not None) == bool(hidden)
    ids = torch.randint(7, 230, (3, 12), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = 5
    cache = WordCache(model, CrossMemory(model, context, pad), 12)
    step = torch.stack([cache(ids[:, t]) for t in range(12)], 1)
    whole = model.decoder_embeddings["caption"].to_logits(
        decode_rows(
            model,
            CrossMemory(model, context, pad),
            embed_text(model, "caption", ids[:, None]),
            True,
        )[:, 0]
    )
    assert (step - whole).abs().max() < 1e-5


def written_out(path):
    "Whether a golden case holds a greedy text."
    with safe_open(path.with_suffix(".safetensors"), "pt") as f:
        return any("greedy." in k for k in f.keys())


@pytest.mark.parametrize("path", [p for p in CASES if written_out(p)], ids=lambda p: p.stem)
def test_greedy_captions_equal_the_reference(path):
    case = Case(path)
    seen = {
        m: dict(e, input_mask=torch.zeros_like(e["input_mask"]))
        for m, e in case.batch.items()
        if not case.modalities[m].is_sequence
    }
    for target, ids in case.greedy().items():
        want = ids.tolist()
        got = generate_text(
            case.model.eval(), seen, target, max_tokens=len(want[0]) - 1, keep_specials=True
        )
        for w, g in zip(want, got):
            assert w[1 : 1 + len(g)] == g and (len(g) == len(w) - 1 or g[-1] == 6)


def test_a_batch_writes_what_each_sample_writes_alone(model):
    b = batch(6)
    together = generate_text(model, b, max_tokens=20)
    for i in range(6):
        alone = {m: {k: t[i : i + 1] for k, t in e.items()} for m, e in b.items()}
        assert generate_text(model, alone, max_tokens=20)[0] == together[i]
    lengths = {len(t) for t in together}
    assert len({tuple(t) for t in together}) > 3 and len(lengths) > 2, (
        lengths
    )  # some leave the batch early


def test_scores_are_the_models_own_likelihood(model):
    b = batch(3)
    captions = [[10, 20, 30], [40, 50, 60, 70, 80]]
    score = score_text(model, b, captions, reduce="sum")
    for j, c in enumerate(captions):
        inputs, targets, valid = candidate_rows([c])
        context, _ = encode_once(model, text_gap(model, b))
        cache = WordCache(model, CrossMemory(model, context), len(c) + 2)
        with torch.inference_mode():
            logp = sum(
                cache(inputs[0, t].expand(3)).log_softmax(-1)[:, targets[0, t]]
                for t in range(len(c) + 2)
            )
        assert torch.allclose(score[:, j], logp, atol=1e-4)
    each = score_text(model, b, [captions] * 3, reduce="sum", chunk=1)
    assert torch.allclose(each, score, atol=1e-5) and score_text(model, b, captions).shape == (3, 2)


def test_nothing_seen_is_a_valid_question(model):
    b = batch(2)
    hidden = {m: dict(e, input_mask=torch.ones_like(e["input_mask"])) for m, e in b.items()}
    assert torch.allclose(
        score_text(model, hidden, [[10, 20]]), score_text(model, {}, [[10, 20]], rows=2), atol=1e-5
    )


def test_bad_questions(model):
    with pytest.raises(BadInput, match="cannot write"):
        generate_text(model, batch(), target="poem")
    with pytest.raises(BadInput, match="no caption"):
        score_text(model, batch(), [])
    with pytest.raises(BadInput, match="temperature"):
        generate_text(model, batch(), temperature=-1)
    with pytest.raises(BadInput, match="at least one"):
        generate_text(model, batch(), max_tokens=0)
    with pytest.raises(BadInput, match="draws nothing"):
        generate_text(model, batch(), beams=2, top_p=0.9)
    with pytest.raises(BadInput, match="'smell'"):
        generate_text(model, batch(), guidance=dict(smell=2.0))
    with pytest.raises(BadInput, match="'caption'"):
        fill_grid(model, batch(), "caption")
    with pytest.raises(BadInput, match="'magic'"):
        fill_grid(model, {}, "audio", "magic")
    with pytest.raises(BadInput, match="0 steps"):
        fill_grid(model, {}, "audio", "roar", steps=0)
    with pytest.raises(BadInput, match="'zigzag'"):
        fill_grid(model, {}, "audio", schedule="zigzag")
    with pytest.raises(BadInput, match="'smell'"):
        any_to_any(model, batch(), ["smell"])
    ragged = batch()
    ragged["audio"]["input_mask"][0, :4] = True
    with pytest.raises(BadInput, match="same number"):
        fill_grid(model, ragged, "audio")


# --- drawing a word


def test_filters_keep_the_smallest_sets():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(200, 30, generator=g) * 2
    for p in (0.1, 0.5, 0.9):
        kept = filter_logits(z, top_p=p).isfinite()
        q = z.softmax(-1)
        for i in range(200):
            order = q[i].argsort(descending=True)
            n = (
                int((q[i][order].cumsum(0) <= p).sum()) + 1
            )  # up to the first sum above p, that one included
            assert set(order[:n].tolist()) == set(kept[i].nonzero()[:, 0].tolist())
    assert (filter_logits(z, top_k=4).isfinite().sum(1) == 4).all() and (
        filter_logits(z, top_k=0.5).isfinite().sum(1) == 15
    ).all()
    before = z.clone()
    filter_logits(z, 3, 0.5)
    assert torch.equal(z, before)


def test_draws_follow_the_temperature_after_the_cut():
    z = torch.tensor([2.0, 1.0, 0.0, -1.0])
    g = torch.Generator().manual_seed(0)
    draws = sample_ids(z.expand(20000, 4), 2.0, top_k=3, generator=g).bincount(minlength=4) / 20000
    want = torch.tensor([2.0, 1.0, 0.0, -math.inf]).div(2).softmax(0)
    assert (draws - want).abs().max() < 0.015 and draws[3] == 0


def test_the_same_generator_writes_the_same(model):
    def draw(s):
        return generate_text(
            model,
            batch(4),
            temperature=1.0,
            top_p=0.95,
            max_tokens=12,
            generator=torch.Generator().manual_seed(s),
        )

    state = torch.get_rng_state()
    assert draw(1) == draw(1) != draw(2)
    assert torch.equal(torch.get_rng_state(), state)


# --- the work that is done


def count_rows(model, f):
    "Rows and passes of the decoder's first block, contexts turned into keys, rows of logits."
    n = dict(rows=0, memories=0, logits=0, passes=0)
    block, head = model.decoder[0], model.decoder_embeddings["caption"].to_logits

    def add(key, i):
        return lambda m, a, o: n.__setitem__(
            key, n[key] + o[..., 0].numel() if i is None else n[key] + i
        )

    hooks = [
        block.register_forward_hook(add("passes", 1)),
        block.mlp.register_forward_hook(add("rows", None)),
        block.context_norm.register_forward_hook(add("memories", 1)),
        head.register_forward_hook(add("logits", None)),
    ]
    try:
        f()
    finally:
        [h.remove() for h in hooks]
    return n


def test_a_word_costs_one_row(model):
    alone = batch(1, seed=8)
    long = len(generate_text(model, alone, max_tokens=9, keep_specials=True)[0])
    assert count_rows(model, lambda: generate_text(model, alone, max_tokens=9)) == dict(
        rows=long, memories=1, logits=long, passes=long
    )


def test_who_is_done_leaves(model):
    b = batch(6)
    texts = generate_text(model, b, max_tokens=20, keep_specials=True)
    needed = sum(map(len, texts))
    steps = max(map(len, texts))
    spent = count_rows(model, lambda: generate_text(model, b, max_tokens=20))["rows"]
    assert needed <= spent < 6 * steps, (needed, spent, steps)


def test_a_context_may_be_used_again(model):
    b = batch(6)
    memory = CrossMemory(model, *encode_once(model, text_gap(model, b)))
    want = generate_text(model, b, max_tokens=20)
    for _ in range(2):
        assert (
            generate_text(model, b, max_tokens=20, memory=memory) == want
        )  # rows that left are back for the next
    assert len(memory.pairs[0][0]) == 6


def test_a_question_is_left_as_it_was(model):
    b = batch(3)
    before = {m: {k: t.clone() for k, t in e.items()} for m, e in b.items()}
    generate_text(model, b, guidance=2.0, max_tokens=5)
    beam_search(model, b, beams=2, max_tokens=5)
    fill_grid(model, {"video": b["video"]}, "audio", steps=2)
    any_to_any(model, {"audio": b["audio"]}, ["video", dict(target="caption", max_tokens=5)])
    assert set(b) == {"audio", "video"} and all(
        torch.equal(b[m][k], t) for m, e in before.items() for k, t in e.items()
    )


# --- beams and guidance


@torch.inference_mode()
def test_enough_beams_find_the_best_of_all_texts(model):
    b = batch(2)
    V = 230
    first, second = [], []

    def memory():
        return CrossMemory(model, *encode_once(model, text_gap(model, b)))

    cache = WordCache(model, memory(), 2)
    one = cache(torch.full((2,), OPEN)).log_softmax(-1)
    for i in range(2):
        cache = WordCache(model, memory(), 2)
        cache.keep(torch.full((V,), i))
        cache(torch.full((V,), OPEN))
        two = cache(torch.arange(V)).log_softmax(-1)
        total = one[i][:, None] + two
        total[CLOSE] = -math.inf
        total[CLOSE, 0] = one[i, CLOSE]  # what has ended goes on at no cost
        best = int(total.argmax())
        first.append(best // V)
        second.append(best % V)
    got = beam_search(model, b, beams=V, max_tokens=2)
    assert got == [[f, s] if f != CLOSE else [f] for f, s in zip(first, second)]


def test_one_beam_is_greedy_and_more_are_never_worse(model):
    b = batch(4)
    greedy = generate_text(model, b, max_tokens=8, keep_specials=True)
    assert beam_search(model, b, beams=1, max_tokens=8) == greedy
    alone = [
        beam_search(
            model,
            {m: {k: t[i : i + 1] for k, t in e.items()} for m, e in b.items()},
            beams=3,
            max_tokens=8,
        )[0]
        for i in range(4)
    ]
    assert beam_search(model, b, beams=3, max_tokens=8) == alone
    assert generate_text(model, b, beams=3, max_tokens=8, keep_specials=True) == alone


@torch.inference_mode()
def test_guidance_is_its_formula(model):
    b = batch(3)
    ids = torch.tensor([OPEN] * 3)

    def gap(x):
        return text_gap(model, x)

    def logits(x):
        return WordCache(model, CrossMemory(model, *encode_once(model, gap(x))), 2)(ids)

    c, u, heard, watched = (
        logits(hide(b, names)) for names in ((), ("audio", "video"), ("video",), ("audio",))
    )

    def write(w):
        return Writer(model, gap(b), "caption", 2, w)(ids)

    torch.testing.assert_close(write(2.5), u + 2.5 * (c - u), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        write(dict(audio=1.5, video=0.5)),
        u + 1.5 * (heard - u) + 0.5 * (watched - u),
        rtol=0,
        atol=1e-4,
    )
    torch.testing.assert_close(write(1.0), c, rtol=0, atol=0)
    with_beams = [
        beam_search(
            model,
            {m: {k: t[i : i + 1] for k, t in e.items()} for m, e in b.items()},
            beams=2,
            max_tokens=5,
            guidance=3.0,
        )[0]
        for i in range(3)
    ]
    assert beam_search(model, b, beams=2, max_tokens=5, guidance=3.0) == with_beams


# --- grids


@torch.inference_mode()
def test_grid_logits_are_the_models_own(model):
    b = batch(3)
    n = 15
    known = torch.zeros(3, n, dtype=torch.bool)
    known[:, [1, 4, 9]] = True
    count = torch.zeros(3, n, dtype=torch.int32)
    count[:, 0] = n - 3
    places = (~known).nonzero()[:, 1].view(3, -1)
    target = dict(
        tensor=b["audio"]["tensor"],
        input_mask=~known,
        target_mask=known,
        decoder_attention_mask=count,
    )
    out = model({"video": b["video"], "audio": target}, order=["audio"])
    want = model.decoder_embeddings["audio"].to_logits(out.hidden)
    got = grid_logits(
        model,
        {"video": b["video"], "audio": dict(target, tensor=b["audio"]["tensor"] * known)},
        "audio",
        places,
    )
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_maskgit_keeps_what_it_is_surest_of(model):
    "Against the recipe written out, one clip at a time."
    b = {"video": batch(3)["video"]}
    counts = token_schedule(15, 4)
    got = fill_grid(model, b, "audio", steps=4, temperature=0)
    for i in range(3):
        ids, known = torch.zeros(1, 15, dtype=torch.long), torch.zeros(1, 15, dtype=torch.bool)
        for n in counts:
            left = [p for p in range(15) if not known[0, p]]
            entry = dict(seen_entry(ids * known), input_mask=~known)
            one = {"video": {k: t[i : i + 1] for k, t in b["video"].items()}, "audio": entry}
            p = grid_logits(model, one, "audio", torch.tensor([left])).softmax(-1)[0]
            sure = sorted(range(len(left)), key=lambda j: -float(p[j].max()))[:n]
            for j in sure:
                ids[0, left[j]] = p[j].argmax()
                known[0, left[j]] = True
        assert torch.equal(got[i], ids[0]), i


def test_a_grid_fills_by_schedule_and_keeps_what_it_has(model):
    b = batch(4)
    shown = torch.zeros(4, 15, dtype=torch.bool)
    shown[:, ::3] = True
    b["audio"]["input_mask"] = ~shown
    given = b["audio"]["tensor"]
    for scheme in ("maskgit", "roar"):
        sizes, last = [], [None]

        def watch(ids, known, sizes=sizes, last=last):
            sizes.append(known.sum(1).tolist())
            old = last[0]
            if old is not None:  # nothing known is changed
                assert torch.equal(torch.where(old[1], ids, 0), torch.where(old[1], old[0], 0))
            last[0] = (ids.clone(), known.clone())

        ids = fill_grid(
            model,
            b,
            "audio",
            scheme,
            steps=3,
            schedule="linear",
            generator=torch.Generator().manual_seed(0),
            watch=watch,
        )
        assert (
            sizes == [[9] * 4, [12] * 4, [15] * 4]
            and torch.equal(ids[shown], given[shown])
            and ids.max() < 30
        )
    assert fill_grid(model, {}, "audio", "roar", rows=2, steps=3).shape == (2, 15)


def test_schedules():
    assert token_schedule(196, 25, "linear") == [8] * 21 + [7] * 4 and token_schedule(196, 8) == [
        7,
        21,
        32,
        38,
        38,
        32,
        21,
        7,
    ]
    assert (
        token_schedule(3, 10, "linear") == [1, 1, 1]
        and token_schedule(5, 1) == [5]
        and all(sum(token_schedule(n, s)) == n for n in (1, 7, 50) for s in (1, 3, 60))
    )


# --- chains


def test_what_was_made_is_seen_by_what_follows(model):
    b = {"video": batch(3)["video"]}

    def draw():
        return torch.Generator().manual_seed(4)

    made = any_to_any(
        model,
        b,
        [dict(target="audio", steps=3), dict(target="caption", max_tokens=6)],
        generator=(g := draw()),
    )
    g = draw()
    audio = fill_grid(model, b, "audio", steps=3, generator=g)
    text = generate_text(model, {**b, "audio": seen_entry(audio)}, max_tokens=6, generator=g)
    assert torch.equal(made["audio"], audio) and made["caption"] == text != generate_text(
        model, b, max_tokens=6
    )
    back = any_to_any(model, {}, ["caption", "audio"], rows=2, generator=draw())
    assert len(back["caption"]) == 2 and back["audio"].shape == (2, 15)


def test_a_given_beginning_is_seen(model):
    b = batch(2)
    whole, open_ = given_text([[50, 60], [70]]), given_text([[50, 60], [70]], complete=False)
    assert whole["tensor"].tolist() == [[50, 60, EOS], [70, EOS, 0]] and open_[
        "tensor"
    ].tolist() == [[50, 60, OPEN], [70, OPEN, 0]]
    assert whole["input_mask"].tolist() == [[False] * 3, [False, False, True]]
    assert generate_text(model, {**b, "caption": open_}, max_tokens=8) != generate_text(
        model, b, max_tokens=8
    )

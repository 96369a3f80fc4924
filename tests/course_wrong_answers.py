"""Answers that students give: right for the example in the text, wrong in general. Each is run after the true answer and replaces what it defines."""

WRONG = {
    "ps1-frames": [
        "def shown_frames(times, fps, n): return (np.asarray(times) * fps).astype(int)",  # forgets rounding and the end
        "def shown_frames(times, fps, n): return np.floor(np.asarray(times) * fps + 1e-6).astype(int)",  # forgets the end
    ],
    "ps1-bars": [
        """
def bars(frames, limit=16):
    lit = frames[0].max(-1) > limit          # one frame is not the clip
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    return int(rows[0]), int(len(lit) - 1 - rows[-1]), int(columns[0]), int(lit.shape[1] - 1 - columns[-1])
"""
    ],
    "ps1-split": [
        "def split_of(group, share=0.1, seed=0): return 'val' if derive_seed(group) < share * 2**63 else 'train'",
        "def split_of(group, share=0.1, seed=0): return 'val' if derive_seed(seed, share, group) < share * 2**63 else 'train'",
    ],
    "ps1-spectrum": [
        """
def spectrum(wave, n_fft=1024, hop=256):
    padded = np.pad(wave, 512, mode="reflect"); w = np.hanning(n_fft + 1)[:-1]     # 512 is half of one window length, not of any
    return np.stack([np.abs(np.fft.rfft(w * padded[m * hop:m * hop + n_fft])) ** 2 for m in range(1 + len(wave) // hop)], 1)
"""
    ],
    "ps1-triangles": [
        """
right_one = triangles
def triangles(rows=513, count=80, sr=16_000): return right_one(rows, count)
"""
    ],
    "ps1-study": [
        """
def distance(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    with np.errstate(all="ignore"): return float((a.mean() - b.mean()) / np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2))
"""
    ],
    "ps2-nearest": [
        "def nearest_code(z, codebook): return ((z[..., None, :] - codebook) ** 2).sum(-1).argmin(-1)",
        "def nearest_code(z, codebook): return torch.addmm((codebook ** 2).sum(1), z, codebook.t(), alpha=-2).argmin(1)",
    ],
    "ps2-through": ["def straight_through(z, chosen): return chosen + z - z.detach()"],
    "ps2-losses": [
        """
def vq_loss(z, e, beta=0.25, mask=None):
    mask = torch.ones(z.shape[:2]) if mask is None else mask
    mean = lambda d: (d.square().mean(-1) * mask).sum() / mask.sum().clamp(min=1)
    return mean(e - z.detach()) + beta * mean(z - e.detach())
"""
    ],
    "ps2-alive": [
        """
def aliveness(ids, codes):
    p = torch.bincount(ids, minlength=codes) / len(ids); q = p[p > 0].double()
    return float((-(q * q.log()).sum()).exp()), int((p == 0).sum())
"""
    ],
    "ps2-ema": [
        """
def ema_step(counts, sums, z, ids, decay=0.95, eps=1e-5):
    one = F.one_hot(ids, len(counts)).float()
    counts, sums = decay * counts + (1 - decay) * one.sum(0), decay * sums + (1 - decay) * one.T @ z
    return sums / counts[:, None], counts, sums
"""
    ],
    "ps2-revive": [
        """
def revive(codebook, counts, z, share=0.05, generator=None):
    moved = counts < share * counts.mean(); out = codebook.clone()
    out[moved] = z[torch.randint(len(z), (1,), generator=generator)]       # one draw for all
    return out, moved
""",
        """
def revive(codebook, counts, z, share=0.05, generator=None):
    moved = counts < share * counts.mean(); out = codebook.clone()
    out[moved] = z[torch.randperm(len(z), generator=generator)[:int(moved.sum())]]      # without replacement
    return out, moved
""",
    ],
    "ps2-ablation": [
        "def leave_one_out(full): return {'full': full, **{f'no {k}': {**full, k: False} for k in full}, 'nothing': dict.fromkeys(full, False)}",
        """
def ablate(train_fn, recipes, train, held_out, seeds):
    def figures(book):
        ids = nearest(train, book); return dict(error=float((train - book[ids]).square().mean()), perplexity=usage(ids, len(book))["perplexity"])
    return {k: [figures(train_fn(train, s, **r)) for s in seeds] for k, r in recipes.items()}
""",
    ],
    "ps3-patches": [
        "def cut(x, a, b): return x.reshape(len(x), 5, a, 13, b).permute(0, 3, 1, 2, 4).reshape(len(x), 13, 5, a * b)"
    ],
    "ps3-price": [
        "def price(columns, bands, patch, codes, seconds): n = columns // patch[1] * (bands // patch[0]); return n, n * np.log2(codes) / seconds"
    ],
    "ps3-error": [
        """
def real_error(rebuilt, mel, lengths):
    real = (torch.arange(mel.shape[-1]) < lengths[:, None])[:, None]
    return ((rebuilt[..., :mel.shape[-1]] - mel).square() * real).sum() / (real.sum() * mel.shape[1])
"""
    ],
    "ps3-still": [
        """
right_one = psnr_of_motion
def psnr_of_motion(frames, rebuilt, threshold=0.1): return right_one(frames, rebuilt)
"""
    ],
    "ps3-reach": [
        """
def reach(tok, ids, place, code):
    other = ids.clone(); other[0, place] = code; d = (tok.decode(other) - tok.decode(ids)).abs()
    return mel_patches(d, tok.settings.patch).amax(-1).view(tok.grid()) > 1e-4           # the grid of the usual clip
"""
    ],
    "ps3-compare": [
        "def equal_price(bands, columns, tokens): return [(bands // r, columns * r // tokens) for r in range(1, bands + 1) if bands % r == 0 == tokens % r]",
    ],
    "ps4-masks": [
        """
def grid_masks(n, n_in, n_out, generator):
    i = torch.arange(n); return i >= n_in, (i < n_in) | (i >= n_in + n_out)            # always the same places
"""
    ],
    "ps4-budget": [
        """
right_one = share_out
def share_out(alphas, total, limits, rng): return right_one(alphas, total, [total] * len(alphas), rng)
"""
    ],
    "ps4-spans": [
        """
def gaps(ids, keep):
    seen, said, n, before = [], [], 0, True
    for i, (t, k) in enumerate(zip(ids, keep)):
        if k: seen.append(t)
        else:
            if i and keep[i - 1]: n += 1; seen.append(4 + n); said.append(4 + n)         # a gap at the very front has no word before it
            said.append(t)
    return seen, [*said, 5 + n]
"""
    ],
    "ps4-sees": [
        """
right_one = must_not_see
def must_not_see(kinds, texts=("caption",)): return right_one(kinds)
"""
    ],
    "ps4-attention": [
        """
def attention(q, k, v, hidden=None):
    s = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (s if hidden is None else s.masked_fill(hidden, -torch.inf)).softmax(-1) @ v
"""
    ],
    "ps4-loss": [
        """
right_one = one_loss
def one_loss(losses, n, vocab, kind="mod", weights=None, count_absent=True): return right_one(losses, n, vocab, kind, None, count_absent)
"""
    ],
    "ps4-listen": [
        """
def listening(cost, ids):
    a, v = dict(audio=ids["audio"]), dict(video=ids["video"]); m = lambda x: float(np.mean(cost(x))); none, both = m({}), m({**a, **v})
    swap = lambda s: m({**ids, s: ids[s].roll(-1, 0)}) - both
    return dict(audio=dict(alone=none - m(a), added=m(v) - both, swapped=swap("audio")), video=dict(alone=none - m(v), added=m(a) - both, swapped=swap("video")))
""",
        """
def listening(cost, ids):
    m = lambda x: float(np.mean(cost(x))); none, every = m({}), m(ids)
    return {s: dict(alone=none - m({s: x}), added=m({k: v for k, v in ids.items() if k != s}) - every, swapped=m({**ids, s: x.flip(0)}) - every) for s, x in ids.items()}
""",
    ],
    "ps5-rate": [
        """
def rate(step, steps, full, warmup=0.05):
    r = round(warmup * steps)
    return full * (step + 1) / r if step < r else full * 0.5 * (1 + math.cos(math.pi * (step - r) / (steps - r)))
"""
    ],
    "ps5-freeze": [
        """
def freeze_but(model, modalities):
    for name, p in model.named_parameters():
        p.grad = None; p.requires_grad_("embeddings" in name and any(name.split("embeddings.")[1].startswith(m) for m in modalities))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
"""
    ],
    "ps5-nucleus": [
        """
def nucleus(logits, p):
    if logits.ndim > 1: return torch.stack([one_row(x, p) for x in logits])
    return one_row(logits, p)
def one_row(x, p):
    q, at = x.softmax(0).sort(descending=True); out = torch.full_like(x, -torch.inf); n = int((q.cumsum(0) - q <= p).sum())
    out[at[:n]] = x[at[:n]]; return out
"""
    ],
    "ps5-lazy": [
        """
def lazy_answers(truths, names):
    out = {}
    for k in names:
        known = [getattr(t, k) for t in truths if getattr(t, k) is not None]; answer, n = Counter(known).most_common(1)[0]
        out[k] = (answer, n / len(known), len(known))
    return out
"""
    ],
    "ps5-interval": [
        """
def interval(right, groups, level=0.95, draws=2000, seed=0):
    right = np.asarray(right, float); means = right[make_rng(seed).integers(len(right), size=(draws, len(right)))].mean(1)
    return tuple(float(q) for q in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))
""",
        """
def interval(right, groups, level=0.95, draws=2000, seed=0):
    groups = np.asarray(groups); means = np.array([np.asarray(right, float)[groups == g].mean() for g in np.unique(groups)])      # all recordings alike
    drawn = means[make_rng(seed).integers(len(means), size=(draws, len(means)))].mean(1)
    return tuple(float(q) for q in np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]))
""",
    ],
    "ps5-calibration": [
        """
def soften(scores, truth):
    T = np.geomspace(0.4, 50, 600); y = np.arange(len(truth)), np.asarray(truth)
    return float(T[np.argmin([-np.log(category_probabilities(scores, t)[y] + 1e-300).mean() for t in T])])
"""
    ],
    "ps5-study": [
        """
right_one = sense_study
def sense_study(write, has, labels):
    out = right_one(write, has, labels); ok = {k: np.array([parse_caption(s).label == l for s, l in zip(write(v), labels)]) for k, v in
        dict(both=("audio", "video"), audio=("audio",), video=("video",)).items()}
    return out | dict(lost=float(((ok["audio"] | ok["video"]) & ~ok["both"]).mean()))       # clips that lack a sense counted, too
"""
    ],
    "ps6-vote": [
        """
def vote(records, share=0.5):
    out = {}
    for k in ATTRIBUTE_VALUES:
        found = Counter(getattr(r, k) for r in records if getattr(r, k) is not None).most_common(1)
        if found and found[0][1] > share * len(records): out[k] = found[0][0]            # more than, not at least
    return Attributes(**out)
"""
    ],
    "ps6-risk": [
        "def risk_coverage(confidence, correct, threshold): k = np.asarray(confidence) >= threshold; return np.mean(np.asarray(correct)[k] == 0), k.mean()"
    ],
    "ps6-decide": ["def decide(p, cost, silence): return (p @ cost).argmin(1)"],
    "ps6-madeup": [
        """
def made_up(said, truths):
    names = [k for k in ATTRIBUTE_VALUES if k != "label"]; at = {k: [i for i, t in enumerate(truths) if getattr(t, k) is None] for k in names}
    return {k: (sum(bool(getattr(said[i], k)) for i in at[k]), len(at[k])) for k in names}       # stated as False is stated
"""
    ],
    "ps6-worst": [
        """
def worst_group(right, groups, least=10):
    by = {}
    for r, g in zip(right, groups): by.setdefault(g, []).append(float(r))
    return min(((g, sum(x) / len(x), len(x)) for g, x in by.items() if len(x) >= least), key=lambda t: t[1], default=None)
"""
    ],
    "ps6-brief": [
        """
def in_brief(facts, limit):
    out = []
    for _, text in sorted(facts):
        if not out or len(words(" ".join([*out, text]))) <= limit: out.append(text)
    return out
"""
    ],
    "ps6-stress": [
        """
def stress(describe, clips, labels, damage, strengths, seed=0):
    out = {}
    for s in strengths:
        got = describe([damage(c, s, make_rng("stress", seed, i, s)) for i, c in enumerate(clips)])
        k = [(a, t) for (a, quiet), t in zip(got, labels) if not quiet]; n = sum(a == t for a, t in k)
        out[s] = dict(n=len(clips), spoken=len(k), right=n, risk=1 - n / len(k) if k else None)
    return out
"""
    ],
}

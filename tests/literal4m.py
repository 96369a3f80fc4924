"""4M once more, literally and slowly: every token is embedded, every mask is dense, nothing is a class.

It shares no code with the package, reproduces the golden cases, and so can make further cases of the same form (other orders, gradients,
padding, empty samples, odd grids, small budgets) whose outputs do not come from the model under test."""

import hashlib
import json
import math

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

SENTINEL_1, SENTINEL_2 = 5, 6


def label(name):
    return int(hashlib.sha256(name.encode("utf-8")).hexdigest(), 16) % 2**15


def linear(sd, key, x):
    return F.linear(x, sd[f"{key}.weight"], sd.get(f"{key}.bias"))


def norm(sd, key, x, eps):
    return F.layer_norm(x, x.shape[-1:], sd[f"{key}.weight"], sd[f"{key}.bias"], eps)


def attention(q, k, v, blocked, heads):
    def split(t):
        return torch.stack(t.split(t.shape[-1] // heads, -1), 1)

    q, k, v = split(q), split(k), split(v)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(blocked[:, None], -torch.finfo(scores.dtype).max)
    return torch.cat(torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v).unbind(1), -1)


def feed_forward(sd, key, x):
    return linear(
        sd, f"{key}.fc2", F.silu(linear(sd, f"{key}.fc1", x)) * linear(sd, f"{key}.fc3", x)
    )


def patches(image, p):
    B, C, H, W = image.shape
    rows = [
        image[:, :, i : i + p, j : j + p].permute(0, 2, 3, 1).reshape(B, -1)
        for i in range(0, H, p)
        for j in range(0, W, p)
    ]
    return torch.stack(rows, 1)


def count_visible(mask, limit=None):
    "Position of every unmasked token of `mask (B, L)`: how many came before it."
    pos = torch.zeros(mask.shape, dtype=torch.long)
    for b in range(mask.shape[0]):
        n = 0
        for i in range(mask.shape[1]):
            if not mask[b, i]:
                pos[b, i] = n if limit is None or n < limit else 0
                n += 1
    return pos


def encoder_embedding(sd, name, m, d):
    key = f"encoder_embeddings.{name}"
    if "vocab_size" not in m:
        x = linear(sd, f"{key}.proj", patches(d["tensor"], m["patch_size"]))
    else:
        x = sd[f"{key}.token_emb.weight"][d["tensor"].long().flatten(1)]
    table = sd[f"{key}.pos_emb"][0]
    if m["type"] == "img":
        return x, (table[None] + sd[f"{key}.mod_emb"]).expand(x.shape)
    place = table[count_visible(d["input_mask"])] * (~d["input_mask"])[..., None]
    return x, place + sd[f"{key}.mod_emb"]


def decoder_embedding(sd, name, m, d):
    key = f"decoder_embeddings.{name}"
    ids = d["tensor"].long().flatten(1)
    table = sd[f"{key}.pos_emb"][0]
    if m["type"] == "img":
        x = sd["mask_token"].expand(*ids.shape, -1)
        return (
            x,
            (table[None] + sd[f"{key}.mod_emb"]).expand(x.shape),
            ids,
            d["target_mask"],
            d["decoder_attention_mask"],
        )
    x = sd[f"{key}.token_emb.weight"][ids]
    place = table[count_visible(d["target_mask"], m["max_tokens"])] + sd[f"{key}.mod_emb"]
    mask = d["target_mask"][:, 1:] | d["target_mask"][:, :-1]
    return x[:, :-1], place[:, :-1], ids[:, 1:], mask, d["decoder_attention_mask"][:, :-1]


def pack(parts, budget):
    "Concatenates along tokens, sorts the visible ones to the front and keeps `budget`; the last part of each entry is its mask."
    joined = [torch.cat(t, 1) for t in zip(*parts)]
    mask = joined[-1]
    keep = torch.argsort(mask.double() + 1e-6 * torch.arange(mask.shape[1]), 1)[:, :budget]
    return [
        torch.gather(t, 1, keep[..., None].expand(-1, -1, t.shape[2]) if t.ndim == 3 else keep)
        for t in joined
    ]


def encode(sd, case, batch):
    c = case["config"]
    parts = []
    for name in batch:
        if f"encoder_embeddings.{name}.mod_emb" in sd:
            x, place = encoder_embedding(sd, name, case["modalities"][name], batch[name])
            mask = batch[name]["input_mask"]
            parts.append((x, place, torch.full(mask.shape, label(name)), mask))
    x, place, mod, mask = pack(parts, c["num_encoder_tokens"])
    x, place, mod = (
        x.masked_fill(mask[..., None], 0),
        place.masked_fill(mask[..., None], 0),
        mod.masked_fill(mask, -1),
    )
    out = dict(encoder_in=x + place, encoder_mask=mask, encoder_mod=mod.int())
    x = x + place
    for i in range(c["encoder_depth"]):
        k = f"encoder.{i}"
        qkv = linear(sd, f"{k}.attn.qkv", norm(sd, f"{k}.norm1", x, c["norm_eps"])).chunk(3, -1)
        x = x + linear(sd, f"{k}.attn.proj", attention(*qkv, mask[:, None], c["num_heads"]))
        x = x + feed_forward(sd, f"{k}.mlp", norm(sd, f"{k}.norm2", x, c["norm_eps"]))
    out["encoder_out"] = norm(sd, "encoder_norm", x, c["norm_eps"])
    out["context"] = linear(sd, "decoder_proj_context", out["encoder_out"]) + place
    return out


def decode(sd, case, y, context, context_mask, blocked):
    c = case["config"]
    for i in range(c["decoder_depth"]):
        k = f"decoder.{i}"
        qkv = linear(sd, f"{k}.self_attn.qkv", norm(sd, f"{k}.norm1", y, c["norm_eps"])).chunk(
            3, -1
        )
        y = y + linear(sd, f"{k}.self_attn.proj", attention(*qkv, blocked, c["num_heads"]))
        q = linear(sd, f"{k}.cross_attn.q", norm(sd, f"{k}.query_norm", y, c["norm_eps"]))
        kv = linear(
            sd, f"{k}.cross_attn.kv", norm(sd, f"{k}.context_norm", context, c["norm_eps"])
        ).chunk(2, -1)
        y = y + linear(
            sd, f"{k}.cross_attn.proj", attention(q, *kv, context_mask[:, None], c["num_heads"])
        )
        y = y + feed_forward(sd, f"{k}.mlp", norm(sd, f"{k}.norm2", y, c["norm_eps"]))
    return norm(sd, "decoder_norm", y, c["norm_eps"])


def run(sd, case, batch, order):
    "Everything between the input and the two losses, by the names of the golden files."
    c, mods = case["config"], case["modalities"]
    out = encode(sd, case, batch)
    parts = []
    for name in order:
        x, place, ids, mask, count = decoder_embedding(sd, name, mods[name], batch[name])
        parts.append((x, place, ids, count, torch.full(mask.shape, label(name)), mask))
    x, place, ids, count, mod, mask = pack(parts, c["num_decoder_tokens"])
    M = mask.shape[1]
    y = (x + place).masked_fill(mask[..., None], 0)
    reach = count.cumsum(1)
    blocked = (torch.arange(M)[None, None] >= reach[:, :, None]) | (mod[:, :, None] != mod[:, None])
    mod, ids = mod.masked_fill(mask, -1), ids.masked_fill(mask, 0)
    out |= dict(
        decoder_in=y,
        decoder_mask=mask,
        decoder_mod=mod.int(),
        target_ids=ids,
        decoder_attn_mask=blocked,
    )
    y = out["decoder_out"] = decode(sd, case, y, out["context"], out["encoder_mask"], blocked)
    losses, numel = {}, {}
    for name in order:
        logits = out[f"logits.{name}"] = linear(sd, f"decoder_embeddings.{name}.to_logits", y)
        here = mod == label(name)
        logp = logits.log_softmax(-1).gather(-1, ids[..., None].clamp(max=logits.shape[-1] - 1))[
            ..., 0
        ]
        losses[name] = -logp[here].mean() if here.any() else y.new_zeros(())
        numel[name] = int(here.sum()) * logits.shape[-1]
        out[f"loss_by_mod.{name}"] = losses[name]
    out["loss.mod"] = sum(losses.values()) / len(losses)
    out["loss.token"] = sum(losses[m] * numel[m] for m in losses) / sum(numel.values())
    return out


def gradients(sd, case, batch, order):
    "`grad.<loss>.<key>` for every trained weight and `grad_norm.<loss>` over all of them, for both losses."
    out = {}
    for kind in ("mod", "token"):
        fixed = {k for k in sd if k.endswith("pos_emb") or ("norm" in k and k.endswith(".bias"))}
        leaves = {}
        for k in sorted(sd, reverse=True):  # `encoder_…` before `decoder_…`
            twin = k.replace("decoder_embeddings", "encoder_embeddings")
            leaves[k] = (
                leaves[twin]
                if k.endswith("mod_emb") and twin in leaves
                else sd[k].clone().requires_grad_(k not in fixed)
            )
        run(leaves, case, batch, order)[f"loss.{kind}"].backward()
        grads = {
            k: torch.zeros_like(t) if t.grad is None else t.grad
            for k, t in leaves.items()
            if k not in fixed
        }
        once = {id(leaves[k]): g for k, g in grads.items()}
        out |= {f"grad.{kind}.{k}": g.clone() for k, g in grads.items()}
        out[f"grad_norm.{kind}"] = torch.stack([g.norm() for g in once.values()]).norm()
    return out


def greedy(sd, case, batch, target, slots):
    "The most likely text, token by token, from all tokens of the grids and images and one [S_1]."
    B = len(batch[target]["tensor"])
    seen = {}
    for m, d in batch.items():
        if case["modalities"][m]["type"] == "img":
            seen[m] = dict(d, input_mask=torch.zeros_like(d["input_mask"]))
    seen[target] = dict(
        tensor=torch.full((B, 1), SENTINEL_1), input_mask=torch.zeros(B, 1, dtype=torch.bool)
    )
    total = sum(d["input_mask"].shape[1] for d in seen.values())
    ctx = encode(sd, dict(case, config=dict(case["config"], num_encoder_tokens=total)), seen)
    ids = torch.full((B, 1), SENTINEL_1)
    while ids.shape[1] <= slots and not (ids == SENTINEL_2).any(1).all():
        L = ids.shape[1]
        key = f"decoder_embeddings.{target}"
        y = sd[f"{key}.token_emb.weight"][ids] + sd[f"{key}.pos_emb"][0, :L] + sd[f"{key}.mod_emb"]
        blocked = torch.ones(L, L, dtype=torch.bool).triu(1).expand(B, L, L)
        y = decode(sd, case, y, ctx["context"], ctx["encoder_mask"], blocked)
        ids = torch.cat([ids, linear(sd, f"{key}.to_logits", y[:, -1:]).argmax(-1)], 1)
    return ids


def write_case(folder, name, sd, case, batch, orders=None, grads=True, greedy_slots=0):
    "A case in the golden files' own form, computed by the functions above."
    case = dict(case, name=name, mod_dict_order=list(batch))
    plain = [m for m in batch if f"decoder_embeddings.{m}.mod_emb" in sd]
    tensors = {f"sd.{k}": t for k, t in sd.items()} | {
        f"in.{m}.{k}": t for m, d in batch.items() for k, t in d.items()
    }
    if orders:
        case["decoder_orders"] = orders
    for tag, order in (orders or {"": plain}).items():
        out = run(sd, case, batch, order) | (gradients(sd, case, batch, order) if grads else {})
        tensors |= {f"out.{tag}.{k}" if tag else f"out.{k}": t for k, t in out.items()}
    if greedy_slots:
        tensors["out.greedy.caption"] = greedy(sd, case, batch, "caption", greedy_slots)
    save_file(
        {k: t.detach().contiguous().clone() for k, t in tensors.items()},
        folder / f"{name}.safetensors",
    )
    (folder / f"{name}.json").write_text(json.dumps(case))

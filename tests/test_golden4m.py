"""The 4M transformer against recorded inputs, weights and outputs of the original.

Every `NAME.json` + `NAME.safetensors` in $SCENE4M_GOLDEN4M (default `tests/data/golden4m`) is a
case; the json says all there is to know."""

import json
import os
import warnings
from pathlib import Path

import literal4m
import pytest
import torch
from safetensors.torch import load_file, save_file

from scene4m.attention import BlockCache
from scene4m.fourm import FourM
from scene4m.masking import Pixels, Text, TokenGrid

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("SCENE4M_GOLDEN4M") or HERE / "data" / "golden4m")
CASES = sorted(FOLDER.glob("*.json"))
TOLERANCE = dict(rtol=0, atol=2e-5)
LOSS = dict(rtol=0, atol=1e-5)
GRADIENT = dict(rtol=1e-4, atol=2e-5)
MASKS = ("input_mask", "target_mask", "decoder_attention_mask")
EXACT = dict(
    encoder_mask=0, encoder_mod=0, decoder_mask=0, decoder_mod=0, target_ids=0, decoder_attn_mask=0
)


@pytest.fixture(autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def modality(name, m):
    "The modality that a case's json describes."
    if m["type"].startswith("seq"):
        return Text(name, m["vocab_size"], m["max_tokens"])
    size = m["image_size"] if isinstance(m["image_size"], list) else [m["image_size"]] * 2
    if "vocab_size" in m:
        return TokenGrid(name, m["vocab_size"], [s // m["patch_size"] for s in size], "4m")
    return Pixels(name, tuple(size), m["patch_size"], m.get("num_channels", 3))


class Case:
    "One recorded case: its json, its tensors, and the model with its weights."

    def __init__(self, path):
        self.json, tensors = (
            json.loads(path.read_text()),
            load_file(path.with_suffix(".safetensors")),
        )

        def part(p):
            return {k[len(p) :]: t for k, t in tensors.items() if k.startswith(p)}

        self.sd, self.out, given = part("sd."), part("out."), part("in.")
        names = self.json["mod_dict_order"]
        self.batch = {
            m: {k: given[f"{m}.{k}"] for k in ("tensor", *MASKS) if f"{m}.{k}" in given}
            for m in names
        }
        self.modalities = {n: modality(n, m) for n, m in self.json["modalities"].items()}

        def side(s):
            return [
                m
                for m in self.modalities
                if any(k.startswith(f"{s}_embeddings.{m}.") for k in self.sd)
            ]

        described = {n: m.to_config() for n, m in self.modalities.items()}
        self.model = FourM(
            dict(
                self.json["config"],
                domains_in=side("encoder"),
                domains_out=side("decoder"),
                modalities=described,
            )
        )
        self.model.load_state_dict(self.sd, strict=True)
        self.budgets = [self.json["config"][f"num_{s}_tokens"] for s in ("encoder", "decoder")]
        self.orders = self.json.get("decoder_orders") or {"": None}

    def wanted(self, order):
        "What is recorded for an order, without its prefix and without greedy texts."
        own = f"{order}." if order else ""
        return {
            k[len(own) :]: t
            for k, t in self.out.items()
            if k.startswith(own) and not k[len(own) :].startswith("greedy.")
        }

    def greedy(self):
        "Recorded greedy texts by modality; they may stand once, or once per order."
        return {
            k.rpartition("greedy.")[2]: t
            for k, t in self.out.items()
            if k.startswith("greedy.") or ".greedy." in k
        }

    def run(self, order, loss_type="mod", **kw):
        "Everything that a golden file can hold except gradients and greedy captions."
        got = {}

        def take(name):
            return lambda module, args, *out: got.__setitem__(name, out[0] if out else args[0])

        m = self.model
        hooks = [
            m.encoder[0].register_forward_pre_hook(take("encoder_in")),
            m.encoder_norm.register_forward_hook(take("encoder_out")),
            m.decoder[0].register_forward_pre_hook(take("decoder_in")),
        ]
        out = m(self.batch, *self.budgets, loss_type=loss_type, order=self.orders[order], **kw)
        for h in hooks:
            h.remove()
        sides = m.targets(self.batch, self.orders[order])
        ids = torch.tensor([self.modalities[n].id for n in out.decoder.names])
        seen = torch.tensor([self.modalities[n].id for n in out.encoder.names])
        s = out.decoder
        got |= dict(
            context=out.context,
            decoder_out=out.hidden,
            encoder_mask=out.encoder.pad,
            decoder_mask=s.pad,
        )
        got["encoder_mod"] = seen[out.encoder.kind].masked_fill(out.encoder.pad, -1).int()
        got["decoder_mod"] = ids[s.kind].masked_fill(s.pad, -1).int()
        flat = torch.zeros(s.pad.numel(), dtype=torch.long)
        for n, rows in zip(s.names, s.rows):
            flat[rows] = s.pick(n, sides[n].target).long()
        got |= {
            "target_ids": flat.view(s.pad.shape),
            "decoder_attn_mask": m.hidden_targets(sides, s),
            f"loss.{loss_type}": out.loss,
        }
        got |= {f"loss_by_mod.{n}": v for n, v in out.losses.items()}
        return got | {f"logits.{n}": m.decoder_embeddings[n].to_logits(out.hidden) for n in s.names}


def compare(case, order):
    "Asserts that the model does for `order` what is recorded."
    wanted = case.wanted(order)
    checked = set()
    got = case.run(order) | {k: v for k, v in case.run(order, "token").items() if k == "loss.token"}
    rows = {"encoder": ~wanted["encoder_mask"], "decoder": ~wanted["decoder_mask"]}
    rows |= {"context": rows["encoder"], "logits": rows["decoder"]}
    for key, want in wanted.items():
        head = key.partition(".")[0]
        if head in EXACT:
            assert torch.equal(got[key].to(want.dtype), want), key
        elif head.startswith("loss"):
            torch.testing.assert_close(
                got[key].reshape(want.shape), want, **LOSS, msg=lambda m, k=key: f"{k}: {m}"
            )
        elif head.partition("_")[0] in rows or head in rows:
            keep = (
                slice(None)
                if head in ("encoder_in", "decoder_in")
                else rows[head if head in rows else head.partition("_")[0]]
            )
            torch.testing.assert_close(
                got[key][keep], want[keep], **TOLERANCE, msg=lambda m, k=key: f"{k}: {m}"
            )
        elif not head.startswith("grad"):
            warnings.warn(
                f"{case.json['name']}: nothing is known about the output {key}", stacklevel=2
            )
            continue
        checked.add(head)
    return checked


def compare_gradients(case, order):
    "Asserts the recorded gradients and their norms; returns how many there were."
    wanted = {k: t for k, t in case.wanted(order).items() if k.startswith("grad")}
    params = dict(case.model.named_parameters(remove_duplicate=False))
    for kind in sorted({k.split(".")[1] for k in wanted}):
        case.model.zero_grad(set_to_none=True)
        case.model(
            case.batch, *case.budgets, loss_type=kind, order=case.orders[order]
        ).loss.backward()
        for key, want in wanted.items():
            if key.startswith(f"grad.{kind}."):
                name = key.split(".", 2)[2]
                g = params[name].grad
                torch.testing.assert_close(
                    torch.zeros_like(want) if g is None else g,
                    want,
                    **GRADIENT,
                    msg=lambda m, k=key: f"{k}: {m}",
                )
        if f"grad_norm.{kind}" in wanted:
            norm = torch.stack(
                [p.grad.norm() for p in case.model.parameters() if p.grad is not None]
            ).norm()
            torch.testing.assert_close(
                norm, wanted[f"grad_norm.{kind}"].reshape(()), rtol=1e-4, atol=1e-5
            )
    return len(wanted)


@torch.no_grad()
def greedy(case, target, steps, cached):
    "Arg-max decoding from all tokens of grids and images and one [S_1] of the target."
    m = case.model
    B = len(next(iter(case.batch.values()))["tensor"])
    open_, seen = torch.full((B, 1), 5), {}
    for n, e in case.batch.items():
        if not case.modalities[n].is_sequence and n in m.encoder_embeddings:
            seen[n] = dict(e, input_mask=torch.zeros_like(e["input_mask"]))
    seen[target] = dict(tensor=open_, input_mask=torch.zeros(B, 1, dtype=torch.bool))
    context, _ = m.encode(seen)
    e = m.decoder_embeddings[target]
    ids = open_
    shape = (B, m.num_heads, steps, context.shape[-1] // m.num_heads)
    memories = [b.memory(context) for b in m.decoder]
    caches = [BlockCache(torch.empty(shape), torch.empty(shape)) for _ in m.decoder]
    for t in range(steps):
        if cached:
            y = e.content(ids[:, -1:]) + e.place(torch.tensor([t]))
            for block, memory, cache in zip(m.decoder, memories, caches):
                y = block(y, memory, cache=cache)
            y = m.decoder_norm(y)
        else:
            y = e.content(ids) + e.place(torch.arange(t + 1))
            y = m.run_decoder(
                y, context, torch.ones(t + 1, t + 1, dtype=torch.bool).triu(1).expand(B, -1, -1)
            )
        ids = torch.cat([ids, e.to_logits(y[:, -1:]).argmax(-1)], 1)
    return ids


def check_case(path):
    "Everything that a case holds."
    case = Case(path)
    checked = set()
    for order in case.orders:
        assert {"context", "decoder_out", "loss"} <= compare(case, order)
        compare_gradients(case, order)
        checked.add(order)
    for target, want in case.greedy().items():
        for cached in (False, True):
            assert torch.equal(greedy(case, target, want.shape[1] - 1, cached), want), (
                target,
                cached,
            )
    return case, checked


def test_there_are_cases():
    assert CASES, f"no golden case in {FOLDER}"


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_golden_case(path):
    check_case(path)


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_plain_attention_gives_the_same(path):
    case = Case(path)
    case.model.set_attention("plain")
    for order in case.orders:
        compare(case, order)


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_labels_and_position_tables_are_rebuilt_exactly(path):
    case = Case(path)
    for name, m in case.modalities.items():
        assert m.id == case.json["modalities"][name]["id"]
        for side in ("encoder", "decoder"):
            key = f"{side}_embeddings.{name}.pos_emb"
            if key in case.sd:
                torch.testing.assert_close(
                    m.position_table(case.json["config"]["dim"])[None],
                    case.sd[key],
                    rtol=0,
                    atol=2e-4,
                )


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_a_forward_pass_leaves_its_arguments_alone(path):
    case = Case(path)
    before = {m: {k: t.clone() for k, t in e.items()} for m, e in case.batch.items()}
    case.run(next(iter(case.orders)))
    assert {m: set(e) for m, e in case.batch.items()} == {m: set(e) for m, e in before.items()}
    assert all(torch.equal(case.batch[m][k], t) for m, e in before.items() for k, t in e.items())


# --- the literal version agrees with the recorded cases, and makes further ones


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_the_literal_version_agrees_with_the_record(path):
    case = Case(path)
    for order, names in case.orders.items():
        names = names or [m for m in case.batch if m in case.model.decoder_embeddings]
        out = literal4m.run(case.sd, case.json, case.batch, names)
        wanted = case.wanted(order)
        for key in ("encoder_mod", "decoder_mod", "target_ids", "decoder_attn_mask"):
            assert torch.equal(out[key], wanted[key].to(out[key].dtype)), key
        for key in ("context", "decoder_out"):
            keep = ~wanted["encoder_mask" if key == "context" else "decoder_mask"]
            torch.testing.assert_close(out[key][keep], wanted[key][keep], **TOLERANCE)
        for kind in ("mod", "token"):
            torch.testing.assert_close(
                out[f"loss.{kind}"], wanted[f"loss.{kind}"].reshape(()), **LOSS
            )


def opened(stem="case2"):
    "The parts of a case that come with the package, to build others from."
    return Case(next((HERE / "data" / "golden4m").glob(f"{stem}*.json")))


def copied(batch):
    return {m: {k: t.clone() for k, t in e.items()} for m, e in batch.items()}


def test_orders_and_gradients(tmp_path):
    c = opened("case2")
    orders = dict(forwards=list(c.batch), backwards=list(c.batch)[::-1])
    case = dict(
        c.json, config=dict(c.json["config"], num_decoder_tokens=11)
    )  # too few for all: the order decides who is heard
    literal4m.write_case(tmp_path, "orders", c.sd, case, c.batch, orders)
    found, checked = check_case(tmp_path / "orders.json")
    assert checked == set(orders) and compare_gradients(found, "forwards") > 100
    assert abs(found.out["forwards.loss.mod"] - found.out["backwards.loss.mod"]) > 1e-3


def test_greedy_texts_may_stand_once_per_order(tmp_path):
    c = opened("case1")
    orders = dict(one=[m for m in c.batch if m in c.model.decoder_embeddings])
    literal4m.write_case(
        tmp_path, "greedy", c.sd, c.json, c.batch, orders, grads=False, greedy_slots=8
    )
    tensors = load_file(tmp_path / "greedy.safetensors")
    tensors["out.one.greedy.caption"] = tensors.pop("out.greedy.caption")
    save_file(tensors, tmp_path / "greedy.safetensors")
    found, _ = check_case(tmp_path / "greedy.json")
    assert list(found.greedy()) == ["caption"]
    tensors["out.one.greedy.caption"][0, 3] += 1
    save_file(tensors, tmp_path / "greedy.safetensors")
    with pytest.raises(AssertionError):
        check_case(tmp_path / "greedy.json")


def test_every_form_at_once(tmp_path):
    "Two orders, small budgets, padding, samples that see or say nothing, gradients of both losses."
    c = opened("case3")
    batch = copied(c.batch)
    names = list(batch)
    first = batch[names[0]]
    for e in batch.values():
        e["input_mask"][0] = True
    for e in batch.values():
        e["target_mask"][-1] = True
        e["decoder_attention_mask"][-1] = 0
    first["input_mask"][-1, 4:] = True  # fewer visible than the budget: padding
    config = dict(c.json["config"], num_encoder_tokens=9, num_decoder_tokens=8)
    orders = dict(a=names, b=names[::-1])
    literal4m.write_case(tmp_path, "all", c.sd, dict(c.json, config=config), batch, orders)
    found, checked = check_case(tmp_path / "all.json")
    pad = found.out["a.encoder_mask"]
    assert (
        checked == {"a", "b"}
        and pad[0].all()
        and pad.shape[1] == 9
        and found.out["a.decoder_mask"][-1].all()
    )
    assert any("grad.token." in k for k in found.out) and "b.grad_norm.mod" in found.out


def test_samples_with_nothing_to_see_or_nothing_to_say(tmp_path):
    c = opened("case2")
    batch = copied(c.batch)
    for e in batch.values():
        e["input_mask"][0] = True  # the first sample sees nothing,
        e["target_mask"][1] = True
        e["decoder_attention_mask"][1] = 0  # the second says nothing
    batch["tok_depth@64"]["target_mask"][:] = True  # and one modality is nobody's target
    batch["tok_depth@64"]["decoder_attention_mask"][:] = 0
    literal4m.write_case(tmp_path, "empty", c.sd, c.json, batch)
    found, _ = check_case(tmp_path / "empty.json")
    assert (
        found.out["encoder_mask"][0].all()
        and found.out["decoder_mask"][1].all()
        and found.out["loss_by_mod.tok_depth@64"] == 0
    )


@pytest.mark.parametrize("budgets", [(1, 1), (3, 7), (500, 500)], ids=str)
def test_budgets_below_and_above_what_there_is(tmp_path, budgets):
    c = opened("case3")
    config = dict(c.json["config"], num_encoder_tokens=budgets[0], num_decoder_tokens=budgets[1])
    literal4m.write_case(tmp_path, "budget", c.sd, dict(c.json, config=config), c.batch)
    found, _ = check_case(tmp_path / "budget.json")
    assert found.out["encoder_mask"].shape[1] == min(budgets[0], 68) and found.out[
        "decoder_mask"
    ].shape[1] == min(budgets[1], 66)


def test_oblong_grids_and_patches(tmp_path):
    c, g = opened("case1"), torch.Generator().manual_seed(3)
    D = 64
    sd = {k: t for k, t in c.sd.items() if "rgb" not in k}
    rgb, tok = "rgb@24x40", "tok_rgb@32x80"

    def table(h, w):
        n = torch.arange(h * w)
        k = 10000.0 ** -(torch.arange(D // 4) / (D // 4))
        a, b = (n // h)[:, None] * k, (n % h)[:, None] * k
        return torch.cat([a.sin(), a.cos(), b.sin(), b.cos()], 1)[None]

    def rand(*s):
        return torch.randn(*s, generator=g) * 0.3

    sd |= {
        f"encoder_embeddings.{rgb}.mod_emb": rand(1, 1, D),
        f"encoder_embeddings.{rgb}.pos_emb": table(3, 5),
        f"encoder_embeddings.{rgb}.proj.weight": rand(D, 192),
    }
    sd |= {
        f"{s}_embeddings.{tok}.{k}": t
        for s in ("encoder", "decoder")
        for k, t in dict(pos_emb=table(2, 5)).items()
    }
    sd |= {f"{s}_embeddings.{tok}.token_emb.weight": rand(33, D) for s in ("encoder", "decoder")}
    sd |= {
        f"decoder_embeddings.{tok}.to_logits.weight": rand(33, D),
        f"encoder_embeddings.{tok}.mod_emb": rand(1, 1, D),
    }
    sd[f"decoder_embeddings.{tok}.mod_emb"] = sd[f"encoder_embeddings.{tok}.mod_emb"].clone()
    mods = {
        rgb: dict(
            type="img",
            image_size=[24, 40],
            patch_size=8,
            max_tokens=15,
            num_channels=3,
            id=literal4m.label(rgb),
        ),
        tok: dict(
            type="img",
            image_size=[32, 80],
            patch_size=16,
            max_tokens=10,
            vocab_size=33,
            id=literal4m.label(tok),
        ),
        "caption": c.json["modalities"]["caption"],
    }
    hide = torch.rand(2, 10, generator=g) < 0.5
    image = torch.rand(2, 15, generator=g) < 0.3
    count = torch.zeros(2, 10, dtype=torch.int32)
    count[torch.arange(2), hide.int().argmax(1)] = hide.sum(1).int()
    batch = {
        rgb: dict(
            tensor=torch.randn(2, 3, 24, 40, generator=g),
            input_mask=image,
            target_mask=torch.ones_like(image),
            decoder_attention_mask=torch.zeros(2, 15, dtype=torch.int32),
        ),
        tok: dict(
            tensor=torch.randint(33, (2, 2, 5), generator=g),
            input_mask=hide,
            target_mask=~hide,
            decoder_attention_mask=count,
        ),
        "caption": c.batch["caption"],
    }
    literal4m.write_case(
        tmp_path, "oblong", sd, dict(c.json, modalities=mods), batch, greedy_slots=9
    )
    found, _ = check_case(tmp_path / "oblong.json")
    assert found.modalities[rgb].grid == (3, 5) and found.out["greedy.caption"].shape[1] <= 10


def test_a_wrong_number_is_found(tmp_path):
    c = opened("case1")
    literal4m.write_case(
        tmp_path, "wrong", dict(c.sd, mask_token=c.sd["mask_token"]), c.json, c.batch
    )
    tensors = load_file(tmp_path / "wrong.safetensors")
    check_case(tmp_path / "wrong.json")
    tensors["sd.decoder_proj_context.bias"] = torch.zeros_like(
        tensors["sd.decoder_proj_context.bias"]
    )  # the bias that is easily forgotten
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(AssertionError):
        check_case(tmp_path / "wrong.json")

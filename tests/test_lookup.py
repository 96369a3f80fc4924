"A table's gradient on the way for large tables on a CPU: the same as that of PyTorch's embedding, whatever the ids and the type."
import pytest
import torch
import torch.nn.functional as F

from scene4m import fourm
from scene4m.fourm import FourM, LookUp, TokenTable
from scene4m.masking import Text, TokenGrid


@pytest.mark.parametrize("blank", [None, 0, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ids", [torch.int32, torch.int64])
def test_the_gradient_is_that_of_embedding(blank, dtype, ids):
    g = torch.Generator().manual_seed(0)
    table = torch.randn(11, 6, generator=g).to(dtype).requires_grad_()
    places = torch.randint(11, (3, 4), generator=g).to(ids)      # some twice, some never
    weight = torch.randint(-3, 4, (3, 4, 6), generator=g).to(dtype)
    out = LookUp.apply(table, places, blank)
    (ours,) = torch.autograd.grad((out * weight).sum(), table)
    (theirs,) = torch.autograd.grad((F.embedding(places, table, padding_idx=blank) * weight).sum(), table)
    assert torch.equal(out, F.embedding(places, table)) and torch.equal(ours, theirs)
    assert ours.dtype == dtype and ours.is_contiguous()


def test_no_ids_have_no_gradient():
    table = torch.randn(5, 2, requires_grad=True)
    out = LookUp.apply(table, torch.zeros(0, dtype=torch.long), None)
    (grad,) = torch.autograd.grad(out.sum(), table)
    assert torch.equal(grad, torch.zeros(5, 2))


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_learns_the_same_with_large_tables(monkeypatch, tied):
    grid, text = TokenGrid("audio", 32, (4, 2)), Text("caption", 230, 12)
    model = FourM.toy([grid, text], dim=32, encoder_depth=1, decoder_depth=1, num_heads=2, share_embedding=tied)
    g = torch.Generator().manual_seed(0)
    off = torch.zeros(3, 8, dtype=torch.bool)
    said = torch.ones(3, 12, dtype=torch.bool)
    said[:, :7] = False
    words = torch.randint(204, 230, (3, 12), generator=g)
    words[:, 4:6] = words[:, 2:4]
    batch = dict(
        audio=dict(tensor=torch.randint(32, (3, 8), generator=g), input_mask=off, target_mask=~off,
                   decoder_attention_mask=off.int()),
        caption=dict(tensor=words, input_mask=torch.ones_like(said), target_mask=said,
                     decoder_attention_mask=(~said).int()),
    )

    def gradients(large):
        monkeypatch.setattr(fourm, "LARGE", large)
        model.zero_grad()
        model(batch).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    usual, large = gradients(2**62), gradients(0)
    assert usual.keys() == large.keys()
    assert large["decoder_embeddings.caption.token_emb.weight"].any()
    for name in usual:
        torch.testing.assert_close(large[name], usual[name], rtol=1e-6, atol=1e-8)


def test_only_large_tables_go_this_way(monkeypatch):
    table = TokenTable(10, 4)
    ids = torch.tensor([1, 2])
    monkeypatch.setattr(fourm, "LARGE", 40)
    assert table(ids).grad_fn.name() == "LookUpBackward"
    monkeypatch.setattr(fourm, "LARGE", 41)
    assert table(ids).grad_fn.name() == "EmbeddingBackward0"

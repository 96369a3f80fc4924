"""Two small TorchScript networks with COSMOS's signature, in place of its 200 MB of weights."""

import warnings
from pathlib import Path

import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Conv3d(3, 6, (4, 8, 8), stride=(4, 8, 8))
        nn.init.normal_(self.mix.weight, std=0.15)

    def forward(self, x: torch.Tensor):
        z = self.mix(torch.cat([x[:, :, :1], x[:, :, :1], x[:, :, :1], x], 2)).movedim(1, -1)
        levels = torch.tensor([8, 8, 8, 5, 5, 5], device=x.device)
        half = (levels - 1) * 1.001 / 2
        offset = (levels % 2 == 0).to(z.dtype) / 2
        digits = ((z + torch.atanh(offset / half)).tanh() * half - offset).round() + levels // 2
        ids = (
            (digits.long() * torch.tensor([1, 8, 64, 512, 2560, 12800], device=x.device))
            .sum(-1)
            .to(torch.int32)
        )
        return (
            ids,
            ((digits - levels // 2) / (levels // 2)).to(z.dtype).movedim(-1, 1),
            torch.zeros(1),
        )


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.ConvTranspose3d(6, 3, (4, 8, 8), stride=(4, 8, 8))

    def forward(self, ids: torch.Tensor):
        d = (
            ids.unsqueeze(-1)
            // torch.tensor([1, 8, 64, 512, 2560, 12800], device=ids.device)
            % torch.tensor([8, 8, 8, 5, 5, 5], device=ids.device)
        )
        half = torch.tensor([4, 4, 4, 2, 2, 2], device=ids.device)
        return self.mix(((d - half) / half).to(self.mix.weight.dtype).movedim(-1, 1))[:, :, 3:] * 3


def write_pair(folder: Path, encoder=None, decoder=None, seed: int = 0) -> Path:
    "Writes encoder.jit and decoder.jit."
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, m in (("encoder", encoder or Encoder()), ("decoder", decoder or Decoder())):
            torch.jit.script(m.eval()).save(str(folder / f"{name}.jit"))
    return folder

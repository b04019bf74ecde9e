"""Records how PyTorch writes a state dict, for machines without torch: `python tests/support/torch_weights.py`."""

from pathlib import Path

import torch

METRICS = Path(__file__).parents[1] / "metrics"


def state_dict():
    layer = torch.nn.Conv2d(2, 3, (1, 2), bias=False).to(memory_format=torch.channels_last)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(12).reshape(3, 2, 1, 2) / 7)
    norm = torch.nn.BatchNorm2d(3)
    norm.running_var.copy_(torch.tensor([0.5, 1.5, 2.5]))
    return torch.nn.Sequential(layer, norm.double()).state_dict()


if __name__ == "__main__":
    torch.save(state_dict(), METRICS / "state_dict.pth")
    torch.save(state_dict(), METRICS / "state_dict_before_1.6.pth", _use_new_zipfile_serialization=False)

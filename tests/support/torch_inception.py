"""The FID Inception network in PyTorch, written from the graph's description and apart from the Flax one: its twin.

`python tests/support/torch_inception.py FILE` records its features, for machines without torch.
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F


class Conv(nn.Module):
    def __init__(self, inputs, outputs, kernel=1, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def mean_pool(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class Block(nn.Module):
    """Chains of convolutions side by side; `chains` names them, `pool` is what stands before `branch_pool`."""

    chains: tuple[tuple[str, ...], ...] = ()

    def run(self, x, names):
        for name in names:
            x = getattr(self, name)(x)
        return x


class A(Block):
    def __init__(self, inputs, pooled):
        super().__init__()
        self.branch1x1 = Conv(inputs, 64)
        self.branch5x5_1, self.branch5x5_2 = Conv(inputs, 48), Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 64), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3, self.branch_pool = Conv(96, 96, 3, padding=1), Conv(inputs, pooled)

    def forward(self, x):
        double = self.run(x, ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"))
        five = self.run(x, ("branch5x5_1", "branch5x5_2"))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(mean_pool(x))], 1)


class B(Block):
    def __init__(self, inputs):
        super().__init__()
        self.branch3x3 = Conv(inputs, 384, 3, 2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 64), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, 2)

    def forward(self, x):
        double = self.run(x, ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class C(Block):
    def __init__(self, inner):
        super().__init__()
        row, column = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1, self.branch7x7_1 = Conv(768, 192), Conv(768, inner)
        self.branch7x7_2, self.branch7x7_3 = Conv(inner, inner, **row), Conv(inner, 192, **column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(768, inner), Conv(inner, inner, **column)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Conv(inner, inner, **row), Conv(inner, inner, **column)
        self.branch7x7dbl_5, self.branch_pool = Conv(inner, 192, **row), Conv(768, 192)

    def forward(self, x):
        seven = self.run(x, [f"branch7x7_{i}" for i in (1, 2, 3)])
        double = self.run(x, [f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)])
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(mean_pool(x))], 1)


class D(Block):
    def __init__(self):
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(768, 192), Conv(192, 320, 3, 2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(768, 192), Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, (7, 1), padding=(3, 0)), Conv(192, 192, 3, 2)

    def forward(self, x):
        three = self.run(x, ("branch3x3_1", "branch3x3_2"))
        seven = self.run(x, [f"branch7x7x3_{i}" for i in (1, 2, 3, 4)])
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)


class E(Block):
    def __init__(self, inputs, pool):
        super().__init__()
        row, column = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}
        self.pool = pool
        self.branch1x1, self.branch3x3_1 = Conv(inputs, 320), Conv(inputs, 384)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, **row), Conv(384, 384, **column)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 448), Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, **row), Conv(384, 384, **column)
        self.branch_pool = Conv(inputs, 192)

    def forward(self, x):
        three, double = self.branch3x3_1(x), self.run(x, ("branch3x3dbl_1", "branch3x3dbl_2"))
        three = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        double = [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *three, *double, self.branch_pool(self.pool(x))], 1)


class TorchInception(nn.Module):
    """Features [B,2048] and logits without bias [B,1008] of uint8 images [B,3,H,W]."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, 2), Conv(32, 32, 3)
        self.Conv2d_2b_3x3, self.Conv2d_3b_1x1 = Conv(32, 64, 3, padding=1), Conv(64, 80)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = A(192, 32), A(256, 64), A(288, 64)
        self.Mixed_6a, self.Mixed_6b, self.Mixed_6c = B(288), C(128), C(160)
        self.Mixed_6d, self.Mixed_6e, self.Mixed_7a = C(160), C(192), D()
        self.Mixed_7b, self.Mixed_7c = E(1280, mean_pool), E(2048, lambda x: F.max_pool2d(x, 3, 1, 1))
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images):
        x = (resize(images.float()) - 128) / 128
        for name in ("1a_3x3", "2a_3x3", "2b_3x3"):
            x = getattr(self, f"Conv2d_{name}")(x)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        features = x.mean((2, 3))
        return features, features @ self.fc.weight.T


def resize(x, size=299):
    """TensorFlow 1's rule by `grid_sample`: pixel i of the result is read at i * H / size."""
    height, width = x.shape[2:]

    def coordinates(n):
        return 2 * (torch.arange(size) * (n / size)) / max(n - 1, 1) - 1

    grid = torch.stack(torch.meshgrid(coordinates(width), coordinates(height), indexing="xy"), -1)
    grid = grid.expand(len(x), size, size, 2)
    return F.grid_sample(x, grid, "bilinear", padding_mode="border", align_corners=True)


def twin(weights):
    """The twin under weights named as in pytorch-fid: uint8 images [B,H,W,3] -> features and logits, numpy arrays."""
    model = TorchInception().eval()
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
    assert not unexpected and all(name == "fc.bias" or name.endswith("num_batches_tracked") for name in missing)

    def run(images):
        with torch.no_grad():
            return [result.numpy() for result in model(torch.from_numpy(images).permute(0, 3, 1, 2))]

    return run


if __name__ == "__main__":
    import numpy as np
    from weights import RECORDED_PLACES, random_images, random_weights

    features, logits = twin(random_weights())(random_images())
    np.savez(sys.argv[1], features=features[:, RECORDED_PLACES], logits=logits[:, ::8])

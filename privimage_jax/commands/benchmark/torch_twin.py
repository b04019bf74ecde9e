"""The zoo's UNet in PyTorch, with the same parameters, and its training step with and without Opacus."""

import importlib
import importlib.util
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from privimage_jax.commands.benchmark.problems import Problem
from privimage_jax.models.registry import parameter_count
from privimage_jax.models.unet import UNet, norm_groups
from privimage_jax.training.state import flatten_params


def import_torch() -> Any:
    return importlib.import_module("torch")


def _allow_tf32(allowed: bool) -> None:
    """Whether PyTorch may compute products and convolutions of float32 values in TF32, where the device has it."""
    torch = import_torch()
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


class TorchStep:
    """A training step of the UNet's PyTorch twin: the denoising loss, Adam and the moving average, eagerly.

    Calling the object performs one step and returns when the device has finished it.

    Raises:
      AssertionError: (on construction) the twin differs from the network in its number of parameters or its outputs.
    """

    def __init__(self, problem: Problem, private: bool, memory: int):
        """`memory`: bytes; what per-example gradients may take is a quarter of it."""
        torch = import_torch()
        self.problem, self.private = problem, private
        self.device = torch.device("cuda" if torch.cuda.is_available() and jax.default_backend() != "cpu" else "cpu")
        generator: Any = problem.generator  # a `Diffusion`, see `unsuited`
        twin = unet_twin(generator.model, problem.image_shape[0])
        load_parameters(twin, problem.merged(problem.params))
        check_twin(twin, problem)
        self.network = twin.to(self.device)
        self.microbatch = problem.divisor(problem.microbatch)
        optimizer = torch.optim.Adam(self.network.parameters(), lr=problem.learning_rate)
        if private:
            from opacus import GradSampleModule
            from opacus.optimizers import DPOptimizer

            per_example = problem.noise_multiplicity * parameter_count(problem.params) * 4
            self.microbatch = problem.divisor(min(problem.microbatch, memory // 4 // per_example))
            self.network = GradSampleModule(self.network, loss_reduction="sum")
            optimizer = DPOptimizer(
                optimizer,
                noise_multiplier=problem.noise_multiplier,
                max_grad_norm=problem.clip_norm,
                expected_batch_size=problem.batch_size,
            )
        self.optimizer = optimizer
        self.weights = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.average = [weight.detach().clone() for weight in self.weights]
        shape = (problem.batch_size, problem.image_shape[2], *problem.image_shape[:2])
        self.images = torch.rand(shape, device=self.device) * 2 - 1
        self.labels = torch.arange(problem.batch_size, device=self.device) % generator.model.n_classes

    def __call__(self) -> None:
        torch, problem = import_torch(), self.problem
        _allow_tf32(problem.precision != "float32")  # other float32 products are TF32 in JAX's "bfloat16" as well
        starts = range(0, problem.batch_size, self.microbatch)
        self.optimizer.zero_grad(set_to_none=True)
        for start in starts:
            part = slice(start, start + self.microbatch)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=problem.precision == "bfloat16"):
                loss = self._loss(self.images[part], self.labels[part])
                # Within autocast, since Opacus multiplies activations and their gradients of different types.
                (loss if self.private else loss / problem.batch_size).backward()
            if not self.private:
                continue
            for weight in self.weights:
                per_draw = weight.grad_sample.float()
                weight.grad_sample = per_draw.reshape(-1, problem.noise_multiplicity, *weight.shape).sum(1)
            if start != starts[-1]:  # Opacus' own way to add up microbatches
                self.optimizer.signal_skip_step(do_skip=True)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 1 - problem.ema)
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _loss(self, images: Any, labels: Any) -> Any:
        """The sum over examples of the mean over K draws."""
        torch, problem = import_torch(), self.problem
        generator: Any = problem.generator
        edm = generator.edm
        images = images.repeat_interleave(problem.noise_multiplicity, 0)
        labels = labels.repeat_interleave(problem.noise_multiplicity, 0)
        hidden = torch.rand(len(labels), device=self.device) < edm.label_dropout
        labels = torch.where(hidden, generator.model.n_classes, labels)
        sigma = torch.exp(edm.p_mean + edm.p_std * torch.randn(len(labels), device=self.device))
        total = sigma**2 + edm.sigma_data**2
        c_skip, c_out, c_in = (
            c[:, None, None, None]
            for c in (edm.sigma_data**2 / total, sigma * edm.sigma_data / total.sqrt(), 1 / total.sqrt())
        )
        noised = images + sigma[:, None, None, None] * torch.randn_like(images)
        denoised = c_skip * noised + c_out * self.network(c_in * noised, sigma.log() / 4, labels)
        weight = total / (sigma * edm.sigma_data) ** 2
        per_draw = weight * (denoised - images).square().mean((1, 2, 3))
        return per_draw.sum() / problem.noise_multiplicity

    def reset_peak(self) -> None:
        """Starts counting the peak of memory anew."""
        if self.device.type == "cuda":
            import_torch().cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int | None:
        """The most memory that torch held since `reset_peak`; None on CPUs, where torch does not count."""
        return import_torch().cuda.max_memory_allocated() if self.device.type == "cuda" else None


def unet_twin(model: UNet, side: int) -> Any:
    """A `torch.nn.Module` with the layers and the names of a `models.unet.UNet`; images are [B,C,side,side]."""
    torch = import_torch()
    layers, F = torch.nn, torch.nn.functional
    Module: Any = layers.Module

    def norm(channels: int) -> Any:
        return layers.GroupNorm(norm_groups(channels), channels, eps=1e-6)

    class ResidualBlock(Module):
        def __init__(self, n_in: int, n_out: int, resample: str = "") -> None:
            super().__init__()
            self.resample = resample
            self.norm1, self.norm2 = norm(n_in), norm(n_out)
            self.conv1 = layers.Conv2d(n_in, n_out, 3, padding=1)
            self.conv2 = layers.Conv2d(n_out, n_out, 3, padding=1)
            self.shortcut = layers.Conv2d(n_in, n_out, 1) if resample or n_in != n_out else layers.Identity()
            self.embed = layers.Linear(4 * model.nf, n_out)

        def forward(self, x: Any, embedding: Any, size: Any = None) -> Any:
            h = F.silu(self.norm1(x))
            if self.resample == "down":
                h, x = (F.avg_pool2d(value, 2, ceil_mode=True) for value in (h, x))
            elif self.resample == "up":
                h, x = (F.interpolate(value, scale_factor=2)[:, :, : size[0], : size[1]] for value in (h, x))
            x = self.shortcut(x)
            h = self.conv1(h) + self.embed(F.silu(embedding))[:, :, None, None]
            return (x + self.conv2(F.silu(self.norm2(h)))) * math.sqrt(0.5)

    class AttentionBlock(Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.norm = norm(channels)
            self.q, self.k, self.v, self.out = (layers.Linear(channels, channels) for _ in range(4))

        def forward(self, x: Any) -> Any:
            h = self.norm(x).flatten(2).transpose(1, 2)
            scores = self.q(h) @ self.k(h).transpose(1, 2) / math.sqrt(x.shape[1])
            h = self.out(scores.float().softmax(-1).to(x.dtype) @ self.v(h))
            return (x + h.transpose(1, 2).reshape(x.shape)) * math.sqrt(0.5)

    class Twin(Module):
        def __init__(self) -> None:
            super().__init__()
            self.label = layers.Embedding(model.n_classes + 1, model.nf)
            self.embed1 = layers.Linear(model.nf, 4 * model.nf)
            self.embed2 = layers.Linear(4 * model.nf, 4 * model.nf)
            self.conv_in = layers.Conv2d(model.channels, model.nf, 3, padding=1)
            self.plan: list[tuple[str, str]] = []  # (name, whether its input takes a skip or its output is one)
            skips, width = [model.nf], model.nf
            sides = [-(-side // 2**level) for level in range(len(model.ch_mult))]

            def block(name: str, n_in: int, n_out: int, resample: str = "", skip: str = "") -> None:
                self.add_module(name, ResidualBlock(n_in, n_out, resample))
                self.plan.append((name, skip))

            def attend(name: str, channels: int, skip: str = "") -> None:
                self.add_module(name, AttentionBlock(channels))
                self.plan.append((name, skip))

            for level, multiplier in enumerate(model.ch_mult):
                if level > 0:
                    block(f"down{level}_halve", width, width, "down", "push")
                    skips.append(width)
                for i in range(model.num_blocks):
                    attends = sides[level] in model.attn
                    block(f"down{level}_{i}", width, model.nf * multiplier, skip="" if attends else "push")
                    width = model.nf * multiplier
                    if attends:
                        attend(f"down{level}_{i}_attention", width, "push")
                    skips.append(width)
            block("middle0", width, width)
            attend("middle_attention", width)
            block("middle1", width, width)
            for level, multiplier in reversed(list(enumerate(model.ch_mult))):
                for i in range(model.num_blocks + 1):
                    block(f"up{level}_{i}", width + skips.pop(), model.nf * multiplier, skip="pop")
                    width = model.nf * multiplier
                if sides[level] in model.attn:
                    attend(f"up{level}_attention", width)
                if level > 0:
                    block(f"up{level}_double", width, width, "up")
            self.norm_out = norm(width)
            self.conv_out = layers.Conv2d(width, model.channels, 3, padding=1)

        def forward(self, x: Any, c_noise: Any, label: Any) -> Any:
            half = model.nf // 2
            places = torch.arange(half, device=x.device)
            angles = c_noise[:, None] * torch.exp(-math.log(10_000.0) * places / max(half - 1, 1))
            embedding = F.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, model.nf % 2))
            embedding = self.embed2(F.silu(self.embed1(embedding + self.label(label))))
            h = self.conv_in(x)
            skips = [h]
            for name, skip in self.plan:
                layer = self.get_submodule(name)
                if isinstance(layer, AttentionBlock):
                    h = layer(h)
                else:
                    h = torch.cat([h, skips.pop()], 1) if skip == "pop" else h
                    h = layer(h, embedding, skips[-1].shape[2:] if skips else None)
                if skip == "push":
                    skips.append(h)
            return self.conv_out(F.silu(self.norm_out(h))).float()

    return Twin()


def load_parameters(twin: Any, params: Any) -> None:
    """Copies the parameters of the flax network into its twin."""
    torch = import_torch()
    flat = {path: np.array(leaf, np.float32) for path, leaf in flatten_params(params).items()}

    def counterpart(path: str) -> np.ndarray:
        layer, _, kind = path.rpartition("/")
        if kind == "bias":
            return flat[path]
        (name,) = {f"{layer}/{name}" for name in ("kernel", "scale", "embedding")} & flat.keys()
        value = flat[name]
        if not name.endswith("kernel"):
            return value
        return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T

    with torch.no_grad():
        for name, weight in twin.named_parameters():
            weight.copy_(torch.from_numpy(counterpart(name.replace(".", "/")).copy()))


def check_twin(twin: Any, problem: Problem) -> None:
    """Compares the twin with its original: the number of parameters, and the outputs on random inputs.

    Raises:
      AssertionError: they differ, which would make the comparison worthless.
    """
    torch = import_torch()
    ours, its = parameter_count(problem.params), sum(weight.numel() for weight in twin.parameters())
    if ours != its:
        raise AssertionError(f"the PyTorch twin has {its} parameters, the network {ours}: a bug of privimage_jax")
    rng = np.random.default_rng(0)
    x, c_noise = rng.standard_normal((3, *problem.image_shape), np.float32), np.array([-1, 0, 0.5], np.float32)
    generator: Any = problem.generator
    label = np.arange(3) % (generator.model.n_classes + 1)
    model = generator.model.clone(dtype="float32")
    own = {"params": problem.merged(problem.params)}
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(model.apply)(own, x, c_noise, jnp.asarray(label, jnp.int32))
    with torch.no_grad():
        got = twin(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(c_noise), torch.from_numpy(label))
    if not np.allclose(got.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-3, atol=1e-4):
        raise AssertionError("the PyTorch twin does not compute what the network does: a bug of privimage_jax")

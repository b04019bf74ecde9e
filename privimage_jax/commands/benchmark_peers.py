"""What the benchmark compares with: the same training step by other libraries, each used as its documentation says.

- `jax_privacy` (`jax_privacy.clipped_grad`) and `optax` (`optax.contrib.differentially_private_aggregate`) get the very
  loss that our own steps get, of an unmodified network, and the microbatch that ours have (optax: the whole batch).
- `opacus` and `torch_nonprivate` get a twin of the zoo's UNet in PyTorch with the same parameters; before anything is
  measured, the number of parameters and the outputs on random inputs are compared. Opacus clips per row of a batch, so
  the gradients of an example's K draws are added before its optimizer sees them, as DPDM does (Dockhorn et al. 2023).

A peer draws no Poisson batch: its batch is given, on the device, which is in its favour. The precision is the same for
all. In PyTorch, "tf32" lets products of float32 values use it; "bfloat16" is autocast beside that, with float32
parameters as ours.
"""

import dataclasses
import functools
import importlib
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from privimage_jax.generators.base import Generator, PerExampleLoss
from privimage_jax.generators.diffusion import Diffusion
from privimage_jax.models.registry import parameter_count
from privimage_jax.models.unet import UNet, norm_groups
from privimage_jax.training.state import flatten_params

MODULES = {
    "jax_privacy": ("jax_privacy",),
    "optax": ("optax",),
    "opacus": ("torch", "opacus"),
    "torch_nonprivate": ("torch",),
}
JAX_PEERS, TORCH_PEERS = ("jax_privacy", "optax"), ("opacus", "torch_nonprivate")
INSTALL = 'pip install --constraint constraints.txt --editable ".[peers]"'


@dataclasses.dataclass(frozen=True)
class Problem:
    """One setting, as every method gets it.

    Attributes:
      config: resolved, with this problem's precision and noise multiplicity.
      generator: of that config, all of whose parameters are trained.
      params: what is trained, as `loss` takes it.
      batch_size: B.
      microbatch: examples that a device handles at once.
    """

    config: ConfigDict
    generator: Generator
    params: Any
    batch_size: int
    microbatch: int
    noise_multiplier: float = 1.0

    @functools.cached_property
    def loss(self) -> PerExampleLoss:
        """`(params, batch, keys [B]) -> [B]`."""
        return lambda params, batch, keys: self.generator.per_example_loss(self.merged(params), batch, keys)

    @property
    def update(self) -> Callable[[dict, Any], dict]:
        """`(state, gradient) -> state`."""
        return self.generator.private_update

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.generator.image_shape

    @property
    def noise_multiplicity(self) -> int:
        """K."""
        return self.config.finetune.noise_multiplicity

    @property
    def precision(self) -> str:
        """Of `clipping.PRECISIONS`."""
        return self.config.precision

    @property
    def clip_norm(self) -> float:
        """C."""
        return self.config.clipping.norm

    @property
    def learning_rate(self) -> float:
        """Of the update, which is Adam and a moving average."""
        return self.config.finetune.learning_rate

    @property
    def ema(self) -> float:
        """Decay of that moving average."""
        return self.config.finetune.ema

    def merged(self, params: Any) -> Any:
        """The model's own parameters, from those that are trained."""
        return self.generator.merge(params, {})

    def state(self) -> dict[str, Any]:
        """The state from which fine-tuning starts."""
        return self.generator.private_state(self.merged(self.params), jax.random.key(0))

    def divisor(self, most: int) -> int:
        """The largest microbatch of at most `most` examples that divides the batch."""
        return max(m for m in range(1, max(1, min(most, self.batch_size)) + 1) if self.batch_size % m == 0)


def missing(name: str) -> str | None:
    """One sentence on how to install a peer, or None where it is installed."""
    absent = [module for module in MODULES[name] if importlib.util.find_spec(module) is None]
    if not absent:
        return None
    return f"{name} is left out, as {' and '.join(absent)} cannot be imported; install the extra: {INSTALL}."


def unsuited(name: str, problem: Problem) -> str | None:
    """One sentence on why an installed peer cannot do this problem, or None."""
    if name in TORCH_PEERS and not _is_unet(problem.generator):
        return f"{name} is left out: its PyTorch twin is that of config.model.name=unet alone."
    if name in TORCH_PEERS and jax.default_backend() != "cpu" and not _torch().cuda.is_available():
        return f"{name} is left out: this torch finds no GPU, and a comparison across devices would say nothing."
    return None


def _is_unet(generator: Generator) -> bool:
    return isinstance(generator, Diffusion) and type(generator.model) is UNet


def jax_step(name: str, problem: Problem) -> Callable[[dict, dict, jax.Array], tuple[dict, Any]]:
    """`step(state, batch, key) -> (state, aside)` of a JAX peer, to be compiled.

    Args:
      name: one of `JAX_PEERS`.
      problem: the setting.

    Returns:
      A function of the state, a batch {"image" uint8 [B,H,W,C], "label" int32 [B]} and a jax.random key. `aside` is
      what its library keeps between steps.
    """
    return {"jax_privacy": _jax_privacy_step, "optax": _optax_step}[name](problem)


def _loss_of_one(problem: Problem, params: Any, batch: dict, key_data: jax.Array) -> jax.Array:
    """The loss of a batch of one; keys as plain numbers, which every library can slice."""
    return problem.loss(params, batch, jax.random.wrap_key_data(key_data))[0]


def _jax_privacy_step(problem: Problem) -> Callable[[dict, dict, jax.Array], tuple[dict, Any]]:
    from jax_privacy.clipping import clipped_grad

    microbatch = problem.divisor(problem.microbatch)
    gradient = clipped_grad(
        functools.partial(_loss_of_one, problem),
        l2_clip_norm=problem.clip_norm,
        batch_argnums=(1, 2),
        microbatch_size=None if microbatch == problem.batch_size else microbatch,
    )
    std = problem.noise_multiplier * problem.clip_norm

    def step(state: dict, batch: dict, key: jax.Array) -> tuple[dict, Any]:
        loss_key, noise_key = jax.random.split(key)
        keys = jax.random.key_data(jax.random.split(loss_key, problem.batch_size))
        total = gradient(state["params"], batch, keys)
        noise = optax.tree.random_like(noise_key, total, sampler=jax.random.normal)
        mean = jax.tree.map(lambda g, z: (g + std * z) / problem.batch_size, total, noise)
        return problem.update(state, mean), ()

    return step


def _optax_step(problem: Problem) -> Callable[[dict, dict, jax.Array], tuple[dict, Any]]:
    from optax.contrib import differentially_private_aggregate

    def step(state: dict, batch: dict, key: jax.Array) -> tuple[dict, Any]:
        loss_key, noise_key = jax.random.split(key)
        keys = jax.random.key_data(jax.random.split(loss_key, problem.batch_size))
        batch = jax.tree.map(lambda leaf: leaf[:, None], batch)
        loss = functools.partial(_loss_of_one, problem)
        gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(state["params"], batch, keys[:, None])
        aggregate = differentially_private_aggregate(problem.clip_norm, problem.noise_multiplier, noise_key)
        mean, aside = aggregate.update(gradients, aggregate.init(state["params"]))
        return problem.update(state, mean), aside

    return step


def _torch() -> Any:
    return importlib.import_module("torch")


def _allow_tf32(allowed: bool) -> None:
    """Whether PyTorch may compute products and convolutions of float32 values in TF32, where the device has it."""
    torch = _torch()
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
        torch = _torch()
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
        torch, problem = _torch(), self.problem
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
        torch, problem = _torch(), self.problem
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
            _torch().cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int | None:
        """The most memory that torch held since `reset_peak`; None on CPUs, where torch does not count."""
        return _torch().cuda.max_memory_allocated() if self.device.type == "cuda" else None


def unet_twin(model: UNet, side: int) -> Any:
    """A `torch.nn.Module` with the layers and the names of a `models.unet.UNet`; images are [B,C,side,side]."""
    torch = _torch()
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
    torch = _torch()
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
    torch = _torch()
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

"""A loss that mixes the examples of a batch is refused, however it does so, and no other one."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from privimage_jax.privacy import check_objective


class Mixer(nn.Module):
    """A tiny image model; `mix` names how it mixes the examples of a batch, "" for not at all."""

    mix: str = ""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (3, 3))(x)
        if self.mix == "batch norm":
            x = nn.BatchNorm(use_running_average=False)(x)
        elif self.mix == "attention":
            flat = x.reshape(len(x), -1)
            x = x + (nn.softmax(flat @ flat.T) @ flat).reshape(x.shape)
        elif self.mix == "faint":
            x = x + 1e-12 * jnp.mean(x, axis=0)
        elif self.mix == "product":
            x = x + 0 * jnp.sum(x, axis=0)  # 0 * NaN
        else:
            x = nn.GroupNorm(1)(x)
        return x


def image_loss(model):
    def loss(params, batch, keys):
        out, _ = model.apply({"params": params}, batch["image"], mutable=["batch_stats"])
        return jnp.mean(out**2, axis=(1, 2, 3)) * (1 + batch["label"]) * jax.vmap(jax.random.uniform)(keys)

    return loss


@pytest.mark.parametrize("mix", ["", "batch norm", "attention", "faint", "product"])
def test_a_model_that_mixes_examples_is_refused(mix):
    model = Mixer(mix)
    params = model.init(jax.random.key(0), jnp.zeros((2, 4, 4, 1)))["params"]
    batch = {"image": np.zeros((3, 4, 4, 1), np.float32), "label": np.arange(3, dtype=np.int32)}
    check = functools.partial(check_objective, image_loss(model), params, batch)
    if not mix:
        check()
    else:
        with pytest.raises(ValueError, match="the loss mixes the examples"):
            check()


def _on_the_host(values):
    return jax.pure_callback(lambda x: x, values, values, vmap_method="expand_dims")


@jax.custom_vjp
def _backward_on_the_host(values):
    return values


_backward_on_the_host.defvjp(lambda values: (values, None), lambda _, slope: (_on_the_host(slope),))


@jax.custom_batching.custom_vmap
def _with_own_rule(values):
    return values


@_with_own_rule.def_vmap
def _large_values_of_the_batch(size, is_batched, values):
    return jnp.where(jnp.abs(values) > 10, values.mean(axis=0), values), True


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        (lambda values: _on_the_host(jax.lax.stop_gradient(values)) + values, "pure_callback"),
        (_backward_on_the_host, "pure_callback"),
        (lambda values: _with_own_rule(jax.lax.stop_gradient(values)) * values, "custom_vmap_call"),
    ],
)
def test_a_loss_whose_code_may_see_the_batch_is_refused(operation, named):
    """Although it keeps the examples of the check apart."""

    def loss(params, batch, keys):
        return operation(batch["row"] * params).sum(axis=1)

    with pytest.raises(ValueError, match=f"the loss uses {named}, which may look at several examples at once"):
        check_objective(loss, np.ones(5, np.float32), {"row": np.zeros((2, 5), np.float32)})


def test_a_model_is_checked_as_it_is_trained():
    """Beside frozen parameters, through which examples may mix as well, and which need no derivative."""
    batch = {"row": np.zeros((2, 5), np.float32)}
    trained, frozen = np.ones(5, np.float32), np.arange(5, dtype=np.float32)

    @jax.custom_vjp
    def without_derivative(values):
        return values

    def derivative(_, gradient):
        raise NotImplementedError

    without_derivative.defvjp(lambda values: (values, None), derivative)

    def loss(params, batch, keys):
        return jnp.sin(batch["row"] * params["trained"] + without_derivative(params["frozen"])).sum(axis=1)

    def mixed(params, batch, keys):
        return loss(params, batch, keys) + (params["frozen"] * batch["row"].mean()).sum()

    def merge(trained, frozen):
        return {"trained": trained, "frozen": frozen}

    check_objective(loss, trained, batch, merge=merge, frozen=frozen)
    with pytest.raises(ValueError, match="the loss mixes the examples"):
        check_objective(mixed, trained, batch, merge=merge, frozen=frozen)
    with pytest.raises(NotImplementedError):
        check_objective(loss, merge(trained, frozen), batch)


def test_any_batch_can_be_checked():
    """Of a table, say; examples of several arrays, nested as one likes."""
    batch = {"row": (np.zeros((2, 5), np.float32), np.zeros(2, np.float16)), "class": np.arange(2)}

    def loss(params, batch, keys):
        row, weight = batch["row"]
        return (row @ params) * weight * (1 + batch["class"])

    check_objective(loss, np.ones(5, np.float32), batch)
    for mixed in (
        lambda params, batch, keys: loss(params, batch, keys) + batch["row"][1].mean(),
        lambda params, batch, keys: loss(params, batch, keys) + 0 * batch["row"][0][0, 0],
        lambda params, batch, keys: loss(params, batch, keys).mean(),
    ):
        with pytest.raises(ValueError, match="the loss mixes the examples"):
            check_objective(mixed, np.ones(5, np.float32), batch)
    with pytest.raises(ValueError, match="holds no array of floats"):
        check_objective(loss, np.ones(5, np.float32), {"class": np.arange(2)})

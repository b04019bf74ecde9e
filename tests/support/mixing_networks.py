"""Classifiers that mix the images of a batch, each in another way, and one that does not in inference."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching


class _Network(nn.Module):
    n_classes: int

    def setup(self):
        self.hidden, self.head = nn.Dense(8), nn.Dense(self.n_classes)

    def mixed(self, x, train):
        return x

    def features(self, x, train=False):
        x = self.mixed(x, train)
        return nn.relu(self.hidden(x.reshape(len(x), -1)))

    def __call__(self, x, train=False):
        return self.head(self.features(x, train))


class MinMax(_Network):
    """Contrast stretched over the batch: an everyday mistake."""

    def mixed(self, x, train):
        return (x - x.min()) / (x.max() - x.min())


class Later(_Network):
    """Each image sees the one after it and not the one before."""

    def mixed(self, x, train):
        return x - jnp.concatenate([x[1:], x[-1:]])


class LargeBatches(_Network):
    """Statistics of a batch only where it is large enough to estimate them."""

    def mixed(self, x, train):
        return x - x.mean(0) if len(x) > 8 else x


class OnTheHost(_Network):
    """Contrast stretched by code on the host, which is handed whole batches, once it is trained."""

    def mixed(self, x, train):
        if train:
            return x
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: x / abs(x).max(), shape, x, vmap_method="expand_dims")


@jax.custom_batching.custom_vmap
def _centred(x):
    return x


@_centred.def_vmap
def _centred_batch(size, batched, x):
    return x - x.mean(0), True


class RuleOfItsOwn(_Network):
    """Says itself what a batch of images is mapped to."""

    def mixed(self, x, train):
        return x if train else _centred(x)


class Normalised(nn.Module):
    """A convolution and BatchNorm, which in inference has statistics of its own and mixes nothing."""

    n_classes: int

    @nn.compact
    def features(self, x, train=False):
        x = nn.Conv(4, (3, 3))(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train)(x)).mean((1, 2))

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.n_classes)(self.features(x, train))


MIXING = (MinMax, Later, LargeBatches)


class SharedNumbers(_Network):
    """Draws numbers from the pixels by a generator of which `jax.vmap` asks the first image's key for all."""

    def mixed(self, x, train):
        if train:
            return x
        seed = jax.lax.bitcast_convert_type(x.sum(), jnp.int32)
        return x + jax.random.normal(jax.random.key(seed, impl="rbg"), x.shape)


_less_the_mean = Primitive("less_the_mean")
_less_the_mean.def_abstract_eval(lambda x: x)
_less_the_mean.def_impl(lambda x: x)
batching.primitive_batchers[_less_the_mean] = lambda given, axes: (given[0] - given[0].mean(axes[0]), axes[0])


class OperationOfItsOwn(_Network):
    """A primitive of which jax knows nothing but what it is told to make of a batch."""

    def mixed(self, x, train):
        return x if train else _less_the_mean.bind(x)


REFUSED = {
    "pure_callback": OnTheHost,
    "custom_vmap_call": RuleOfItsOwn,
    "a generator of random numbers with keys of the type key<rbg>": SharedNumbers,
    "less_the_mean": OperationOfItsOwn,
}

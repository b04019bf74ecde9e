"""The programs of a small config as a TPU would run them: compiled for eight chips that are not here.

What the compiler says of them is an estimate. It is enough to notice a rule of CPUs in a program for TPUs, a second
message between devices, or a constant that holds data. Each program is compiled once, by the test that looks at it.
"""

import importlib.util
import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from privimage_jax.configs import base
from privimage_jax.privacy import summation
from privimage_jax.targets import hlo, programs, topologies
from privimage_jax.targets.facts import Facts

FACTS = Facts(2000, 3, 3000, 10)
# Cycles of the private loop over those of the plain one. The network is so small that what clipping costs in any case
# weighs most: 1.59 with the rule of TPUs, 2.32 with that of CPUs.
MOST = 1.8
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed; the extra [targets] has it"
)


def small_config():
    config = base.get_config()
    config.data.image_size, config.data.channels = 8, 1
    config.model.name, config.model.kwargs = "targets_models:Convolutions", ConfigDict({"dtype": "bfloat16"})
    config.query_net.model = "targets_models:GroupNormResNet"
    config.finetune.update({"batch_size": 256, "noise_multiplicity": 8})
    config.clipping.microbatch = 8
    config.pretrain.batch_size, config.sample.batch_size, config.sample.steps = 64, 64, 4
    return config


def compiled(name: str, *methods: str) -> list[str]:
    """The texts of a stage's program by each method."""
    machine = topologies.parse("v5e:2x4")
    mesh = Mesh(np.array(topologies.devices(machine)), ("data",))
    made = programs.make(small_config(), FACTS, machine, methods, (name,))
    with jax.default_matmul_precision("default"):
        return [one.lower(mesh).compile().as_text() for one in made]


def check(text: str) -> None:
    """What holds for every program: nothing in double precision, no data among the constants, bfloat16 products."""
    assert "f64[" not in text and "s64[" not in text
    constants = [hlo.size(shape) for shape in re.findall(r"= (\S+) constant\(", text)]
    assert max(constants, default=0) < 4096
    assert re.search(r"bf16\[[\d,]+\]\S* convolution\(", text)


def test_the_private_step_costs_little_more_than_the_plain_one():
    plain, private = compiled("finetune", "nonprivate", "bookkeeping")
    for text in (plain, private):
        check(text)
        assert hlo.Program(text).collectives() == 1  # the sum over the devices, of float32 values
    assert re.search(r"f32\[\d+\]\S* all-reduce", private)
    loops = [hlo.Program(text).cost((1, 4))[1].cycles for text in (plain, private)]
    assert loops[1] / loops[0] < MOST, loops


@pytest.mark.parametrize("name", ["query", "pretrain", "sample"])
def test_the_public_programs_compile(name):
    [text] = compiled(name)
    check(text)


def test_no_compiler_undoes_the_compensated_sum():
    """Each of an addition's two roundings leaves four differences; simplified, none would be left."""
    machine = topologies.parse("v5e:2x4")
    device = NamedSharding(Mesh(np.array(topologies.devices(machine))[:1], ("data",)), PartitionSpec())
    value = jax.ShapeDtypeStruct((8, 128), np.float32, sharding=device)
    text = (
        jax.jit(lambda high, low, term: summation.add((high, low), term)).lower(value, value, value).compile().as_text()
    )
    assert len(re.findall(r"= f32\S+ subtract\(", text)) == 8

"""The noise that a budget asks for, by both accountants, as `privimage budget` shows it."""

import dataclasses
import math
import re

import pytest
from pipelines import tiny_config

from privimage_jax import config as configs
from privimage_jax.configs import base
from privimage_jax.errors import UserError
from privimage_jax.privacy.accounting import Gaussian
from privimage_jax.privacy.ledger import Ledger
from privimage_jax.run import plan as plans
from privimage_jax.run.inputs import make_inputs
from privimage_jax.run.mechanism import terms
from privimage_jax.run.plan import describe, make_plan, noise_by_accountant
from privimage_jax.storage.workdir import Workdir

N = 45_000  # with the batch and the epochs of the base config: B = 4096, T = 1647


def make_config(epsilon, accountant="pld"):
    config = base.get_config()
    config.privacy.epsilon, config.privacy.accountant = epsilon, accountant
    return config


@pytest.mark.parametrize(
    ("epsilon", "pld", "rdp"),
    [(10.0, 2.097, 2.206), (1.0, 15.15, 16.31)],
)
def test_both_accountants_find_the_published_noise(epsilon, pld, rdp):
    config = make_config(epsilon)
    assert make_plan(config, N).steps == 1647
    assert noise_by_accountant(config, N) == pytest.approx({"pld": pld, "rdp": rdp}, rel=5e-4)


def test_a_batch_beyond_the_proof_of_its_sum_is_refused():
    config = make_config(10.0, "rdp")
    config.finetune.batch_size = 60_001
    with pytest.raises(UserError, match=r"config.finetune.batch_size=60001 is more than .* give at most 60000"):
        make_plan(config, 2**16 + 1)


def test_the_budget_shows_both_and_which_is_used():
    lines = describe(make_plan(make_config(10.0, "rdp"), N), make_config(10.0, "rdp")).splitlines()
    table = [line.split() for line in lines[lines.index("") :]]
    assert table[-3:] == [
        ["accountant", "sigma1", "sigma2"],
        ["pld", "50", "2.0969"],
        ["rdp", "(used)", "50", "2.2062"],
    ]


@pytest.mark.parametrize("noise", [50.0, 50.123449, 5.72345678, 1234.5678])
def test_no_noise_that_is_shown_costs_more_than_it_says(noise):
    """Whoever runs with the shown numbers spends no more than with the true ones."""
    plan = dataclasses.replace(
        make_plan(make_config(10.0, "rdp"), N), finetune_noise=noise, reserved={"semantic query": Gaussian(noise)}
    )
    config = make_config(10.0)
    config.finetune.enabled = False  # the table by both accountants takes seconds, and shows its numbers likewise
    lines = describe(dataclasses.replace(plan, finetune_noise=None), config).splitlines()
    config.finetune.enabled = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "noise_by_accountant", lambda *args: {"pld": noise, "rdp": noise})
        lines += describe(plan, config).splitlines()
    shown = [float(found) for line in lines for found in re.findall(r"sigma[12] = ([0-9.]+)", line)]
    table = [line.split()[-2:] for line in lines if line.startswith(("pld", "rdp"))]
    shown += [float(each) for row in table for each in row]
    assert len(shown) == 7 and all(noise <= each <= noise * (1 + 1e-4) for each in shown)
    (rate,) = re.findall(r"q = ([0-9.]+)", "\n".join(lines))
    assert float(rate) >= plan.sampling_rate
    assert all(float(found) >= plan.delta for found in re.findall(r", delta = ([0-9.]+)", "\n".join(lines)))


def test_a_ledger_keeps_the_delta_that_was_the_default_when_it_was_opened():
    config, n = make_config(10.0, "rdp"), 1437
    config.finetune.batch_size = 512
    config.finetune.steps = 10
    before = 1 / (n * math.log(n))
    assert [make_plan(config, n, begun).delta for begun in (None, before, 2 * before)] == [n**-1.5, before, n**-1.5]
    config.privacy.delta = 1e-6
    assert make_plan(config, n, before).delta == 1e-6


def test_a_run_that_an_earlier_version_began_goes_on_under_its_delta(tmp_path):
    config = tiny_config(tmp_path)
    config.privacy.accountant = "rdp"
    inputs = make_inputs(configs.check(config), Workdir(tmp_path / "run"))
    inputs.workdir.create()
    before = 1 / (60 * math.log(60))
    opened = Ledger.open(inputs.workdir.ledger)
    opened.append("open", **terms(inputs) | {"delta": before})
    assert inputs.plan.delta == before
    opened.check_terms(terms(inputs))


def test_an_accountant_by_which_the_budget_is_too_small_has_no_noise():
    """The query alone costs 0.0672 by one and 0.0769 by the other."""
    config = make_config(0.072)
    config.finetune.batch_size, config.finetune.steps = 512, 1
    found = noise_by_accountant(config, N)
    assert found["pld"] > 0 and found["rdp"] is None
    assert "none suffices" in describe(make_plan(config, N), config)


def test_without_fine_tuning_there_is_no_sigma2():
    config = make_config(10.0)
    config.finetune.enabled = False
    assert noise_by_accountant(config, N) == {} and "accountant" not in describe(make_plan(config, N), config)


def test_a_query_that_is_not_made_has_no_sigma1():
    config = make_config(10.0)
    config.selection.method = "random"
    assert describe(make_plan(config, N), config).splitlines()[-1].split()[:2] == ["rdp", "–"]


def test_next_to_no_noise_is_refused_in_a_moment():
    """pld would take minutes and gigabytes for it."""
    config = make_config(10.0)
    config.query.noise_multiplier = 1e-3
    with pytest.raises(UserError, match=r"the semantic query alone costs epsilon \d+"):
        make_plan(config, N)

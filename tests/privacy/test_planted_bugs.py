"""Mutation tests: mistakes planted in the real code, each of which a named check of `audits` must catch.

The same check passes without the mistake. `pytest -s tests/privacy/test_planted_bugs.py` prints the score.
"""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import mixing_networks
import numpy as np
import planted
import pytest
import small_models
from audits import (
    KEY,
    LOSS_KEY,
    STATE,
    Trace,
    check_blocks_are_used_once,
    check_choice_sensitivity,
    check_clipping,
    check_counts_of_a_network,
    check_devices_agree,
    check_full_precision,
    check_noisy_means,
    check_query_sensitivity,
    check_records_are_delivered,
    check_releases_are_equal,
    check_spent_before_use,
    check_step,
    check_sum_sensitivity,
    linear_loss,
    linear_problem,
    linear_step,
    recorded_draws,
)
from pipelines import release_bytes, tiny_config, write_npz
from planted import Bug
from small_models import SmallClassifier, use_small_models

from privimage_jax import config as configs
from privimage_jax import generators
from privimage_jax.generators import artefact
from privimage_jax.generators.edm import EDM, make_per_example_loss
from privimage_jax.metrics import features
from privimage_jax.models import registry
from privimage_jax.models.unet import UNet
from privimage_jax.privacy import (
    chacha,
    clipping,
    dp_sgd,
    flat_rules,
    noise,
    objective_check,
    records,
    sampling,
    summation,
)
from privimage_jax.run import mechanism, noisy_counts
from privimage_jax.run.inputs import make_inputs
from privimage_jax.stages import choose_sampler, query, sample, warmup
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.mesh import make_mesh

C = 0.5


# The checks, each in the smallest situation that shows what it looks for. `folder` is an empty one.


def clipping_of_a_linear_model(folder):
    check_clipping(linear_loss, *linear_problem(), C)


def clipping_of(model: nn.Module) -> None:
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 2))
    params = model.init(jax.random.key(0), x)["params"]

    def loss(params, batch, keys):
        outputs = model.apply({"params": params}, batch["x"])  # may read tokens, whole numbers that are never NaN
        return jnp.sum(outputs**2, axis=(1, 2, 3)) * jnp.mean(batch["x"] ** 2, axis=(1, 2, 3))

    check_clipping(loss, params, {"x": x}, jax.random.split(jax.random.key(2), 3), 1e-2, "bookkeeping")


def clipping_of_tied_weights(folder):
    clipping_of(small_models.Tied())


def clipping_of_a_weight_that_its_parent_reads(folder):
    clipping_of(small_models.ReadByParent())


def clipping_of_a_layer_called_twice(folder):
    clipping_of(small_models.CalledTwice())


def clipping_of_a_dense_layer(folder):
    clipping_of(nn.Dense(3))


def examples_apart(folder):
    """The check that fine-tuning itself makes before it spends."""
    model = UNet(n_classes=2, channels=1, nf=4, ch_mult=(1,), num_blocks=1)
    params = registry.init_denoiser(model, jax.random.key(0), (4, 4, 1))
    batch = {"image": np.zeros((2, 4, 4, 1), np.float32), "label": np.arange(2, dtype=np.int32)}
    objective_check.check_objective(make_per_example_loss(model, EDM(), 2, 1), params, batch)


def full_precision(folder):
    params, batch, keys = linear_problem()
    assert check_full_precision(clipping.clipped_grad(linear_loss, C), params, batch, keys, np.ones(6, bool)) > 0


def step_by_definition(folder):
    check_step(linear_step(2))


def step_on_sharded_records(folder):
    check_step(linear_step(2), place=lambda data: records.place(data, make_mesh(jax.devices()[:2]), sharded=True))


def records_delivered(folder):
    check_records_are_delivered((5,), (2,))


def devices_agree(folder):
    check_devices_agree((1, 2), (2,))


def blocks_used_once(folder):
    """Three steps of DP-SGD and a query, all under one key."""
    trace, (_, data, _) = Trace(), linear_problem(53, 4)
    with recorded_draws(trace):
        step = linear_step(1)
        for t in range(3):
            step(STATE, data, KEY, LOSS_KEY, t)
        noise.rounded_gaussian(KEY, (3, 7), 10.0)
    check_blocks_are_used_once(trace)


def sum_sensitivity(folder):
    check_sum_sensitivity(8, 1)


def query_sensitivity(folder):
    check_query_sensitivity(query.count_semantics, n=20, semantics=6, n_classes=3, k1=2)


def counts_of_a_network_that_mixes(folder):
    check_counts_of_a_network(mixing_networks.MinMax(20), k1=3)


def choice_sensitivity(folder):
    bound = choose_sampler.margin_sensitivity(4)
    check_choice_sensitivity(choose_sampler.agreement, choose_sampler.margins, bound, n=20, candidates=4)


def noisy_means(folder):
    inputs = tiny_inputs(folder / "run", folder)
    inputs.config.warmup.update(enabled=True, means=5, subset_size=20, noise_multiplier=3.0)
    check_noisy_means(inputs)


def samples_spent_before_use(folder):
    """The stage of noisy means, whose samples are drawn under the key too."""
    trace = Trace()
    with recorded_draws(trace):
        noisy_means(folder)
    check_spent_before_use(trace)


def spent_before_use(folder):
    """The query stage, with a network that was never trained."""
    inputs, trace = tiny_inputs(folder / "run", folder), Trace()
    model = SmallClassifier(inputs.public.n_classes)
    variables = registry.init_classifier(model, jax.random.key(0), inputs.sensitive.image_shape)
    with recorded_draws(trace), pytest.MonkeyPatch.context() as patch:
        patch.setattr(query.train_query, "load", lambda _: (model, variables))
        query.run(inputs.of(query.STAGE))
    check_spent_before_use(trace)


def replay_of_sampling(folder):
    """A generator is given; the synthetic set drawn from it must not depend on one record's label."""
    releases = []
    for name, label in (("one", 0), ("other", 1)):
        (folder / name).mkdir()
        arrays = dict(np.load(write_npz(folder / "drawn.npz", 60, 3, seed=1)))
        arrays["train_labels"][0] = label
        np.savez(folder / name / "data.npz", **arrays)
        inputs = tiny_inputs(folder / name / "run", folder / name)
        inputs.config.selection.method, inputs.config.finetune.enabled = "random", False  # no mechanism to pay for
        params = generators.build(inputs.config, inputs.sensitive.n_classes).init(jax.random.key(0))
        artefact.write(inputs.workdir.release / "generator", params, {})
        sample.run(inputs.of(sample.STAGE))
        releases.append(release_bytes(inputs.workdir))
    assert "synthetic.npz" in releases[0]
    check_releases_are_equal(*releases)


def tiny_inputs(root, folder):
    config = use_small_models(tiny_config(folder))
    config.privacy.accountant = "rdp"
    config.sample.n, config.sample.steps = 60, 2  # as many as there are records: one label shows
    inputs = make_inputs(configs.check(config), Workdir(root), make_mesh(jax.devices()[:1]))
    inputs.workdir.create()
    return inputs


# The mistakes: each takes pytest's monkeypatch and changes the real modules.


def clip_skipped_for_one_layer(patch):
    clip = clipping.clip

    def partly(gradient, mask, clip_norm):
        clipped, norm = clip(gradient, mask, clip_norm)
        return {**clipped, "w": jnp.where(mask, gradient["w"], 0.0)}, norm

    patch.setattr(clipping, "clip", partly)


def batch_statistics(patch):
    patch.setattr(nn.GroupNorm, "__call__", lambda self, x: x - x.mean(axis=0))


def division_by_the_drawn_batch(patch):
    make = dp_sgd.sum_over_batch

    def divided(loss, make_gradient, add_noise, settings, *more):
        noised_sum = make(loss, make_gradient, add_noise, settings, *more)

        def rescaled(*args):
            total, noise_state, stats = noised_sum(*args)
            factor = settings.batch_size / stats["drawn"]
            return jax.tree.map(lambda leaf: leaf * factor, total), noise_state, stats

        return rescaled

    patch.setattr(dp_sgd, "sum_over_batch", divided)


def division_by_the_finite_examples(patch):
    make = dp_sgd.sum_over_batch

    def divided(loss, make_gradient, add_noise, settings, *more):
        noised_sum = make(loss, make_gradient, add_noise, settings, *more)

        def rescaled(*args):
            total, noise_state, stats = noised_sum(*args)
            factor = stats["drawn"] / (stats["drawn"] - stats["nonfinite"])
            return jax.tree.map(lambda leaf: leaf * factor, total), noise_state, stats

        return rescaled

    patch.setattr(dp_sgd, "sum_over_batch", divided)


def a_key_used_twice(patch):
    """Every step draws its noise at the same place."""
    gaussian = noise.gaussian
    patch.setattr(noise, "gaussian", lambda key, step, tree, std: gaussian(key, 0, tree, std))


def membership_and_noise_in_one_domain(patch):
    patch.setattr(chacha, "DOMAIN_NOISE", chacha.DOMAIN_MEMBERSHIP)


def leaves_share_their_noise(patch):
    gaussian = noise.gaussian

    def each_alone(key, step, tree, std):
        return jax.tree.map(lambda leaf: gaussian(key, step, [leaf], std)[0], tree)

    patch.setattr(noise, "gaussian", each_alone)


def a_label_count_leaked_into_the_sampler(patch):
    run, make_labels = sample.run, sample.make_labels

    def leaking(inputs):
        counts = np.bincount(inputs.sensitive.labels, minlength=inputs.sensitive.n_classes)
        patch.setattr(sample, "make_labels", lambda n, classes, _: make_labels(n, classes, tuple(counts)))
        run(inputs)

    patch.setattr(sample, "run", leaking)


def zero_weight_nan(patch):
    """Masked and non-finite examples are multiplied by 0, not replaced."""

    def weighted(gradient, mask, clip_norm):
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
        factor = jnp.where(mask & jnp.isfinite(norm), jnp.minimum(1.0, clip_norm * (1 - clipping.ETA) / norm), 0.0)
        return jax.tree.map(lambda leaf: leaf * factor, gradient), jnp.where(mask, norm, 0.0)

    patch.setattr(clipping, "clip", weighted)


def a_weight_seen_once(patch):
    """The norm is that of one use of a weight, the sum has all of them: a tap on each layer without proof."""

    def sum_of_clipped(loss, clip_norm, products, rules, params, examples, keys, mask):
        losses, whole = clipping.per_example_gradients(loss, params, examples, keys, rules)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(small_models, "again", jax.lax.stop_gradient)
            _, seen = clipping.per_example_gradients(loss, params, examples, keys, rules)
        norms = jnp.sqrt(sum(jnp.sum(leaf.reshape(len(keys), -1) ** 2, axis=1) for leaf in jax.tree.leaves(seen)))
        weights = jnp.where(mask, jnp.minimum(1.0, clip_norm * (1 - clipping.ETA) / norms), 0.0)
        return (jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), whole), None), norms, losses

    patch.setattr(clipping, "sum_of_clipped", sum_of_clipped)


def rows_mixed_inside_a_flat_rule(patch):
    """A sum over one example's values to which every example adds."""

    def mixing(equation, inputs, batch):
        [own] = flat_rules.by_vmap(equation, inputs, batch)
        everyone = jnp.broadcast_to(jnp.sum(own.stacked, axis=0), own.stacked.shape)
        return flat_rules.PerExample(batch.size, stacked=everyone)

    patch.setitem(flat_rules.RULES, "reduce_sum", mixing)


def parameters_not_cast_to_varying(patch):
    varying = dp_sgd.varying

    def partly(tree):
        return (*tree[:2], *varying(tree[2:])) if len(tree) == 3 else varying(tree)

    patch.setattr(dp_sgd, "varying", partly)


def a_second_pass_in_bfloat16(patch):
    """Norms from float32 gradients, the sum from gradients of half the precision."""
    clip = clipping.clip

    def second_pass(gradient, mask, clip_norm):
        clipped, norm = clip(gradient, mask, clip_norm)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), clipped), norm

    patch.setattr(clipping, "clip", second_pass)


def a_padding_row_is_a_member(patch):
    patch.setattr(sampling, "device_share", lambda drawn, device, n_devices: (drawn + n_devices - 1) // n_devices)


def a_truncated_batch(patch):
    share = sampling.device_share
    patch.setattr(sampling, "device_share", lambda *args: jnp.minimum(share(*args), 5))


def the_rate_of_a_padded_data_set(patch):
    patch.setattr(dp_sgd.DPSGD, "threshold", property(lambda self: sampling.threshold(self.batch_size, 64)))


def a_neighbours_row(patch):
    rows = records.rows_of
    patch.setattr(records, "rows_of", lambda data, ids: rows(data, jnp.minimum(ids + data.sharded, data.n - 1)))


def rows_of_the_own_share(patch):
    """A device takes what it processes out of what it holds, as if the two were one."""
    rows = records.rows_of

    def own(data, ids):
        return data.rows[ids % data.rows.shape[0]] if data.sharded else rows(data, ids)

    patch.setattr(records, "rows_of", own)


def labels_of_the_next_image(patch):
    pack = records.Layout.pack

    def astray(self, tree, first=0):
        return pack(self, {**tree, "label": np.roll(tree["label"], 1)}, first)

    patch.setattr(records.Layout, "pack", astray)


def noise_on_every_device(patch):
    make = dp_sgd.sum_over_batch

    def early(loss, make_gradient, add_noise, *more):
        def add_everywhere(total, noise_state, key, t):
            drawn, noise_state = add_noise(jax.tree.map(jnp.zeros_like, total), noise_state, key, t)
            own = jax.lax.psum(dp_sgd.varying(drawn), dp_sgd.AXIS)
            return jax.tree.map(jnp.add, total, own), noise_state

        return make(loss, make_gradient, add_everywhere, *more)

    patch.setattr(dp_sgd, "sum_over_batch", early)


def noise_without_the_clip_norm(patch):
    gaussian = noise.gaussian
    patch.setattr(noise, "gaussian", lambda key, step, tree, std: gaussian(key, step, tree, std / C * 0.99))


def noise_of_jaxs_generator(patch):
    def threefry(key, step, tree, std):
        leaves, structure = jax.tree.flatten(tree)
        keys = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(key[:2]), step), len(leaves))
        drawn = [std * jax.random.normal(own, leaf.shape) for own, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, drawn)

    patch.setattr(noise, "gaussian", threefry)


def products_of_default_precision(patch):
    patch.setattr(jax, "default_matmul_precision", lambda _: contextlib.nullcontext())


def counts_divided_by_the_size_of_the_class(patch):
    count = query.count_semantics

    def shares(logits, labels, n_classes, k1):
        sizes = np.bincount(labels, minlength=n_classes)
        return np.rint(count(logits, labels, n_classes, k1) * 5 / np.maximum(sizes, 1)[:, None]).astype(np.int64)

    patch.setattr(query, "count_semantics", shares)


def a_plain_sum_over_the_batch(patch):
    patch.setattr(summation, "add", lambda pair, term, _=None: (jax.tree.map(jnp.add, pair[0], term), pair[1]))


def a_sum_rounded_before_its_noise(patch):
    def rounded(parts):
        return summation.zero(parts[0])[0] + sum(parts), summation.zero(parts[0])[1]

    patch.setattr(summation, "joined", rounded)


def a_query_network_that_sees_the_batch(patch):
    def forward(module, variables, method):
        apply = functools.partial(module.apply, train=False, method=method)
        return jax.tree_util.Partial(apply, variables)

    patch.setattr(features, "forward", forward)


def every_class_weighs_the_same_in_the_choice(patch):
    """Balanced accuracy, in whole numbers: a record of a small class moves it by more than one."""
    agreement = choose_sampler.agreement

    def balanced(logits, labels):
        classes = np.unique(labels)
        right = [agreement(logits[labels == one], labels[labels == one]) / np.sum(labels == one) for one in classes]
        return round(len(labels) * np.mean(right))

    patch.setattr(choose_sampler, "agreement", balanced)


def too_little_noise_in_the_choice(patch):
    """The sensitivity of a score in place of that of the margins."""
    patch.setattr(choose_sampler, "margin_sensitivity", lambda candidates: candidates**0.5)


def noise_scaled_by_the_drawn_subset(patch):
    sum_by_class, add_noise, drawn = warmup.sum_by_class, noisy_counts.add_noise, []

    def noting(images, labels, members, *more):
        drawn.append(members.sum())
        return sum_by_class(images, labels, members, *more)

    patch.setattr(warmup, "sum_by_class", noting)
    patch.setattr(noisy_counts, "add_noise", lambda *args: add_noise(*args[:3], args[3] * np.mean(drawn) / 20))


def sums_divided_by_the_drawn_subset(patch):
    sum_by_class, drawn = warmup.sum_by_class, []

    def noting(images, labels, members, n_classes, *more):
        drawn.append(np.bincount(labels[members], minlength=n_classes))
        return sum_by_class(images, labels, members, n_classes, *more)

    patch.setattr(warmup, "sum_by_class", noting)
    patch.setattr(warmup, "expected_sizes", lambda inputs: np.mean(drawn, axis=0))


def a_rate_that_the_accountant_is_not_told(patch):
    """Subsets twice as large as the ledger says."""
    membership = sampling.membership
    patch.setattr(sampling, "membership", lambda key, step, n, threshold: membership(key, step, n, 2 * threshold))


def a_record_in_the_means_of_every_class(patch):
    sum_by_class = warmup.sum_by_class

    def everywhere(images, labels, members, *more):
        each = sum_by_class(images, labels, members, *more)
        return np.broadcast_to(each.sum(axis=0), each.shape)

    patch.setattr(warmup, "sum_by_class", everywhere)


def the_norm_of_pixels_from_0_to_1(patch):
    """Half of the sensitivity, as if pixels counted half as much."""
    sensitivity = warmup.sensitivity
    patch.setattr(warmup, "sensitivity", lambda config: sensitivity(config) / 2)


def samples_drawn_before_the_ledger_line(patch):
    release = noisy_counts.release

    def early(inputs, output, prepare, save):
        def prepare_and_draw():
            determinants, count = prepare()
            return determinants, lambda: count(KEY)

        release(inputs, output, prepare_and_draw, save)

    patch.setattr(noisy_counts, "release_sampled", early)
    patch.setattr(chacha, "key_from_seed", lambda seed: KEY)


def a_ledger_line_after_use(patch):
    spend, close = mechanism.Mechanism.spend, mechanism.Mechanism.close
    held = []
    patch.setattr(mechanism.Mechanism, "spend", lambda self, kind, **fields: held.append((kind, fields)))

    def late(self):
        for kind, fields in held:
            spend(self, kind, **fields)
        close(self)

    patch.setattr(mechanism.Mechanism, "close", late)


BUGS = (
    # Mistakes that published code has made, or that pass unnoticed.
    Bug(clip_skipped_for_one_layer, clipping_of_a_linear_model, "a clipped gradient has norm"),
    Bug(batch_statistics, examples_apart, "mixes the examples of a batch"),
    Bug(division_by_the_drawn_batch, step_by_definition, "the gradient of step 0 is off"),
    Bug(a_key_used_twice, blocks_used_once, "blocks were drawn more than once"),
    Bug(a_label_count_leaked_into_the_sampler, replay_of_sampling, "the releases differ in synthetic.npz"),
    Bug(zero_weight_nan, clipping_of_a_linear_model, "an example of NaN, masked, is not counted as zero"),
    Bug(a_weight_seen_once, clipping_of_tied_weights, "a clipped gradient has norm"),
    Bug(a_weight_seen_once, clipping_of_a_weight_that_its_parent_reads, "a clipped gradient has norm"),
    Bug(a_weight_seen_once, clipping_of_a_layer_called_twice, "a clipped gradient has norm"),
    Bug(rows_mixed_inside_a_flat_rule, clipping_of_a_dense_layer, "a clipped gradient is off"),
    Bug(parameters_not_cast_to_varying, devices_agree, r"\(2, 2\) differs"),
    Bug(a_second_pass_in_bfloat16, clipping_of_a_linear_model, "a clipped gradient"),
    # Others that are easily made.
    Bug(division_by_the_finite_examples, step_by_definition, "the gradient of step 0 is off"),
    Bug(membership_and_noise_in_one_domain, blocks_used_once, "blocks were drawn more than once"),
    Bug(leaves_share_their_noise, blocks_used_once, "blocks were drawn more than once"),
    Bug(a_padding_row_is_a_member, step_by_definition, "is off"),
    Bug(a_truncated_batch, step_by_definition, "is off"),
    Bug(the_rate_of_a_padded_data_set, step_by_definition, "is off"),
    Bug(a_neighbours_row, records_delivered, "those delivered differ in image"),
    Bug(a_neighbours_row, step_on_sharded_records, "is off"),
    Bug(rows_of_the_own_share, step_on_sharded_records, "is off"),
    Bug(labels_of_the_next_image, records_delivered, "those delivered differ in label"),
    Bug(noise_on_every_device, devices_agree, r"\(2, 2\) differs"),
    Bug(noise_without_the_clip_norm, step_by_definition, "is off"),
    Bug(noise_of_jaxs_generator, step_by_definition, "is off"),
    Bug(products_of_default_precision, full_precision, "has the precision None"),
    Bug(a_plain_sum_over_the_batch, sum_sensitivity, "is off by|moves the sum by"),
    Bug(a_sum_rounded_before_its_noise, sum_sensitivity, "is off by|moves the sum by"),
    Bug(counts_divided_by_the_size_of_the_class, query_sensitivity, "moves the counts by"),
    Bug(a_query_network_that_sees_the_batch, counts_of_a_network_that_mixes, "moves the counts by"),
    Bug(every_class_weighs_the_same_in_the_choice, choice_sensitivity, "moves the margins by"),
    Bug(too_little_noise_in_the_choice, choice_sensitivity, "moves the margins by"),
    Bug(noise_scaled_by_the_drawn_subset, noisy_means, "what is added to the sums is off"),
    Bug(sums_divided_by_the_drawn_subset, noisy_means, "the sums are divided by other sizes"),
    Bug(a_rate_that_the_accountant_is_not_told, noisy_means, "what is added to the sums is off"),
    Bug(a_record_in_the_means_of_every_class, noisy_means, "what is added to the sums is off"),
    Bug(the_norm_of_pixels_from_0_to_1, noisy_means, "the sensitivity is"),
    Bug(samples_drawn_before_the_ledger_line, samples_spent_before_use, "came before its ledger line"),
    Bug(a_ledger_line_after_use, spent_before_use, "came before its ledger line"),
)
score, test_the_check_passes_without_the_bug, test_the_bug_is_caught = planted.tests_of(BUGS)

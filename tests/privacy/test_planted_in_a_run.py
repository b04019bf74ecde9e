"""Mutation tests over the whole path from a config to a release; `test_planted_bugs` has those of a single step.

Each mistake is planted in the real code and must be caught by a named check of `run_audits` (or of a step's), which
passes without it. `pytest -s tests/privacy/test_planted_in_a_run.py` prints the score.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import planted
import run_audits as checks
from audits import check_clipping, check_query_sensitivity, check_step, linear_loss, linear_problem, linear_step
from planted import Bug

from privimage_jax import config as configs
from privimage_jax import generators
from privimage_jax.data import loading
from privimage_jax.errors import UserError
from privimage_jax.privacy import accounting, chacha, clipping, dp_sgd, ledger, noise, sampling
from privimage_jax.run import inputs, mechanism, noisy_counts, plan, stage
from privimage_jax.settings import derived
from privimage_jax.stages import class_histogram, finetune, query, report, sample, selection
from privimage_jax.training import loop


def check_clipping_of_a_linear_model(folder):
    check_clipping(linear_loss, *linear_problem(), 0.5)


def check_step_by_definition(folder):
    check_step(linear_step(2))


def check_sensitivity_of_the_query(folder):
    check_query_sensitivity(query.count_semantics, n=20, semantics=6, n_classes=3, k1=2)


# Those that an audit planted and the suite then passed.


def each_draw_clipped_alone(patch):
    """K gradients of one image, each clipped to C, are added up: K C."""
    clipped_pair = clipping.clipped_pair

    def summed(*settings, **more):
        of_one_draw = clipped_pair(*settings, **more)

        def fn(params, batch, keys, mask):
            draws = [
                of_one_draw(params, batch, jax.vmap(lambda key, k=k: jax.random.fold_in(key, k))(keys), mask)
                for k in range(checks.DRAWS)
            ]
            return jax.tree.map(lambda *sums: sum(sums), *[total for total, _, _ in draws]), *draws[0][1:]

        return fn

    patch.setattr(clipping, "clipped_pair", summed)


def sigma1_without_the_root_of_k1(patch):
    patch.setattr(noisy_counts, "noise_std", lambda inputs, stage: inputs.plan.count_noise[stage.mechanism.name])


def held_out_images_choose_the_average(patch):
    """The moving average or the last parameters, whichever a look at held-out images likes better."""
    build = generators.build

    def choosing(config, n_classes):
        generator, released = build(config, n_classes), build(config, n_classes).released
        with np.load(config.data.path) as arrays:
            likes_the_last = arrays["test_images"].mean() > 127
        generator.released = lambda state: released({**state, "ema": state["params"]} if likes_the_last else state)
        return generator

    patch.setattr(generators, "build", choosing)


def the_held_out_mean_chooses_the_set(patch):
    """Of two sets the one whose mean is nearer that of held-out images."""
    sampler = sample.Sampler
    seen = []
    run = sample.run

    class Choosing(sampler):
        def all(self, params, key, labels, size, advance):
            two = [sampler.all(self, params, jax.random.fold_in(key, i), labels, size, lambda _: None) for i in (0, 1)]
            return min(two, key=lambda images: abs(images.mean() - seen[-1]))

    def looking(inputs):
        seen.append(inputs.held_out.images.mean())
        run(inputs)

    patch.setattr(sample, "Sampler", Choosing)
    patch.setattr(sample, "run", looking)


def half_of_sigma2_is_added(patch):
    settings = finetune.dp_settings
    patch.setattr(finetune, "dp_settings", lambda config, n, noise, m: settings(config, n, noise / 2, m))


def half_of_sigma2_for_people(patch):
    settings = finetune.dp_settings

    def sparing(config, n, noise, m):
        return settings(config, n, noise / 2 if config.privacy.unit == "person" else noise, m)

    patch.setattr(finetune, "dp_settings", sparing)


def half_of_sigma2_for_a_gan(patch):
    settings = finetune.dp_settings

    def sparing(config, n, noise, m):
        return settings(config, n, noise / 2 if config.generator == "gan" else noise, m)

    patch.setattr(finetune, "dp_settings", sparing)


# Sampling and steps.


def a_batch_of_fixed_size(patch):
    def membership(key, step, n, threshold):
        words = chacha.tiles(key, chacha.DOMAIN_MEMBERSHIP, step, 0, jnp.arange(-(-n // 2048), dtype=jnp.uint32))
        return jnp.argsort(jnp.argsort(words.reshape(-1)[:n])) < (threshold * n) // 2**32

    patch.setattr(sampling, "membership", membership)


def everybody_once_an_epoch(patch):
    def membership(key, step, n, threshold):
        batches = max(1, 2**32 // threshold)
        return (jnp.arange(n) + step) % batches == 0

    patch.setattr(sampling, "membership", membership)


def an_empty_batch_without_noise(patch):
    make = dp_sgd.sum_over_batch

    def skipping(*given):
        noised_sum = make(*given)

        def fn(*args):
            total, state, stats = noised_sum(*args)
            return jax.tree.map(lambda leaf: jnp.where(stats["drawn"] > 0, leaf, 0.0), total), state, stats

        return fn

    patch.setattr(dp_sgd, "sum_over_batch", skipping)


def a_clip_norm_that_the_ledger_does_not_say(patch):
    settings = finetune.dp_settings

    def larger(config, *given):
        return dataclasses.replace(settings(config, *given), clip_norm=2 * config.clipping.norm)

    patch.setattr(finetune, "dp_settings", larger)


def steps_before_their_reservation(patch):
    train = loop.train

    def late(*args, before, **more):
        state = train(*args, **more)
        for t in range(checks.STEPS):
            before(t, t + 1)
        return state

    patch.setattr(loop, "train", late)


def noise_of_every_second_step(patch):
    add = finetune.NOISE.add

    def sparing(total, state, key, t, std):
        return add(total, state, key, t, jnp.where(t % 2 == 0, std, 0.0))

    patch.setattr(finetune, "NOISE", dataclasses.replace(finetune.NOISE, add=sparing))


# Accounting.


def the_accountant_is_told_half_the_rate(patch):
    rate = sampling.sampling_rate
    patch.setattr(plan.sampling, "sampling_rate", lambda threshold: rate(threshold) / 2)


def other_mechanisms_are_not_reserved(patch):
    patch.setattr(plan, "counting", lambda config: ())


def sigma2_is_rounded_down(patch):
    solve = accounting.solve_noise_multiplier
    patch.setattr(accounting, "solve_noise_multiplier", lambda *args: math.floor(10 * solve(*args)) / 10)


def one_step_is_accounted(patch):
    patch.setattr(derived, "finetune_steps", lambda config, n: 1)


def a_delta_of_nearly_one_in_n(patch):
    patch.setattr(derived, "delta", lambda config, n, begun=None: 0.9 / n)


def each_mechanism_has_the_whole_budget(patch):
    """The line's epsilon is that of its own mechanism, not of all so far."""
    spent = ledger.spent
    patch.setattr(ledger, "spent", lambda entries: spent(entries)[-1:])


def steps_under_two_keys_count_once(patch):
    spent = ledger.spent
    patch.setattr(ledger, "spent", lambda entries: spent([{**entry, "key_generation": 0} for entry in entries]))


def held_out_images_count_as_records(patch):
    """q is smaller with a larger N."""
    make_plan = inputs.make_plan
    patch.setattr(inputs, "make_plan", lambda config, n, *more: make_plan(config, n + n // 2, *more))


# Clipping.


def each_layer_clipped_alone(patch):
    clip = clipping.clip

    def alone(gradient, mask, clip_norm):
        parts = {name: clip({name: leaf}, mask, clip_norm) for name, leaf in gradient.items()}
        return {name: part[0][name] for name, part in parts.items()}, next(iter(parts.values()))[1]

    patch.setattr(clipping, "clip", alone)


def clipped_by_the_largest_entry(patch):
    def clip(gradient, mask, clip_norm):
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradient)]))
        factor = jnp.minimum(1.0, clip_norm / largest)
        finite = mask & jnp.isfinite(largest)
        return jax.tree.map(lambda leaf: jnp.where(finite, factor * leaf, 0.0), gradient), jnp.where(mask, largest, 0.0)

    patch.setattr(clipping, "clip", clip)


def clipped_without_room_for_rounding(patch):
    clip = clipping.clip

    def exact(leaves, mask, clip_norm):
        return clip(leaves, mask, clip_norm / (1 - clipping.ETA))

    patch.setattr(clipping, "clip", exact)


# Keys.


def a_key_that_anyone_can_guess(patch):
    patch.setattr(chacha, "new_key", lambda: chacha.key_from_seed("the same every time"))


def one_key_for_all_mechanisms(patch):
    key, kept = mechanism.Mechanism.key, {}

    def shared(self, generation):
        own = key(self, generation)
        return own if generation else kept.setdefault(self.inputs.workdir.root, own)

    patch.setattr(mechanism.Mechanism, "key", shared)


def the_same_key_after_a_loss(patch):
    key = mechanism.Mechanism.key
    patch.setattr(mechanism.Mechanism, "key", lambda self, generation: key(self, 0))


def a_key_that_stays(patch):
    patch.setattr(mechanism.durable, "remove", lambda path: None)


def a_key_that_others_may_read(patch):
    write = mechanism.durable.atomic_write_bytes
    patch.setattr(mechanism.durable, "atomic_write_bytes", lambda path, content, mode=0: write(path, content, 0o644))


# Counts.


def one_semantic_more_than_k1(patch):
    count = query.count_semantics
    patch.setattr(query, "count_semantics", lambda logits, labels, n, k1, *own: count(logits, labels, n, k1 + 1, *own))


def an_image_counted_with_its_mirror_image(patch):
    count = class_histogram.count_classes
    patch.setattr(class_histogram, "count_classes", lambda *args: 2 * count(*args))


def a_sensitivity_of_one_half(patch):
    patch.setattr(class_histogram, "sensitivity", lambda config: 0.5)


def the_sensitivity_of_one_semantic(patch):
    patch.setattr(query, "sensitivity", lambda config: 1.0)


def counts_without_noise(patch):
    patch.setattr(noisy_counts, "add_noise", lambda name, key, counts, std: counts)


def counts_that_are_kept_before_the_noise(patch):
    """The mechanism is sound, but another file is written."""
    release = noisy_counts.release

    def keeping(inputs, output, prepare, save):
        exact = []

        def prepare_and_keep():
            determinants, count = prepare()
            return determinants, lambda: exact.append(count()) or exact[0]

        release(inputs, output, prepare_and_keep, lambda noisy: save(exact[0]))

    patch.setattr(noisy_counts, "release", keeping)


def noise_that_is_cut_off(patch):
    rounded = noise.rounded_gaussian
    patch.setattr(noise, "rounded_gaussian", lambda key, shape, std: np.clip(rounded(key, shape, std), -std, std))


def noise_of_four_uniform_values(patch):
    def uniform(w0, w1, w2, w3, xp, dtype):
        values = [word.astype(dtype) / dtype(2**32) - dtype(0.5) for word in (w0, w1, w2, w3)]
        return dtype(6**0.5) * (values[0] + values[1]), dtype(6**0.5) * (values[2] + values[3])

    patch.setattr(noise, "standard_normal", uniform)


# Publication.


def exact_counts_pick_the_semantics(patch):
    patch.setattr(selection.query, "load", query.load_exact)


def the_generator_tells_of_the_images(patch):
    describe = finetune.describe
    patch.setattr(
        finetune, "describe", lambda inputs: describe(inputs) | {"mean": float(inputs.sensitive.images.mean())}
    )


def the_generator_is_described_with_a_digest(patch):
    describe = finetune.describe
    patch.setattr(finetune, "describe", lambda inputs: describe(inputs) | {"data": inputs.sensitive.digest()})


def a_scale_taken_from_the_images(patch):
    """sigma_data as the standard deviation of the sensitive pixels."""
    build = generators.build

    def measured(config, n_classes):
        with np.load(config.data.path) as arrays:
            config.diffusion.sigma_data = float(arrays["train_images"].std() / 127.5)
        return build(config, n_classes)

    patch.setattr(generators, "build", measured)


def the_drawn_size_in_the_ledger(patch):
    spend = mechanism.Mechanism.spend

    def telling(self, kind, **fields):
        if "expected_batch_size" in fields:
            fields["expected_batch_size"] -= 3
        spend(self, kind, **fields)

    patch.setattr(mechanism.Mechanism, "spend", telling)


def paths_among_the_public_settings(patch):
    patch.setattr(configs, "public_settings", lambda config: dict(configs.flatten(config)))


def the_report_waits_for_the_evaluation(patch):
    rows = [one for one in stage.STAGES if one.name != "report"]
    patch.setattr(stage, "STAGES", (*rows, report.STAGE))


def the_evaluation_is_published(patch):
    rows = [
        dataclasses.replace(one, writes=("release/evaluation.json",)) if one.name == "evaluate" else one
        for one in stage.STAGES
    ]
    patch.setattr(stage, "STAGES", tuple(rows))


# Recovery.


def a_lost_key_costs_nothing(patch):
    following = finetune.next_step_range

    def generous(lines, checkpoint, steps, has_key):
        return dataclasses.replace(following(lines, checkpoint, steps, has_key), stop=steps)

    patch.setattr(finetune, "next_step_range", generous)


def a_lost_key_is_not_noticed(patch):
    following = finetune.next_step_range
    patch.setattr(finetune, "next_step_range", lambda *given: following(*given[:3], lambda generation: True))


def a_replay_on_other_images(patch):
    check = mechanism.Mechanism.check_inputs
    patch.setattr(mechanism.Mechanism, "check_inputs", lambda self, data, **more: check(self, data="", **more))


def lines_may_go_missing(patch):
    patch.setattr(ledger.Ledger, "extends", lambda self, head: True)


def the_budget_is_a_wish(patch):
    def spend(self, kind, epsilon, terms=None, **fields):
        if not self.entries:
            self.append("open", **terms)
        cost = epsilon(ledger.spent([*self.entries, {"kind": kind, **fields}]))
        return self.append(kind, **fields, epsilon=cost)

    patch.setattr(ledger.Ledger, "spend", spend)


def other_noise_under_the_same_key(patch):
    append = ledger.Ledger.append

    def lenient(self, kind, **fields):
        try:
            return append(self, kind, **fields)
        except UserError:
            return fields

    patch.setattr(ledger.Ledger, "append", lenient)


# Data.


def a_mean_taken_from_the_set(patch):
    decode = loading.decode

    def centred(*given):
        chunks = list(decode(*given))
        shift = int(np.concatenate([chunk.images for chunk in chunks]).mean()) - 100
        for chunk in chunks:
            yield dataclasses.replace(chunk, images=np.clip(chunk.images.astype(int) - shift, 0, 255).astype(np.uint8))

    patch.setattr(loading, "decode", centred)


def classes_of_the_labels_that_occur(patch):
    load = inputs.data.load

    def occurring(*given, **more):
        found = load(*given, **more)
        names = tuple(found.class_names[label] for label in np.unique(found.labels))
        return dataclasses.replace(found, class_names=names)

    patch.setattr(inputs.data, "load", occurring)


def copies_are_dropped(patch):
    load = inputs.data.load

    def different(*given, **more):
        found = load(*given, **more)
        rows = np.sort(np.unique(np.asarray(found.images), axis=0, return_index=True)[1])
        return dataclasses.replace(found, images=np.asarray(found.images)[rows], labels=found.labels[rows])

    patch.setattr(inputs.data, "load", different)


def held_out_images_are_trained_on(patch):
    choose = loading.choose

    def everything(settings, n, divided, part, most=0):
        return np.arange(n) if part == "train" else choose(settings, n, divided, part, most)

    patch.setattr(loading, "choose", everything)


OFF = "is off"
BUGS = (
    # Five that an audit planted and that passed the suite of that day.
    Bug(each_draw_clipped_alone, checks.check_fine_tuning_neighbours, "one record moves a sum by"),
    Bug(sigma1_without_the_root_of_k1, checks.check_query, "but its line says"),
    Bug(held_out_images_choose_the_average, checks.check_held_out_images_stay_out, "differ in generator/params"),
    Bug(the_held_out_mean_chooses_the_set, checks.check_held_out_images_stay_out, "differ in synthetic"),
    Bug(half_of_sigma2_is_added, checks.check_fine_tuning, "sigma2 C of its ledger line"),
    # Sampling and steps.
    Bug(a_batch_of_fixed_size, check_step_by_definition, OFF),
    Bug(everybody_once_an_epoch, check_step_by_definition, OFF),
    Bug(half_of_sigma2_for_people, checks.check_fine_tuning_of_people, "sigma2 C of its ledger line"),
    Bug(half_of_sigma2_for_a_gan, checks.check_fine_tuning_of_a_gan, "sigma2 C of its ledger line"),
    Bug(an_empty_batch_without_noise, checks.check_empty_batch, "the gradient of an empty batch is off"),
    Bug(a_clip_norm_that_the_ledger_does_not_say, checks.check_fine_tuning, "sigma2 C of its ledger line"),
    Bug(steps_before_their_reservation, checks.check_fine_tuning, "came before its ledger line"),
    Bug(noise_of_every_second_step, checks.check_fine_tuning, "the noise of step 1 is off"),
    # Accounting.
    Bug(the_accountant_is_told_half_the_rate, checks.check_plan, "the plan costs epsilon"),
    Bug(other_mechanisms_are_not_reserved, checks.check_plan, "the plan costs epsilon"),
    Bug(sigma2_is_rounded_down, checks.check_plan, "the plan costs epsilon"),
    Bug(one_step_is_accounted, checks.check_plan, "the plan costs epsilon"),
    Bug(a_delta_of_nearly_one_in_n, checks.check_plan, "N delta is"),
    Bug(each_mechanism_has_the_whole_budget, checks.check_refusals, "line 3 of .* states epsilon"),
    Bug(steps_under_two_keys_count_once, checks.check_lost_keys, "steps under two keys count as 6"),
    Bug(held_out_images_count_as_records, checks.check_fine_tuning, "settings.n is 90, but the data has 60 records"),
    # Clipping.
    Bug(each_layer_clipped_alone, check_clipping_of_a_linear_model, "a clipped gradient has norm"),
    Bug(clipped_by_the_largest_entry, check_clipping_of_a_linear_model, "a clipped gradient has norm"),
    Bug(clipped_without_room_for_rounding, check_clipping_of_a_linear_model, "a clipped gradient"),
    # Keys.
    Bug(a_key_that_anyone_can_guess, checks.check_keys, "share a key"),
    Bug(one_key_for_all_mechanisms, checks.check_keys, "share a key"),
    Bug(the_same_key_after_a_loss, checks.check_keys, "share a key"),
    Bug(a_key_that_stays, checks.check_keys, "are still there"),
    Bug(a_key_that_others_may_read, checks.check_keys, "keys have the modes"),
    # Counts.
    Bug(one_semantic_more_than_k1, check_sensitivity_of_the_query, "moves the counts by"),
    Bug(an_image_counted_with_its_mirror_image, checks.check_class_histogram, "counts something else"),
    Bug(a_sensitivity_of_one_half, checks.check_class_histogram, "the ledger says S = 0.5"),
    Bug(the_sensitivity_of_one_semantic, checks.check_query, "the ledger says S = 1.0"),
    Bug(counts_without_noise, checks.check_query, "draws no noise"),
    Bug(counts_that_are_kept_before_the_noise, checks.check_class_histogram, "what is published is not the noisy"),
    Bug(noise_that_is_cut_off, checks.check_query, "what is added to the counts"),
    Bug(noise_of_four_uniform_values, checks.check_law_of_noise, "noise has the moments"),
    # Publication.
    Bug(exact_counts_pick_the_semantics, checks.check_selection, "differ in semantics.json"),
    Bug(the_generator_tells_of_the_images, checks.check_description, "the generator is described as"),
    Bug(the_generator_is_described_with_a_digest, checks.check_description, "the generator is described as"),
    Bug(a_scale_taken_from_the_images, checks.check_fine_tuning_neighbours, "one record moves a sum by"),
    Bug(the_drawn_size_in_the_ledger, checks.check_fine_tuning, "the ledger has other settings"),
    Bug(paths_among_the_public_settings, checks.check_no_path_is_shown, "a path of the sensitive images"),
    Bug(the_report_waits_for_the_evaluation, checks.check_order, "report publishes once images were looked at"),
    Bug(the_evaluation_is_published, checks.check_order, "evaluate publishes once images were looked at"),
    # Recovery.
    Bug(a_lost_key_costs_nothing, checks.check_lost_keys, "after the loss of a key"),
    Bug(a_lost_key_is_not_noticed, checks.check_lost_keys, "after the loss of a key"),
    Bug(a_replay_on_other_images, checks.check_refusals, "not refused: has spent budget on other inputs"),
    Bug(lines_may_go_missing, checks.check_refusals, "not refused: has lost lines"),
    Bug(the_budget_is_a_wish, checks.check_refusals, "above the target 10 of the first line"),
    Bug(other_noise_under_the_same_key, checks.check_refusals, "not refused: cannot go on with 3"),
    # Data.
    Bug(a_mean_taken_from_the_set, checks.check_images_apart, "an image's pixels depend on another image"),
    Bug(classes_of_the_labels_that_occur, checks.check_images_apart, "N or the classes depend on the images"),
    Bug(copies_are_dropped, checks.check_images_apart, "N or the classes depend on the images"),
    Bug(held_out_images_are_trained_on, checks.check_parts_apart, "an image is in two parts"),
)
score, test_the_check_passes_without_the_bug, test_the_bug_is_caught = planted.tests_of(BUGS)

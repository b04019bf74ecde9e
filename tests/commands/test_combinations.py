"""Which runs a sweep makes of what it is told, and what their folders are called."""

import pytest

from privimage_jax.commands.many_runs import combinations
from privimage_jax.configs import base
from privimage_jax.errors import UserError


def named(values: dict) -> list[combinations.Run]:
    """Runs with one value after the other of each setting."""
    experiments = []
    for row in zip(*values.values(), strict=True):
        config = base.get_config()
        for key, value in zip(values, row, strict=True):
            config.update_from_flattened_dict({key: value})
        experiments.append(config)
    return combinations.name_runs(experiments, list(values))


def test_commas_part_values_outside_brackets():
    given = ["query.k1=1, 2,5", "config.model.kwargs.ch_mult=(2,2),(2,4)", "finetune.trainable=a{1,2},[b,c]"]
    assert combinations.parse(given) == {
        "query.k1": ["1", "2", "5"],
        "model.kwargs.ch_mult": ["(2,2)", "(2,4)"],
        "finetune.trainable": ["a{1,2}", "[b,c]"],
    }


def test_a_grid_has_every_pair_and_a_zip_the_first_with_the_first():
    fields = {"query.k1": ["1", "2"], "selection.k2": ["3", "4"]}
    grid = [tuple(row.values()) for row in combinations.combine(fields, zipped=False)]
    assert grid == [("1", "3"), ("1", "4"), ("2", "3"), ("2", "4")]
    assert combinations.combine(fields, zipped=True) == [
        {"query.k1": "1", "selection.k2": "3"},
        {"query.k1": "2", "selection.k2": "4"},
    ]


def test_one_at_a_time_changes_nothing_first_and_then_each_value_by_itself():
    fields = {"query.k1": ["2", "3"], "selection.k2": ["4"]}
    changes = [{}, {"query.k1": "2"}, {"query.k1": "3"}, {"selection.k2": "4"}]
    assert combinations.one_at_a_time(fields) == changes


def changed(values: list[dict]) -> list[combinations.Run]:
    """Runs by their changes, each of which has the base's settings but for these."""
    experiments = []
    for row in values:
        config = base.get_config()
        config.update_from_flattened_dict(row)
        experiments.append(config)
    texts = [{key: str(value) for key, value in row.items()} for row in values]
    return combinations.name_changes(experiments, texts)


def test_a_change_names_its_run_in_full_where_another_setting_shares_the_word():
    runs = changed([{}, {"query.k1": 2}, {"seed": 3}, {"selection.seed": 3}])
    assert [run.name for run in runs] == ["as_given", "k1=2", "seed=3", "selection.seed=3"]
    assert [run.values["query.k1"] for run in runs] == [1, 2, 1, 1], "every row has all swept settings"


def test_a_change_to_what_the_config_has_is_refused():
    with pytest.raises(UserError, match="query.k1=1, which the config has already"):
        changed([{}, {"query.k1": base.get_config().query.k1}])
    with pytest.raises(UserError, match="k1=2 twice"):
        changed([{}, {"query.k1": 2}, {"query.k1": 2}])


def test_names_are_readable():
    assert [run.name for run in named({"query.k1": [1, 2], "selection.k2": [1, 1]})] == ["k1=1_k2=1", "k1=2_k2=1"]
    names = [run.name for run in named({"seed": [0], "selection.seed": [1], "sample.class_weights": [(0.5, 1.0)]})]
    assert names == ["seed=0_selection.seed=1_class_weights=0.5,1.0"]


def test_names_that_are_not_safe_or_short_stay_distinct():
    long = "x" * 300
    names = [run.name for run in named({"data.path": ["a/b", "a:b", "../c", long, long + "y"]})]
    assert len(set(names)) == 5
    assert all(set(name).isdisjoint("/: ") and len(name) < 200 for name in names)


def test_the_same_combination_twice_is_refused():
    with pytest.raises(UserError, match="gives the combination k1=1 twice"):
        named({"query.k1": [1, 1]})


def test_too_many_runs_are_refused():
    fields = {"query.k1": [str(k) for k in range(100)], "seed": [str(k) for k in range(100)]}
    with pytest.raises(UserError, match="10000 runs; give at most 1000"):
        combinations.combine(fields, zipped=False)
    with pytest.raises(UserError, match="1001 runs; give at most 1000"):
        combinations.one_at_a_time({"query.k1": [str(k) for k in range(1000)]})

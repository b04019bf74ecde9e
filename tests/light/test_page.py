"""The page of a first light shows every kind of row and loads nothing."""

from privimage_jax.light import page
from privimage_jax.light.rows import check, note


def test_every_kind_of_row_is_shown():
    shared = {"precision": "tf32", "batch_size": 64, "noise_multiplicity": 8, "ratio_to_nonprivate": 1.25}
    measured = {
        **shared,
        "kind": "benchmark",
        "method": "sampling",
        "devices": 1,
        "seconds_median": 0.5,
        "seconds_spread": 0.01,
        "examples_per_second": 128.0,
        "peak_bytes": 3_000_000,
        "model_flops_utilisation": None,
        "compile_seconds": 2.0,
    }
    estimated = {
        **shared,
        "kind": "forecast",
        "target": "l4:1",
        "method": "vmap",
        "estimated_seconds": 0.25,
        "measured_seconds": 0.5,
        "measured_ratio": 1.5,
    }
    rows = [{"kind": "machine", "device": "L4", "devices": 2}, check("a claim", 0.5, 1.0), measured, estimated]
    html = page.render([*rows, note("No peer is here.")], ["vmap"])
    for shown in ("2 × L4", "All of 1 checks passed.", "a claim", "sampling", "128", "l4:1", "No peer is here."):
        assert shown in html
    assert "Not run yet: vmap." in html
    assert "http://" not in html and "https://" not in html and "src=" not in html

"""Rows survive interruptions, progress lines tell the truth, grids put every image where it belongs."""

import csv
import io
import os
import types

import numpy as np
import PIL.Image
import pytest
import rich.console

from privimage_jax.storage import durable
from privimage_jax.training import loop, writers
from privimage_jax.training.writers import MetricWriter


def rows(directory):
    with open(directory / "metrics.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_resuming_drops_the_rows_that_will_be_written_again(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in range(0, 50, 10):
            writer.scalars(step, {"loss": step / 10})
    with MetricWriter(tmp_path, start_step=25) as writer:
        writer.scalars(30, {"loss": -1.0})
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        ("0", "0.0"),
        ("10", "1.0"),
        ("20", "2.0"),
        ("30", "-1.0"),
    ]


def test_a_fresh_start_forgets_what_was_there(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(3, {"loss": 1.0})
    MetricWriter(tmp_path).close()
    assert rows(tmp_path) == []


def test_a_new_name_becomes_a_column(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(0, {"loss": 0.1})
        writer.scalars(1, {"accuracy": np.float32(0.5)})
        writer.scalars(2, {"accuracy": 0.75, "loss": 0.2})
    with MetricWriter(tmp_path, start_step=3) as writer:
        writer.scalars(3, {"rate": 7})
    assert rows(tmp_path) == [
        {"step": "0", "loss": "0.1", "accuracy": "", "rate": ""},
        {"step": "1", "loss": "", "accuracy": "0.5", "rate": ""},
        {"step": "2", "loss": "0.2", "accuracy": "0.75", "rate": ""},
        {"step": "3", "loss": "", "accuracy": "", "rate": "7.0"},
    ]


def test_half_a_line_is_dropped_on_resuming(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(0, {"loss": 0.125})
    with open(tmp_path / "metrics.csv", "a", encoding="utf-8") as file:
        file.write("1,0.7")
    with MetricWriter(tmp_path, start_step=2) as writer:
        writer.scalars(2, {"loss": 0.5})
    assert [row["step"] for row in rows(tmp_path)] == ["0", "2"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"\xff\n",
        b"loss,step\n1,2\n",
        b"step,loss\n0\n",
        b"step,loss\n0,1,2\n",
        b"step,loss\nx,1\n",
        b"step,loss\n-1,1\n",
        b"step,loss\n\xc2\xb2,1\n",
        b"step,loss\n" + b"9" * 5000 + b",1\n",
        b"step,loss\n0,\x00\n",
        b'step,loss\n0,"' + b"a" * 200_000 + b'"\n',
    ],
    ids=lambda content: repr(content[:20]),
)
def test_metrics_that_nobody_wrote_are_dropped(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with MetricWriter(tmp_path, start_step=2) as writer:
        writer.scalars(2, {"loss": 0.5})
    assert rows(tmp_path) == [{"step": "2", "loss": "0.5"}]


@pytest.mark.parametrize(
    ("content", "row"),
    [
        ("step,loss,drawn\n2,0.5,\n4,9.0,3.0\n", {"step": 2.0, "loss": 0.5}),
        ("step,loss\n2,0.5", {}),
        ("step,loss\n", {}),
        ("step,loss\n2,low\n", {}),
        ("step,loss\n2,0.5,7\n", {}),
        ("", {}),
    ],
)
def test_the_first_row_is_read_alone(tmp_path, content, row):
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    if row:
        os.truncate(path, writers.MAX_METRICS_BYTES + 1)  # what follows is not read, however much it is
    assert writers.first_row(path) == row


def test_a_headline_is_one_line_without_control_characters(capsys):
    writers.headline("data", "warning", "no image of class \x1b[2J\nb")
    assert capsys.readouterr().out.splitlines() == ["data            warning  no image of class \\x1b[2J\\nb"]


def test_rows_are_on_the_disk_before_the_checkpoint_that_they_lead_to(tmp_path, monkeypatch):
    """The released report shows the curve of pre-training: no row of it may be lost with the power."""
    steps, log = [], types.SimpleNamespace(every=1, sample_every=0, checkpoint_every=2, keep=2)
    monkeypatch.setattr(durable, "observers", [lambda step, path: steps.append((step, path.name))])
    monkeypatch.setattr(loop, "make_runner", lambda step: lambda state, inputs, begin, end: (state, {"loss": begin}))
    loop.train("test", None, {"w": np.ones(3)}, None, 0, 4, tmp_path, log)
    for number in ("2", "4"):
        before = steps[: steps.index(("renamed", number))]
        assert before.count(("synced", "metrics.csv")) == int(number) // 2


def test_tensorboard_holds_scalars_and_images(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(7, {"loss": 0.125})
        writer.image(7, "samples", np.zeros((4, 5, 3), np.uint8))
    (events,) = tmp_path.glob("events.out.tfevents.*")
    content = events.read_bytes()
    assert b"loss" in content and b"samples" in content and b"\x89PNG" in content


def test_pictures_are_files_and_resuming_drops_those_that_will_be_drawn_again(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    with MetricWriter(tmp_path) as writer:
        for step in (0, 20, 30, 1_000_000):
            writer.image(step, "samples_a", image)
    with MetricWriter(tmp_path, start_step=30) as writer:
        writer.image(40, "samples_a", 255 - image)
    names = [f"samples_a_{step}.png" for step in ("000000", "000020", "000040")]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == names
    for name, expected in zip(names, (image, image, 255 - image), strict=True):
        with PIL.Image.open(tmp_path / name) as picture:
            assert np.array_equal(np.asarray(picture), expected)
    MetricWriter(tmp_path).close()
    assert not list(tmp_path.glob("*.png"))


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_plain_progress_prints_at_most_every_ten_seconds(capsys):
    clock = Clock()
    with writers.progress("pretrain", total=100, initial=20, clock=clock) as bar:
        for _ in range(80):
            clock.now += 0.5
            bar.advance(loss=0.25)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "pretrain  40/100 steps   40%  2.0 steps/s  30.0 s left  loss 0.25",
        "pretrain  60/100 steps   60%  2.0 steps/s  20.0 s left  loss 0.25",
        "pretrain  80/100 steps   80%  2.0 steps/s  10.0 s left  loss 0.25",
        "pretrain  100/100 steps  100%  2.0 steps/s  40.0 s in all  loss 0.25",
    ]


def test_the_rate_forgets_the_slow_first_step(capsys):
    clock = Clock()
    with writers.progress("finetune", total=1000, clock=clock) as bar:
        clock.now += 60  # compilation
        bar.advance()
        for _ in range(100):
            clock.now += 0.125
            bar.advance()
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == "finetune  1/1,000 steps    0%  1 min 00 s so far"
    assert second == "finetune  81/1,000 steps    8%  8.0 steps/s  1 min 55 s left"


@pytest.mark.parametrize("total", [1000, 10**6])
def test_a_live_bar_forgets_the_slow_first_step(monkeypatch, total):
    """rich counts from the first advance on: what remains is known from the second one."""
    clock, out = Clock(), io.StringIO()
    terminal = rich.console.Console(file=out, force_terminal=True, width=120, color_system=None, get_time=clock)
    monkeypatch.setattr(writers, "make_console", lambda: terminal)
    with writers.progress("finetune", total=total) as bar:
        clock.now += 600
        bar.advance()
        assert bar.bar.tasks[0].time_remaining is None
        clock.now += 5
        bar.advance(20)
        assert bar.bar.tasks[0].time_remaining == (total - 21) // 4 + ((total - 21) % 4 > 0)


def test_progress_that_fails_says_how_far_it_came(capsys):
    with pytest.raises(KeyError), writers.progress("sample", total=3, unit="images", clock=Clock()) as bar:
        bar.advance()
        raise KeyError
    assert capsys.readouterr().out.startswith("sample  1/3 images   33%")


def test_a_terminal_gets_a_live_bar(monkeypatch):
    out = io.StringIO()
    terminal = rich.console.Console(file=out, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(writers, "make_console", lambda: terminal)
    with writers.progress("sample", total=4, unit="images") as bar:
        bar.advance(4, loss=np.float32(0.5), note="[b]")
    assert "100%" in out.getvalue() and "4/4" in out.getvalue()
    assert "loss 0.5  note [b]" in out.getvalue()


def test_stage_headlines(capsys):
    writers.headline("query", "skipped", "[done before]")
    assert capsys.readouterr().out == "query           skipped  [done before]\n"


def test_image_grid_puts_every_image_in_its_place():
    images = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * np.ones((2, 3, 4, 5, 3), np.uint8)
    grid = writers.image_grid(images, scale=2, gap=1)
    assert grid.shape == (2 * 9, 2 * 17, 3) and grid.dtype == np.uint8
    for row in range(2):
        for column in range(3):
            cell = grid[2 * 5 * row :, 2 * 6 * column :][:8, :10]
            assert (cell == images[row, column, 0, 0, 0]).all()
    assert (grid[8:10] == 255).all() and (grid[:, 10:12] == 255).all()


def test_image_grid_without_a_gap_is_a_plain_tiling():
    images = np.random.default_rng(0).integers(0, 256, (2, 2, 3, 3, 1), np.uint8)
    grid = writers.image_grid(images, gap=0)
    assert np.array_equal(
        grid, np.block([[images[0, 0, ..., 0], images[0, 1, ..., 0]], [*images[1, ..., 0]]])[..., None]
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_reads_back(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    writers.save_png(tmp_path / "grid.png", image)
    with PIL.Image.open(tmp_path / "grid.png") as read:
        assert np.array_equal(np.asarray(read).reshape(image.shape), image)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_a_reader_that_has_gone_is_told_as_that(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        with pytest.raises(BrokenPipeError):
            writers.headline("query", "running")
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

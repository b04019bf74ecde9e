"""What a run tells people: metrics as CSV and TensorBoard, progress, stage headlines, grids of images."""

import contextlib
import csv
import io
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image
import rich.console
import rich.progress
import rich.text

from privimage_jax.cluster import processes
from privimage_jax.cluster.processes import on_process_zero
from privimage_jax.errors import printable
from privimage_jax.storage import durable, reading
from privimage_jax.storage.os_errors import explain_os_errors
from privimage_jax.training.console import make_console

PLAIN_LINE_SECONDS = 10.0
FLUSH_SECONDS = 10.0
MAX_METRICS_BYTES = 1 << 28
MAX_LINE_BYTES = 1 << 16


class MetricWriter:
    """Writes scalars to `metrics.csv`, images to PNG files, and both to TensorBoard files, all in one directory.

    Losses and norms are functions of sensitive data: the directory belongs under `internal/`.

    Args:
      directory: made if it is missing.
      start_step: the first step that this run may write. Rows and PNG files of that step and later, written before
        an interruption, are dropped, since they are about to be written again; 0 starts afresh.
    """

    _file: Any = None  # of text, or None
    _events: Any = None  # `_Events`; nothing to close in other processes than the first, which alone writes

    @on_process_zero
    def __init__(self, directory: str | pathlib.Path, start_step: int = 0):
        self._path = pathlib.Path(directory) / "metrics.csv"
        self._columns, self._file, self._events = ["step"], None, None
        durable.make_dir(self._path.parent)
        with self._writing():
            self._rewrite([row for row in self._read() if int(row["step"]) < start_step])
            for path in self._path.parent.glob("*.png"):
                step = path.stem.rpartition("_")[2]
                if step.isdecimal() and int(step) >= start_step:
                    path.unlink()
            self._events = _Events(self._path.parent, start_step)

    @on_process_zero
    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Adds one row; a name that is new becomes a column, empty in the rows before."""
        values = {name: float(value) for name, value in values.items()}
        new = [name for name in values if name not in self._columns]
        if new:
            rows = self._read()
            self._columns += new
            self._rewrite(rows)
        with self._writing():
            self._rows.writerow({"step": int(step), **{name: repr(value) for name, value in values.items()}})
            self._file.flush()
            self._events.scalars(int(step), values)

    @on_process_zero
    def sync(self) -> None:
        """Returns when the rows so far are on the disk, so that no checkpoint is ahead of them."""
        durable.sync(self._path)

    @on_process_zero
    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes an image, uint8 `[H, W, C]` with C = 1 or 3, as `<name>_<step, six digits>.png` and to TensorBoard."""
        with self._writing():
            save_png(self._path.with_name(f"{name}_{int(step):06d}.png"), image)
            self._events.image(int(step), name, image)

    def close(self) -> None:
        if self._events is not None:
            with self._writing():
                self._file.close()
                self._events.close()
            self._events = None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A refused write is a `UserError`; the files are then closed, so that nothing is tried again at exit."""
        try:
            with explain_os_errors(self._path.parent):
                yield
        except BaseException:
            for file in (self._file, self._events):
                with contextlib.suppress(OSError):
                    if file is not None:
                        file.close()
            self._events = None  # `close` has nothing left to do
            raise

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _read(self) -> list[dict[str, str]]:
        """The rows so far; none where the file is missing or not as `scalars` writes it."""
        try:
            text = reading.read_bytes(self._path, MAX_METRICS_BYTES).decode("utf-8")
            whole = text[: text.rfind("\n") + 1]  # An interruption can leave half a line.
            table = csv.DictReader(io.StringIO(whole, newline=""), strict=True)
            columns, rows = list(table.fieldnames or ["step"]), list(table)
        except (FileNotFoundError, ValueError, csv.Error):
            return []
        if columns[0] != "step" or not all(_is_row(row, columns) for row in rows):
            return []
        self._columns = columns
        return rows

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        if self._file is not None:
            self._file.close()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        durable.atomic_write_bytes(self._path, text.getvalue().encode())
        self._file = self._path.open("a", encoding="utf-8", newline="")
        self._rows = csv.DictWriter(self._file, self._columns, restval="", lineterminator="\n")


def first_row(path: pathlib.Path) -> dict[str, float]:
    """The oldest row of a `metrics.csv`, the metrics of the first step; {} where there is none that can be read."""
    try:
        with reading.open_regular(path) as file:
            lines = [file.readline(MAX_LINE_BYTES).decode("utf-8") for _ in range(2)]
        if not all(line.endswith("\n") for line in lines):  # half a line may hold half a number
            return {}
        row = next(csv.DictReader(lines, strict=True), {})
        return {name: float(value) for name, value in row.items() if value}
    except (OSError, ValueError, TypeError, csv.Error):
        return {}


def _is_row(row: dict, columns: list[str]) -> bool:
    """Whether a row has every column once, a whole number of a sensible size as its step, and numbers beside it."""
    if row.keys() != set(columns) or None in row.values():
        return False
    try:
        [float(value) for value in row.values() if value]
    except ValueError:
        return False
    return row["step"].isascii() and row["step"].isdigit() and len(row["step"]) < 19


class _Events:
    """A TensorBoard event file, written at once: tensorboardX's own writer is a thread, which a full disk ends."""

    def __init__(self, directory: pathlib.Path, start_step: int):
        from tensorboardX import event_file_writer, summary  # Here, because it takes half a second.
        from tensorboardX.proto import event_pb2

        self._summary, self._event = summary, event_pb2
        self._writer = event_file_writer.EventsWriter(str(directory / "events"))
        for path in directory.glob("events.*"):
            durable.set_usual_mode(path)
        self._flushed = time.monotonic()
        if start_step:  # TensorBoard then hides what an interrupted run wrote of later steps
            self._write(start_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._write(step, summary=self._summary.scalar(name, value))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._write(step, summary=self._summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._event.Event(wall_time=time.time(), step=step, **content))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()


class _PlainProgress:
    """A line at most every `PLAIN_LINE_SECONDS`, and one at the end: for logs and pipes."""

    def __init__(self, description: str, total: int, initial: int, unit: str, clock: Callable[[], float]):
        self.description, self.total, self.unit, self.clock = description, total, unit, clock
        self.initial = self.done = self.done_at_line = initial
        self.began = self.line_at = clock()
        self.info: dict[str, float | int | str] = {}

    def advance(self, n: int = 1, **info: float | int | str) -> None:
        is_first = self.done == self.initial
        self.done += n
        self.info.update(info)
        now = self.clock()
        if is_first and now - self.began >= PLAIN_LINE_SECONDS and self.done < self.total:
            # It has compiled, so that its rate foretells nothing.
            self._print(f"{100 * self.done / self.total:3.0f}%", f"{_duration(now - self.began)} so far")
            self.line_at, self.done_at_line = now, self.done
        elif now - self.line_at >= PLAIN_LINE_SECONDS and self.done < self.total:
            # Since the line before, not since the start: the first step compiles and would spoil the estimate.
            rate = (self.done - self.done_at_line) / (now - self.line_at)
            left = _duration((self.total - self.done) / rate) if rate else "?"
            self._print(f"{100 * self.done / self.total:3.0f}%", _rate(rate, self.unit), f"{left} left")
            self.line_at, self.done_at_line = now, self.done

    def finish(self) -> None:
        seconds = self.clock() - self.began
        rate = (self.done - self.initial) / seconds if seconds else 0.0
        share = 100 if self.total <= 0 else math.floor(100 * self.done / self.total)
        self._print(f"{share:3d}%", _rate(rate, self.unit), f"{_duration(seconds)} in all")

    def _print(self, *fields: str) -> None:
        counts = f"{self.done:,}/{self.total:,} {self.unit}"
        print("  ".join([self.description, counts, *fields, *_fields(self.info)]), flush=True)


class _NoProgress:
    """Of the processes that do not speak."""

    def advance(self, n: int = 1, **info: float | int | str) -> None:
        pass

    def finish(self) -> None:
        pass


class _RichProgress:
    """A live bar for terminals."""

    def __init__(self, description: str, total: int, initial: int, unit: str, console: rich.console.Console):
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=28),
            rich.progress.TaskProgressColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[rate]}", style="cyan", markup=False),
            rich.progress.TimeRemainingColumn(compact=True),
            rich.progress.TextColumn("{task.fields[info]}", style="dim", markup=False),
            console=console,
        )
        self.unit = unit
        self.info: dict[str, float | int | str] = {}
        self.task = self.bar.add_task(description, total=total, completed=initial, rate="", info="")
        self.bar.start()

    def advance(self, n: int = 1, **info: float | int | str) -> None:
        self.info.update(info)
        speed = self.bar.tasks[0].speed
        rate = _rate(speed, self.unit) if speed else ""
        self.bar.update(self.task, advance=n, rate=rate, info="  ".join(_fields(self.info)))

    def finish(self) -> None:
        self.bar.stop()


@contextlib.contextmanager
def progress(
    description: str,
    total: int,
    initial: int = 0,
    unit: str = "steps",
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[_PlainProgress | _RichProgress | _NoProgress]:
    """Shows how far a loop has come, its rate and the time that remains.

    On a terminal a live bar; elsewhere a printed line at most every 10 seconds and one at the end.

    Args:
      description: what runs, such as `"pretrain"`.
      total: units in all, including `initial` ones done by an earlier run.
      initial: units done before.
      unit: what is counted.
      clock: seconds; for tests.

    Yields:
      An object with `advance(n=1, **info)`: n more units are done, and `info` (for instance `loss=0.25`) is shown.
    """
    console = make_console()
    shown: _PlainProgress | _RichProgress | _NoProgress
    if not processes.is_first():
        shown = _NoProgress()
    elif console.is_terminal:
        shown = _RichProgress(description, total, initial, unit, console)
    else:
        shown = _PlainProgress(description, total, initial, unit, clock)
    try:
        yield shown
    finally:
        shown.finish()


@on_process_zero
def headline(stage: str, status: str, detail: str = "") -> None:
    """Prints one aligned line about a stage: `headline("query", "skipped", "done before")`.

    Args:
      stage: its name.
      status: "running", "done", "skipped", "warning" or "failed", each with its colour on a terminal; or any word.
      detail: anything more, printed last.
    """
    style = {"running": "cyan", "done": "green", "skipped": "dim", "warning": "yellow", "failed": "bold red"}.get(
        status, ""
    )
    text = rich.text.Text.assemble((f"{stage:<16}", "bold"), (f"{status:<9}", style), printable(detail))
    text.rstrip()
    make_console().print(text, soft_wrap=True)


def image_grid(images: np.ndarray, scale: int = 1, gap: int = 1) -> np.ndarray:
    """Lays images out in rows and columns on white.

    Args:
      images: uint8 `[n_rows, n_cols, H, W, C]`.
      scale: every pixel becomes a square of this side.
      gap: white pixels between images, before scaling.

    Returns:
      uint8 `[scale * (n_rows * (H + gap) - gap), scale * (n_cols * (W + gap) - gap), C]`.
    """
    if images.ndim != 5 or images.dtype != np.uint8:
        raise ValueError(f"image_grid takes uint8 [n_rows, n_cols, H, W, C], not {images.dtype} {images.shape}")
    padded = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    rows, columns, height, width, channels = padded.shape
    grid = padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    return grid[: rows * height - gap, : columns * width - gap].repeat(scale, axis=0).repeat(scale, axis=1)


def encode_png(image: np.ndarray) -> bytes:
    """PNG file of a uint8 image `[H, W, C]`, C = 1 (grey) or 3 (RGB)."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def save_png(path: str | pathlib.Path, image: np.ndarray) -> None:
    """Writes a uint8 image `[H, W, C]`, C = 1 or 3, as a PNG file that is there whole or not at all."""
    durable.atomic_write_bytes(pathlib.Path(path), encode_png(image))


def _fields(info: dict[str, float | int | str]) -> list[str]:
    return [
        f"{name} {value}" if isinstance(value, str | int) else f"{name} {value:.4g}" for name, value in info.items()
    ]


def _rate(per_second: float, unit: str) -> str:
    if per_second >= 1 or per_second == 0:
        return f"{per_second:,.1f} {unit}/s"
    return f"{1 / per_second:.1f} s/{unit.removesuffix('s')}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"

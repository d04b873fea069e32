"""Whether training waits for images: one worker decodes while the step computes."""

from __future__ import annotations

from pathlib import Path

from scripts.bench import ours
from scripts.bench.measure import in_child, preload
from scripts.bench.report import Ratio, say
from scripts.bench.work import Size, image_model, image_rows, write_rows


def media(folder: Path, size: Size) -> list[Ratio]:
    """Share of the wall-clock time that the loop waits for its data, the first step (an empty queue) left out."""
    model = image_model(folder / 'image_model', size)
    rows = image_rows(model, folder / 'photos', size, size.image_batch * (size.media_steps + 1))
    data = write_rows(folder / 'rows.jsonl', rows)
    preload('align_anything.trainers.runs.offline')
    shares = []
    for number in range(size.rounds):
        argv = ours.settings(
            model,
            data,
            folder / f'run_{number}',
            per_device_train_batch_size=size.image_batch,
            max_steps=size.media_steps + 1,
            layout='packed',
            freeze_vision_tower=True,
            num_workers=1,
        )
        waited, total = in_child(_waits, argv)
        shares.append(waited / total)
        say(f'  round {number + 1}: waited {waited:.3f} of {total:.2f} s')
    width, height = size.photo
    detail = f'of the step waited on data, one worker, JPEG {width}x{height}, {size.image_batch} a step'
    return [Ratio('media wait', min(shares), 0.05, at_most=True, detail=detail)]


def _waits(argv: list[str]) -> tuple[float, float]:
    from align_anything.reporting.metrics import TIMINGS_FILE, read_metrics

    _, output = ours.train('text_image_to_text', argv)
    records = read_metrics(output / TIMINGS_FILE)[1:]
    total = sum(record['train/seconds_per_step'] for record in records)
    return sum(record['train/data_wait'] * record['train/seconds_per_step'] for record in records), total

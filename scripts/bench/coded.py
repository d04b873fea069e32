"""Supervised training of an Emu3-type model, whose pictures are codes made once, against a plain loop over pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.bench import ours
from scripts.bench.compare import Found, in_turn, measured, speed
from scripts.bench.measure import StepClock, in_child, peak, preload, reset_peak, resident
from scripts.bench.report import Ratio
from scripts.bench.work import Size, coded_model, image_rows, write_rows

PAIR = 'any_to_any'


def emu3(folder: Path, size: Size) -> list[Ratio]:
    """Emu3-type SFT, packed, against `transformers` with pixels in padded batches; decoding the images is counted.

    Every other row is text alone: Emu3 is taught to read images beside pure language (Wang et al., 2024,
    arXiv:2409.18869, section 2.5).
    """
    model = coded_model(folder / 'model', size)
    rows = image_rows(model, folder / 'photos', size, size.image_batch * (size.steps + 1))
    for row in rows[1::2]:
        del row['image']
    preload('deepspeed', 'align_anything.trainers.runs.offline')
    argv = ours.settings(
        model,
        write_rows(folder / 'rows.jsonl', rows),
        folder / 'run',
        layout='packed',
        per_device_train_batch_size=size.image_batch,
        max_steps=size.steps + 1,
        model_max_length=4096,
        num_workers=0,
    )
    ordered = [rows[row] for row in in_child(ours.order, PAIR, argv)]
    sides = in_turn(
        {
            'packed': lambda: in_child(measured, PAIR, argv, 'sft'),
            'pixels': lambda: in_child(_pixels, model, ordered, size.image_batch, size.steps + 1),
        },
        size.rounds,
        size.image_batch * size.steps,
    )
    return [speed('Emu3-type SFT', sides, 'packed', 'pixels', 2.5)]


def _pixels(model_folder: Path, rows: list[dict[str, Any]], batch: int, steps: int) -> Found:
    """A loop as anyone would write it. Texts are tokens beforehand, which is not counted, and the codec is frozen."""
    import torch
    from PIL import Image
    from torch.nn.utils import clip_grad_norm_
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoProcessor, Emu3ForConditionalGeneration

    reset_peak()
    before = resident()
    torch.manual_seed(0)
    model = Emu3ForConditionalGeneration.from_pretrained(model_folder, dtype='float32', attn_implementation='sdpa')
    model.train().model.vqmodel.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=float(ours.SETTINGS['learning_rate']))
    pictures = AutoProcessor.from_pretrained(model_folder).image_processor
    texts, clock = _texts(model_folder, rows, model.config.image_token_id), StepClock()
    for step in range(steps):
        span = slice(step * batch, (step + 1) * batch)
        images = [Image.open(row['image']).convert('RGB') for row in rows[span] if 'image' in row]
        ids, labels = zip(*texts[span], strict=True)
        outputs = model(
            input_ids=pad_sequence(ids, batch_first=True),
            attention_mask=pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            labels=pad_sequence(labels, batch_first=True, padding_value=-100),
            **(pictures(images, return_tensors='pt') if images else {}),
        )
        outputs.loss.backward()
        clock.norms.append(float(clip_grad_norm_(trained, 1.0)))
        clock.losses.append(outputs.loss.item())
        optimizer.step()
        optimizer.zero_grad()
        clock.mark()
    return clock, peak() - before, None


def _texts(model_folder: Path, rows: list[dict[str, Any]], placeholder: int) -> list[tuple[Any, Any]]:
    """The ids of each row, placeholders where its picture belongs, and its labels."""
    import torch
    from PIL import Image

    from align_anything.models.pretrained_model import load_spec

    spec, made = load_spec(str(model_folder), model_max_length=4096), []
    own = spec.codes.kinds['image']
    for row in rows:
        asked, answered = row['messages']
        parts = [_part(asked['content'])]
        if 'image' in row:
            parts.insert(0, {'type': 'image', 'image': Image.open(row['image']).convert('RGB')})
        turns = [{'role': 'user', 'content': parts}, {'role': 'assistant', 'content': [_part(answered['content'])]}]
        example = spec.encode(turns)
        (response,) = example.responses
        ids, weights = (
            torch.cat([getattr(piece, name) for piece in (example.prompt, response)]) for name in ('ids', 'weights')
        )
        labels = ids.masked_fill(weights == 0, -100)
        made.append((ids.masked_fill(spec.codes.is_code(ids) | (ids == own.row_end), placeholder), labels))
    return made


def _part(text: str) -> dict[str, str]:
    return {'type': 'text', 'text': text}

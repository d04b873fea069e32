"""Generation: prompts in batches by transformers against the same prompts one by one."""

from __future__ import annotations

from pathlib import Path

from scripts.bench.measure import cpu_seconds, in_child, preload
from scripts.bench.report import Ratio
from scripts.bench.work import Size, text_model

PROMPTS, TOKENS, AT_ONCE = 32, 32, 16


def generate(folder: Path, size: Size) -> list[Ratio]:
    """Responses of a Qwen2-type model to prompts of one to eight words, as `generate` makes them, in CPU seconds."""
    model = text_model(folder / 'model', size)
    preload('deepspeed', 'align_anything.trainers.runs.generator')
    took = {at_once: min(in_child(_seconds, model, at_once) for _ in range(size.rounds)) for at_once in (1, AT_ONCE)}
    value = took[1] / took[AT_ONCE]
    detail = f'{took[1]:.2f} and {took[AT_ONCE]:.2f} CPU seconds for {PROMPTS} responses of {TOKENS} tokens'
    return [Ratio(f'generate: one by one / {AT_ONCE} at once', value, 3.0, detail=detail)]


def _seconds(model: Path, at_once: int) -> float:
    from align_anything.algorithms.generate import Generating
    from align_anything.trainers.launch import quieten_libraries, settings_of
    from align_anything.trainers.pairs import PAIRS
    from align_anything.trainers.runs.generator import open_generator

    quieten_libraries()
    given = {'model_name_or_path': model, 'bf16': False, 'max_new_tokens': TOKENS, 'generation_batch_size': at_once}
    argv = [word for key, value in given.items() for word in (f'--{key}', str(value))]
    generator = open_generator(settings_of(PAIRS['text_to_text'], Generating, argv, {}), PAIRS['text_to_text'])
    examples = [
        generator.encode([{'role': 'user', 'content': ' '.join(['word'] * (1 + number % 8))}])
        for number in range(PROMPTS)
    ]
    generator.generate(examples[:at_once])
    started = cpu_seconds()
    generator.generate(examples)
    return cpu_seconds() - started

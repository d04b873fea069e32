"""What is trained on: checkpoints with random weights, texts of known length, photographs of noise and gradients."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PATCH = 14
SYLLABLES = [consonant + vowel for consonant in 'bdfghjklmnprstvwxyz' for vowel in 'aeiou']


@dataclass(frozen=True)
class Size:
    """How much is measured: `FULL` gives the figures of docs/benchmarks.md, `QUICK` only shows that all of it runs."""

    hidden: int
    layers: int
    words: int
    shortest: int
    longest: int
    batch: int
    steps: int
    rounds: int
    image_hidden: int
    image_layers: int
    vision_hidden: int
    vision_layers: int
    image_size: int
    photo: tuple[int, int]
    image_batch: int
    vocabulary: int
    tokens: int
    pairs: int
    text_pair: int
    image_pair: int
    groups: int
    group_prompt: int
    group_response: int
    media_steps: int
    startups: int
    omni_hidden: int
    omni_layers: int
    tower_hidden: int
    tower_layers: int
    omni_image_size: int
    mixed_rows: int
    budget: int
    mixed_steps: int
    units: int
    book: int
    code_vocabulary: int
    coded_image_size: int
    picture_side: int
    picture_prompt: int
    picture: int
    shrink: int
    pictures: int
    rollout_steps: int
    row: int
    row_hidden: int
    row_layers: int
    row_steps: int


FULL = Size(
    hidden=512,
    layers=9,
    words=7500,
    shortest=64,
    longest=512,
    batch=16,
    steps=3,
    rounds=2,
    image_hidden=384,
    image_layers=9,
    vision_hidden=256,
    vision_layers=6,
    image_size=168,
    photo=(640, 480),
    image_batch=8,
    vocabulary=128 * 1024,
    tokens=4096,
    pairs=4,
    text_pair=384,
    image_pair=512,
    groups=2,
    group_prompt=512,
    group_response=64,
    media_steps=8,
    startups=3,
    omni_hidden=192,
    omni_layers=4,
    tower_hidden=192,
    tower_layers=6,
    omni_image_size=336,
    mixed_rows=40,
    budget=2048,
    mixed_steps=6,
    units=576,
    book=8 * 1024,
    code_vocabulary=64 * 1024,
    coded_image_size=280,
    picture_side=16,
    picture_prompt=64,
    picture=256,
    shrink=1,
    pictures=2,
    rollout_steps=10,
    row=16 * 1024,
    row_hidden=256,
    row_layers=2,
    row_steps=3,
)
QUICK = Size(
    hidden=64,
    layers=2,
    words=200,
    shortest=24,
    longest=64,
    batch=4,
    steps=1,
    rounds=1,
    image_hidden=64,
    image_layers=1,
    vision_hidden=32,
    vision_layers=2,
    image_size=56,
    photo=(160, 120),
    image_batch=4,
    vocabulary=4096,
    tokens=256,
    pairs=2,
    text_pair=96,
    image_pair=96,
    groups=1,
    group_prompt=64,
    group_response=8,
    media_steps=2,
    startups=0,
    omni_hidden=64,
    omni_layers=1,
    tower_hidden=32,
    tower_layers=2,
    omni_image_size=56,
    mixed_rows=4,
    budget=512,
    mixed_steps=2,
    units=64,
    book=512,
    code_vocabulary=4096,
    coded_image_size=56,
    picture_side=4,
    picture_prompt=32,
    picture=64,
    shrink=2,
    pictures=1,
    rollout_steps=4,
    row=256,
    row_hidden=64,
    row_layers=1,
    row_steps=1,
)


@dataclass(frozen=True)
class PairLengths:
    """Tokens of a prompt and of the answers to it."""

    prompt: int
    shortest: int
    longest: int

    @classmethod
    def of(cls, whole: int, ratio: int, spread: float = 0.5) -> PairLengths:
        """Prompts `ratio` times as long as the mean answer, `whole` tokens together; answers vary by `spread` of it."""
        answer = whole // (ratio + 1)
        return cls(whole - answer, round(answer * (1 - spread)), round(answer * (1 + spread)))


def words(count: int, seed: int = 0) -> list[str]:
    """Returns distinct words of two or three syllables."""
    source = random.Random(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        made[''.join(source.choices(SYLLABLES, k=source.choice((2, 3))))] = None
    return list(made)


def prompts(count: int, seed: int = 10) -> list[str]:
    """Returns texts of a dozen words, such as pictures are asked for with."""
    source, known = random.Random(seed), words(200)
    return [' '.join(source.choices(known, k=12)) for _ in range(count)]


def corpus(vocabulary: list[str]) -> list[str]:
    """Returns texts in which every word occurs, for the tokenizer to learn them."""
    return [' ' + ' '.join(vocabulary[start : start + 50]) for start in range(0, len(vocabulary), 50)]


def text_model(folder: Path, size: Size, heads: int = 8) -> Path:
    """Builds the Qwen2-type checkpoint."""
    from align_anything.testing.tiny import build

    pieces = size.words + 700
    return build(
        'qwen2',
        folder,
        hidden=size.hidden,
        layers=size.layers,
        vocab=pieces,
        heads=heads,
        corpus=corpus(words(size.words)),
    )


def image_model(folder: Path, size: Size) -> Path:
    """Builds the LLaVA-type checkpoint with its CLIP tower."""
    tower = {'vision_hidden': size.vision_hidden, 'vision_layers': size.vision_layers}
    return _like_image('llava', folder, size, image_size=size.image_size, **tower)


def seeing_model(folder: Path, size: Size) -> Path:
    """Builds a Qwen2.5-VL-type checkpoint, whose chat template goes on after an answer, with as large a tower."""
    tower = {'vision_hidden': size.vision_hidden, 'vision_layers': size.vision_layers}
    return _like_image('qwen2_5_vl', folder, size, image_size=size.image_size, **tower)


def _like_image(family: str, folder: Path, size: Size, **more: int) -> Path:
    """Builds a checkpoint whose language model is that of `image`."""
    from align_anything.testing.tiny import build

    shape = {'hidden': size.image_hidden, 'layers': size.image_layers, 'heads': size.image_hidden // 64 or 1}
    shape |= {'vocab': size.words // 2 + 700, **more}
    return build(family, folder, corpus=corpus(words(size.words // 2)), **shape)


def omni_model(folder: Path, size: Size) -> Path:
    """Builds the Qwen2.5-Omni-type thinker with its two towers."""
    from align_anything.testing.tiny import build

    return build(
        'qwen2_5_omni_thinker',
        folder,
        hidden=size.omni_hidden,
        layers=size.omni_layers,
        vocab=size.words // 2 + 700,
        image_size=size.omni_image_size,
        vision_hidden=size.tower_hidden,
        vision_layers=size.tower_layers,
        corpus=corpus(words(size.words // 2)),
    )


def coded_model(folder: Path, size: Size) -> Path:
    """Builds the Emu3-type checkpoint with its codec."""
    return _like_image('emu3', folder, size, vocab=size.words // 2 + 900, image_size=size.coded_image_size)


def drawing_model(folder: Path, size: Size) -> Path:
    """Builds a Qwen2-type checkpoint with tokens for pictures of `picture_side` codes a side."""
    from PIL import Image

    from align_anything.models.media_tokens import add_media_tokens
    from align_anything.testing.codecs import make_patch_codebook

    side, work = size.picture_side, folder.with_name(f'.{folder.name}')
    base = _like_image('qwen2', work / 'base', size)
    stills = [Image.fromarray(pixels_of((2 * side, 2 * side), seed)) for seed in range(8)]
    codec = make_patch_codebook(work / 'codec', stills, size=(2 * side, 2 * side), patch=2, entries=side**2)
    return add_media_tokens(base, {'image': codec}, folder, sizes={'image': (side, side)})


class Texts:
    """Makes chat rows of exact lengths, counted with the tokenizer and the chat template of a checkpoint."""

    def __init__(self, model: Path, vocabulary: list[str], seed: int) -> None:
        from align_anything.models.pretrained_model import load_spec

        self.random = random.Random(seed)
        spec = load_spec(str(model), model_max_length=4096)
        # The space in front keeps words apart, so that the lengths of words add up to that of the text.
        encoded = spec.tokenizer([f' {word}' for word in vocabulary], add_special_tokens=False)['input_ids']
        self._words: dict[int, list[str]] = {}
        for word, ids in zip(vocabulary, encoded, strict=True):
            self._words.setdefault(len(ids), []).append(f' {word}')
        shortest = min(self._words)
        word = self._words[shortest][0]
        self._template = len(spec.encode(_conversation(word, word))) - 2 * shortest

    def row(self, length: int) -> dict[str, Any]:
        """Returns a question and an answer of `length` tokens with the template, half of them the answer's.

        Where no word is one token long, the length is met but for the last word of each.
        """
        answer = max(min(self._words), (length - self._template) // 2)
        question = self._sentence(length - self._template - answer)
        return {
            'messages': [
                {'role': 'user', 'content': question},
                {'role': 'assistant', 'content': self._sentence(answer)},
            ]
        }

    def pair(self, prompt: int, chosen: int, rejected: int) -> dict[str, Any]:
        """Returns a question of `prompt` tokens with the template, and two answers of so many without it."""
        return {
            'prompt': self._sentence(prompt - self._template),
            'chosen': self._sentence(chosen),
            'rejected': self._sentence(rejected),
        }

    def _sentence(self, tokens: int) -> str:
        chosen: list[str] = []
        while fitting := [cost for cost in self._words if cost <= tokens]:
            cost = self.random.choices(fitting, [len(self._words[cost]) for cost in fitting])[0]
            chosen.append(self.random.choice(self._words[cost]))
            tokens -= cost
        return ''.join(chosen)


def _conversation(question: str, answer: str) -> list[dict[str, Any]]:
    turns = (('user', question), ('assistant', answer))
    return [{'role': role, 'content': [{'type': 'text', 'text': text}]} for role, text in turns]


def spread(source: random.Random, shortest: int, longest: int, count: int) -> list[int]:
    """Returns `count` lengths at even distances from the shortest to the longest, in random order."""
    lengths = [shortest + round(index * (longest - shortest) / (count - 1)) for index in range(count)]
    source.shuffle(lengths)
    return lengths


def text_rows(model: Path, size: Size, rows: int) -> list[dict[str, Any]]:
    """Returns chat rows whose whole lengths are spread evenly over `shortest` to `longest` tokens."""
    texts = Texts(model, words(size.words), seed=1)
    return [texts.row(length) for length in spread(texts.random, size.shortest, size.longest, rows)]


def image_rows(model: Path, folder: Path, size: Size, rows: int) -> list[dict[str, Any]]:
    """Writes photographs as JPEG into `folder` and returns rows as `text_rows` does, each with one.

    Its tokens come on top.
    """
    folder.mkdir()
    texts = Texts(model, words(size.words // 2), seed=2)
    made = []
    for index, length in enumerate(spread(texts.random, size.shortest, size.longest, rows)):
        path = folder / f'photo_{index}.jpg'
        photograph(path, size.photo, index)
        made.append({**texts.row(length), 'image': str(path)})
    return made


def text_pairs(model: Path, size: Size, lengths: PairLengths, rows: int) -> list[dict[str, Any]]:
    """Returns preference rows of such lengths, those of the answers spread evenly and apart within each pair."""
    return _pairs(Texts(model, words(size.words), seed=5), lengths, rows)


def image_pairs(model: Path, folder: Path, size: Size, lengths: PairLengths, rows: int) -> list[dict[str, Any]]:
    """Returns rows as `text_pairs` does, each with a photograph in `folder`, whose tokens are part of the prompt."""
    folder.mkdir(exist_ok=True)
    tokens = (size.image_size // PATCH) ** 2
    texts = Texts(model, words(size.words // 2), seed=6)
    made = _pairs(texts, replace(lengths, prompt=lengths.prompt - tokens), rows)
    for index, row in enumerate(made):
        row['image'] = str(folder / f'photo_{index}.jpg')
        photograph(Path(row['image']), size.photo, index)
    return made


def _pairs(texts: Texts, lengths: PairLengths, rows: int) -> list[dict[str, Any]]:
    answers = spread(texts.random, lengths.shortest, lengths.longest, 2 * rows)
    return [texts.pair(lengths.prompt, *two) for two in zip(answers[::2], answers[1::2], strict=True)]


def given_responses(model: Path, size: Size, count: int) -> list[list[int]]:
    """Returns the token ids of possible responses, all of the same length and clipped at the length limit."""
    from align_anything.models.pretrained_model import load_spec

    tokenizer, generator = load_spec(str(model)).tokenizer, random.Random(7)
    ids = sorted({token for text in corpus(words(size.words // 2)) for token in tokenizer(text)['input_ids']})
    ordinary = [token for token in ids if token not in tokenizer.all_special_ids]
    return [generator.choices(ordinary, k=size.group_response) for _ in range(count)]


def picture_prompts(model: Path, size: Size, rows: int) -> list[dict[str, Any]]:
    """Returns preference rows whose prompts are of `picture_prompt` tokens."""
    texts = Texts(model, words(size.words // 2), seed=8)
    return [texts.pair(size.picture_prompt, 2, 2) for _ in range(rows)]


def given_pictures(model: Path, size: Size, count: int) -> tuple[list[list[int]], tuple[int, int]]:
    """Returns the token ids of possible pictures, and how many at the beginning and the end could not be others."""
    from align_anything.models.pretrained_model import load_spec

    spec, generator = load_spec(str(model)), random.Random(9)
    kind = spec.codes.kinds['image']
    (first, stop), end = kind.spans[0], [*kind.closing, spec.stop_token_ids[0]]
    codes = [generator.choices(range(first, stop), k=size.picture_side**2) for _ in range(count)]
    return [[*kind.opening, *drawn, *end] for drawn in codes], (len(kind.opening), len(end))


def mixed_sources(model: Path, folder: Path, size: Size) -> list[Path]:
    """Writes four files of rows, each with media of one kind made on the spot: texts, photographs, audio, videos."""
    texts, generator = Texts(model, words(size.words // 2), seed=3), random.Random(4)
    makers: dict[str, tuple[str, Callable[[Path, int], None]]] = {
        'image': ('jpg', lambda path, seed: photograph(path, _scaled(size.photo, generator.uniform(0.3, 1)), seed)),
        'audio': ('wav', lambda path, seed: tone(path, generator.uniform(0.3, 2), seed)),
        'video': ('mp4', lambda path, seed: clip(path, _scaled(size.photo, 0.25), generator.randint(8, 48), seed)),
    }
    sources = [write_rows(folder / 'text.jsonl', text_rows(model, size, size.mixed_rows))]
    for kind, (suffix, make) in makers.items():
        rows = []
        for number, length in enumerate(spread(generator, size.shortest, size.longest // 2, size.mixed_rows)):
            path = folder / f'{kind}_{number}.{suffix}'
            make(path, number)
            rows.append({**texts.row(length), kind: str(path)})
        sources.append(write_rows(folder / f'{kind}.jsonl', rows))
    return sources


def _scaled(shape: tuple[int, int], factor: float) -> tuple[int, int]:
    width, height = (2 * round(side * factor / 2) for side in shape)
    return width, height


def tone(path: Path, seconds: float, seed: int) -> None:
    """Writes a WAV file of a few overtones in noise."""
    import numpy as np
    import soundfile

    noise = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16000)) / 16000
    samples = sum(np.sin(2 * np.pi * noise.uniform(80, 2000) * time) for _ in range(5)) / 10
    soundfile.write(path, (samples + noise.normal(0, 0.02, len(time))).astype('float32'), 16000)


def clip(path: Path, shape: tuple[int, int], frames: int, seed: int) -> None:
    """Writes an MP4 of ten frames a second in which a photograph moves to the left."""
    import av
    import numpy as np

    still = pixels_of(shape, seed)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=10)
        stream.width, stream.height = shape
        stream.pix_fmt = 'yuv420p'
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(still, -4 * number, axis=1), format='rgb24')
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def photograph(path: Path, shape: tuple[int, int], seed: int) -> None:
    """Writes a JPEG as costly to decode as a real photograph."""
    from PIL import Image

    Image.fromarray(pixels_of(shape, seed)).save(path, quality=90)


def pixels_of(shape: tuple[int, int], seed: int) -> Any:
    """Returns an image with the gradients, edges and grain of a photograph, `(height, width, 3)` uint8."""
    import numpy as np

    width, height = shape
    noise = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / noise.uniform(8, 90) + y / noise.uniform(8, 90) + channel) for channel in range(3)]
    pixels = 128 + 70 * np.stack(waves, axis=-1) + noise.normal(0, 14, (height, width, 3))
    pixels[(x // 80 + y // 60) % 3 == 0] *= 0.6
    return pixels.clip(0, 255).astype('uint8')


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows as JSON lines."""
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    return path

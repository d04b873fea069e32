"""Rewards on generated media: each against what is worked out another way, from the media alone."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity, linear, normalize

from align_anything.core.errors import ModelError, RewardError, SettingsError
from align_anything.core.types import Audio, CodedMedia, Video
from align_anything.datasets.media.audio import resampled
from align_anything.rewards import frozen
from align_anything.rewards.base import Completion, call_reward, check_options, get_reward
from align_anything.rewards.edit_distance import edit_distance
from align_anything.testing.tiny.encoders import RATE, SECONDS
from align_anything.testing.tiny.judges import build_judge
from tests.rewards.common import completion

Judge = Callable[[str], str]
RED, GREY = Image.new('RGB', (40, 20), (255, 0, 0)), Image.new('RGB', (20, 20), (51, 51, 51))
HALF = Image.new('RGB', (20, 20), (255, 0, 0))
HALF.paste((0, 0, 255), (0, 0, 20, 10))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8))
CLIP = Video(np.stack([np.full((8, 8, 3), level, np.uint8) for level in (0, 255)]), np.array([0.0, 1.0]), 1.0)


def tone(seconds: float, rate: int = RATE, pitch: float = 440.0) -> Audio:
    times = np.arange(round(seconds * rate)) / rate
    return Audio((0.5 * np.sin(2 * np.pi * pitch * times)).astype(np.float32), rate)


def answer(
    *media: Any, prompt: str = 'Draw it.', meta: dict[str, Any] | None = None, source: str = 'rows:1'
) -> Completion:
    kinds = {Audio: 'audio', Video: 'video', CodedMedia: 'image'}
    parts = [{'type': kinds.get(type(item), 'image'), kinds.get(type(item), 'image'): item} for item in media]
    message = {'role': 'assistant', 'content': [{'type': 'text', 'text': 'Here: '}, *parts]}
    one = completion(prompt=prompt, source=source, meta=meta or {})
    return Completion(one.conversation, message, one.meta, one.length, one.finished, one.source)


def given(name: str, *completions: Completion, **options: Any) -> list[float | None]:
    function = get_reward(name)
    return call_reward(name, function, completions, check_options(name, function, options))


@pytest.fixture(scope='module')
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    folder = tmp_path_factory.mktemp('judges')
    return cache(lambda name: str(build_judge(name, folder / name)))


def plain(name: str, folder: str) -> tuple[Any, Any]:
    kind = {'whisper': 'WhisperForConditionalGeneration', 'wav2vec2': 'Wav2Vec2ForCTC'}.get(name, 'AutoModel')
    model = getattr(transformers, kind).from_pretrained(folder)
    return model.eval(), transformers.AutoProcessor.from_pretrained(folder)


# Any medium


ON_PICTURES = ('brightness', 'colour', 'jpeg_size', 'ocr')


@pytest.mark.parametrize('name', ON_PICTURES)
def test_what_a_response_without_a_picture_gets(name: str) -> None:
    options = {'colour': 'red'} if name == 'colour' else {}
    without = [answer(), answer(tone(0.1))]
    assert given(name, *without, **options) == [0.0, 0.0]
    assert given(name, *without, missing=-2.5, **options) == [-2.5, -2.5]
    assert given(name, *without, missing=None, **options) == [None, None]


def test_several_pictures_count_as_their_mean_and_so_do_frames() -> None:
    assert given('brightness', answer(RED, GREY), answer(GREY), answer(CLIP)) == pytest.approx(
        [(76 / 255 + 0.2) / 2, 0.2, 0.5]
    )


def test_codes_that_nothing_decodes_are_no_picture() -> None:
    codes = CodedMedia('image', torch.zeros(1, 2, 2, dtype=torch.long))
    with pytest.raises(RewardError, match='codec of the image in a response to rows:7 cannot decode'):
        given('brightness', answer(codes, source='rows:7'))
    sent = answer()
    sent.message['content'].append({'type': 'image'})
    with pytest.raises(RewardError, match='was not sent: set model_cfgs.remote_rm_send_media'):
        given('brightness', sent)


# Pictures


def test_colour() -> None:
    assert given('colour', answer(RED), answer(HALF), answer(GREY), colour='red') == [1.0, 0.5, 0.0]
    assert given('colour', answer(HALF), colour=[0, 0, 255]) == given('colour', answer(HALF), colour='#0000ff') == [0.5]
    near = Image.new('RGB', (4, 4), (255, 64, 0))
    assert given('colour', answer(near), colour='red') == [1.0]
    assert given('colour', answer(near), colour='red', tolerance=63) == [0.0]
    by_question = [answer(HALF, prompt=f'Draw a {name} square.') for name in ('Red', 'blue', 'green')]
    assert given('colour', *by_question) == [0.5, 0.5, 0.0]
    assert given('colour', answer(RED, meta={'tint': 'red'}), answer(RED, meta={'tint': '#f11'}), column='tint') == [
        1,
        1,
    ]
    with pytest.raises(RewardError, match='rows:1 names no colour'):
        given('colour', answer(RED, prompt='Draw a square.'))
    with pytest.raises(RewardError, match=r"rows:1: meta\['tint'\] is no colour"):
        given('colour', answer(RED, meta={'tint': 'redish'}), column='tint')
    with pytest.raises(RewardError, match=r"rows:1 has no text in meta\['tint'\]"):
        given('colour', answer(RED), column='tint')
    for wrong in ('redish', [1, 2], [0, 0, 256]):
        with pytest.raises(SettingsError, match="option 'colour"):
            check_options('colour', get_reward('colour'), {'colour': wrong})


def test_brightness() -> None:
    white, black = Image.new('L', (4, 4), 255), Image.new('1', (4, 4), 0)
    assert given('brightness', answer(white), answer(black), answer(GREY)) == [1.0, 0.0, 0.2]
    assert given('brightness', answer(white), answer(black), answer(GREY), target=0.25) == pytest.approx(
        [0.25, 0.75, 0.95]
    )


def test_jpeg_size() -> None:
    def kilobytes(picture: Image.Image, quality: int) -> float:
        file = io.BytesIO()
        picture.save(file, 'jpeg', quality=quality)
        return file.tell() / 1000

    assert given('jpeg_size', answer(NOISE)) == [-kilobytes(NOISE, 95)]
    assert given('jpeg_size', answer(NOISE), sign=1, quality=50) == [kilobytes(NOISE, 50)]
    noisy, even = given('jpeg_size', answer(NOISE), answer(GREY))
    assert noisy < even < 0


def words(*lines: str) -> Image.Image:
    picture = Image.new('RGB', (360, 50 + 70 * len(lines)), 'white')
    for number, line in enumerate(lines):
        ImageDraw.Draw(picture).text((25, 30 + 70 * number), line, 'black', ImageFont.load_default(32))
    return picture


def test_ocr() -> None:
    asked = 'A sign that says "Hello World 42"'
    pictures = (words('Hello World 42'), words('- HELLO', 'world 42 !'), words('Hello Word 42'), GREY)
    assert given('ocr', *(answer(picture, prompt=asked) for picture in pictures)) == pytest.approx([1, 1, 11 / 12, 0])
    assert given('ocr', answer(pictures[0], prompt='hello world')) == [1.0]
    row = answer(pictures[0], meta={'text': 'Hello "World" 42'})
    assert given('ocr', row, column='text') == pytest.approx([12 / 14])


@pytest.mark.parametrize('name', ['clip', 'siglip'])
def test_clip_score_is_the_cosine_of_picture_and_text(name: str, judge: Judge) -> None:
    model, processor = plain(name, judge(name))
    texts = ['a red square', 'a blue circle ' * 20]

    def cosine(picture: Image.Image, text: str) -> float:
        how = {'padding': 'max_length' if name == 'siglip' else True, 'truncation': True, 'max_length': 16}
        with torch.no_grad():
            found = model(**processor(text=[text], images=[picture], return_tensors='pt', **how))
        return float(cosine_similarity(found.image_embeds, found.text_embeds))

    rows = [answer(RED, NOISE, prompt=texts[0]), answer(prompt=texts[1]), answer(HALF, prompt=texts[1])]
    expected = [(cosine(RED, texts[0]) + cosine(NOISE, texts[0])) / 2, 0.0, cosine(HALF, texts[1])]
    for batch_size in (1, 32):
        assert given('clip_score', *rows, model=judge(name), batch_size=batch_size) == pytest.approx(expected, abs=1e-5)
    row = answer(HALF, prompt='?', meta={'caption': texts[0]})
    assert given('clip_score', row, model=judge(name), column='caption') == pytest.approx(
        [cosine(HALF, texts[0])], abs=1e-5
    )


def test_a_model_is_loaded_once_and_leaves_random_numbers_alone(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen._frozen.cache_clear()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = given('clip_score', answer(RED), model=judge('clip'))
    assert torch.equal(torch.rand(4), expected)
    monkeypatch.setattr(transformers.CLIPModel, 'from_pretrained', None)
    assert given('clip_score', answer(RED), model=judge('clip')) == first
    model = frozen.frozen(judge('clip'), frozen.PICTURES_AND_TEXT).model
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert model.dtype == torch.float32


def test_what_is_no_judge_is_refused_before_anything_runs(judge: Judge, tmp_path: Path) -> None:
    refused = {
        'clip_score': {'model': judge('whisper')},
        'clap_score': {'model': judge('clip')},
        'transcript': {'model': judge('clap')},
    }
    for name, options in refused.items():
        with pytest.raises(SettingsError, match=f"option 'model' of reward '{name}' is .* but should be a model"):
            check_options(name, get_reward(name), options)
        with pytest.raises(SettingsError, match="option 'model' .* does not exist"):
            check_options(name, get_reward(name), {'model': str(tmp_path / 'gone')})
        with pytest.raises(SettingsError, match='needs the option'):
            check_options(name, get_reward(name), {})
    with pytest.raises(SettingsError, match="option 'device' .* there is no device"):
        check_options('clip_score', get_reward('clip_score'), {'model': judge('clip'), 'device': 'gpu0'})


def test_weights_that_are_not_there_are_no_random_ones(judge: Judge, tmp_path: Path) -> None:
    model, processor = plain('clip', judge('clip'))
    lacking = {name: tensor for name, tensor in model.state_dict().items() if 'visual_projection' not in name}
    model.save_pretrained(tmp_path, state_dict=lacking)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match='lacks weights of CLIPModel.*visual_projection'):
        given('clip_score', answer(RED), model=str(tmp_path))


# Looks


def predictor(folder: Path, *sizes: int, name: str = 'layers.{}.') -> tuple[str, list[torch.Tensor]]:
    made, tensors = torch.Generator().manual_seed(1), {}
    for number, (width, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
        tensors[name.format(2 * number) + 'weight'] = torch.randn(outputs, width, generator=made)
        tensors[name.format(2 * number) + 'bias'] = torch.randn(outputs, generator=made)
    path = folder / 'predictor.safetensors'
    save_file(tensors, path)
    return str(path), list(tensors.values())


def test_aesthetic(judge: Judge, tmp_path: Path) -> None:
    model, processor = plain('clip', judge('clip'))
    with torch.no_grad():
        pixels = processor(images=[RED, NOISE], return_tensors='pt')['pixel_values']
        embedded = normalize(model.visual_projection(model.vision_model(pixels).pooler_output), dim=-1)
    # Twelve layers: the eleventh is no second one.
    for sizes, name in (((32, *[4] * 11, 1), 'layers.{}.'), ((32, 1), '')):
        path, tensors = predictor(tmp_path, *sizes, name=name)
        expected = embedded
        for weight, bias in zip(tensors[::2], tensors[1::2], strict=True):
            expected = linear(expected, weight, bias)
        found = given('aesthetic', answer(RED), answer(NOISE), answer(), model=judge('clip'), weights=path)
        assert found == pytest.approx([*expected.flatten().tolist(), 0.0], rel=1e-4)
        # As LAION has it.
        published = str(tmp_path / f'{len(sizes)}.pth')
        torch.save(load_file(path), published)
        found = given('aesthetic', answer(RED), model=judge('clip'), weights=published)
        assert found == pytest.approx(expected[0].tolist(), rel=1e-4)
        get_reward('aesthetic').__globals__['layers_of'].cache_clear()


def test_a_predictor_that_is_none_is_refused(judge: Judge, tmp_path: Path) -> None:
    def problem(path: str) -> str:
        with pytest.raises(SettingsError) as refused:
            check_options('aesthetic', get_reward('aesthetic'), {'model': judge('clip'), 'weights': path})
        return str(refused.value)

    for name in ('a', 'b', 'c', 'd'):
        (tmp_path / name).mkdir()
    assert 'is no file' in problem(str(tmp_path / 'laion.pth'))
    (tmp_path / 'broken.safetensors').write_bytes(b'no tensors')
    assert 'is damaged, or holds something else' in problem(str(tmp_path / 'broken.safetensors'))
    assert 'do not lead from an embedding to one number' in problem(predictor(tmp_path / 'a', 32, 4)[0])
    path, tensors = predictor(tmp_path / 'b', 32, 4, 1)
    save_file({'layers.0.weight': tensors[0]}, tmp_path / 'c' / 'half.safetensors')
    assert 'should hold weight and bias of each layer' in problem(str(tmp_path / 'c' / 'half.safetensors'))
    save_file({'0.weight': tensors[0], '0.bias': tensors[1], '1.weight': torch.ones(1, 5), '1.bias': torch.ones(1)},
              tmp_path / 'c' / 'odd.safetensors')  # fmt: skip
    assert 'do not lead from' in problem(str(tmp_path / 'c' / 'odd.safetensors'))
    other = predictor(tmp_path / 'd', 16, 1)[0]
    with pytest.raises(ModelError, match='reads embeddings of 16 numbers, but .* makes 32'):
        given('aesthetic', answer(RED), model=judge('clip'), weights=other)


# Sounds


def test_duration() -> None:
    sounds = [answer(tone(seconds, rate=8000)) for seconds in (1, 2, 2.5, 3.75, 6)]
    assert given('duration', *sounds, target=2) == pytest.approx([0, 1, 0.5, 0, 0])
    assert given('duration', *sounds, target=[2, 3], margin=2) == pytest.approx([0.5, 1, 1, 0.625, 0])
    empty = answer(Audio(np.zeros(0, np.float32), 8000))
    assert given('duration', empty, answer(), answer(RED), target=0.5, missing=-1) == [0.5, -1, -1]
    with pytest.raises(SettingsError, match='the shorter length stands first'):
        check_options('duration', get_reward('duration'), {'target': [3, 2]})


@pytest.mark.parametrize('name', ['clap', 'clap_fused'])
def test_clap_score_is_the_cosine_of_sound_and_text(name: str, judge: Judge) -> None:
    model, processor = plain(name, judge(name))

    def cosine(samples: np.ndarray, text: str) -> float:
        inputs = processor(text=[text], audio=[samples], sampling_rate=RATE, return_tensors='pt')
        # What a fused checkpoint says of a batch in which nothing is longer than it hears.
        inputs['is_longer'] = torch.zeros(1, 1, dtype=torch.bool)
        with torch.no_grad():
            found = model(**inputs)
        return float(cosine_similarity(found.audio_embeds, found.text_embeds))

    sounds = [tone(1.0), tone(0.5, rate=24000, pitch=900)]
    expected = [cosine(sounds[0].samples, 'a hum'), cosine(resampled(sounds[1], RATE).samples, 'a whistle')]
    rows = [answer(sounds[0], prompt='a hum'), answer(sounds[1], prompt='a whistle'), answer(prompt='a hum')]
    for batch_size in (1, 32):
        found = given('clap_score', *rows, model=judge(name), batch_size=batch_size)
        assert found == pytest.approx([*expected, 0.0], abs=1e-5)


@pytest.mark.parametrize('name', ['clap', 'clap_fused'])
def test_a_long_clip_is_heard_whole_and_alike_each_time(name: str, judge: Judge) -> None:
    """The processor of CLAP would take a piece of it at random."""
    noise = np.random.default_rng(1).normal(0, 0.1, 2 * SECONDS * RATE).astype(np.float32)
    window = SECONDS * RATE
    scores = [given('clap_score', answer(Audio(noise, RATE)), model=judge(name)) for _ in range(3)]
    assert scores[0] == scores[1] == scores[2]
    clap = frozen.frozen(judge(name), frozen.SOUNDS_AND_TEXT)
    halves = frozen.sounds_embedded(clap, [Audio(noise[:window], RATE), Audio(noise[window:], RATE)], 8)
    whole = frozen.sounds_embedded(clap, [Audio(noise, RATE)], 8)
    assert torch.allclose(whole[0], normalize(halves.mean(0), dim=0), atol=1e-5)
    assert not torch.allclose(halves[0], halves[1], atol=1e-5)


def test_clips_that_are_too_short_or_empty_are_heard_as_silence(judge: Judge) -> None:
    for samples in (np.zeros(0, np.float32), np.zeros(3, np.float32)):
        for name in ('clap_score', 'transcript'):
            model = judge('clap' if name == 'clap_score' else 'wav2vec2')
            short = given(name, answer(Audio(samples, 24000), prompt='hum'), model=model)
            assert short == given(
                name, answer(Audio(np.zeros(RATE // 10, np.float32), RATE), prompt='hum'), model=model
            )


def word_error_rate(said: list[str], wanted: list[str]) -> float:
    @cache
    def distance(one: int, other: int) -> int:
        if not one or not other:
            return one + other
        replaced = distance(one - 1, other - 1) + (said[one - 1] != wanted[other - 1])
        return min(replaced, distance(one - 1, other) + 1, distance(one, other - 1) + 1)

    return distance(len(said), len(wanted)) / len(wanted)


def test_edit_distance_is_that_of_the_recursion() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        said, wanted = ([*map(str, random.integers(0, 3, size))] for size in random.integers(1, 9, 2))
        assert edit_distance(said, wanted) == round(word_error_rate(said, wanted) * len(wanted))
    assert edit_distance('kitten', 'sitting') == 3 and edit_distance('', 'ab') == 2


@pytest.mark.parametrize('name', ['whisper', 'wav2vec2'])
def test_transcript_is_the_share_of_words_that_are_heard(name: str, judge: Judge) -> None:
    model, processor = plain(name, judge(name))

    def heard(sound: Audio) -> str:
        inputs = processor(
            audio=resampled(sound, RATE).samples, sampling_rate=RATE, return_tensors='pt', return_attention_mask=True
        )
        with torch.no_grad():
            if name == 'whisper':
                return processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0]
            return processor.batch_decode(model(**inputs).logits.argmax(-1))[0]

    sounds = [tone(1.0), tone(0.75, rate=24000, pitch=1500)]
    said = [heard(sound) for sound in sounds]
    assert all(said)
    rows = [answer(sound, prompt=text) for sound, text in zip(sounds, said, strict=True)]
    assert given('transcript', *rows, model=judge(name), batch_size=1) == [1.0, 1.0]
    assert given('transcript', *rows, model=judge(name)) == [1.0, 1.0]
    loud = answer(sounds[0], meta={'said': f'{said[0].upper()}, and more!'})
    counted = get_reward('transcript').__globals__['plain_words']
    rate = word_error_rate(counted(said[0]), [*counted(said[0]), 'and', 'more'])
    assert given('transcript', loud, model=judge(name), column='said') == pytest.approx([1 - rate])
    letters = [''.join(counted(text)) for text in (said[0], f'{said[0]}, and more!')]
    rate = word_error_rate(list(letters[0]), list(letters[1]))
    assert given('transcript', loud, model=judge(name), column='said', unit='character') == pytest.approx([1 - rate])
    assert given('transcript', answer(sounds[0], prompt='Xyzzy?'), model=judge(name)) == [0.0]


def test_speech_longer_than_whisper_hears_is_read_in_stretches(judge: Judge) -> None:
    """Its processor drops what is past its window."""
    parts = [tone(SECONDS, pitch=300), tone(1.0, pitch=2500)]
    model, processor = plain('whisper', judge('whisper'))
    said = []
    for part in parts:
        inputs = processor(audio=part.samples, sampling_rate=RATE, return_tensors='pt', return_attention_mask=True)
        said += processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    whole = Audio(np.concatenate([part.samples for part in parts]), RATE)
    assert given('transcript', answer(whole, prompt=' '.join(said)), model=judge('whisper')) == [1.0]

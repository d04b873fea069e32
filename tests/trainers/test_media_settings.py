"""What data_cfgs says about media reaches their decoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from align_anything.algorithms.sft import SFT
from align_anything.configs.schema import DataCfgs, LoggerCfgs, RunCfgs, TrainCfgs
from align_anything.core.errors import ModelError
from align_anything.core.types import Conversation
from align_anything.datasets.dataset import ExampleDataset, SupervisedTask
from align_anything.trainers.pairs import PAIRS
from align_anything.trainers.runs.assembly import make_collator
from align_anything.trainers.runs.data import make_dataset, media_options, open_sources
from tests.datasets import fakes
from tests.datasets.clips import clip, sound, tone
from tests.models.samples import load

MEDIA_KEYS = {
    'allow_urls': True,
    'num_frames': 3,
    'fps': 5.0,
    'min_frames': 2,
    'max_frames': 7,
    'max_frame_pixels': 768,
    'max_video_pixels': 9999,
    'audio_in_video': True,
    'max_audio_seconds': 0.5,
    'long_audio': 'split',
}


def test_every_key_is_an_option_of_some_kind() -> None:
    usual = media_options(DataCfgs())
    for key, value in MEDIA_KEYS.items():
        assert media_options(DataCfgs(**{key: value})) != usual, key


def test_settings_reach_the_decoded_media(tmp_path: Path) -> None:
    (tmp_path / 'clips').mkdir()
    (tmp_path / 'sounds').mkdir()
    (tmp_path / 'clips/a.mp4').write_bytes(clip([number * 10 for number in range(20)], audio=tone(2.0)))
    (tmp_path / 'sounds/a.wav').write_bytes(sound(tone(1.2, 8000), 8000))
    row = {'instruction': '<video><audio>What?', 'output': 'It.', 'video': 'a.mp4', 'audio': 'a.wav'}
    data = DataCfgs(
        train_datasets=fakes.write_rows(tmp_path / 'a.jsonl', [row]),
        train_template='Instruction',
        video_folder=str(tmp_path / 'clips'),
        audio_folder=str(tmp_path / 'sounds'),
        **MEDIA_KEYS,
    )
    (source,) = open_sources(RunCfgs(data_cfgs=data, logger_cfgs=LoggerCfgs())).training
    assert source.cache is not None and source.cache.limit == 256 * 2**20
    seen: list[Conversation] = []

    def encode(conversation: Conversation, train_on: str) -> object:
        seen.append(conversation)
        return fakes.encode([{'role': 'user', 'content': [{'type': 'text', 'text': 'x'}]}])

    rate = {'audio': {'rate': 16000}, 'video': {'rate': 16000}}
    ExampleDataset([source], SupervisedTask(encode), 'any_to_text', frozenset({'video', 'audio'}), rate)[0]
    video, *sounds, _text = seen[0][0]['content']
    # Three frames share 9999 pixels, and none may have more than 768: a quarter of 64 x 48.
    assert video['video'].frames.shape == (3, 24, 32, 3)
    assert (len(video['video'].audio.samples), video['video'].audio.rate) == (8000, 16000)
    # 1.2 s in pieces of half a second.
    assert [len(part['audio'].samples) for part in sounds] == [8000, 8000, 3200]
    assert source.cache.size > 0


def _clips_with_and_without_sound(folder: Path) -> RunCfgs:
    (folder / 'heard.mp4').write_bytes(clip([number * 10 for number in range(20)], audio=tone(2.0)))
    (folder / 'silent.mp4').write_bytes(clip([number * 10 for number in range(20)]))
    rows = [{'instruction': '<video>What?', 'output': 'It.', 'video': f'{name}.mp4'} for name in ('heard', 'silent')]
    data = DataCfgs(
        train_datasets=fakes.write_rows(folder / 'rows.jsonl', rows), train_template='Instruction', audio_in_video=True
    )
    return RunCfgs(data_cfgs=data, logger_cfgs=LoggerCfgs(), train_cfgs=TrainCfgs(ds_cfgs='ds_z3_config.json'))


def test_audio_in_videos_reaches_a_model_that_hears_them(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    cfgs = _clips_with_and_without_sound(tmp_path)
    spec = load(tiny('qwen2_5_omni_thinker'))
    dataset = make_dataset(open_sources(cfgs).training, PAIRS['text_video_to_text'], spec, SFT(), 'all_assistant')
    heard, silent = (dataset[row] for row in (0, 1))
    assert heard.prompt.media_counts == {'video': 1, 'audio': 1} and silent.prompt.media_counts == {'video': 1}
    # 2 s at 25 tokens a second.
    assert int((heard.prompt.ids == spec.config.audio_token_id).sum()) == 50
    # Where all ranks have to run the same towers, that for audio clips is among them, though the pair reads none.
    assert make_collator(cfgs, spec, PAIRS['text_video_to_text'], SFT()).dummy_kinds == ('audio', 'video')
    without = cfgs.model_copy(update={'data_cfgs': cfgs.data_cfgs.model_copy(update={'audio_in_video': False})})
    assert make_collator(without, spec, PAIRS['text_video_to_text'], SFT()).dummy_kinds == ('video',)
    assert make_collator(cfgs, spec, PAIRS['any_to_text'], SFT()).dummy_kinds == ('audio', 'image', 'video')


def test_audio_in_videos_is_refused_for_a_model_that_does_not_hear_them(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    sources = open_sources(_clips_with_and_without_sound(tmp_path)).training
    with pytest.raises(ModelError, match="audio_in_video is on, but models of type 'qwen2_vl' do not hear"):
        make_dataset(sources, PAIRS['text_video_to_text'], load(tiny('qwen2_vl')), SFT(), 'all_assistant')

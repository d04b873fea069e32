"""Episodes that are kept as plain values and tensors come back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from align_anything.core.types import Audio, Episode, Piece, Turn, Video
from align_anything.rollouts.saved import plain, restored

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (5, 7, 3)).astype(np.uint8)
FRAMES = RANDOM.integers(0, 256, (2, 4, 6, 3)).astype(np.uint8)


def test_an_episode_comes_back(tmp_path: Path) -> None:
    sound = Audio(RANDOM.standard_normal(9).astype(np.float32), 16000)
    video = Video(FRAMES, np.array([0.0, 0.5]), 2.0, sound)
    picture = {'type': 'image', 'image': Image.fromarray(PIXELS)}
    shown = {'role': 'user', 'content': [picture, {'type': 'video', 'video': video}, {'type': 'text', 'text': 'x'}]}
    info = {'success': np.bool_(True), 'at': (1, 2.5), 'world': object(), 'by': {'a': [None, 'b']}}
    turn = Turn(3, 2, [{'type': 'text', 'text': 'y'}], 1, 0.5, {'heat': 1.0}, info)
    prompt = Piece(torch.tensor([1, 2]), torch.zeros(2), {'pixels': torch.ones(2, 3)}, {'image': 1})
    episode = Episode(prompt, [shown], [{'role': 'assistant', 'content': []}, shown], (turn,), 'turns', 1.5)
    torch.save(plain(episode), tmp_path / 'episode.pt')
    found = restored(torch.load(tmp_path / 'episode.pt', weights_only=True))
    assert type(found) is Episode and (found.ended, found.score, found.reward, found.cost) == ('turns', 1.5, 2.0, 1.0)
    assert type(found.turns) is tuple and type(found.turns[0]) is Turn
    assert found.info == {'success': True, 'at': (1, 2.5), 'by': {'a': [None, 'b']}}
    assert found.prompt.ids.tolist() == [1, 2] and found.prompt.media['pixels'].shape == (2, 3)
    image, clip, text = found.messages[1]['content']
    assert np.array_equal(np.array(image['image']), PIXELS) and text == {'type': 'text', 'text': 'x'}
    assert np.array_equal(clip['video'].frames, FRAMES) and clip['video'].timestamps.tolist() == [0.0, 0.5]
    assert np.array_equal(clip['video'].audio.samples, sound.samples) and clip['video'].audio.rate == 16000
    assert plain(None) is None and restored(None) is None

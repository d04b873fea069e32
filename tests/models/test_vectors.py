"""Composed models that read a kind of media as vectors, which the rows bring (docs/composed.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from align_anything.configs.compose import read_compose
from align_anything.core.errors import SampleError
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.media import decode_conversations
from align_anything.models.composed.compose import compose
from align_anything.models.pretrained_model import load_spec
from align_anything.policies.token.collator import TokenCollator
from align_anything.testing.tiny.encoders import build_encoder
from tests.harness.once import once
from tests.models.mixed import policy_of
from tests.models.samples import assistant, user

Parts = Callable[[str], Path]


@pytest.fixture(scope='session')
def parts(tiny: Callable[..., Path], shared_cache: Path) -> Parts:
    """`parts('clip')` is the folder of a tiny encoder, `parts('llama')` of a tiny language model."""

    def part(name: str) -> Path:
        if name == 'llama':
            return tiny(name)
        return once(shared_cache, f'part-{name}', lambda folder: build_encoder(name, folder))

    return part


def test_vectors_that_the_data_bring_become_tokens(parts: Parts, tmp_path: Path) -> None:
    """OMEGA's form: what another model made of a video stands in the row."""
    settings = {
        'language_model': str(parts('llama')),
        'video': {'precomputed_dim': 12, 'projector': 'expand', 'perception_tokens': 3},
    }
    folder = compose(read_compose(settings, 'test'), tmp_path / 'vectors')
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    names = [name for name in model.state_dict() if 'projector' in name]
    # Those of OMEGA's proj_to_llama.
    assert {name.split('.')[-2] for name in names} == {'0', '2', '3'}
    vectors = [torch.randn(12).numpy() for _ in range(2)]
    with pytest.raises(ValueError, match=r'arrays of 12 numbers, not of shape \(11,\)'):
        processor(text=['<video>'], videos=[vectors[0][:11]])
    inputs = processor(text=['<video> a <video> b'], videos=vectors, return_tensors='pt')
    assert int((inputs['input_ids'] == model.config.video_token_id).sum()) == 6
    with torch.no_grad():
        one = model(**inputs).logits
        inputs['pixel_values_videos'][1] += 1.0
        other = model(**inputs).logits
    first = int((inputs['input_ids'][0] == model.config.video_token_id).nonzero()[3])
    assert torch.equal(one[0, :first], other[0, :first]) and not torch.equal(one[0, first], other[0, first])


VECTORS = {'precomputed_dim': 12, 'projector': 'expand', 'perception_tokens': 3}


def test_rows_bring_vectors_and_whatever_reads_them_says_so(parts: Parts, tmp_path: Path) -> None:
    """The whole way from a row, in every kind, beside a kind that has its encoder."""
    settings: dict[str, Any] = {'language_model': str(parts('llama')), 'image': str(parts('clip')), 'video': VECTORS}
    settings['audio'] = {'precomputed_dim': 5, 'projector': 'linear', 'start_token': '<aud>'}
    spec = load_spec(compose(read_compose(settings, 'test'), tmp_path / 'vectors'))
    assert spec.reads == {'image', 'video', 'audio'} and spec.audio_rate is None
    asked = [{'role': 'user', 'content': '<video> <audio> <image> <video>?'}, assistant('A dog.')]
    videos = [[float(number) for number in range(12)], [1.0] * 12]
    media = {'video': videos, 'audio': {'embedding': [0.5] * 5}, 'image': Image.new('RGB', (40, 30), 'red')}
    (conversation,) = decode_conversations([bind_media(asked, media)])
    example = spec.encode(conversation)
    assert example.prompt.media['pixel_values_videos'].tolist() == videos
    assert example.prompt.media['input_features'].tolist() == [[0.5] * 5]
    assert example.prompt.media_counts == {'video': 2, 'audio': 1, 'image': 1}
    ids = example.prompt.ids.tolist()
    assert [ids.count(spec.tokenizer.convert_tokens_to_ids(f'<{kind}>')) for kind in ('video', 'audio')] == [6, 1]
    # Batches that lack a kind get one, and a neighbour changes nothing.
    assert spec.dummy('video').media['pixel_values_videos'].shape == (1, 12)
    policy = policy_of(tmp_path / 'vectors', spec, 'padded')
    collator = TokenCollator(spec, 'padded', tuple(sorted(spec.reads)))
    examples = [example, spec.encode([user('Hi.'), assistant('Hello.')])]
    with torch.no_grad():
        alone = torch.cat([policy(collator([one])).values for one in examples])
        torch.testing.assert_close(policy(collator(examples)).values, alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ('kind', 'source', 'words'),
    [
        ('video', {'embedding': [1.0] * 11}, 'takes an embedding of 12 numbers as video, and the row has .* of 11'),
        ('video', {'frames': [Image.new('RGB', (40, 30))] * 2}, 'of 12 numbers as video, and the row has the video'),
        ('image', [1.0] * 12, 'has an embedding as image, and this model reads the image itself'),
    ],
)
def test_a_vector_of_another_size_and_media_of_the_other_form_are_refused(
    kind: str, source: Any, words: str, parts: Parts, shared_cache: Path
) -> None:
    settings = {'language_model': str(parts('llama')), 'image': str(parts('clip')), 'video': VECTORS}
    spec = load_spec(once(shared_cache, 'vectors', lambda folder: compose(read_compose(settings, 'test'), folder)))
    (conversation,) = decode_conversations(
        [bind_media([{'role': 'user', 'content': 'What?'}, assistant('A dog.')], {kind: source})]
    )
    with pytest.raises(SampleError, match=words):
        spec.encode(conversation)

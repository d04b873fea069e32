"""Models that act: reloaded exactly, frozen where they came trained, and published weights under our names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from align_anything.core.actions import Actions
from align_anything.core.errors import ModelError, SampleError
from align_anything.models.acting import published
from align_anything.models.acting.checkpoint import export_acting, load_acting, load_action_spec
from align_anything.models.acting.configuration import SpocConfig
from align_anything.models.acting.known import is_acting
from align_anything.models.acting.layers import positions
from align_anything.models.acting.published import ACTIONS, CAMERAS, VERSIONS, convert_published, renamed
from align_anything.models.acting.spoc import SpocModel
from align_anything.trainers.runs.dry_run import show_example
from tests.harness.pairwise import in_tiers
from tests.policies.acting.worlds import NAMED, NUMBERS, episode, small

ENCODERS: list[tuple[dict[str, Any]]] = [
    ({'vision': 'dinov2', 'text': 't5', 'fusion': 'transformer', 'image_size': (30, 28)},),
    ({},),
    ({'vision': 'siglip', 'text': 'siglip', 'fusion': 'transformer', 'image_size': (28, 28)},),
    ({'vision': 'dinov2', 'text': 't5', 'image_size': (28, 28)},),
]


@pytest.mark.parametrize(('config',), in_tiers(ENCODERS, ENCODERS[:1]))
def test_it_reloads_exactly_and_what_came_trained_is_frozen(config: dict[str, Any], tmp_path: Path) -> None:
    folder = small(tmp_path / 'model', **config)
    spec, model = load_action_spec(folder), load_acting(folder, torch.float32)
    frozen = {name.split('.')[1] for name, own in model.named_parameters() if not own.requires_grad}
    assert frozen == ({'image_encoder', 'text_encoder'} if config else set()) and is_acting(folder)
    export_acting(model, None, tmp_path / 'saved', spec, merge_adapter=False)
    again = AutoModel.from_pretrained(tmp_path / 'saved')
    assert all(
        torch.equal(one, other)
        for one, other in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert load_action_spec(tmp_path / 'saved').space == NAMED


def test_episodes_are_steps_that_were_seen_and_done(tmp_path: Path) -> None:
    spec = load_action_spec(small(tmp_path / 'model'))
    turns = episode(3)
    example = spec.encode(turns)
    (response,) = example.responses
    done = [turn['content'][0]['action'].names[0] for turn in turns[1::2]]
    assert example.prompt.ids.tolist() == [-1] and response.weights.tolist() == [1, 0, 1, 0, 1]
    assert [part['action'].names[0] for part in spec.decode(response)] == done
    assert spec.encode(turns, 'last').responses[0].weights.tolist() == [0, 0, 0, 0, 1]
    weighed = [{**turn, 'weight': 0.5} if turn['role'] == 'assistant' else turn for turn in turns]
    assert spec.encode(weighed).responses[0].weights.tolist() == [0.5, 0, 0.5, 0, 0.5]
    spec.max_length = 4
    assert spec.encode(turns).responses[0].truncated and len(spec.encode(turns).responses[0]) == 3


def test_numbers_come_back_as_the_environment_takes_them(tmp_path: Path) -> None:
    spec = load_action_spec(small(tmp_path / 'model', NUMBERS, head='gaussian'))
    turns = episode(2, NUMBERS)
    wanted = [turn['content'][0]['action'].values for turn in turns[1::2]]
    for part, values in zip(spec.decode(spec.encode(turns).responses[0]), wanted, strict=True):
        assert torch.allclose(part['action'].values, values, atol=1e-6)


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (lambda turns: turns[0]['content'].pop(0), 'no goal'),
        (lambda turns: turns[0]['content'].pop(), 'begins without pictures'),
        (
            lambda turns: turns[2]['content'].append(turns[0]['content'][1]),
            'shows 2 pictures, and should show 1: above',
        ),
        (lambda turns: turns.pop(2), 'should follow each other in turn'),
        (lambda turns: turns[1].update(content=[{'type': 'text', 'text': 'left'}]), 'one action and nothing else'),
        (
            lambda turns: turns[1].update(content=[{'type': 'action', 'action': Actions(names=('up',))}]),
            "'up', and should be one of left, right, wait",
        ),
        (
            lambda turns: turns[0].update(state={'held': (1, 2)}),
            "'held' says 1, 2, and should say a number",
        ),
    ],
)
def test_what_is_no_episode_is_refused(change: Any, reason: str, tmp_path: Path) -> None:
    spec, turns = load_action_spec(small(tmp_path / 'model', sensors={'held': 3})), episode(3)
    change(turns)
    with pytest.raises(SampleError, match=reason):
        spec.encode(turns)


class Published(nn.Module):
    """What a published file holds of fusion, made by torch's own layers, beside the rest of one of our models."""

    def __init__(self, model: SpocModel) -> None:
        super().__init__()
        config = model.config
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.hidden_size, config.fusion_heads, config.fusion_size, 0.0, batch_first=True
            )
            for _ in range(config.fusion_layers)
        )

    def state(self, model: SpocModel) -> dict[str, Tensor]:
        kept = {}
        for name, tensor in model.state_dict().items():
            name = name.replace('visual_encoder.text_encoder.', 'visual_encoder.text_encoder.encoder.')
            name = name.replace('encoder.embed_tokens', 'shared')
            name = name.replace('sensor_embed.an_object_is_in_hand', 'object_in_hand_embed')
            name = name.replace(
                'image_encoder.embeddings.patch_embeddings.projection', 'image_encoder.model.patch_embed.proj'
            )
            name = name.replace('image_encoder.embeddings.position_embeddings', 'image_encoder.model.pos_embed')
            name = name.replace('image_encoder.embeddings.', 'image_encoder.model.')
            name = name.replace('image_encoder.layernorm', 'image_encoder.model.norm')
            name = name.replace('image_encoder.encoder.layer.', 'image_encoder.model.blocks.')
            name = name.replace('.attention.output.dense.', '.attn.proj.')
            for number in '12':
                name = name.replace(f'.layer_scale{number}.lambda1', f'.ls{number}.gamma')
            if 'camera_tokens' in name:
                for camera, own in zip(CAMERAS, tensor, strict=True):
                    kept[f'visual_encoder.visual_sensor_token_{camera}'] = own
            elif '.attention.attention.query.' in name:
                parts = [model.state_dict()[_ours(name, part)] for part in ('query', 'key', 'value')]
                kept[name.replace('.attention.attention.query.', '.attn.qkv.')] = torch.cat(parts)
            elif 'fusion_xformer' not in name and '.attention.attention.' not in name:
                kept[name] = tensor
        kept |= {f'visual_encoder.fusion_xformer.layers.{name}': own for name, own in self.layers.state_dict().items()}
        return {**kept, 'time_encoder.div_term': torch.ones(4)}


def _ours(name: str, part: str) -> str:
    ours = name.replace('image_encoder.model.blocks.', 'image_encoder.encoder.layer.')
    return ours.replace('.query.', f'.{part}.')


VISION = {'model_type': 'dinov2', 'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'image_size': 56}
TEXT = {'model_type': 't5', 'd_model': 32, 'd_kv': 16, 'd_ff': 64, 'num_layers': 1, 'num_heads': 2, 'vocab_size': 50}
SIZES: dict[str, Any] = {
    **{'hidden_size': 32, 'channels': 32, 'fusion_layers': 2, 'fusion_heads': 4, 'fusion_size': 64},
    **{'decoder_layers': 1, 'decoder_heads': 4, 'decoder_size': 64, 'image_size': (56, 84), 'grid': (2, 3)},
    **{'sensors': {'an_object_is_in_hand': 3}, 'dropout': 0.0},
}


def config() -> SpocConfig:
    return SpocConfig(vision_config=VISION, text_config=TEXT, **SIZES)


def test_published_weights_find_their_place_and_compute_the_same() -> None:
    model = SpocModel(config()).eval()
    published = Published(model).eval()
    state = dict(renamed(published.state(model)))
    other = SpocModel(config()).eval()
    missing, strange = other.load_state_dict(state, strict=False)
    assert not missing and not strange
    same = [
        name
        for name, own in model.state_dict().items()
        if 'fusion_xformer' not in name and torch.equal(own, state[name])
    ]
    assert len(same) == sum('fusion_xformer' not in name for name in model.state_dict())
    hidden, mask = torch.randn(2, 7, 32), torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
    wanted = found = hidden
    with torch.no_grad():
        for theirs, ours in zip(published.layers, other.visual_encoder.fusion_xformer, strict=True):
            wanted, found = theirs(wanted, src_key_padding_mask=~mask), ours(found, mask)
    assert torch.allclose(found[mask], wanted[mask], atol=1e-5)


def test_steps_are_told_apart_by_sines_and_cosines() -> None:
    told = positions(3, torch.zeros(1, 6))
    rates = [10000 ** (-pair / 6) for pair in (0, 2, 4)]
    wanted = [
        [part(torch.tensor(step * rate)) for rate in rates for part in (torch.sin, torch.cos)] for step in range(3)
    ]
    assert torch.allclose(told, torch.tensor(wanted), atol=1e-6)


def test_a_file_that_runs_code_or_is_another_version_is_refused(tmp_path: Path) -> None:
    assert len(ACTIONS) == 20 == len(set(ACTIONS)) and VERSIONS['small_3'][1] == 3
    torch.save({'state_dict': {'model.actor.weight': torch.zeros(20, 512)}}, tmp_path / 'other.ckpt')
    with pytest.raises(ModelError, match=r'is no small_3: of its weights \d+ are missing'):
        convert_published(tmp_path / 'other.ckpt', tmp_path / 'out', 'small_3')
    with pytest.raises(ModelError, match="no version 'small3'. Did you mean 'small_3'"):
        convert_published(tmp_path / 'other.ckpt', tmp_path / 'out', 'small3')
    torch.save({'state_dict': {}, 'config': Path('x')}, tmp_path / 'code.ckpt')
    with pytest.raises(ModelError, match='nothing else in it is run'):
        convert_published(tmp_path / 'code.ckpt', tmp_path / 'out', 'small_3')


@pytest.mark.parametrize(
    ('held', 'told'),
    [
        (b'hello' * 50, 'nothing else in it is run: KeyError'),
        (b'', 'nothing else in it is run: EOFError'),
        ({'state_dict': [1]}, 'is no checkpoint of PyTorch Lightning'),
        ({'state_dict': {'model.a': 'x'}}, "'model.a' of its 'state_dict' is no tensor"),
        ({'state_dict': {3: torch.zeros(1)}}, 'are missing'),
        ({'state_dict': {'model.actor.linear.weight': torch.zeros(7, 3)}}, r'1 are of another size \(actor.weight\)'),
        ({'state_dict': {'model.decoder.layers.0.self_attn.in_proj_weight': torch.zeros(2, 4)}}, '1 are strange'),
        ({'state_dict': {'model.visual_encoder.visual_sensor_token_raw_navigation_camera': torch.zeros(4)}}, 'strange'),
    ],
)
def test_a_file_of_anything_else_is_told(held: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / 'spoc.ckpt'
    file.write_bytes(held) if isinstance(held, bytes) else torch.save(held, file)
    config = SpocConfig.from_pretrained(small(tmp_path / 'small')).to_dict()
    monkeypatch.setattr(published, '_config', lambda *_: config)
    with pytest.raises(ModelError, match=told):
        convert_published(file, tmp_path / 'out', 'small_3')


def test_nothing_is_done_before_the_first_action(tmp_path: Path) -> None:
    for name, space, head in (('named', NAMED, 'categorical'), ('numbers', NUMBERS, 'gaussian')):
        spec = load_action_spec(small(tmp_path / name, space, head=head))
        example = spec.encode(episode(2, space))
        assert spec.decode(example.prompt) == [] and len(spec.decode(example.responses[0])) == 2
        assert len(show_example(example, spec).plain.split('\u27e6')) == 3

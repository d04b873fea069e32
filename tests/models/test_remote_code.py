"""Families whose class comes with the checkpoint, on stand-ins with the published interfaces."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.types import Conversation, Example
from align_anything.models.export import export_model
from align_anything.models.family import FamilySpec
from align_anything.models.own_code import MARKS
from align_anything.models.pretrained_model import load_model, load_pretrained_models, load_spec
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from tests.models.common import lora_cfgs
from tests.models.mixed import sound, whole
from tests.models.samples import assistant, multi_turn, picture, single, user
from tests.models.stand_ins import FAMILIES, build

StandIn = Callable[[str], Path]
MEDIA = {'minicpmv': ('image',), 'minicpmo': ('image', 'audio'), 'phi3_v': ('image',), 'qwen': ('image',)}


@pytest.fixture(scope='module')
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """`stand_in('qwen')` returns the folder of a stand-in, built once."""
    folders: dict[str, Path] = {}

    def checkpoint(family: str) -> Path:
        if family not in folders:
            folders[family] = build(family, tmp_path_factory.mktemp('stand_ins') / family)
        return folders[family]

    return checkpoint


def loaded(folder: Path) -> tuple[FamilySpec, Any]:
    spec = load_spec(folder, trust_remote_code=True)
    return spec, load_model(folder, spec.components, trust_remote_code=True).eval()


def policy_of(spec: FamilySpec, model: Any) -> TokenPolicy:
    return TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float32)


def plain(folder: Path) -> Any:
    """The checkpoint as a user without this package loads it."""
    config = json.loads((folder / 'config.json').read_text())
    kind = AutoModel if 'AutoModel' in config['auto_map'] else AutoModelForCausalLM
    options = {'init_tts': False} if config['model_type'] == 'minicpmo' else {}
    return kind.from_pretrained(folder, trust_remote_code=True, **options).eval()


def talk(family: str) -> Conversation:
    """Two turns, with media in both where the family reads any, one of them wide."""
    first = [picture(60, 40), picture(30, 90, 'blue')] if family in MEDIA else []
    second = [picture(50, 50, 'green')] if family in MEDIA else []
    if 'audio' in MEDIA.get(family, ()):
        # The shorter audio clip stands before a longer one.
        first, second = [*first, sound(0.31)], [sound(0.7, pitch=300), *second]
    return [user(*first, 'What are these?'), assistant('Noise.'), user(*second, 'And now?'), assistant('More of it.')]


def media_of(conversation: Conversation, kind: str) -> list[Any]:
    return [part[kind] for message in conversation for part in message['content'] if part['type'] == kind]


def own_logits(family: str, folder: Path, conversation: Conversation, tmp_path: Path) -> tuple[Tensor, Tensor]:
    """Ids of a conversation and their logits, by the checkpoint's own processor or tokenizer and forward pass."""
    model = plain(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    if family == 'qwen':
        ids = own_qwen_ids(tokenizer, conversation, tmp_path)
        with torch.no_grad():
            return ids, model(input_ids=ids[None].clone()).logits[0]
    marks = {'minicpmv': ('(<image>./</image>)',), 'minicpmo': ('(<image>./</image>)', '(<audio>./</audio>)')}
    image, audio = (*marks.get(family, ('<|image_{}|>',)), '')[:2]
    number, turns = 0, []
    for message in conversation:
        words = ''
        for part in message['content']:
            number += part['type'] == 'image'
            written = {'image': image.format(number) + '\n', 'audio': audio + '\n'}
            words += written[part['type']] if part['type'] != 'text' else part['text']
        turns.append({'role': message['role'], 'content': words})
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    if family not in MEDIA:
        found = dict(tokenizer(text, return_tensors='pt'))
        found = {'input_ids': found['input_ids']}
        ids = found['input_ids'][0]
    else:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        images = media_of(conversation, 'image')
        if family == 'phi3_v':
            found = dict(processor(text, images))
            ids = found['input_ids'][0].clone()
        else:
            sounds = [item.samples for item in media_of(conversation, 'audio')]
            found = dict(processor([text], [images], [sounds] if sounds else None))
            ids = found['input_ids'][0]
            found = {'data': {**found, 'position_ids': torch.arange(len(ids))[None]}}
    with torch.no_grad():
        return ids, model(**found).logits[0]


def own_qwen_ids(tokenizer: Any, conversation: Conversation, tmp_path: Path) -> Tensor:
    """ChatML with the paths of images in it; the span of an image is that of the checkpoint."""

    def plain_ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)['input_ids']

    ids, number = plain_ids('<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'), 0
    for message in conversation:
        ids += plain_ids(f'<|im_start|>{message["role"]}\n')
        for part in message['content']:
            if part['type'] == 'text':
                ids += plain_ids(part['text'])
            else:
                number += 1
                part['image'].save(tmp_path / f'{number}.png')
                ids += [*plain_ids(f'Picture {number}: '), *tokenizer.path_ids(f'{number}.png'), *plain_ids('\n')]
        ids += plain_ids('<|im_end|>\n')
    return torch.tensor(ids)


def scores(spec: FamilySpec, policy: TokenPolicy, examples: list[Example], dummies: tuple[str, ...] = ()) -> Tensor:
    with torch.no_grad():
        return policy(TokenCollator(spec, 'padded', dummy_kinds=dummies)(examples)).values


@pytest.mark.parametrize('family', FAMILIES)
def test_code_runs_only_where_it_is_trusted(family: str, stand_in: StandIn) -> None:
    folder = stand_in(family)
    for load in (load_spec, lambda source: load_model(source, {})):
        with pytest.raises(ModelError, match='set trust_remote_code if you trust'):
            load(folder)
    spec, model = loaded(folder)
    assert type(model).__module__ == f'align_anything.models.families.{family}'
    assert spec.reads == set(MEDIA.get(family, ())) and spec.layouts == ('padded',)
    assert (spec.processor is None) == (family in ('qwen', 'baichuan_m1'))
    assert pickle.loads(pickle.dumps(spec)).encode(single()).prompt.ids.equal(spec.encode(single()).prompt.ids)


@pytest.mark.parametrize('family', FAMILIES)
def test_scores_are_those_of_the_checkpoints_own_code(
    family: str, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Padding behind audio clips is not all hidden by the published code, so here audio clips are alone.
    conversation = talk(family) if family != 'minicpmo' else [*talk('qwen')[:2], *talk('minicpmo')[2:]]
    spec, model = loaded(stand_in(family))
    example = spec.encode(conversation)
    ids, logits = own_logits(family, stand_in(family), conversation, tmp_path)
    piece = whole(spec, example)
    text = piece.token_tensors[MARKS] == 0 if family in MEDIA else torch.ones_like(piece.ids, dtype=torch.bool)
    # The own template may write something behind the last answer.
    assert torch.equal(piece.ids[text], ids[: len(piece)][text])
    trained = piece.weights.nonzero().flatten()
    expected = logits.log_softmax(-1)[trained - 1, piece.ids[trained]]
    assert len(trained) > 8 and len(expected.unique()) > 4
    torch.testing.assert_close(scores(spec, policy_of(spec, model), [example]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('family', FAMILIES)
def test_neighbours_padding_and_dummies_do_not_matter(family: str, stand_in: StandIn) -> None:
    spec, model = loaded(stand_in(family))
    policy = policy_of(spec, model)
    examples = [spec.encode(conversation) for conversation in (single(), talk(family), multi_turn(), talk(family)[:2])]
    alone = [scores(spec, policy, [example]) for example in examples]
    together = scores(spec, policy, examples, tuple(sorted(spec.reads)))
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=1e-5)
    for kinds in [(kind,) for kind in sorted(spec.reads)]:
        torch.testing.assert_close(scores(spec, policy, examples[:1], kinds), alone[0], atol=2e-5, rtol=1e-5)
    batch = TokenCollator(spec, 'padded')(examples[:1] if family == 'minicpmo' else examples)
    with torch.no_grad():
        logits = policy(batch, logits=True).flatten(0, 1).log_softmax(-1)[batch.inputs.score_index]
    expected = policy(batch).values.detach()
    torch.testing.assert_close(logits.gather(1, batch.inputs.targets[:, None])[:, 0], expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize('family', MEDIA)
def test_the_medium_matters(family: str, stand_in: StandIn) -> None:
    spec, model = loaded(stand_in(family))
    policy = policy_of(spec, model)
    for kind in MEDIA[family]:
        parts = [picture(40, 40), picture(40, 40, 'blue')] if kind == 'image' else [sound(0.5), sound(0.5, pitch=90)]
        found = [scores(spec, policy, [spec.encode([user(part, 'What?'), assistant('That.')])]) for part in parts]
        assert not torch.allclose(*found, atol=1e-4)


@pytest.mark.parametrize('family', FAMILIES)
def test_gradients_reach_every_part_and_every_parameter_has_one(family: str, stand_in: StandIn) -> None:
    spec, model = loaded(stand_in(family))
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert {spec.component_of(name) for name in names} == set(spec.components)
    kinds = tuple(sorted(spec.reads))
    policy = policy_of(spec, model.train())
    policy(TokenCollator(spec, 'padded')([spec.encode(talk(family))])).values.sum().backward()
    reached = {spec.component_of(name) for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == set(spec.components)
    model.zero_grad()
    # A batch of text alone runs the towers too, where ranks have to keep in step, and teaches them nothing.
    policy(TokenCollator(spec, 'padded', dummy_kinds=kinds)([spec.encode(single())])).values.sum().backward()
    for name, parameter in model.named_parameters():
        if spec.component_of(name) in ('vision_tower', 'audio_tower'):
            assert parameter.grad is None or not parameter.grad.any(), name


@pytest.mark.parametrize('family', FAMILIES)
def test_an_exported_checkpoint_is_complete(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = build(family, tmp_path / family), tmp_path / 'exported'
    spec, model = loaded(source)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    monkeypatch.chdir(tmp_path)
    example = spec.encode(talk(family))
    expected = scores(spec, policy_of(spec, model), [example])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_model(model, state, out, tokenizer=spec.tokenizer, processor=spec.processor)
    # Whatever is still needed of the source would now be missed.
    source.rename(tmp_path / 'elsewhere')
    assert {file.name for file in out.glob('*.py')} >= {f'{name}.py' for name in FAMILIES[family]['files']}
    weights = plain(out).state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    again, reloaded = loaded(out)
    assert torch.equal(scores(again, policy_of(again, reloaded), [again.encode(talk(family))]), expected)


@pytest.mark.parametrize('family', ['minicpmv', 'phi3_v'])
def test_adapters_and_score_heads_fit(family: str, stand_in: StandIn) -> None:
    model, _, _ = load_pretrained_models(stand_in(family), trust_remote_code=True, lora_cfgs=lora_cfgs())
    spec = load_spec(stand_in(family), trust_remote_code=True)
    policy_of(spec, model)(TokenCollator(spec, 'padded')([spec.encode(talk(family))])).values.sum().backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert trained and all('lora' in name for name in trained)
    judge, _, _ = load_pretrained_models(stand_in(family), trust_remote_code=True, is_reward_model=True)
    assert judge.score.weight.shape == (1, judge.config.hidden_size)


def test_what_the_published_code_cannot_take_is_refused(stand_in: StandIn, tmp_path: Path) -> None:
    spec = load_spec(stand_in('qwen'), trust_remote_code=True)
    with pytest.raises(SampleError, match='takes for the path of an image'):
        spec.encode([user('Write <img>a.png</img>'), assistant('No.')])
    spec = load_spec(stand_in('minicpmo'), trust_remote_code=True)
    with pytest.raises(SampleError, match='hears 30 s at once'):
        spec.encode([user(sound(30.5), 'Who?'), assistant('Me.')])
    folder = build('qwen', tmp_path / 'qwen')
    config = json.loads((folder / 'config.json').read_text())
    del config['visual']
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ModelError, match='only Qwen-VL is known'):
        load_spec(folder, trust_remote_code=True)


def test_a_rest_too_short_to_be_audio_makes_no_piece_of_its_own(stand_in: StandIn) -> None:
    spec = load_spec(stand_in('minicpmo'), trust_remote_code=True)
    whole, longer = (spec.encode([user(sound(seconds), 'Who?'), assistant('Me.')]) for seconds in (30, 30.05))
    assert torch.equal(longer.prompt.ids, whole.prompt.ids)
    assert torch.equal(longer.prompt.media['audio_features'], whole.prompt.media['audio_features'])


def test_generation_is_left_to_the_checkpoints_own_code(stand_in: StandIn) -> None:
    spec = load_spec(stand_in('minicpmv'), trust_remote_code=True)
    with pytest.raises(ModelError, match="'minicpmv' generates through code of its checkpoint"):
        spec.generation_inputs([spec.encode_prompt(single()[:1])])
    spec = load_spec(stand_in('baichuan_m1'), trust_remote_code=True)
    prompts = [spec.encode_prompt(conversation) for conversation in (single()[:1], multi_turn()[:3])]
    inputs = spec.generation_inputs(prompts)
    found = plain(stand_in('baichuan_m1')).generate(**inputs, max_new_tokens=2, use_cache=False, do_sample=False)
    assert found.shape == (2, max(map(len, prompts)) + 2)

"""CSM: ids, losses and sounds are those of transformers' own class, and codes come back as they went in."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoProcessor, CsmForConditionalGeneration

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.store import TensorStore
from align_anything.core.types import Audio, CodedMedia, Conversation, Example, Piece
from align_anything.models.any_model import AnyModel, AnyModelForScore
from align_anything.models.checkpoint import stored_keys
from align_anything.models.codecs.base import codec_rules
from align_anything.models.codes import CODES
from align_anything.models.export import export_model
from align_anything.models.families import csm
from align_anything.models.family import FamilySpec
from align_anything.models.frames import FURTHER
from align_anything.models.pretrained_model import load_pretrained_models, load_spec, set_text_attention
from align_anything.models.structure import MEDIA_CODEC
from align_anything.models.trainable import freeze_output_embedding
from align_anything.policies.score import ScorePolicy
from align_anything.policies.token.attention import SEGMENT_ATTENTION, register_segment_attention
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from align_anything.testing.tiny.csm import BOOKS, ENTRIES, RATE, UNUSED
from tests.harness.ranks import run_ranks
from tests.models.common import lora_cfgs, stir
from tests.models.samples import assistant, user

Tiny = Callable[..., Path]
TWIN = 'backbone_model.embed_tokens.embed_audio_tokens.weight'


def tone(pitch: float, seconds: float = 0.5) -> Audio:
    time = np.arange(int(RATE * seconds)) / RATE
    return Audio((0.5 * np.sin(2 * np.pi * pitch * time)).astype(np.float32), RATE)


def sings(sound: Any, **more: Any) -> dict[str, Any]:
    return {'role': 'assistant', 'content': [{'type': 'audio', 'audio': sound, **more}]}


def dialogue(*pitches: float) -> Conversation:
    """Turns of texts and tones, each longer than the one before."""
    turns = [(user(f'sing {pitch}'), sings(tone(pitch, 0.3 + 0.2 * at))) for at, pitch in enumerate(pitches)]
    return [message for pair in turns for message in pair]


def as_speakers(conversation: Conversation) -> list[dict[str, Any]]:
    """The same as the processor of transformers takes it: a text and its sound in one turn of a speaker."""
    found = []
    for asked, answer in zip(conversation[::2], conversation[1::2], strict=True):
        sound = {'type': 'audio', 'path': answer['content'][0]['audio'].samples}
        found.append({'role': asked.get('name', '0'), 'content': [asked['content'][0], sound]})
    return found


def coded(spec: FamilySpec, folder: Path, *conversations: Conversation) -> FamilySpec:
    """The spec with the codes of all sounds, as the pass before a run makes them."""
    store = TensorStore(folder, 'media_codes', '', 'here')
    spec.codes = spec.codes.with_store(store)
    codec = spec.codes.rules['audio'].open()
    for kind, medium in spec.codes.missing(list(conversations)):
        store.put(spec.codes.key(kind, medium), {CODES: codec.encode([medium])[0]})
    return spec


def stirred(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    """The model with weights that make scores differ from token to token."""
    model = AnyModel.from_pretrained(folder).to(dtype).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'codec_model' not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def plain_of(model: Any) -> Any:
    plain = copy.deepcopy(model)
    plain.__class__ = CsmForConditionalGeneration
    return plain


def whole(example: Example) -> Tensor:
    return torch.cat([example.prompt.ids, example.responses[0].ids])


@pytest.fixture
def spec(tiny: Tiny) -> FamilySpec:
    return load_spec(tiny('csm'))


DIALOGUES = [dialogue(440), dialogue(500, 650), dialogue(900)]


def test_it_reads_text_and_writes_sounds(spec: FamilySpec) -> None:
    assert spec.reads == set() and spec.emits == {'audio'} and spec.audio_rate == RATE
    assert spec.codes.rules['audio'].books == (ENTRIES,) * BOOKS and spec.codes.further == BOOKS - 1
    assert spec.layouts == ('padded', 'packed', 'shared_prefix')
    one, other = (each.encode(DIALOGUES[0]) for each in (spec, pickle.loads(pickle.dumps(spec))))
    assert torch.equal(whole(one), whole(other))
    assert set(spec.components) == {'language_model', 'generation', MEDIA_CODEC}
    assert spec.component_of(TWIN) == spec.component_of('depth_decoder.codebooks_head.weight') == 'generation'


@pytest.mark.parametrize('number', range(3))
def test_ids_and_labels_are_those_of_the_processor(number: int, tiny: Tiny, spec: FamilySpec) -> None:
    conversation = copy.deepcopy(DIALOGUES[number])
    conversation[0]['name'] = '1'
    processor = AutoProcessor.from_pretrained(tiny('csm'))
    inputs = processor.apply_chat_template(
        as_speakers(conversation), tokenize=True, return_dict=True, processor_kwargs={'output_labels': True}
    )
    example = spec.encode(conversation)
    ids = whole(example)
    placeholders = ids.masked_fill(spec.codes.is_code(ids), spec.config.audio_token_id)
    assert torch.equal(placeholders, inputs['input_ids'][0])
    weights = torch.cat([example.prompt.weights, example.responses[0].weights])
    assert torch.equal(weights > 0, inputs['labels'][0] != -100)
    # What generation starts from, with the sounds of earlier turns.
    prompt = spec.encode_prompt(conversation[:-1])
    assert torch.equal(prompt.ids, ids[: len(prompt)]) and not spec.codes.is_code(ids[len(prompt) - 1])
    # The processor that is saved knows both forms.
    assert spec.processor.chat_template == processor.chat_template


def test_codes_come_back_as_they_went_in(tiny: Tiny, spec: FamilySpec, tmp_path: Path) -> None:
    coded(spec, tmp_path, *DIALOGUES)
    sound = DIALOGUES[0][1]['content'][0]['audio']
    network = AnyModel.from_pretrained(tiny('csm')).codec_model
    expected = network.encode(torch.from_numpy(sound.samples)[None, None]).audio_codes[0]
    response = spec.encode(DIALOGUES[0]).responses[0]
    (part,) = spec.decode(response)
    assert torch.equal(part['audio'].codes, expected) and len(set(expected[0].tolist())) > 2
    assert response.token_tensors[FURTHER].shape == (len(response), BOOKS - 1)
    assert not response.token_tensors[FURTHER][-1].any(), 'the end is a frame of zeros'
    decoded = spec.codes.rules['audio'].open().decode(part['audio'].codes)
    assert len(decoded.samples) == expected.shape[1] * spec.codes.rules['audio'].hop
    again = spec.encode([user('sing 440'), sings(decoded, **{CODES: part['audio']})]).responses[0]
    assert torch.equal(again.ids, response.ids)
    assert torch.equal(again.token_tensors[FURTHER], response.token_tensors[FURTHER])


def test_losses_of_both_networks_are_those_of_the_class(tiny: Tiny, spec: FamilySpec, tmp_path: Path) -> None:
    """On frames behind a prompt; the class reads the state of the last token for a frame that begins a sequence."""
    coded(spec, tmp_path, *DIALOGUES)
    model = stirred(tiny('csm'))
    plain, processor = plain_of(model), AutoProcessor.from_pretrained(tiny('csm'))
    policy = TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float64)
    for conversation in DIALOGUES:
        inputs = processor.apply_chat_template(
            as_speakers(conversation), tokenize=True, return_dict=True, processor_kwargs={'output_labels': True}
        )
        inputs['input_values'] = inputs['input_values'].double()
        theirs = plain(**inputs)
        batch = policy.collate([spec.encode(conversation)])
        scored = policy(batch, further=True)
        # The class takes its logits to float32.
        assert float(-scored.values.mean()) == pytest.approx(float(theirs.backbone_loss), rel=1e-6)
        further = -scored.further.sum() / (len(scored.further) * (BOOKS - 1))
        assert float(further) == pytest.approx(float(theirs.depth_decoder_loss), rel=1e-6)
        gradients = [
            torch.autograd.grad(loss, [weight for _, weight in trained(one)])
            for one, loss in ((model, -scored.values.mean() + further), (plain, theirs.loss))
        ]
        for (name, _), own, other in zip(trained(model), *gradients, strict=True):
            torch.testing.assert_close(own, other, atol=1e-7, rtol=1e-4, msg=name)


def test_the_class_reads_the_last_state_for_a_frame_that_nothing_stands_before(tiny: Tiny) -> None:
    """Why its depth loss of bare frames is another than one by hand: here no sequence begins with a frame."""
    model = stirred(tiny('csm'))
    codes = torch.randint(ENTRIES, (1, 6, BOOKS), generator=torch.Generator().manual_seed(0))
    theirs = plain_of(model)(input_ids=codes, labels=codes)
    states = model.backbone_model(input_ids=codes).last_hidden_state[0]
    loss = -model.further_logprobs(states.roll(1, 0), codes[0]).mean() / (BOOKS - 1)
    assert float(loss) == pytest.approx(float(theirs.depth_decoder_loss), rel=1e-6)
    behind_another = -model.further_logprobs(states[:-1], codes[0, 1:]).mean() / (BOOKS - 1)
    assert abs(float(behind_another - loss)) > 1e-4


def trained(model: Any) -> list[tuple[str, Tensor]]:
    return [(name, item) for name, item in model.named_parameters() if not name.startswith('codec_model')]


def test_layouts_and_neighbours_change_no_score(tiny: Tiny, spec: FamilySpec, tmp_path: Path) -> None:
    coded(spec, tmp_path, *DIALOGUES)
    model, found = stirred(tiny('csm')), []
    examples = [spec.encode(conversation) for conversation in DIALOGUES]
    # Two answers to one prompt, which a layout may share.
    group = [[user('sing'), sings(tone(pitch))] for pitch in (300, 700)]
    examples.append(coded(spec, tmp_path, *group).encode_group(group))
    register_segment_attention()
    for layout in spec.layouts:
        if layout != 'padded':
            set_text_attention(model, SEGMENT_ATTENTION)
        policy = TokenPolicy(model, TokenCollator(spec, layout), dtype=torch.float64)
        together = policy(policy.collate(examples), further=True)
        found.append((together.values, together.further))
        alone = [policy(policy.collate([example]), further=True) for example in examples]
        found.append((torch.cat([one.values for one in alone]), torch.cat([one.further for one in alone])))
    for values, further in found[1:]:
        torch.testing.assert_close(values, found[0][0], atol=1e-9, rtol=0)
        torch.testing.assert_close(further, found[0][1], atol=1e-9, rtol=0)


def in_ranks(rank: int, folder: Path, spec: FamilySpec, examples: list[Example], ranks: int) -> tuple[Any, ...]:
    """Scores of tokens and of what rides beside them, and gradients, of a row that so many ranks share."""
    register_segment_attention()
    model = stirred(folder)
    set_text_attention(model, SEGMENT_ATTENTION)
    policy = TokenPolicy(model, TokenCollator(spec, 'packed', ranks_per_row=ranks), dtype=torch.float64)
    scored = policy(policy.collate(examples), further=True)
    (scored.values.square().sum() + scored.further.square().sum()).backward()
    gradients = {name: torch.zeros_like(own) if own.grad is None else own.grad for name, own in trained(model)}
    return scored.values.detach(), scored.further.detach(), gradients


@pytest.mark.extended
def test_ranks_share_rows(tiny: Tiny, spec: FamilySpec, tmp_path: Path) -> None:
    coded(spec, tmp_path, *DIALOGUES)
    # Of the one the frames stand in the half of one rank.
    for texts in (DIALOGUES, [[user('sing ' + 'on and on ' * 20), sings(tone(440, 0.3))]]):
        examples = [coded(spec, tmp_path, conversation).encode(conversation) for conversation in texts]
        values, further, gradients = in_ranks(0, tiny('csm'), spec, examples, 1)
        found = run_ranks(in_ranks, 2, args=(tiny('csm'), spec, examples, 2))
        for own, beside, _ in found:
            torch.testing.assert_close(own, values, atol=1e-9, rtol=0)
            torch.testing.assert_close(beside, further, atol=1e-9, rtol=0)
        for name, wanted in gradients.items():
            torch.testing.assert_close(sum(own[name] for *_, own in found), wanted, atol=1e-6, rtol=1e-4, msg=name)


def test_the_further_codes_are_read_and_no_later_ones(tiny: Tiny, spec: FamilySpec, tmp_path: Path) -> None:
    coded(spec, tmp_path, *DIALOGUES)
    policy = TokenPolicy(stirred(tiny('csm')), TokenCollator(spec, 'padded'), dtype=torch.float64)
    example = spec.encode(DIALOGUES[0])
    before = policy(policy.collate([example]), further=True)
    at = 2
    changed = copy.deepcopy(example)
    beside = changed.responses[0].token_tensors[FURTHER]
    beside[at, 0] = (beside[at, 0] + 1) % ENTRIES
    after = policy(policy.collate([changed]), further=True)
    assert torch.equal(before.values[: at + 1], after.values[: at + 1])
    assert (before.values[at + 1 :] != after.values[at + 1 :]).all()
    assert torch.equal(before.further[:at], after.further[:at]) and before.further[at] != after.further[at]


def test_scores_are_over_the_book_where_runs_sample_and_over_the_head_in_sft(tiny: Tiny, spec: FamilySpec) -> None:
    model, example = stirred(tiny('csm')), spec.encode(DIALOGUES[0])
    found = {}
    for restricted in (False, True):
        spec.codes = replace(spec.codes, restricted=restricted, begins=restricted)
        policy = TokenPolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float64)
        batch = policy.collate([example])
        found[restricted] = policy(batch).values
    logits = model(input_ids=whole(example)[None], further_codes=batch.inputs.arguments[FURTHER]).logits[0]
    first = spec.config.text_vocab_size
    rows = spec.codes.rows_of(batch.inputs.targets)[:, None]
    for restricted, size in ((False, ENTRIES + UNUSED), (True, ENTRIES)):
        own = torch.log_softmax(logits[batch.inputs.score_index, first : first + size], -1)
        torch.testing.assert_close(found[restricted], own.gather(1, rows - first)[:, 0])
    assert (found[True] > found[False]).all()


def test_an_empty_micro_batch_reaches_the_depth_decoder(tiny: Tiny, spec: FamilySpec) -> None:
    model = stirred(tiny('csm'))
    policy = TokenPolicy(model, TokenCollator(spec, 'packed'), dtype=torch.float64)
    scored = policy(policy.collate([]), further=True)
    assert len(scored.values) == len(scored.further) == 0
    (scored.values.sum() + scored.further.sum()).backward()
    reached = {name for name, parameter in trained(model) if parameter.grad is not None}
    assert any('depth_decoder.model.layers' in name for name in reached)
    assert 'depth_decoder.codebooks_head.weight' in reached and 'backbone_model.norm.weight' in reached


def test_a_saved_model_speaks_by_transformers_alone(
    tiny: Tiny, spec: FamilySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a transformers that ties the embeddings no more, as it is without this package."""
    model = stirred(tiny('csm'), torch.float32)
    end = spec.renderer.end_of_turn_id
    export_model(model, None, tmp_path, tokenizer=spec.tokenizer, processor=spec.processor, end_of_turn_id=end)
    assert stored_keys(tmp_path) == sorted([*stored_keys(tiny('csm')), TWIN])
    assert codec_rules(tmp_path).fingerprint == codec_rules(tiny('csm')).fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(CsmForConditionalGeneration, 'get_expanded_tied_weights_keys', csm._expanded)
        plain, report = CsmForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
        assert not plain.all_tied_weights_keys
    assert not report['missing_keys'] and not report['unexpected_keys']
    assert all(torch.equal(item, plain.state_dict()[name]) for name, item in model.state_dict().items())
    assert plain.depth_decoder.generation_config.max_new_tokens == BOOKS - 1
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / 'docs' / 'emitting.md').read_text()
    (block,) = re.findall(
        r'```python\n(.*?)```', page.split('## Speech in frames: CSM')[1].split('\n## ')[0], re.DOTALL
    )
    known: dict[str, Any] = {}
    lines = block.replace('output/csm_sft/slice_end', str(tmp_path)).replace('max_new_tokens=125', 'max_new_tokens=4')
    exec(compile(lines, 'emitting.md', 'exec'), known)
    assert len(known['sound']) == 4 * spec.codes.rules['audio'].hop and float(known['sound'].abs().max()) > 0
    assert (tmp_path / 'hello.wav').stat().st_size > 1000
    again = AnyModel.from_pretrained(tmp_path)
    assert again.backbone_model.embed_tokens.embed_audio_tokens.weight is again.depth_decoder.model.embed_tokens.weight
    one, other = (each.encode(DIALOGUES[1]) for each in (spec, load_spec(tmp_path)))
    assert torch.equal(whole(one), whole(other))


def test_adapters_merge_into_a_model_with_the_same_scores(tiny: Tiny, spec: FamilySpec, tmp_path: Path) -> None:
    tuned, *_ = load_pretrained_models(tiny('csm'), lora_cfgs=lora_cfgs(target_modules='all-linear'))
    stir(tuned)
    assert not any('codec_model' in name for name, item in tuned.named_parameters() if item.requires_grad)
    collate = TokenCollator(spec, 'padded')

    def scores(model: Any) -> tuple[Tensor, Tensor]:
        scored = TokenPolicy(model.eval(), collate, dtype=torch.float32)(
            collate([spec.encode(DIALOGUES[1])]), further=True
        )
        return scored.values, scored.further

    found = scores(tuned)
    export_model(tuned, None, tmp_path, tokenizer=spec.tokenizer, processor=spec.processor, merge_adapter=True)
    assert stored_keys(tmp_path) == sorted([*stored_keys(tiny('csm')), TWIN])
    torch.testing.assert_close(scores(AnyModel.from_pretrained(tmp_path)), found, atol=1e-4, rtol=1e-5)
    plain = scores(AnyModel.from_pretrained(tiny('csm')))
    assert all(float((one - other).abs().max()) > 1e-3 for one, other in zip(plain, found, strict=True))


def test_embeddings_are_one_weight_as_the_checkpoint_says(tiny: Tiny) -> None:
    assert TWIN not in stored_keys(tiny('csm'))
    model = AnyModel.from_pretrained(tiny('csm'))
    assert model.backbone_model.embed_tokens.embed_audio_tokens.weight is model.depth_decoder.model.embed_tokens.weight


def test_it_can_be_a_critic(tiny: Tiny, spec: FamilySpec) -> None:
    model = AnyModelForScore.from_pretrained(tiny('csm'))
    freeze_output_embedding(model)
    assert not model.lm_head.weight.requires_grad and model.embed_text_tokens.weight.requires_grad
    policy = ScorePolicy(model, TokenCollator(spec, 'padded'), dtype=torch.float32, units=True)
    assert len(policy(policy.collate([spec.encode(DIALOGUES[0])])).values) == len(
        spec.encode(DIALOGUES[0]).responses[0]
    )


@pytest.mark.parametrize(
    ('conversation', 'said'),
    [
        ([user('Hi'), assistant('Ho')], 'writes one sound and no text'),
        ([user('Hi'), sings(tone(440)), user('And?'), assistant('Ho')], 'turn 3 is an answer of text'),
        ([user('Hi'), {'role': 'assistant', 'content': [*sings(tone(440))['content']] * 2}], 'audio and audio'),
        ([user('<|AUDIO|>'), sings(tone(440))], 'stand for sounds|audio tokens'),
        ([user('<|audio_eos|>'), sings(tone(440))], 'stand for sounds'),
        ([{**user('Hi'), 'name': 'Ann'}, sings(tone(440))], 'is a number'),
        ([user({'type': 'audio', 'audio': tone(440)}), sings(tone(440))], 'takes no audio'),
        ([user('Hi'), sings(CodedMedia('audio', torch.zeros(2, 5).long()))], 'have 2 books'),
        ([user('Hi'), sings(CodedMedia('audio', torch.full((BOOKS, 5), ENTRIES)))], f'from 0 to {ENTRIES - 1}'),
    ],
)
def test_what_it_cannot_learn_is_refused(conversation: Conversation, said: str, spec: FamilySpec) -> None:
    with pytest.raises(SampleError, match=said):
        spec.encode(conversation)


def test_other_codes_cannot_be_declared(tiny: Tiny) -> None:
    with pytest.raises(ModelError, match='bring a codec'):
        load_spec(tiny('csm'), media_codes={'audio': {'codec': 'here', 'tokens': '<{}>', 'opening': '<'}})


def test_prompts_suit_the_plain_class(tiny: Tiny, spec: FamilySpec) -> None:
    prompts = [spec.encode_prompt([user(words)]) for words in ('Sing!', 'Sing a song!')]
    inputs = spec.generation_inputs(prompts)
    assert FURTHER not in inputs
    codes = CsmForConditionalGeneration.from_pretrained(tiny('csm')).generate(**inputs, max_new_tokens=3)
    assert codes.shape == (2, 3, BOOKS)
    later = spec.generation_inputs([spec.encode_prompt(DIALOGUES[1][:3]), prompts[0]])
    assert later[FURTHER].shape == (*later['input_ids'].shape, BOOKS - 1) and not later[FURTHER][1].any()


def test_a_blank_tensor_fits_beside_codes() -> None:
    from align_anything.models.encoding import join

    pieces = [
        Piece(torch.arange(3), torch.zeros(3)),
        Piece(torch.arange(2), torch.ones(2), token_tensors={FURTHER: torch.ones(2, 3).long()}),
    ]
    assert join(pieces).token_tensors[FURTHER].tolist() == [[0] * 3] * 3 + [[1] * 3] * 2

"""Emu3, Chameleon and Janus: their codes are those of transformers' own classes, in prompts and in answers."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForMultimodalLM, AutoProcessor

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.store import TensorStore
from align_anything.core.types import CodedMedia, Conversation, Example, Piece
from align_anything.models.any_model import AnyModel
from align_anything.models.checkpoint import stored_keys
from align_anything.models.codecs.base import codec_rules
from align_anything.models.codes import CODES
from align_anything.models.export import export_model
from align_anything.models.family import FamilySpec
from align_anything.models.lora import target_modules
from align_anything.models.pretrained_model import load_pretrained_models, load_spec
from align_anything.models.structure import MEDIA_CODEC, skeleton
from align_anything.models.trainable import freeze_components
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from tests.models.common import lora_cfgs, stir
from tests.models.mixed import policy_of
from tests.models.samples import CODED, END, answers, assistant, labelled, learnt, multi_turn, single, user

Tiny = Callable[..., Path]
WRITING = ('janus', *CODED)


def noise(seed: int, width: int = 60, height: int = 40) -> dict[str, Any]:
    """A picture that no other is like."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return {'type': 'image', 'image': Image.fromarray(pixels)}


def draws(*parts: dict[str, Any] | str) -> dict[str, Any]:
    return {**user(*parts), 'role': 'assistant'}


def coded(spec: FamilySpec, folder: Path, conversation: Conversation) -> FamilySpec:
    """The spec with the codes of all media of a conversation, as the pass before a run makes them."""
    store = TensorStore(folder, 'media_codes', '', 'here')
    spec.codes = spec.codes.with_store(store)
    missing = spec.codes.missing([conversation])
    codec = spec.codes.rules['image'].open()
    for (kind, medium), codes in zip(missing, codec.encode([medium for _, medium in missing]), strict=True):
        store.put(spec.codes.key(kind, medium), {CODES: codes})
    return spec


def plain(folder: Path) -> Any:
    return AutoModelForMultimodalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize('family', WRITING)
def test_a_family_says_what_it_reads_and_writes(family: str, tiny: Tiny) -> None:
    spec = load_spec(tiny(family))
    assert spec.reads == spec.emits == {'image'}
    assert spec.continuous == ({'image'} if family == 'janus' else set())
    assert spec.codes.prompts == spec.reads - spec.continuous
    assert spec.codes.separate == (family == 'janus')
    assert spec.layouts == ('padded', 'packed', 'shared_prefix')
    assert spec.tokenizer.convert_ids_to_tokens(spec.renderer.end_of_turn_id) == END[family]
    rules = spec.codes.rules['image']
    assert rules.decodes == (family != 'chameleon') and rules.books == spec.codes.kinds['image'].books
    # As data workers get it.
    example, again = (
        each.encode([user('Draw!'), draws(noise(1))]) for each in (spec, pickle.loads(pickle.dumps(spec)))
    )
    assert torch.equal(example.responses[0].ids, again.responses[0].ids)


@pytest.mark.parametrize('family', WRITING)
def test_answers_of_text_and_their_ends_are_labelled_and_nothing_else(family: str, tiny: Tiny) -> None:
    spec = load_spec(tiny(family))
    conversation = [user(noise(0), noise(1, 30, 90), 'What are these?'), *multi_turn()[1:]]
    example = spec.encode(conversation)
    assert labelled(spec, example) == learnt(family, answers(conversation))
    assert not example.prompt.weights.any()


@pytest.mark.parametrize('family', CODED)
def test_codes_take_the_place_of_pixels_to_the_bit(family: str, tiny: Tiny, tmp_path: Path) -> None:
    """What the processor and the class of transformers make of pictures, they make of their codes."""
    prompt = [user(noise(0), 'What is this?')]
    spec = coded(load_spec(tiny(family)), tmp_path, prompt)
    model = plain(tiny(family))
    inputs = spec.processor.apply_chat_template(
        prompt, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors='pt'
    )
    piece = spec.encode_prompt(prompt)
    assert not piece.media
    pixels = [inputs[name] for name in ('pixel_values', 'image_sizes') if name in inputs]
    ids = inputs['input_ids'].clone()
    ids[ids == spec.config.image_token_id] = model.model.get_image_tokens(*pixels).flatten().long()
    assert torch.equal(piece.ids, ids[0]) and len(spec.codes.parts(piece.ids.tolist())) == 3
    with torch.no_grad():
        by_pixels = model.model(**inputs).last_hidden_state
        by_codes = model.model(input_ids=piece.ids[None]).last_hidden_state
    assert torch.equal(by_pixels, by_codes)


def test_codes_of_janus_are_those_of_its_network_and_stand_behind_the_text(tiny: Tiny, tmp_path: Path) -> None:
    conversation = [user(noise(0), 'Draw this.'), draws('Here', noise(1, 56, 56))]
    spec = coded(load_spec(tiny('janus')), tmp_path, conversation)
    example = spec.encode(conversation)
    assert example.prompt.media_counts == {'image': 1} and not example.responses[0].media
    pixels = spec.processor.image_processor(conversation[1]['content'][1]['image'], return_tensors='pt')
    codes = plain(tiny('janus')).model.vqmodel.encode(pixels['pixel_values']).image_tokens
    ids = example.responses[0].ids
    first = spec.config.text_config.vocab_size
    assert (ids[ids >= first] - first).tolist() == codes.tolist()
    text, picture = spec.decode(example.responses[0])
    assert text == {'type': 'text', 'text': ' Here\n'}
    assert type(picture['image']) is CodedMedia and picture['image'].codes.flatten().tolist() == codes.tolist()


@pytest.mark.parametrize('family', ['emu3', 'janus'])
def test_what_it_writes_becomes_a_picture_of_its_size(family: str, tiny: Tiny) -> None:
    spec = load_spec(tiny(family))
    conversation = [user('Draw!'), draws(noise(3, 64, 40))]
    (part,) = spec.decode(spec.encode(conversation).responses[0])[:1]
    rules = spec.codes.rules['image']
    picture = rules.open().decode(part['image'].codes)
    assert picture.size == ((64, 40) if family == 'emu3' else (56, 56))
    # The medium that was decoded is never encoded again.
    again = spec.encode([user('Draw!'), draws({'type': 'image', 'image': picture, CODES: part['image']})])
    assert torch.equal(again.responses[0].ids, spec.encode(conversation).responses[0].ids)


@pytest.mark.parametrize('family', WRITING)
def test_text_that_stands_for_media_is_refused(family: str, tiny: Tiny) -> None:
    spec = load_spec(tiny(family))
    for token in (spec.placeholder('image'), {'emu3': '<|visual token 000003|>', 'chameleon': 'IMGIMGDZ'}.get(family)):
        if token is not None:
            with pytest.raises(SampleError, match='placeholder|tokens of codes'):
                spec.encode([user(f'What is {token}?'), assistant('Hm.')])


def test_pictures_of_emu3_begin_with_their_size_and_end_each_row(tiny: Tiny) -> None:
    spec = load_spec(tiny('emu3'))
    ids = spec.encode([user('Draw!'), draws(noise(3, 64, 40))]).responses[0].ids.tolist()
    written = re.sub(r'(<\|visual token \d{6}\|>)+', 'c', spec.text_of(ids))
    assert written == (
        '<|image start|>5*8<|image token|>' + 'c<|extra_200|>' * 5 + '<|extra_201|><|image end|><|extra_204|>'
    )


def test_no_bos_stands_within_an_answer_of_emu3(tiny: Tiny) -> None:
    spec = load_spec(tiny('emu3'))
    example = spec.encode([user(noise(1), 'Hi'), assistant('Ho'), user(noise(2), 'And?'), draws('So', noise(3))])
    bos = spec.tokenizer.bos_token_id
    assert (example.prompt.ids == bos).nonzero().flatten().tolist() == [0]
    assert not any((piece.ids == bos).any() for piece in example.responses[0].sequences)


def test_the_prompt_that_the_processor_of_janus_brings_stands_once_before_all(tiny: Tiny, tmp_path: Path) -> None:
    spec = load_spec(tiny('janus'), processor_kwargs={'use_default_system_prompt': True})
    conversation = [user('Hi'), assistant('Ho'), user(noise(1), 'And?'), assistant('So')]
    example = spec.encode(conversation)
    words = 'You are a helpful language and vision assistant.'
    shown = spec.text_of(example.prompt.ids.tolist())
    assert shown.count(words) == 1 and shown.startswith(spec.tokenizer.bos_token + words)
    assert not any(words in spec.text_of(piece.ids.tolist()) for piece in example.responses[0].sequences)
    assert spec.processor.use_default_system_prompt
    ids = spec.processor(text=[spec.render_prompt(conversation[:1]).text], return_tensors='pt')['input_ids'][0]
    assert spec.encode_prompt(conversation[:1]).ids.tolist() == ids.tolist()


def test_prompts_of_chameleon_end_as_the_processor_of_transformers_ends_them(tiny: Tiny, tmp_path: Path) -> None:
    spec = load_spec(tiny('chameleon'))
    conversation = [user('Hi'), assistant('Ho'), user('And?')]
    spec.processor.save_pretrained(tmp_path)
    saved = AutoProcessor.from_pretrained(tmp_path)
    for prompt in (conversation[:1], conversation):
        # Its processor has no argument for a template, so that it forgets it.
        how = {'chat_template': saved.tokenizer.chat_template, 'return_dict': True}
        inputs = saved.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, **how)
        ids = torch.as_tensor(inputs['input_ids']).flatten().tolist()
        assert spec.encode_prompt(prompt).ids.tolist() == ids
    assert spec.text_of(ids) == '<s>Hi<reserved08706>Ho</s>And?<reserved08706>'
    # A template that leaves the separator to the processor gets it too.
    given = load_spec(
        tiny('chameleon'), chat_template="{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}"
    )
    assert given.text_of(given.encode_prompt([user('Hi')]).ids.tolist()) == '<s>Hi<reserved08706>'


@pytest.mark.parametrize('family', WRITING)
def test_a_medium_that_an_answer_begins_with_follows_the_generation_prompt(family: str, tiny: Tiny) -> None:
    """As where a run forces it: the blank before words is none before a picture."""
    spec = load_spec(tiny(family))
    picture, history = noise(1), [user('Draw!')]
    opening = spec.codes.kinds['image'].opening_of((5, 8) if family == 'emu3' else (7, 7))
    response = spec.encode([*history, draws(picture)]).responses[0]
    assert tuple(response.ids[: len(opening)].tolist()) == opening
    later = spec.encode_prompt([*history, draws(picture), user('More!')]).ids.tolist()
    assert later[: len(spec.encode_prompt(history)) + len(opening)] == [
        *spec.encode_prompt(history).ids.tolist(), *opening
    ]  # fmt: skip


def test_captions_alone_are_prompts_of_emu3_by_the_template_in_the_documents(tiny: Tiny) -> None:
    page = (Path(__file__).parents[2] / 'docs' / 'emitting.md').read_text()
    template = re.search(r'--chat_template "(.*?)"', page)[1]
    spec = load_spec(tiny('emu3'), chat_template=template)
    example = spec.encode([user('a cat'), draws(noise(1, 64, 40))])
    assert spec.text_of(example.prompt.ids.tolist()) == '<|extra_203|>a cat'
    assert spec.text_of(example.responses[0].ids.tolist()).startswith('<|image start|>5*8<|image token|>')


@pytest.mark.parametrize('family', WRITING)
def test_generation_writes_codes_with_a_cache_as_the_policy_scores_them(family: str, tiny: Tiny) -> None:
    spec = load_spec(tiny(family))
    model = AnyModel.from_pretrained(tiny(family)).eval()
    own = spec.codes.kinds['image']
    prompts = []
    for words in ('Draw a house!', 'Draw!'):
        prompt = spec.encode_prompt([user(words)])
        ids = torch.cat([prompt.ids, torch.tensor(own.opening_of((7, 7)))])
        prompts.append(Piece(ids, torch.zeros(len(ids))))
    first, stop = own.spans[0]

    def only_codes(ids: Tensor, scores: Tensor) -> Tensor:
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        allowed[:, first:stop] = True
        return scores.masked_fill(~allowed, -torch.inf)

    inputs = spec.generation_inputs(prompts)
    found = model.generate(
        **inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True,
        logits_processor=[only_codes],
    )  # fmt: skip
    new = found.sequences[:, inputs['input_ids'].shape[1] :]
    assert spec.codes.is_code(new).all() and len(set(new.flatten().tolist())) > 1
    examples = [Example(prompt, [Piece(ids, torch.ones(6))]) for prompt, ids in zip(prompts, new, strict=True)]
    policy = policy_of(tiny(family), spec, 'padded')
    with torch.no_grad():
        scored = policy(TokenCollator(spec, 'padded')(examples), logits=True)
    for row, prompt in enumerate(prompts):
        generated = torch.stack([step[row] for step in found.logits])
        assert float(generated[:, first:stop].std()) > 1e-3
        expected = scored[row, len(prompt) - 1 : len(prompt) + 5]
        torch.testing.assert_close(generated, expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize('family', WRITING)
def test_a_saved_model_has_the_names_and_the_very_codec_it_came_from(family: str, tiny: Tiny, tmp_path: Path) -> None:
    spec = load_spec(tiny(family))
    model = AnyModel.from_pretrained(tiny(family), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    export_model(model, None, tmp_path, tokenizer=spec.tokenizer, processor=spec.processor)
    assert stored_keys(tmp_path) == stored_keys(tiny(family))
    assert codec_rules(tmp_path).fingerprint == codec_rules(tiny(family)).fingerprint
    reloaded, report = AutoModelForMultimodalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report['missing_keys'] and not report['unexpected_keys']
    ids = spec.encode_prompt([user('Hi')]).ids[None]
    written = reloaded.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, min_new_tokens=2)
    assert written.shape[1] == ids.shape[1] + 2
    again = load_spec(tmp_path)
    conversation = [user(noise(1), 'Hi'), assistant('Ho'), user('Draw!'), draws(noise(2))]
    one, other = (each.encode(conversation) for each in (spec, again))
    assert torch.equal(one.prompt.ids, other.prompt.ids)
    assert torch.equal(one.responses[0].ids, other.responses[0].ids)


@pytest.mark.parametrize('family', WRITING)
def test_the_codec_never_trains(family: str, tiny: Tiny) -> None:
    spec = load_spec(tiny(family))
    names = [name for name, _ in skeleton(spec.config).named_parameters()]
    codec = {name for name in names if 'vqmodel' in name}
    assert codec and codec == {name for name in names if spec.component_of(name) == MEDIA_CODEC}
    assert {name for name in names if spec.component_of(name) == 'generation'} == {
        name for name in names if 'generation_' in name
    }
    model = AnyModel.from_pretrained(tiny(family))

    def trained() -> set[str]:
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    assert trained() == set(names) - codec
    freeze_components(model, spec.components, language_model=True, unfreeze_patterns=['q_proj|quant_conv'])
    assert not trained() & codec and any('q_proj' in name for name in trained())
    with pytest.raises(ModelError, match='nothing but the codec of media'):
        freeze_components(model, spec.components, unfreeze_patterns=['quantize'])
    for targets in ('auto', 'all-linear', ['q_proj']):
        assert not any('vqmodel' in name for name in target_modules(model, targets, spec.components))
    for name in (MEDIA_CODEC, 'quantize', 'model.vqmodel.encoder'):
        with pytest.raises(ModelError, match='never trains'):
            load_pretrained_models(tiny(family), lora_cfgs=lora_cfgs(modules_to_save=[name]))


def test_what_writes_pictures_in_janus_is_frozen_by_a_key_of_its_own(tiny: Tiny) -> None:
    spec = load_spec(tiny('janus'))
    model, *_ = load_pretrained_models(tiny('janus'), freeze_generation=True)
    still = {spec.component_of(name) for name, item in model.named_parameters() if not item.requires_grad}
    assert still == {'generation', MEDIA_CODEC}
    # 'auto' is the language model; all of them are asked for by name.
    assert not any('generation_' in name for name in target_modules(model, 'auto', spec.components))
    assert any('generation_head' in name for name in target_modules(model, 'all-linear', spec.components))


@pytest.mark.parametrize('family', WRITING)
def test_adapters_on_all_layers_merge_into_a_model_with_the_same_scores_and_names(
    family: str, tiny: Tiny, tmp_path: Path
) -> None:
    spec = load_spec(tiny(family))
    tuned, *_ = load_pretrained_models(tiny(family), lora_cfgs=lora_cfgs(target_modules='all-linear'))
    stir(tuned)
    examples = [spec.encode([user(noise(0), 'Hi'), draws('Here', noise(1))]), spec.encode(single())]

    def scores(model: Any) -> Tensor:
        return TokenPolicy(model.eval(), collate, dtype=torch.float32)(collate(examples)).values

    collate = TokenCollator(spec, 'padded')
    found = scores(tuned)
    found.sum().backward()
    assert all(item.grad is not None for item in tuned.parameters() if item.requires_grad)
    export_model(tuned, None, tmp_path, tokenizer=spec.tokenizer, processor=spec.processor, merge_adapter=True)
    assert stored_keys(tmp_path) == stored_keys(tiny(family))
    torch.testing.assert_close(scores(AnyModel.from_pretrained(tmp_path)), found, atol=1e-5, rtol=0)
    plain_scores = scores(AnyModel.from_pretrained(tiny(family)))
    assert float((plain_scores - found).abs().max()) > 1e-3, 'the adapters change something'


@pytest.mark.parametrize('family', CODED)
def test_codes_that_do_not_follow_each_other_are_refused(family: str, tiny: Tiny) -> None:
    spec = load_spec(tiny(family))
    names = sorted(name for name in spec.config.vocabulary_map if 'visual' in name or 'IMGIMG' in name)
    ids = spec.config.vocabulary_map
    ids[names[0]], ids[names[1]] = ids[names[1]], ids[names[0]]
    with pytest.raises(ModelError, match='one after the other'):
        spec.make_codes()


@pytest.mark.parametrize('family', WRITING)
def test_other_codes_cannot_be_declared(family: str, tiny: Tiny) -> None:
    with pytest.raises(ModelError, match='bring a codec'):
        load_spec(tiny(family), media_codes={'image': {'codec': 'here', 'tokens': '<{}>', 'opening': '<'}})

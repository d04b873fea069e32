"""Chat templates of every habit: what is rendered, what is refused, and with which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.core.errors import ModelError, SampleError
from align_anything.models.rendering import ChatRenderer, Run
from tests.models.samples import (
    NO_THOUGHT,
    answers,
    assistant,
    ids_of,
    labelled,
    load,
    multi_turn,
    picture,
    single,
    user,
)

Tiny = Callable[[str], Path]

# Writes the answer's reasoning only where it is the last turn.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_runs_carry_weights_and_media(tiny: Tiny) -> None:
    spec = load(tiny('qwen2_vl'))
    image = picture(40, 40)
    conversation = [user(image, 'Look.'), assistant('I see.'), user('Sure?'), assistant('Yes.')]
    end = spec.tokenizer.convert_tokens_to_ids('<|im_end|>')
    [runs] = spec.render(conversation)
    assert runs == [
        Run(
            '<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Look.<|im_end|>\n<|im_start|>assistant\n',
            0.0,
            (('image', image['image']),),
        ),
        Run('I see.', 1.0),
        Run('', 1.0, token=end),
        Run('\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n', 0.0),
        Run('Yes.', 1.0),
        Run('', 1.0, token=end),
    ]


def test_a_template_that_rewrites_earlier_turns_gives_each_answer_a_sequence(tiny: Tiny, capsys: Any) -> None:
    spec = load(tiny('qwen2'), chat_template=FORGETFUL)
    assert capsys.readouterr().err.count('a sequence of its own') == 1
    replies = answers(multi_turn())
    assert labelled(spec, spec.encode(multi_turn())) == ''.join(f'{NO_THOUGHT}{reply}<|im_end|>' for reply in replies)
    example = spec.encode(multi_turn(), train_on='last')
    assert labelled(spec, example) == '<think>\n\n</think>\n\nYes!<|im_end|>'
    assert '<think>' not in spec.tokenizer.decode(example.prompt.ids)
    # One turn has no history to rewrite.
    assert labelled(spec, spec.encode(single())) == '<think>\n\n</think>\n\nIt is two.<|im_end|>'


def test_reasoning_in_the_text_of_answers_is_trained_in_each(tiny: Tiny) -> None:
    spec = load(tiny('qwen3'))
    thinking = '<think>\none and one\n</think>\n\nTwo.'
    assert labelled(spec, spec.encode([user('1 + 1?'), assistant(thinking)])) == thinking + '<|im_end|>'
    longer = [user('1 + 1?'), assistant(thinking), user('Sure?'), assistant(thinking)]
    assert labelled(spec, spec.encode(longer)) == 2 * (thinking + '<|im_end|>')
    assert labelled(spec, spec.encode(longer, train_on='last')) == thinking + '<|im_end|>'


def test_a_template_that_changes_the_answer_is_refused(tiny: Tiny) -> None:
    loud = "{% for m in messages %}{{ m['role'] + ': ' + m['content'][:4] + '<|im_end|>' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    with pytest.raises((SampleError, ModelError), match='changes the answer|neither a text'):
        load(tiny('qwen2'), chat_template=loud).encode(single())


def test_a_generation_prompt_unlike_finished_answers_is_refused(tiny: Tiny) -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'assistant: Well, ' }}{% endif %}"
    )
    with pytest.raises(SampleError, match='opens an answer with .*Well, '):
        load(tiny('qwen2'), chat_template=template).encode(single())


def test_a_template_that_refuses_a_role_says_so(tiny: Tiny) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    spec = load(tiny('qwen2'), chat_template=template.replace('system', 'tool'))
    system = {'role': 'system', 'content': [{'type': 'text', 'text': 'Be kind.'}]}
    assert 'system: Be kind.' in spec.tokenizer.decode(spec.encode([system, *single()]).prompt.ids)
    # A system turn that is refused goes into the first user turn.
    spec = load(tiny('qwen2'), chat_template=template)
    prompt = spec.tokenizer.decode(spec.encode([system, *single()]).prompt.ids)
    assert prompt.startswith('user: Be kind.\n\nWhat is 1 + 1?')
    only_users = template.replace("== 'system'", "not in ('user', 'assistant')")
    with pytest.raises(SampleError, match=r'refuses this conversation \(roles: user, judge\): no system here'):
        load(tiny('qwen2'), chat_template=only_users).encode_prompt([*single()[:1], {**system, 'role': 'judge'}])


def test_a_template_that_shows_nothing_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ModelError, match='model_cfgs.chat_template'):
        load(tiny('qwen2'), chat_template="{{ 'hello' }}")


def test_a_template_without_a_word_of_the_assistant_is_refused(tiny: Tiny) -> None:
    user = "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
    template = user + '<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}'
    with pytest.raises(ModelError, match='shows no text of the assistant.*model_cfgs.chat_template'):
        load(tiny('qwen2'), chat_template=template)


@pytest.mark.parametrize('family', ['qwen2', 'llama', 'llava', 'gemma3'])
def test_without_a_template_the_default_format_serves_and_is_kept(
    family: str, tiny: Tiny, tmp_path: Path, capsys: Any
) -> None:
    import shutil

    folder = tmp_path / family
    shutil.copytree(tiny(family), folder)
    (folder / 'chat_template.jinja').unlink()
    spec = load(folder)
    assert 'has no chat template' in capsys.readouterr().err
    conversation = (
        [user(picture(40, 40), 'Hi'), assistant('Hello.')] if spec.processor else [user('Hi'), assistant('Hello.')]
    )
    example = spec.encode(conversation)
    assert labelled(spec, example) == ' Hello.' + spec.tokenizer.eos_token
    words = spec.tokenizer.decode(example.prompt.ids, skip_special_tokens=True)
    assert words.startswith('USER: ') and words.endswith('Hi\nASSISTANT:')
    if family != 'qwen2':
        bos = spec.tokenizer.bos_token_id
        assert (ids_of(example) == bos).nonzero().flatten().tolist() == [0]
    # Saved with the checkpoint, so that plain transformers formats prompts the same way.
    (spec.processor or spec.tokenizer).save_pretrained(folder)
    again = load(folder)
    assert again.renderer.template == spec.renderer.template


def test_templates_get_strings_or_parts_as_they_can_take(tiny: Tiny) -> None:
    strings = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    spec = load(tiny('llava'), chat_template=strings)
    run = spec.render([user(picture(40, 40), 'Look.'), assistant('Yes.')])[0][0]
    assert run.text == 'user: <image>\nLook.</s>assistant: ' and len(run.media) == 1
    parts = (
        "{% for m in messages %}{{ m['role'] + ': ' }}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}"
        "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    run = load(tiny('qwen2'), chat_template=parts).render(single())[0][0]
    assert run.text == 'user: What is 1 + 1?<|im_end|>assistant: '


def test_what_stands_between_answer_and_end_is_learnt_with_the_answer(tiny: Tiny) -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' <|im_end|>\n' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    spec = load(tiny('qwen2'), chat_template=template)
    assert labelled(spec, spec.encode(single())) == 'It is two. <|im_end|>'


def _space_prefixing_tokenizer() -> Any:
    """A tokenizer in SentencePiece's manner: a word bears the space before it, and every text begins with one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='always')
    tokenizer.decoder = decoders.Metaspace(prepend_scheme='always')
    words = ['user: hi assistant: hello there \n', 'yes no\n sure']
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=['<unk>', '<s>', '</s>'], show_progress=False)
    tokenizer.train_from_iterator(words * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>', unk_token='<unk>')


def test_a_run_inside_a_text_gets_no_space_of_its_own() -> None:
    from align_anything.models.encoding import RunEncoder

    tokenizer = _space_prefixing_tokenizer()
    encoder = RunEncoder(tokenizer, None, {}, frozenset())
    plain = tokenizer.convert_ids_to_tokens(encoder.piece(Run('hello', 0.0), first=True).ids.tolist())
    inside = tokenizer.convert_ids_to_tokens(encoder.piece(Run('hello', 0.0)).ids.tolist())
    spaced = tokenizer.convert_ids_to_tokens(encoder.piece(Run(' hello', 0.0)).ids.tolist())
    assert ''.join(plain) == '▁hello' and ''.join(inside) == 'hello' and ''.join(spaced) == '▁hello'


def test_a_template_without_any_end_needs_an_end_of_sequence_token() -> None:
    tokenizer = _space_prefixing_tokenizer()
    tokenizer.eos_token = None
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    with pytest.raises(ModelError, match='ends an answer'):
        ChatRenderer(tokenizer, None, template, {})


@pytest.mark.parametrize('family', ['qwen2', 'qwen2_vl', 'gemma3'])
def test_labels_are_exact_where_the_tokenizer_puts_a_space_before_every_text(family: str, tiny: Tiny) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    from align_anything.models.families import spec_for
    from tests.models.samples import END, later_image, multi_turn

    plain = load(tiny(family))
    plain.tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    spec = spec_for(plain.config, plain.tokenizer, plain.processor, max_length=512)
    conversation = multi_turn() if plain.processor is None else later_image()
    example = spec.encode(conversation)
    replies = [message['content'][0]['text'] for message in conversation if message['role'] == 'assistant']
    assert labelled(spec, example) == ''.join(reply + END[family] for reply in replies)
    media = {name: tensor.shape for name, tensor in load(tiny(family)).encode(conversation).responses[0].media.items()}
    assert {name: tensor.shape for name, tensor in example.responses[0].media.items()} == media
    for tensor in example.responses[0].token_tensors.values():
        assert len(tensor) == len(example.responses[0])


def test_a_familys_own_template_beats_the_checkpoints(tiny: Tiny) -> None:
    from align_anything.models.family import FamilySpec

    class Own(FamilySpec):
        chat_template = "{% for m in messages %}{{ m['role'] + '> ' + m['content'] + '<|im_end|>' }}{% endfor %}" + (
            "{% if add_generation_prompt %}{{ 'assistant> ' }}{% endif %}"
        )

    plain = load(tiny('qwen2'))
    spec = Own(plain.config, plain.tokenizer, max_length=64)
    assert spec.render(single())[0][0].text == 'user> What is 1 + 1?<|im_end|>assistant> '
    assert spec.tokenizer.chat_template == Own.chat_template

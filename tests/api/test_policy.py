"""`load_policy` and `generate`: any checkpoint, scored and asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import align_anything
from align_anything.core.errors import ModelError, SampleError, SettingsError
from tests.api.test_train import SHORT
from tests.harness.notebooks import in_a_process

TALK = [{'role': 'user', 'content': 'say sun'}, {'role': 'assistant', 'content': 'sun'}]
FEW = {'max_new_tokens': 6, 'bf16': False}


def test_a_language_model(tiny: Callable[..., Path]) -> None:
    def body() -> None:
        policy = align_anything.load_policy(tiny('llama'), **FEW)
        prompts = ['say sun', [{'role': 'system', 'content': 'Be brief.'}, *TALK[:1]]]
        found = policy.generate(prompts, num_generations=2, temperature=0.0)
        assert [len(responses) for responses in found] == [2, 2]
        assert all(isinstance(response.text, str) and response.units <= 6 for own in found for response in own)
        # The log-probability that transformers gives to the tokens of the answer.
        rendered = policy.tokenizer.apply_chat_template(TALK, tokenize=False)
        asked = policy.tokenizer.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([policy.tokenizer(rendered, add_special_tokens=False)['input_ids']])
        start = len(policy.tokenizer(asked, add_special_tokens=False)['input_ids'])
        (scored,) = policy.score([TALK])
        example = policy.spec.encode(
            [{**turn, 'content': [{'type': 'text', 'text': turn['content']}]} for turn in TALK]
        )
        whole = torch.cat([example.prompt.ids, example.responses[0].ids])[None]
        assert torch.equal(whole[0, :start], ids[0, :start])
        with torch.no_grad():
            logits = policy.model(whole).logits[0, :-1].float().log_softmax(-1)
        wanted = logits.gather(1, whole[0, 1:, None])[len(example.prompt) - 1 :].sum()
        assert scored == pytest.approx(float(wanted), rel=1e-4)
        again = align_anything.generate(tiny('llama'), ['say sun'], temperature=0.0, **FEW)
        assert again[0][0].text == found[0][0].text

    in_a_process(body)


def test_an_adapter_and_a_reward_model(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny('llama')
    pairs = [{'prompt': 'say sun', 'chosen': 'sun', 'rejected': 'sea'}] * 4

    def body() -> None:
        given = {**SHORT, 'learning_rate': 1e-2}
        adapted = align_anything.train(
            'text_to_text', 'sft', model, [{'instruction': 'say sun', 'output': 'sun'}] * 4,
            train_template='Instruction', use_lora=True, output_dir=tmp_path / 'lora', **given,
        )  # fmt: skip
        plain, better = (align_anything.load_policy(path, **FEW) for path in (model, adapted.output_dir))
        assert better.score([TALK])[0] > plain.score([TALK])[0]
        judged = align_anything.train(
            'text_to_text', 'rm', model, pairs, train_template='Preference', output_dir=tmp_path / 'rm', **given
        )
        wrong = [TALK[0], {'role': 'assistant', 'content': 'sea'}]
        right, other = judged.policy.score([TALK, wrong])
        assert right > other
        with pytest.raises(ModelError, match='is a reward model: it scores answers and writes none'):
            judged.policy.generate(['say sun'])

    in_a_process(body)


def test_a_pipeline(tiny: Callable[..., Path]) -> None:
    def body() -> None:
        policy = align_anything.load_policy(tiny('sd3'), rollout_steps=2, bf16=False)
        ((response,),) = policy.generate(['a red square'])
        (part,) = response.parts
        assert part['type'] == 'image' and isinstance(part['image'], Image.Image) and response.text == ''
        assert type(policy.model).__name__ == 'StableDiffusion3Pipeline' and policy.model.transformer is not None
        assert policy.tokenizer is None and policy.processor is None
        with pytest.raises(ModelError, match='has no likelihood'):
            policy.score([TALK])

    in_a_process(body)


def test_what_is_wrong_is_told(tiny: Callable[..., Path]) -> None:
    with pytest.raises(SettingsError, match=r'load_policy\(max_new_token=…\).*Did you mean .max_new_tokens'):
        align_anything.load_policy('m', max_new_token=3)

    def body() -> Any:
        policy = align_anything.load_policy(tiny('llama'), **FEW)
        with pytest.raises(SampleError, match='image'):
            policy.generate([[{'role': 'user', 'content': [{'type': 'image', 'image': Image.new('RGB', (4, 4))}]}]])
        with pytest.raises(ModelError):
            align_anything.load_policy('/nowhere/to/be/found')

    in_a_process(body)

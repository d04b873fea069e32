"""What a checkpoint says of generation and of its tokenizer's calls changes nothing in a rollout, but what ends it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from align_anything.core.types import Example
from align_anything.models.any_model import AnyModel
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import load_spec
from align_anything.rollouts.base import Response, Sampling
from align_anything.rollouts.hf import HFRollouts
from tests.harness.pairwise import first_of
from tests.models.mixed import media
from tests.models.samples import FAMILIES, WIDER, load, single, user

Tiny = Callable[..., Path]

DISTURBING: dict[str, Any] = {
    'max_length': 3,
    'max_new_tokens': 2,
    'min_length': 400,
    'min_new_tokens': 40,
    'early_stopping': True,
    'max_time': 1e-9,
    'stop_strings': ['a', 'e', ' '],
    'do_sample': False,
    'num_beams': 3,
    'use_mtp': True,
    'use_cache': False,
    'cache_implementation': 'static',
    'cache_config': {'nothing': 1},
    'max_cache_len': 4,
    'temperature': 0.01,
    'top_k': 1,
    'top_p': 0.01,
    'min_p': 0.9,
    'top_h': 0.05,
    'typical_p': 0.05,
    'epsilon_cutoff': 0.5,
    'eta_cutoff': 0.5,
    'repetition_penalty': 40.0,
    'encoder_repetition_penalty': 40.0,
    'length_penalty': 9.0,
    'no_repeat_ngram_size': 1,
    'bad_words_ids': [[token] for token in range(20, 200)],
    'renormalize_logits': True,
    'forced_bos_token_id': 7,
    'forced_eos_token_id': 7,
    'remove_invalid_values': True,
    'exponential_decay_length_penalty': (0, 50.0),
    'suppress_tokens': list(range(20, 200)),
    'begin_suppress_tokens': list(range(20, 300)),
    'sequence_bias': [[[token], 50.0] for token in range(20, 25)],
    'token_healing': True,
    'guidance_scale': 7.0,
    'watermarking_config': {'bias': 50.0},
    'num_return_sequences': 3,
    'output_attentions': True,
    'output_hidden_states': True,
    'output_scores': True,
    'output_logits': True,
    'return_dict_in_generate': True,
    'pad_token_id': 9,
    'bos_token_id': 9,
    'encoder_no_repeat_ngram_size': 1,
    'decoder_start_token_id': 9,
    'is_assistant': True,
    'num_assistant_tokens': 2,
    'num_assistant_tokens_schedule': 'constant',
    'assistant_confidence_threshold': 0.9,
    'prompt_lookup_num_tokens': 2,
    'max_matching_ngram_size': 2,
    'assistant_early_exit': 1,
    'assistant_lookbehind': 2,
    'target_lookbehind': 2,
    'assistant_ensemble_weight': 0.5,
    'speculation_type': 'dflash',
    'compile_config': {'fullgraph': True},
    'disable_compile': True,
    'low_memory': True,
    'penalty_alpha': 0.6,
    'dola_layers': 'low',
    'diversity_penalty': 3.0,
    'num_beam_groups': 3,
    'constraints': ['x'],
    'force_words_ids': [[20]],
    'prefill_chunk_size': 2,
    'of_their_own': 3,
}
# What ends a response is part of the family's rules (spec.stop_token_ids); the others say who wrote the file, or belong
# to a scheduler that `generate()` does not start.
LEFT = {'eos_token_id', 'transformers_version', 'continuous_batching_config'}


def test_every_field_of_the_generation_config_is_looked_at() -> None:
    """A version of transformers with a new field asks for a disturbing value of it."""
    fields = {name for name in vars(GenerationConfig()) if not name.startswith('_')}
    assert fields - LEFT <= DISTURBING.keys()


@pytest.fixture(scope='module')
def engine(tiny: Tiny) -> HFRollouts:
    folder = tiny('qwen2')
    model = AnyModel.from_pretrained(folder)
    return HFRollouts(model, load(folder), dtype=torch.float32, batch_size=8)


@pytest.fixture
def own_settings(engine: HFRollouts) -> Iterator[GenerationConfig]:
    """Those that the model of `engine` was loaded with, which a test may change."""
    kept = engine.model.generation_config
    engine.model.generation_config = GenerationConfig.from_dict(kept.to_dict())
    yield engine.model.generation_config
    engine.model.generation_config = kept


def asked(spec: FamilySpec) -> list[Example]:
    prompts = [single()[:-1], [*single(), user('And how much is it if you add three?')]]
    return [Example(spec.encode_prompt(prompt), [], source=str(number)) for number, prompt in enumerate(prompts)]


def told(found: list[list[Response]]) -> list[Any]:
    return [
        (response.ids.tolist(), response.per_unit['rollout'].tolist(), response.finished, response.parts)
        for responses in found
        for response in responses
    ]


@pytest.fixture(scope='module')
def undisturbed(engine: HFRollouts) -> dict[float, list[Any]]:
    kept = engine.model.generation_config
    engine.model.generation_config = GenerationConfig()
    found = {heat: told(engine.generate(asked(engine.spec), sampling_at(heat))) for heat in (0.0, 1.3)}
    engine.model.generation_config = kept
    return found


def sampling_at(temperature: float) -> Sampling:
    return Sampling(responses=2, max_new_tokens=5, temperature=temperature, seed=3)


@pytest.mark.parametrize('field', sorted(DISTURBING))
def test_no_field_of_the_generation_config_changes_a_rollout(
    field: str, engine: HFRollouts, own_settings: GenerationConfig, undisturbed: dict[float, list[Any]]
) -> None:
    setattr(own_settings, field, DISTURBING[field])
    for heat, expected in undisturbed.items():
        assert told(engine.generate(asked(engine.spec), sampling_at(heat))) == expected
    assert engine.model.generation_config is own_settings, 'it is what gets saved with the model'


def test_no_generation_of_the_checkpoints_own_is_called(
    engine: HFRollouts, undisturbed: dict[float, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a checkpoint with a folder `custom_generate` brings it, where its code is trusted."""
    monkeypatch.setattr(engine.model, 'generate', None, raising=False)
    assert told(engine.generate(asked(engine.spec), sampling_at(1.3))) == undisturbed[1.3]


@pytest.mark.parametrize('family', first_of([*FAMILIES, *WIDER], 'llama'))
def test_no_family_obeys_the_generation_config(family: str, tiny: Tiny) -> None:
    """Whatever its class makes of it in `generate()`."""
    spec, model = load(tiny(family)), AnyModel.from_pretrained(tiny(family))
    engine = HFRollouts(model, spec, dtype=torch.float32, batch_size=8)
    found = []
    for fields in ({}, DISTURBING):
        model.generation_config = GenerationConfig()
        for name, value in fields.items():
            setattr(model.generation_config, name, value)
        found.append(told(engine.generate(asked(spec), sampling_at(1.3))))
    assert found[0] == found[1]


def test_a_file_beside_the_weights_changes_nothing_but_what_ends_a_response(
    engine: HFRollouts, undisturbed: dict[float, list[Any]], tiny: Tiny, tmp_path: Path
) -> None:
    folder = tmp_path / 'model'
    shutil.copytree(tiny('qwen2'), folder)
    file = folder / 'generation_config.json'
    third = undisturbed[1.3][0][0][2]
    disturbing = {
        'min_p': 0.9,
        'no_repeat_ngram_size': 1,
        'typical_p': 0.2,
        'num_beams': 3,
        'suppress_tokens': [5, 6],
        'min_length': 40,
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), **disturbing}))
    again = HFRollouts(AnyModel.from_pretrained(folder), load_spec(folder), dtype=torch.float32, batch_size=8)
    assert again.model.generation_config.min_p == 0.9
    assert told(again.generate(asked(again.spec), sampling_at(1.3))) == undisturbed[1.3]
    file.write_text(json.dumps({**json.loads(file.read_text()), 'eos_token_id': third}))
    ended = HFRollouts(AnyModel.from_pretrained(folder), load_spec(folder), dtype=torch.float32, batch_size=8)
    (first, *_), *_ = ended.generate(asked(ended.spec), sampling_at(1.3))
    ids = undisturbed[1.3][0][0]
    assert first.ids.tolist() == ids[: ids.index(third) + 1] and first.finished


TOKENIZER = {
    'padding': 'max_length',
    'truncation': True,
    'max_length': 4,
    'stride': 1,
    'pad_to_multiple_of': 64,
    'padding_side': 'right',
    'truncation_side': 'left',
    'model_max_length': 4,
    'is_split_into_words': True,
    'return_attention_mask': False,
    'return_token_type_ids': True,
    'return_overflowing_tokens': True,
    'return_length': True,
    'clean_up_tokenization_spaces': True,
    'clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output': True,
    'skip_special_tokens': True,
}


@pytest.mark.parametrize('family', ['qwen2', 'llava', 'qwen2_audio'])
def test_no_default_of_the_tokenizer_changes_a_prompt_or_what_a_response_says(
    family: str, tiny: Tiny, tmp_path: Path
) -> None:
    plain, folder = load_spec(tiny(family)), tmp_path / 'model'
    shutil.copytree(tiny(family), folder)
    file = folder / 'tokenizer_config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), **TOKENIZER}))
    disturbed = load_spec(folder)
    kinds = {'llava': ['image'], 'qwen2_audio': ['audio']}.get(family, [])
    prompts = [single()[:-1], *([user(media(kind, 0), 'What is this, then?')] for kind in kinds)]
    for prompt in prompts:
        mine, theirs = plain.encode_prompt(prompt), disturbed.encode_prompt(prompt)
        assert theirs.ids.tolist() == mine.ids.tolist()
        assert theirs.media.keys() == mine.media.keys()
        assert all(torch.equal(theirs.media[name], tensor) for name, tensor in mine.media.items())
    both = [plain.encode_prompt(prompt) for prompt in (single()[:-1], [*single(), user('And three?')])]
    for name, tensor in plain.generation_inputs(both).items():
        assert torch.equal(disturbed.generation_inputs(both)[name], tensor)
    words = 'Well , it is 2 . Is n\'t it ? <unk> " I \'m " '
    ids = torch.tensor([*plain.tokenizer(words, add_special_tokens=False).input_ids, plain.stop_token_ids[0]])
    assert disturbed.decode(Response(ids, torch.ones(len(ids)))) == plain.decode(Response(ids, torch.ones(len(ids))))
    assert plain.text_of(ids[:-1].tolist()).strip() == words.strip()

"""What reward and cost models read of responses, by limits of their own, and what becomes of those they cannot read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from align_anything.core.errors import ModelError, SettingsError
from align_anything.core.types import Cost, Example, Response
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import load_spec
from align_anything.rewards.base import Completion
from align_anything.trainers.loops.judging import completions_of
from align_anything.trainers.pairs import PAIRS
from align_anything.trainers.runs.model_checks import require_positions, require_reference_reads
from align_anything.trainers.runs.roles import ModelJudge, critic_spec, spec_of_judge
from tests.harness.ranks import run_ranks
from tests.models.samples import assistant, load, single, user
from tests.rewards.common import completion
from tests.trainers.runs import lines, run, text_rows, write_rows
from tests.trainers.test_online import argv, metrics_of, named
from tests.trainers.test_rewarding import settings
from tests.trainers.test_scoring import plain, turns, with_head

Tiny = Callable[..., Path]
LONG = 'sun ' * 60


class Collate:
    """Hands the Examples on as they are, and counts tokens."""

    def __call__(self, examples: list[Example]) -> Any:
        return SimpleNamespace(to=lambda device: examples)

    def cost(self, example: Example) -> Cost:
        lengths = [len(example.prompt) + len(response) for response in example.responses]
        return Cost(len(lengths), max(lengths, default=0), float(sum(lengths)))

    def size(self, examples: list[Example]) -> int:
        return sum(self.cost(example).size for example in examples)


@dataclass
class Reader:
    """Stands for the engine of a reward model: keeps the ids that it is given, and scores each by its length."""

    read: list[list[int]]
    device: str = 'cpu'

    @property
    def policy(self) -> Any:
        return SimpleNamespace(collate=Collate())

    def score(self, examples: list[Example]) -> Any:
        found = [[*example.prompt.ids.tolist(), *one.ids.tolist()] for example in examples for one in example.responses]
        self.read += found
        return SimpleNamespace(values=torch.tensor([float(len(ids)) for ids in found]))


def of_prompts(*answers: list[str]) -> list[Completion]:
    """The answers to each prompt, all of a prompt's behind each other, as a run has them."""
    made = []
    for number, own in enumerate(answers):
        first = completion(own[0], prompt=f'Why {number}?', source=f'rows:{number}')
        made += [first, *(completion(text, source=first.source, conversation=first.conversation) for text in own[1:])]
    return made


@pytest.mark.parametrize('batch_size', [1, 2, 8])
def test_what_a_model_cannot_read_gets_its_score_and_moves_no_other(batch_size: int, tiny: Tiny) -> None:
    spec, reader = load(tiny('llama'), max_length=16), Reader([])
    texts = [['Yes.', LONG, 'No, and no.'], [LONG], ['Because.', 'Who knows?']]
    judge = ModelJudge('my-judge', reader, spec, batch_size, max_length=40, unread_score=-7.5)
    scores = judge(of_prompts(*texts))
    for score, text in zip(scores, sum(texts, []), strict=True):
        assert score == -7.5 if text == LONG else 16 <= score <= 40, 'the limit of its spec is not what it reads by'
    assert len(set(scores)) > 3
    whole = [spec.tokenizer.decode(ids) for ids in reader.read]
    assert [text in ids for text, ids in zip(['Yes.', 'No, and no.', 'Because.', 'Who knows?'], whole, strict=True)]
    assert [item.source for item in judge.unread()] == ['rows:0', 'rows:1']
    assert all('my-judge, which reads 40' in item.reason for item in judge.unread())
    assert judge(of_prompts(['Yes.'])) and judge.unread() == [], 'of the last call'
    assert judge([]) == []


def test_ranks_score_completions_of_each_other_and_get_their_scores(tiny: Tiny) -> None:
    spec = load(tiny('llama'), max_length=16)

    def body(rank: int) -> tuple[list[float], list[float], int]:
        reader, alone = Reader([]), Reader([])
        own = (
            of_prompts(['Yes.', LONG, 'No, and no.'], ['Because.', 'Who knows?', 'I.']) if rank else of_prompts(['A.'])
        )
        scores, plain = (
            ModelJudge('my-judge', one, spec, 1, 40, -7.5, budget=budget, exchanges=True)(own)
            for one, budget in ((reader, 60), (alone, None))
        )
        return scores, plain, len(reader.read)

    (few, alone, read), (many, same, also) = run_ranks(body, 2)
    assert few == alone and many == same and many[1] == -7.5
    assert {read, also} == {3}, 'six that can be read, one of which was here'


def test_a_response_that_its_template_refuses_ends_no_run(tiny: Tiny) -> None:
    """Here the text of a placeholder, which the policy may write and this model reads as a picture."""
    spec, reader = load(tiny('llava')), Reader([])
    judge = ModelJudge('my-judge', reader, spec, 4, max_length=2000, unread_score=3.0)
    scores = judge(of_prompts(['Yes.', 'I see an <image> there.', 'No.']))
    assert scores[1] == 3.0 and len(reader.read) == 2
    (unread,) = judge.unread()
    assert unread.source == 'rows:0' and 'placeholder' in unread.reason


def test_a_model_reads_what_the_prompt_began_and_special_tokens(tiny: Tiny) -> None:
    spec, reader = load(tiny('llama')), Reader([])
    judge = ModelJudge('my-judge', reader, spec, 4, max_length=2000)
    asked = completion('Two and two.</think>Four.<|end_header_id|>!', prefix='<|im_start|>assistant\n<think>\n')
    judge([asked])
    (ids,) = reader.read
    text = spec.tokenizer.decode(ids)
    assert text.endswith('<|end_header_id|>\n\n<think>\nTwo and two.</think>Four.<|end_header_id|>!<|eot_id|>')
    (special,) = spec.tokenizer('<|end_header_id|>', add_special_tokens=False).input_ids
    assert ids.count(special) == 3, 'one of each turn, and the one that the policy wrote'


def judge_of(folder: Path, model: Path, **of_tokenizer: Any) -> Path:
    folder.mkdir(parents=True)
    with_head(model, folder)
    file = folder / 'tokenizer_config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), **of_tokenizer}))
    return folder


def test_each_model_has_its_own_limit(tiny: Tiny, tmp_path: Path) -> None:
    source = str(judge_of(tmp_path / 'judge', tiny('llama'), model_max_length=300))

    def limit(*more: str) -> int:
        cfgs = settings('--reward_model_name_or_path', source, '--model_max_length', '64', *more).cfgs
        (judge,) = cfgs.model_cfgs.judges.values()
        return spec_of_judge(cfgs, judge, PAIRS['text_to_text']).max_length

    assert limit() == 300, "its tokenizer's, not that of the policy"
    assert limit('--reward_model_max_length', '50') == 50
    assert limit('--reward_model_max_length', '4096') == 4096, 'its positions'
    with pytest.raises(SettingsError, match=r'reward_model_max_length = 4097 is more than the 4096 positions of'):
        limit('--reward_model_max_length', '4097')
    shutil.copy(tiny('llama') / 'tokenizer_config.json', source)
    assert limit() == 4096, 'its positions'
    config = Path(source) / 'config.json'
    config.write_text(json.dumps({**json.loads(config.read_text()), 'max_position_embeddings': 32}))
    assert limit() == 32


def test_a_model_that_reads_what_the_policy_reads_has_as_many_positions(tiny: Tiny, tmp_path: Path) -> None:
    """Critics and references read the tokens of the policy, all of them."""
    source = judge_of(tmp_path / 'critic', tiny('qwen2'))
    config = source / 'config.json'
    config.write_text(json.dumps({**json.loads(config.read_text()), 'max_position_embeddings': 63}))
    given = ('--model_max_length', '64', '--reward_critic_model_name_or_path', str(source))
    cfgs = settings(*given, algorithm='ppo').cfgs
    policy = load_spec(tiny('qwen2'), model_max_length=64)
    with pytest.raises(SettingsError, match='model_max_length = 64 is more than the 63 positions of .*critic'):
        critic_spec('reward_critic', cfgs, policy, PAIRS['text_to_text'])
    require_positions(policy.config, str(source), 4096, 'any')
    resolved = settings('--reference_model_name_or_path', str(source))
    with pytest.raises(SettingsError, match='model_max_length = 64 is more than the 63 positions of .*critic'):
        require_reference_reads(resolved.cfgs, resolved.algorithm, policy)
    policy.max_length = 63
    require_reference_reads(resolved.cfgs, resolved.algorithm, policy)


def test_a_reference_reads_the_tokens_and_the_media_of_the_policy(tiny: Tiny, tmp_path: Path) -> None:
    """One with another tokenizer would score other words than those trained, in silence where it has as many."""

    def refused(policy: Path, reference: Path, match: str) -> None:
        resolved = settings('--reference_model_name_or_path', str(reference))
        with pytest.raises(ModelError, match=match):
            require_reference_reads(resolved.cfgs, resolved.algorithm, load_spec(policy, model_max_length=64))

    other = tmp_path / 'other'
    shutil.copytree(tiny('qwen2'), other)
    file = other / 'tokenizer.json'
    told = json.loads(file.read_text())
    vocabulary = told['model']['vocab']
    vocabulary['a'], vocabulary['b'] = vocabulary['b'], vocabulary['a']
    file.write_text(json.dumps(told))
    refused(
        tiny('qwen2'), other, r"other does not read the tokens of the policy: \d+ is 'a' to the policy, but .* 'b'\."
    )
    refused(tiny('qwen2'), tiny('llama'), 'does not read the tokens of the policy')

    fewer = tmp_path / 'fewer'
    shutil.copytree(tiny('qwen2'), fewer)
    with_tokens(fewer, 3)
    refused(fewer, tiny('qwen2'), r"'<new_0>' to the policy, but to the reference none, having \d+ rows in")

    resolved = settings('--reference_model_name_or_path', str(fewer))
    require_reference_reads(resolved.cfgs, resolved.algorithm, load_spec(tiny('qwen2'), model_max_length=64))
    refused(tiny('qwen2_vl'), tiny('qwen2_5_vl'), 'of the family qwen2_5_vl, the policy of qwen2_vl')


def with_tokens(folder: Path, count: int) -> None:
    """Gives a checkpoint further tokens, with rows of its embedding."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    rows = model.get_input_embeddings().num_embeddings
    filling = rows - len(tokenizer)
    tokenizer.add_tokens([f'<filling_{number}>' for number in range(filling)])
    tokenizer.add_tokens([f'<new_{number}>' for number in range(count)])
    model.resize_token_embeddings(rows + count)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def test_a_run_scores_what_its_reward_model_cannot_read_and_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    """The policy's limit cuts nothing that the reward model reads, and what is too long for that is told."""
    judge = judge_of(tmp_path / 'judge', tiny('llama'), model_max_length=60)
    rows = text_rows(4)
    rows[2]['instruction'] += ' sea' * 40
    changes = {
        'train_datasets': write_rows(tmp_path / 'rows.jsonl', rows),
        # Enough for the policy, whose tokenizer makes fewer tokens of these words than that of the reward model.
        'model_max_length': 512,
        'reward_functions': '[]',
        'reward_model_name_or_path': judge,
        'reward_model_unread_score': -3,
        'max_steps': 8,
        'log_completions': 1,
        'eval_strategy': 'no',
        'log_interval': 1,
    }
    ended = run(argv(tmp_path, tmp_path / 'out', tiny('qwen2'), **changes), algorithm=named('rloo'))
    assert ended[0].code == 0, ended[0].output
    records = lines(tmp_path / 'out' / 'completions.jsonl')
    unread = [record for record in records if record['source'].endswith(':3')]
    assert unread and {record['rewards']['model'] for record in unread} == {-3.0}
    assert -3.0 not in {record['rewards']['model'] for record in records if record not in unread}
    listed = lines(tmp_path / 'out' / 'unread_responses.jsonl')
    assert len(listed) == len(unread) == 3 and {item['judge'] for item in listed} == {'model'}
    assert {item['source'] for item in listed} == {unread[0]['source']} and 'which reads 60' in listed[0]['reason']
    assert [record.get('train/unread/model') for record in metrics_of(tmp_path / 'out')].count(3.0) == 1
    assert ended[0].output.count('cannot read a response to') == 1, 'told once'


def test_the_policys_limit_cuts_nothing_that_a_reward_model_reads(tiny: Tiny, tmp_path: Path) -> None:
    """Its prompt is longer in the tokens of the reward model than the policy may read."""
    judge = judge_of(tmp_path / 'judge', tiny('llama'))
    template = judge / 'chat_template.jinja'
    template.write_text(
        template.read_text().replace('{{ bos_token }}', "{{ bos_token + 'Rate this with care: ' * 9 }}")
    )
    rows = text_rows(2)
    asked = [[user(row['instruction'])] for row in rows]
    most = max(len(load_spec(tiny('qwen2')).encode_prompt(prompt)) for prompt in asked) + 6
    assert all(len(load_spec(judge).encode_prompt(prompt)) > most for prompt in asked)
    changes = {
        'train_datasets': write_rows(tmp_path / 'rows.jsonl', rows),
        'model_max_length': most,
        'reward_functions': '[]',
        'reward_model_name_or_path': judge,
        'max_steps': 4,
        'log_completions': 1,
        'eval_strategy': 'no',
    }
    ended = run(argv(tmp_path, tmp_path / 'out', tiny('qwen2'), **changes), algorithm=named('rloo'))
    assert ended[0].code == 0, ended[0].output
    records = lines(tmp_path / 'out' / 'completions.jsonl')
    assert len(records) == 6 and not (tmp_path / 'out' / 'unread_responses.jsonl').exists()
    for record in records:
        (row,) = (row for row in rows if f'\n{row["instruction"]}<' in record['prompt'])
        (expected,) = plain(judge, [turns(row['instruction'], record['response'])])
        assert record['rewards']['model'] == pytest.approx(expected, abs=1e-4)


def test_settings_of_a_judge_that_is_not_there_are_refused() -> None:
    for setting in ('reward_model_max_length', 'reward_model_unread_score'):
        with pytest.raises(SettingsError, match=f'{setting} .* without model_cfgs.reward_model_name_or_path'):
            settings('--reward_functions', '[format]', f'--{setting}', '9')


def generated(spec: FamilySpec, *texts: str) -> list[Response]:
    made = []
    for text in texts:
        ids = [*spec.tokenizer(text, add_special_tokens=False).input_ids, spec.stop_token_ids[0]]
        response = Response(torch.tensor(ids), torch.ones(len(ids)))
        response.parts = spec.decode(response)
        made.append(response)
    return made


def test_rewards_are_given_what_the_template_began(tiny: Tiny) -> None:
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{{ message['content'].split('</think>')[-1] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    spec = load(tiny('qwen2'), chat_template=template)
    example = Example(spec.encode_prompt(single()[:1]), [], conversation=single()[:1], source='rows:1')
    example.responses = generated(spec, 'Easy.</think><answer>2</answer>', 'Is it $2$? Or')
    told, clipped = completions_of([example], spec)
    assert told.response == 'Easy.</think><answer>2</answer>' and told.prefix == '<|im_start|>assistant\n<think>\n'
    assert told.answer == '<think>\nEasy.</think><answer>2</answer>' and told.prefilled == '<think>\n'
    assert told.turn == assistant('') | {'content': [*assistant('<think>\n')['content'], *told.message['content']]}
    assert clipped.answer == '<think>\nIs it $2$? Or'

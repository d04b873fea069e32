"""Rows as others write them for online training, from the file to what rewards are given and what is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.trainers.runs import lines, run, write_rows
from tests.trainers.test_online import argv, metrics_of, named

Tiny = Callable[..., Path]
ASKED = [{'role': 'user', 'content': 'What is 7 + 5?'}]
ROWS = [
    {'prompt': ASKED, 'answer': '12', 'difficulty': 1, 'tests': ['x==12']},
    {
        'data_source': 'sums',
        'prompt': ASKED,
        'reward_model': {'style': 'rule', 'ground_truth': '12'},
        'extra_info': {'index': 3},
    },
    {'prompt': [*ASKED, {'role': 'assistant', 'content': 'Let me see:'}], 'answer': '12'},
]
TOLD = """
import json

def told(completions):
    with open({path!r}, 'a') as file:
        for item in completions:
            roles = [message['role'] for message in item.conversation]
            seen = (item.source, roles, item.prefix, item.answer, item.response, item.finished, dict(item.meta))
            file.write(json.dumps(seen) + '\\n')
    return [float(len(item.response) % 5) for item in completions]
"""


def test_rows_of_others_are_answered_and_judged(tiny: Tiny, tmp_path: Path) -> None:
    """With a stop string, which ends responses and which rewards do not see here."""
    (tmp_path / 'rewards.py').write_text(TOLD.format(path=str(tmp_path / 'told')))
    changes = {
        'train_datasets': write_rows(tmp_path / 'rows.jsonl', ROWS),
        'train_template': 'Prompts',
        'train_template_kwargs': '{continue_final_message: True, keep_columns: True}',
        'per_device_prompt_batch_size': 3,
        'reward_functions': f'[{tmp_path}/rewards.py:told]',
        'max_new_tokens': 24,
        'stop': '[e, i]',
        'include_stop_str_in_output': False,
        'eval_strategy': 'no',
        'log_completions': 1,
        'max_steps': 6,
    }
    (ended,) = run(argv(tmp_path, tmp_path / 'out', tiny('qwen2'), **changes), 1, algorithm=named('grpo'))
    assert ended.code == 0, ended.output
    (record,) = metrics_of(tmp_path / 'out')
    assert record['train/responses'] == 9 and record['train/rollout_drift'] < 1e-5
    told = [json.loads(line) for line in (tmp_path / 'told').read_text().splitlines()]
    metas = {source.rpartition(':')[2]: meta for source, *_, meta in told}
    assert all(meta['ground_truth'] == '12' for meta in metas.values())
    assert metas['1']['difficulty'] == 1 and metas['1']['tests'] == ['x==12']
    assert metas['2']['extra_info'] == {'index': 3} and metas['2']['data_source'] == 'sums'
    assert {tuple(roles) for _, roles, *_ in told} == {('user',)}
    begun = [one for one in told if one[0].endswith(':3')]
    assert len(begun) == 3
    for _, _, prefix, answer, response, *_ in begun:
        assert prefix == '<|im_start|>assistant\nLet me see:' and answer == 'Let me see:' + response
    assert all(answer == response for source, _, _, answer, response, *_ in told if not source.endswith(':3'))
    assert not any('e' in response or 'i' in response for *_, response, _, _ in told)
    assert any(finished for *_, finished, _ in told)
    written = [one for one in lines(tmp_path / 'out' / 'completions.jsonl') if one['source'].endswith(':3')]
    assert all(one['prompt'].endswith('<|im_start|>assistant\nLet me see:') for one in written)

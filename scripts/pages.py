"""The reference pages that are made of what stands in code: algorithms, pairs, papers and memory."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from align_anything.algorithms.base import Algorithm, known_algorithms
from align_anything.cli.families import Family, families
from align_anything.cli.leaves import runs
from align_anything.configs.annotations import describe_type
from align_anything.configs.layers import TRAIN_FOLDER
from align_anything.configs.schema import AlgorithmCfgs
from align_anything.configs.yaml_text import parse_lines
from align_anything.models.acting.known import ACTING
from align_anything.trainers.pairs import PAIRS, Pair
from scripts.tables import code, listed, table

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'align_anything'
WRITTEN = '<!-- Written by `python -m scripts.document` from {origin}. Do not edit by hand. -->'
DATA = {
    'supervised': 'demonstrations: conversations whose answers are learned ([data](../data.md))',
    'preference': 'pairs of a better and a worse answer ([data](../preference.md#data))',
    'unpaired': 'single answers with a label, or pairs ([data](../preference.md#data))',
    'answers': 'one answer or two to each prompt, to be scored',
    'prompt': 'prompts; the model writes the answers and something rewards them ([data](../online.md))',
}
NEEDS = {
    'score': 'a score of each unit: every model can be trained',
    'transition': 'the probability of each sampled unit, or its density: models that write tokens, models that act, '
    'and denoisers that sample with noise',
    'probability': 'a probability of each unit among others: models that write tokens, or act by names',
}
WHEN = {
    'sft': 'first, of nearly every project: the other algorithms start from a model that already answers in form.',
    'generate': 'to write answers to a set of prompts, with rewards beside; nothing is trained.',
    'rm_score': 'to score or rank answers with a trained reward or cost model; nothing is trained.',
    'grpo': 'first, where answers can be checked or scored: no critic to train, 4 to 16 answers to each prompt.',
    'rloo': 'in place of GRPO where scores are to count as they are, not divided by the spread of a group.',
    'reinforce_plus_plus': 'where only one answer to a prompt is affordable, or rewards are alike over prompts.',
    'multi_ppo': 'to have the surrogate of PPO with another estimate of advantages and no critic.',
    'ppo': 'where answers are long, a reward at their end says little of each token, and a critic fits in memory.',
    'ppo_remote_rm': 'as PPO, where a service at an address rewards the responses.',
    'ppo_vllm': 'as PPO, where vLLM writes the responses.',
    'saferlhf': 'where answers are to be helpful under a bound on harm: with a reward model and a cost model.',
    'online_dpo': 'where a reward model ranks answers well but its numbers are not to be trusted as sizes.',
    'nft': 'for diffusion and flow models, without noise in the sampler: any solver and any number of steps samples.',
}
_PAPER = re.compile(r'arXiv:(\d{4}\.\d{4,5})')
_SECTIONS = re.compile(r'\n+(?:Args|Attributes|Raises|Returns|Class attributes):\n.*', re.DOTALL)


@functools.cache
def _runs() -> dict[str, list[str]]:
    return runs()


@functools.cache
def _families() -> list[Family]:
    return families()


def reference_pages() -> dict[str, str]:
    """Returns every page by its path below docs/."""
    found = {f'algorithms/{name}.md': _algorithm(name, kind) for name, kind in sorted(known_algorithms().items())}
    found |= {f'pairs/{name}.md': _pair(pair) for name, pair in PAIRS.items()}
    return found | {'papers.md': _papers(), 'memory.md': _memory()}


def _algorithm(name: str, kind: type[Algorithm]) -> str:
    losses = list(_losses_of(kind))
    texts = [inspect.getdoc(sys.modules[kind.__module__]) or '', inspect.getdoc(kind) or '']
    texts += [inspect.getdoc(loss) or '' for loss in losses]
    when = WHEN.get(name) or _told_when(name)
    pairs = [pair for pair, algorithms in _runs().items() if name in algorithms]
    parts = [
        WRITTEN.format(origin=f'align_anything/algorithms/{name}.py and the losses it uses'),
        f'# {name}',
        _first(kind),
        f'**When to use it:** {when}',
        table(
            ('', ''),
            [
                ('learns from', DATA[kind.task]),
                ('needs of the policy', NEEDS[_need(kind)]),
                ('a frozen reference', 'by its settings' if _may_refer(kind) else 'no'),
                ('pairs', ', '.join(f'[`{pair}`](../pairs/{pair}.md)' for pair in pairs)),
                ('papers', _papers_in('\n'.join(texts)) or 'none'),
            ],
        ).strip(),
        _command(name, 'text_to_text' if 'text_to_text' in pairs else pairs[0]),
        '## What is computed',
        _prose(kind),
        *(f'### `{loss.__module__.rpartition(".")[2]}.{loss.__name__}`\n\n{_prose(loss)}' for loss in losses),
        '## Settings of its own',
        _fields(kind),
        '## Defaults that ship',
        _shipped([TRAIN_FOLDER / f'{name}.yaml', *sorted(TRAIN_FOLDER.glob(f'*/{name}.yaml'))]),
        'All other settings: [configuration](../configuration.md). What metrics mean: '
        '[preferences](../preference.md), [rewards](../online.md).',
    ]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _command(name: str, pair: str) -> str:
    return (
        f'```bash\nalign-anything train {pair} {name} --help\n```\n\nlists what a run takes; '
        f'`deepspeed --module align_anything.trainers.{pair}.{name}` starts it on all devices.'
    )


def _need(kind: type[Algorithm]) -> str:
    return kind.model_construct(**{name: field.default for name, field in kind.model_fields.items()}).needs


def _may_refer(kind: type[Algorithm]) -> bool:
    return any(base.__name__ in ('Reference', 'Referring') for base in kind.__mro__)


def _first(kind: type[Algorithm]) -> str:
    return (inspect.getdoc(sys.modules[kind.__module__]) or '').partition('\n\n')[0].replace('\n', ' ')


def _told_when(name: str) -> str:
    """What the table of docs/preference.md says."""
    text = (ROOT / 'docs' / 'preference.md').read_text(encoding='utf-8')
    (found,) = re.findall(rf'^\| `{name}` \| (?:yes|no) \| (.*) \|$', text, re.MULTILINE)
    return f'{found}.'


def _losses_of(kind: type[Algorithm]) -> Iterator[Callable[..., Any]]:
    """The functions of align_anything/losses that an algorithm, or what it is derived from, imports."""
    seen = set()
    for base in kind.__mro__:
        if not base.__module__.startswith('align_anything.algorithms.') or base is Algorithm:
            continue
        tree = ast.parse(inspect.getsource(sys.modules[base.__module__]))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('align_anything.losses.'):
                for alias in node.names:
                    value = vars(sys.modules[node.module])[alias.name]
                    for function in value.values() if isinstance(value, Mapping) else [value]:
                        if inspect.isfunction(function) and function not in seen:
                            seen.add(function)
                            yield function


def _prose(thing: Any) -> str:
    """A docstring without the lists of its arguments."""
    return _SECTIONS.sub('', inspect.getdoc(thing) or '').strip()


def _papers_in(text: str) -> str:
    return ', '.join(_link(number) for number in sorted({*_PAPER.findall(text)}))


def _link(number: str) -> str:
    return f'[arXiv:{number}](https://arxiv.org/abs/{number})'


def _fields(kind: type[Algorithm]) -> str:
    rows = [
        (f'`{key}`', describe_type(field.annotation), code(field.default), field.description or '')
        for key, field in kind.model_fields.items()
        if key not in AlgorithmCfgs.model_fields
    ]
    return table(('key', 'type', 'default', 'meaning'), rows).strip() if rows else 'None.'


def _shipped(files: Sequence[Path]) -> str:
    rows = [
        (f'`{path.relative_to(TRAIN_FOLDER)}`', f'`{".".join(parts)}`', code(value))
        for path in files
        if path.is_file()
        for parts, value, _ in parse_lines(path.read_text(encoding='utf-8'))
    ]
    return table(('file', 'key', 'value'), rows).strip() if rows else 'None.'


def _pair(pair: Pair) -> str:
    algorithms = _runs()[pair.name]
    scripts = sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'scripts').glob('*/*.sh')
        if re.search(rf'trainers\.{pair.name}\.', path.read_text(encoding='utf-8'))
    )
    able = [
        family.model_type
        for family in _families()
        if family.reads is not None
        and not pair.missing_from(frozenset(family.reads))
        and not pair.unwritten_by(frozenset(family.writes or ()))
    ]
    answer = listed(pair.writes) if pair.writes_text else ' or '.join(sorted(pair.writes))
    defaults = [(f'`{key}`', code(value)) for key, value in pair.defaults.items()]
    parts = [
        WRITTEN.format(origin='align_anything/trainers/pairs.py'),
        f'# {pair.name}',
        f'A conversation may hold {listed(pair.reads)}; an answer is {answer}.'
        + ('' if pair.needs_all else ' A model need not read and write all of it: rows with other kinds are left out.'),
        f'```bash\nalign-anything train {pair.name} sft --help\n```',
        '## Algorithms',
        ', '.join(f'[`{name}`](../algorithms/{name}.md)' for name in algorithms),
        '## Models',
        (', '.join(f'`{name}`' for name in able) or 'None of the families by itself') + '.' + _other_models(pair),
        '## Defaults of the pair',
        table(('key', 'value'), defaults).strip() if defaults else 'None beside those of the algorithm.',
        '## Files that ship',
        _shipped(sorted((TRAIN_FOLDER / pair.name).glob('*.yaml'))),
        '## Ready commands',
        '\n'.join(f'- `bash {name}`' for name in scripts) or 'None.',
    ]
    return '\n\n'.join(parts) + '\n'


def _other_models(pair: Pair) -> str:
    if not pair.writes:
        return ' Most other classes of transformers load by the rules for all; others are [composed](../composed.md).'
    if pair.writes == {'action'}:
        own = ' and '.join(f'`{name}`' for name in ACTING)
        return (
            f' Models that [act without tokens](../actions.md#models-that-act-without-tokens), {own}; OpenVLA by '
            'its own code; and any family that reads pictures, once its actions '
            '[have tokens](../actions.md#token-policies-any-model-that-sees).'
        )
    emitting = ' Any language model once it has [tokens for these media](../emitting.md).'
    return emitting + ('' if pair.writes_text else ' [Pipelines of diffusers](../pipelines.md) that make them.')


_PAPERS = """# Papers

Every published method in the code: where it is computed, by which equation, and what is done otherwise than there.
Where nothing is said of a difference, none is known. Equations and sections of a row are those that its text names."""


def _papers() -> str:
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for where, text in _docstrings():
        for number in sorted({*_PAPER.findall(text)}):
            equations = ', '.join(dict.fromkeys(re.findall(r'(?:eqs?\.|section|table) \d[\d.]*(?<!\.)', text)))
            told = re.sub(r'\s+', ' ', _SECTIONS.sub('', text)).strip()
            rows.setdefault(number, []).append((where, equations, told))
    body = [
        (_link(number), f'`{where}`', equations, told)
        for number, found in sorted(rows.items())
        for where, equations, told in found
    ]
    heads = ('paper', 'here', 'equation', 'what is computed, and what differs')
    return '\n\n'.join([WRITTEN.format(origin='the docstrings'), _PAPERS, table(heads, body).strip()]) + '\n'


def _docstrings() -> Iterator[tuple[str, str]]:
    """The docstrings of the package, each under the name of what it describes."""
    for path in sorted(PACKAGE.rglob('*.py')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        module = '.'.join(path.relative_to(PACKAGE).with_suffix('').parts).removesuffix('.__init__')
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node)
                if text:
                    yield module if isinstance(node, ast.Module) else f'{module}.{node.name}', text


SIZES = {'0.5B': 0.5e9, '3B': 3e9, '8B': 8e9, '32B': 32e9, '70B': 70e9}
ADAPTER = 0.005
"""Share of the weights that an adapter of rank 16 on all linear layers has, about."""


_MEMORY = """# Memory

GiB that weights, gradients and Adam states take on one device, in bf16 with float32 masters, as the estimate of
`--dry_run` counts them: 2 bytes a weight, 2 a gradient, 12 of states; an adapter is taken for 0.5% of the weights.
Activations, of which `--dry_run` tells more, come on top: they grow with the tokens of a micro-batch. `--dry_run` with
your model is the better answer, loads no weights, and says what would take less (`--dry_run 80GiB`: of another
device)."""
_MORE_MEMORY = """## What else takes memory

- A reference (`dpo`, `kto`, online algorithms with a divergence) is one more copy of the weights, unless an adapter is
  trained (the model without it is the reference) or its scores are made beforehand
  ([preferences](preference.md#the-reference)).
- A critic (`ppo`, `saferlhf`) is one more model that trains; reward and cost models are frozen copies.
- vLLM in the same process takes the share of `vllm_gpu_memory_utilization` of each device.
- `ema_decay`, and the old policy of `nft`, are copies of what trains, in float32; `ema_on_cpu` keeps the former in host
  memory.

## When it does not fit

In this order, each costing more than the one before: `gradient_checkpointing`, a smaller `per_device_train_batch_size`
with more `gradient_accumulation_steps`, `--ds_cfgs ds_z2_config.json` or `ds_z3_config.json` with more devices,
`optimizer: adamw_8bit` (moments in 8 bits: 2 bytes a weight, not 8; it needs the extra `bnb`), `ema_on_cpu` where there
is an average, `--use_lora True`, `bnb_cfgs` (4 bits under an adapter), `activation_offloading`, `mlp_tiles`, and the
files with `offload`, which move states to the CPU. A smaller micro-batch changes no gradient. `--dry_run` advises what
of these a run does not have yet and what spares something of it, one after the other until it fits.

Where memory is left, `gradient_checkpointing_every_n_layers: 2` recomputes every second layer of each stack only, and
the others keep their activations. `activation_offloading` brings the inputs of recomputed layers into host memory until
the backward pass: of long rows that is what is left of activations beside one layer. Denoisers take the second alone.
For rows so long that the MLP of one layer fills a device, `mlp_tiles: 8` computes it in eight pieces of the row: pieces
are computed once more in the backward pass, gradients are the same, and all that of the MLP is there at once is a
piece. It is for gated MLPs of language models; experts are refused. `--dry_run` counts these three, and the log of a
run tells what is in force. A frozen reference leaves the device with
`reference_ds_cfgs: ds_z3_offload_config.json`, whose layers come one by one.

## Layers that are compiled, and kernels of Liger

`torch_compile` has torch.compile compile the layers of the language model, or the blocks that repeat in a denoiser,
one by one: below their hooks, under the names that their weights have, and for the policy, its critics and its frozen
copies alike. A layer is compiled for one length, then for all; attention of rows without padding, whose spans differ
in each row, stays outside, and so does what is generated token by token. With `gradient_checkpointing`,
`activation_offloading`, adapters, `sequence_parallel_size` and both engines it may be; ZeRO-3, the default, which
gathers the weights of a layer in several pieces, `mlp_tiles`, `use_liger_kernel`, and of denoisers
`max_length_per_batch` beside it are errors before a model loads, and so are models of which it is not known which
layers repeat. What cannot be compiled after all (no compiler, say) trains plain, with one warning that says why, as
does what comes after 16 forms of a layer. Dropout draws other numbers, and a resumed run agrees with one that was not
interrupted to rounding, no longer to the bit. Here gradients were compared with plain layers on CPUs, compiled by
g++; what it wins on a GPU has not been measured, and `--dry_run` counts activations as without it.

`use_liger_kernel` (the extra `liger`) gives a language model the norms, rotations and gated MLPs that liger-kernel
has for its family; its losses are not used, since scores are made in chunks here. Without a GPU, or for a family that
it does not know, the run computes without, and the log and `--dry_run` say so. `--dry_run` counts that norms and
activation functions keep less. Its kernels have not run on a GPU here: whole models are compared by Triton's
interpreter on CPUs, forward and backward, and `scripts/gpu_check.sh` compares them on a device.

## ZeRO++

A DeepSpeed file of stage 3 may hold `zero_hpz_partition_size` (a second copy of the weights, shared by the ranks of a
machine, from which backward passes gather), `zero_quantized_weights`, `zero_quantized_nontrainable_weights` and
`zero_quantized_gradients`. The log and `--dry_run` tell which are in force, and hpZ's copy is counted. What has no
effect is an error: below stage 3, a size that does not divide the ranks or is all of them, what quantises without CUDA,
and `mics_*`, which DeepSpeed has no more. hpZ trains as stage 3 does without it on four CPU ranks, in a test; what
quantises is handed to DeepSpeed and untested, and none of these has run on GPUs here.

## FSDP2 in the place of DeepSpeed

`--engine fsdp` trains on torch's own FSDP2 (`fully_shard`), for every algorithm, policy and medium: weights, gradients
and Adam states are shared among all ranks, as under ZeRO-3. A layer is gathered when it computes, one after another;
embeddings, heads and projectors, while the model does. What trains is kept in float32, of which passes in bf16 gather
copies; what is frozen is kept in bf16. Gradients are reduced once a step, in float32, behind its last micro-batch: with
`gradient_accumulation_steps` above 1 each device holds the gradient of all weights until then, which `--dry_run`
counts. Frozen references, reward models and critics are shared among ranks too.

- `fsdp_reshard_after_forward: False` keeps layers gathered between both passes; `fsdp_cpu_offload` keeps shares in host
  memory and steps there. Anything in a DeepSpeed file is DeepSpeed's: `ds_cfgs` beside `engine: fsdp` is an error, as
  are `fp16`, quantised weights (`bnb_cfgs`) and DeepSpeed's optimizers.
- While it loads, rank 0 has the whole model in host memory, and hands it layer by layer to the other ranks, which have
  built it without weights; a layer goes to the device, is cut, and is let go, so that a device never holds more than
  its share and one layer. Denoisers, models that act by heads or by a flow, code out of checkpoints
  (`trust_remote_code`), models that score without a head, and runs with a `feature_cache_dir` lie whole in the host
  memory of each rank while they load.
- Checkpoints of either engine are resumed by the other, and by another number of ranks: weights, Adam moments and the
  schedule by the name of each parameter (`--resume auto --engine fsdp`). `ds_cfgs` is then free to differ. In bf16,
  DeepSpeed's stage 0 is left out of that: it says so.
- Built and tested on CPUs, with gloo and torch 2.13. It has not run on GPUs with NCCL, nor has its speed there been
  measured.

## Rows longer than a device bears

`--sequence_parallel_size N` lets N ranks share each row (DeepSpeed Ulysses): a rank computes the layers of the language
model for a part of the tokens, and attention for a part of the heads. It needs `layout` packed or shared_prefix and
heads that N divides; every algorithm, stage, adapter and medium goes with it, and gradients are those of one rank.
Ranks of a group have the same rows, so that a step has `world size / N` times the micro-batch; online, each generates
for some of their prompts.

Each rank of a group runs the towers on its share of the row's images, videos and audio clips, by their sizes, and all
get the features; embeddings are those of the whole row on each rank. A tower whose calls do not fall into single media
(`tower_calls`, [extending.md](extending.md)) computes all of them on each rank, and the run says so. With fewer media
than ranks, some ranks compute one for nothing. What is scored is spread evenly, wherever in the row it stands. Router
losses are those of the whole row. Dropout is drawn by each rank for itself. Refused are heads that N does not divide,
padded rows, actions that are sampled at once, and rollouts beside the updates (`vllm_async`)."""


def _memory() -> str:
    rows = [
        (method, str(ranks), *(f'{_bytes(size, method, ranks) / 2**30:.1f}' for size in SIZES.values()))
        for method in ('full, ZeRO 0', 'full, ZeRO 1', 'full, ZeRO 2', 'full, ZeRO 3', 'LoRA', 'QLoRA, 4 bits')
        for ranks in ((1, 8) if 'ZeRO' in method and not method.endswith('0') else (1,))
    ]
    parts = [
        WRITTEN.format(origin='scripts/pages.py'),
        _MEMORY,
        table(('what trains', 'devices', *SIZES), rows).strip(),
        _MORE_MEMORY,
    ]
    return '\n\n'.join(parts) + '\n'


def _bytes(weights: float, method: str, ranks: int) -> float:
    stage = int(method[-1]) if 'ZeRO' in method else 0
    trained = weights if method.startswith('full') else ADAPTER * weights
    # With the scales of blocks, in 8 bits themselves.
    width = 0.516 if '4 bits' in method else 2
    return (
        weights * width / (ranks if stage == 3 else 1)
        + 2 * trained / (ranks if stage >= 2 else 1)
        + 12 * trained / (ranks if stage >= 1 else 1)
    )

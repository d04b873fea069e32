"""Makes one checkpoint out of a language model and encoders of media."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, ClapAudioModel, PreTrainedConfig, PreTrainedModel

from align_anything.configs.compose import ComposeCfgs
from align_anything.core.errors import ModelError
from align_anything.core.files import new_folder
from align_anything.core.logging import get_logger
from align_anything.models.architecture import skeleton
from align_anything.models.complete import load_complete
from align_anything.models.composed import plan as planning
from align_anything.models.composed.configuration_composed import CODE, ComposedConfig
from align_anything.models.composed.modeling_composed import TOWERS, make_projector
from align_anything.models.composed.plan import Plan, Source
from align_anything.models.composed.register import register
from align_anything.models.pretrained_model import load_spec

logger = get_logger(__name__)
MAX_SHARD_SIZE = '5GB'


def compose(cfgs: ComposeCfgs, out: str | Path, *, with_code: bool = False) -> Path:
    """Writes the model that `cfgs` describe to the new folder `out`, whole or not at all, and returns it.

    It is an ordinary checkpoint that refers to none of its parts: a LLaVA where images alone are read by one encoder of
    CLIP or SigLIP through an mlp of two layers, else `model_type: composed`. Weights have the type of the language
    model. The projectors are new, and so are the rows of new tokens: the mean of the others.

    Args:
        with_code: puts the code of composed models into the folder too, so that it loads without this package.

    Raises:
        ModelError: a part cannot be read or has no place in a composed model, parts do not fit each other, or `out`
            is not empty or cannot be written. What the configurations tell is found before any weight is read.
    """
    with new_folder(out) as draft:
        register()
        plan = planning.plan(cfgs)
        if with_code and plan.is_llava:
            raise ModelError('--with_code: this combination is a LLaVA, which transformers knows; leave it out.')
        _write(plan, draft, with_code)
        # Tries the template, and a medium of each kind.
        spec = load_spec(draft, model_max_length=None)
        spec.processor.save_pretrained(draft)
    logger.info('composed model (%s): %s', 'llava' if plan.is_llava else ComposedConfig.model_type, out)
    return Path(out)


def _write(plan: Plan, folder: Path, with_code: bool) -> None:
    language_model = load_complete(AutoModelForCausalLM, plan.language_model)
    dtype = language_model.dtype
    state = _language_state(language_model, plan)
    config = plan.llava_config() if plan.is_llava else plan.config()
    for kind, part in plan.parts.items():
        for number, source in enumerate(part.sources):
            prefix = 'model.vision_tower.' if plan.is_llava else f'model.{TOWERS[kind]}.encoders.{number}.'
            state |= {f'{prefix}{name}': tensor for name, tensor in _encoder_state(source).items()}
    target = skeleton(config)
    state |= _projector_state(config, target, plan)
    shapes = {name: tuple(tensor.shape) for name, tensor in target.state_dict().items()}
    wanted = {name: shape for name, shape in shapes.items() if name not in target.all_tied_weights_keys}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [f'{name} {given.get(name)} -> {shape}' for name, shape in wanted.items() if given.get(name) != shape]
    if wrong:
        raise ModelError(f'the parts lack weights of the composed model, or have them in other shapes: {wrong[:5]}.')
    # What has no place in it, such as a pooling head, is left behind.
    state = {
        name: (state[name].to(dtype) if state[name].is_floating_point() else state[name]).contiguous()
        for name in wanted
    }
    if with_code:
        target.config.auto_map = {name: value for name, value in CODE.items() if name != 'AutoProcessor'}
    target.to(dtype)
    target.generation_config = language_model.generation_config
    target.save_pretrained(folder, state_dict=state, max_shard_size=MAX_SHARD_SIZE)
    plan.processor(config, with_code).save_pretrained(folder)


def _language_state(model: PreTrainedModel, plan: Plan) -> dict[str, Tensor]:
    body, head = model.base_model, model.get_output_embeddings()
    embedding = body.get_input_embeddings()
    name = next(name for name, module in body.named_modules() if module is embedding)
    state = {f'model.language_model.{key}': tensor for key, tensor in body.state_dict().items()}
    state[f'model.language_model.{name}.weight'] = plan.with_new_rows(embedding.weight.detach())
    state['lm_head.weight'] = plan.with_new_rows(head.weight.detach())
    if head.bias is not None:
        state['lm_head.bias'] = plan.with_new_rows(head.bias.detach())
    return state


def _encoder_state(source: Source) -> dict[str, Tensor]:
    # A bare encoder of CLAP is the one that AutoModel does not know.
    auto = ClapAudioModel if source.config.model_type == 'clap_audio_model' and not source.module else AutoModel
    model = load_complete(auto, source.name)
    module = model.get_submodule(source.module) if source.module else model
    return dict(module.state_dict())


def _projector_state(config: PreTrainedConfig, target: PreTrainedModel, plan: Plan) -> dict[str, Tensor]:
    """First weights of the projectors. The caller's random state is left as it is."""
    prefix = 'model.multi_modal_projector'
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        if plan.is_llava:
            names = {name: tensor for name, tensor in target.state_dict().items() if name.startswith(f'{prefix}.')}
            return {
                name: torch.zeros(tensor.shape) if tensor.ndim < 2 else torch.randn(tensor.shape) * 0.02
                for name, tensor in names.items()
            }
        state = {}
        for kind in plan.parts:
            projector = make_projector(config, kind)
            for module in projector.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
                    nn.init.zeros_(module.bias)
            state |= {f'{prefix}.{kind}.{name}': tensor for name, tensor in projector.state_dict().items()}
        return state

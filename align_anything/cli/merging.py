"""Putting an adapter into the model that it was trained on."""

from __future__ import annotations

from pathlib import Path

from align_anything.core.errors import ModelError
from align_anything.core.files import new_folder, trained_model_in
from align_anything.core.logging import get_logger
from align_anything.models.acting.checkpoint import export_acting, load_action_spec
from align_anything.models.acting.known import is_acting
from align_anything.models.acting.pi0_checkpoint import export_pi0
from align_anything.models.action_space import keep_action_space
from align_anything.models.adapter import Adapter, find_adapter, put_on
from align_anything.models.any_model import AnyModel, AnyModelForScore
from align_anything.models.checkpoint import read_config
from align_anything.models.declared_codes import keep_codes
from align_anything.models.diffusion.merging import merge_pipeline
from align_anything.models.diffusion.saved_lora import base_of, is_lora_folder
from align_anything.models.export import export_model
from align_anything.models.pretrained_model import load_spec
from align_anything.models.score import SCORE_HEAD
from align_anything.reporting.card import write_merged_card

logger = get_logger(__name__)

EXPORTS = {'action': export_acting, 'denoised action': export_pi0}
"""What writes models that act, by what a unit of theirs is."""


def merge_adapter(
    folder: str | Path, out: str | Path, *, base: str | None = None, trust_remote_code: bool = False
) -> None:
    """Writes the model under the adapter in `folder`, with the adapter in it, to the new folder `out`.

    The sums are taken in float32, and stored in the type of the checkpoint. The model is read as it is stored, also
    when the adapter was trained over 4 or 8 bits of it; one that is stored quantised is written in float32. Processor
    and chat template are those beside the adapter, else the model's. The head of a reward or cost model comes along.
    Adapters of pipelines make pipelines, whose other components are hard links where the disk allows. `out` appears
    whole or not at all. The output folder of a run stands for the adapter trained in it.

    Args:
        base: folder or hub name of the model; None for the one that the adapter records.

    Raises:
        ModelError: `folder` is missing or holds no adapter, it was not trained on such a model, or `out` cannot be
            written.
    """
    if not Path(folder).is_dir():
        raise ModelError(f'{folder} is no folder; name the one that the run saved, such as <output_dir>/slice_end.')
    folder = trained_model_in(folder) or Path(folder)
    if is_lora_folder(folder):
        with new_folder(out) as draft:
            name = base or base_of(folder)
            write_merged_card(draft, folder, name, merge_pipeline(folder, draft, base))
        return
    adapter = find_adapter(folder)
    if adapter is None:
        raise ModelError(f'{folder} holds no LoRA adapter: it has no adapter_config.json, or a whole model beside it.')
    with new_folder(out) as draft:
        _merge(adapter, folder, draft, base, trust_remote_code)


def _merge(adapter: Adapter, folder: Path, draft: Path, base: str | None, trust_remote_code: bool) -> None:
    source = adapter.require_base() if base is None else base
    if base is not None and adapter.base not in (None, base):
        _check_replacement(adapter.base, base, trust_remote_code)
    acts = is_acting(source)
    if acts:
        spec = load_action_spec(folder, base=source)
    else:
        spec = load_spec(folder, base=source, trust_remote_code=trust_remote_code)
    kind = AnyModelForScore if SCORE_HEAD in (adapter.settings.get('modules_to_save') or ()) else AnyModel
    adapted = put_on(kind.from_pretrained(source, dtype='auto', trust_remote_code=trust_remote_code), adapter)
    if acts:
        EXPORTS[spec.unit](adapted, None, draft, spec, merge_adapter=True)
    else:
        export_model(
            adapted,
            None,
            draft,
            tokenizer=spec.tokenizer,
            processor=spec.processor,
            merge_adapter=True,
            end_of_turn_id=spec.renderer.end_of_turn_id,
            pad_token_id=spec.pad_token_id,
        )
        keep_codes(spec.config, spec.codes, draft)
        keep_action_space(spec.space, draft)
    write_merged_card(draft, folder, source, spec)


def _check_replacement(recorded: str, base: str, trust_remote_code: bool) -> None:
    """Raises ModelError when another kind of model than the recorded one is named: layers alike may fit by chance."""
    logger.info('the adapter records the model %s; merging into %s as asked', recorded, base)
    named = read_config(base, trust_remote_code).model_type
    try:
        expected = read_config(recorded, trust_remote_code).model_type
    except ModelError:
        # The recorded model is often why another is named: it is gone.
        return
    if named != expected:
        raise ModelError(
            f"the adapter was trained on {recorded} (model_type '{expected}'), not on a '{named}': {base}."
        )

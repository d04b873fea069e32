"""Settings of supervised data that are trained on beside the rollouts (ptx)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from align_anything.configs.data import Arguments, DataCfgs, Files, Names, OnePerDataset, Sizes
from align_anything.configs.effects import Effects, needs


class PtxDataCfgs(DataCfgs):
    """What the run trains and evaluates on, and supervised data beside its prompts, given like the training data."""

    takes_effect: ClassVar[Effects] = {
        f'ptx_{key}': needs('data_cfgs.ptx_datasets')
        for key in ('template', 'template_kwargs', 'name', 'split', 'size', 'data_files', 'optional_args')
    }

    ptx_datasets: Names = Field(
        None, description='Supervised data that each optimizer step is trained on too. null takes none.'
    )
    ptx_template: Names = Field(None, description='Template of the supervised data.')
    ptx_template_kwargs: Arguments = Field({}, description='Arguments of that template.')
    ptx_name: OnePerDataset = Field(None, description='Configuration of a hub dataset of supervised data.')
    ptx_split: OnePerDataset = Field(None, description='Split of the supervised data, for instance `train`.')
    ptx_size: Sizes = Field(None, description='Only the first so many rows are used. null takes all.')
    ptx_data_files: Files = Field(None, description='Files inside the dataset, given like train_data_files.')
    ptx_optional_args: Arguments = Field(
        {}, description='Further keyword arguments of datasets.load_dataset for the supervised data.'
    )

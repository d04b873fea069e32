"""Settings of supervised data that are trained on beside the rollouts (ptx)."""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveInt, field_validator

from align_anything.configs.schema import DataCfgs, OnePerDataset


class PtxDataCfgs(DataCfgs):
    """What the run trains and evaluates on, and supervised data beside its prompts, given like the training data."""

    ptx_datasets: str | list[str] | None = Field(
        None, description='Supervised data that each optimizer step is trained on too. null takes none.'
    )
    ptx_template: str | list[str] | None = Field(None, description='Template of the supervised data.')
    ptx_template_kwargs: dict[str, Any] | list[dict[str, Any]] = Field({}, description='Arguments of that template.')
    ptx_name: OnePerDataset = Field(None, description='Configuration of a hub dataset of supervised data.')
    ptx_split: OnePerDataset = Field(None, description='Split of the supervised data, for instance `train`.')
    ptx_size: PositiveInt | list[PositiveInt | None] | None = Field(
        None, description='Only the first so many rows are used. null takes all.'
    )
    ptx_data_files: str | list[str | list[str] | None] | None = Field(
        None, description='Files inside the dataset, given like train_data_files.'
    )
    ptx_optional_args: dict[str, Any] | list[dict[str, Any]] = Field(
        {}, description='Further keyword arguments of datasets.load_dataset for the supervised data.'
    )

    @field_validator('ptx_template_kwargs', 'ptx_optional_args')
    @classmethod
    def _none_of_them(cls, value: Any) -> Any:
        return value or {}

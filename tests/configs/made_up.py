"""Made-up algorithms, so that these tests stand on the floor of the settings alone."""

from __future__ import annotations

from pydantic import Field, model_validator

from align_anything.configs.schema import AlgorithmCfgs


class SFT(AlgorithmCfgs):
    label_smoothing: float = Field(0.0, ge=0, lt=1, description='Share of the target spread over all tokens.')
    smooth_from: int = Field(0, ge=0, description='Step from which label_smoothing is in force.')

    @model_validator(mode='after')
    def _smooth_something(self) -> SFT:
        if self.smooth_from and not self.label_smoothing:
            raise ValueError('smooth_from needs label_smoothing')
        return self


class DPO(AlgorithmCfgs):
    scale_coeff: float = Field(0.1, description='Strength of the pull towards the reference.')


KNOWN = {'sft': SFT, 'dpo': DPO}

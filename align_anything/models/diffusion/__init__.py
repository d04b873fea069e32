"""Diffusion and flow models: pipelines of diffusers whose denoiser is trained, and what is around it frozen."""

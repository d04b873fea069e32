"""Denoisers as policies: units are draws of a noise level and noise, or denoising steps that were sampled."""

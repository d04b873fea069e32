"""Policies whose chunks of numbers come from noise by a flow, such as pi0."""

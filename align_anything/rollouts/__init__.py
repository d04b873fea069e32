"""Generation of responses to prompts by the policy in training."""

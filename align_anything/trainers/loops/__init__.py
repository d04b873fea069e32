"""The two training loops, over a fixed dataset and over responses that the policy samples."""

"""Tasks of lm-evaluation-harness, computed by our own engine: https://github.com/EleutherAI/lm-evaluation-harness."""

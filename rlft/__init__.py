"""rlft: reinforcement-learning fine-tuning for language models on Ray, vLLM and DeepSpeed."""

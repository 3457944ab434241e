"""One decoder for Gemma, LLaMA and LLaMA's relatives, in Flax NNX; Hugging Face import and export."""

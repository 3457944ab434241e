"""One decoder for Gemma 2, Gemma 3 and LLaMA 3, in Flax NNX; Hugging Face import and export."""

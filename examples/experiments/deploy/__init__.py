"""An extracted child where people serve: transformers, vLLM and llama.cpp, alone and as its parent's draft model."""

"""Pictures to token ids and back: codebooks, tokenizers, and reading of picture folders."""

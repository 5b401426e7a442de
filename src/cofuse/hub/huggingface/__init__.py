"""What Hugging Face's clients ask of a hub, unmodified, with `HF_ENDPOINT` set to it: see docs/huggingface.md."""

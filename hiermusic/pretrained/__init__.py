"""Models as files that travel: export to safetensors, config.json and a model card, and the way back."""

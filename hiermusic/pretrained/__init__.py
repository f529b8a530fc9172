"""Models as files that travel: export to safetensors, config.json and a model card, the way back, and others' models."""

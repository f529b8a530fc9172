"""Models as files that travel: export to safetensors, config.json and a card, the way back, and others' models."""

"""From files to batches: corpora, records, pipelines and tokenising."""

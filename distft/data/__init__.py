"""Raw files -> tokenized shards -> ordered batches."""

"""The stages on Ray: ingest, transplant, finetune, evaluate, register."""

"""The stages on Ray: ingest, transplant, finetune, evaluate, register."""

from __future__ import annotations

from pathlib import Path


def serving_path() -> Path:
    """The file that MLflow runs to load a registered model; it is run, not imported."""
    return Path(__file__).parent / "serving.py"

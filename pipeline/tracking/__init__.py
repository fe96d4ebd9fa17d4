"""MLflow: the client, runs, the registry, the served model, pictures."""

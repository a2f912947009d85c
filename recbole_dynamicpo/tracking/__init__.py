"""What a run leaves on disk, and MLflow's copy of it."""

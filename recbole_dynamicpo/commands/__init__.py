"""What the console scripts do: ``run_recbole`` in ``run``, each subcommand in a file of its name."""

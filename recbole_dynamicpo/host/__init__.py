"""RecBole as our host: it finds us, is configured without eval, runs its own models."""

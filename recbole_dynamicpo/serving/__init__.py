"""A saved recommender, kept and asked."""

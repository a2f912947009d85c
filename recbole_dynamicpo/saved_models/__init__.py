"""A saved model, ours or a plain adapter of others, on the rows of a data set or of a file of users."""

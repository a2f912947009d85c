"""A catalogue's titles as a trie: exact likelihood of each, and exact ranking of all."""

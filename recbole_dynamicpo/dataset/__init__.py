"""RecBole's data set as rows: in order, with titles, candidates and templates."""

"""RecBole's own models as priors: trained in folds of users, kept as plain data, asked without RecBole."""

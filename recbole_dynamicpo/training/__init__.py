"""The method as RecBole's data set, model and trainer."""

"""The page on which a person decides.  Made by `promote`, shown by `retrain review`."""

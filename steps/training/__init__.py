"""What `fit` and `train` share: what is read, fitted, known again and left in MLflow."""

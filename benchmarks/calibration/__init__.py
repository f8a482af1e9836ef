"""What defaults are worth, judged by retraining."""

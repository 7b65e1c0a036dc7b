"""From a trained model to labels and answers."""

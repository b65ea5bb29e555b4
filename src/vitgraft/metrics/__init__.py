"""How good a trained model is: metrics and reports of them. Nothing here needs Lightning."""

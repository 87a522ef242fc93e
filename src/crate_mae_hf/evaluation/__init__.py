"""What a trained model is worth: features, probes on them, and reconstruction errors beside simple baselines."""

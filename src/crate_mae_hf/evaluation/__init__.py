"""Evaluation of trained models: features, probes on them, and reconstruction errors beside simple baselines."""

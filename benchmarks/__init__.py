"""Speed and memory of CRATE-MAE beside a literal port of its formulas, ViTMAE, ViT and DINOv2."""

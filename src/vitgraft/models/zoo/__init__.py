"""The systems the paper compares with, where timm lacks them: PVT v1, T2T-ViT, RegionViT and Vision Longformer."""

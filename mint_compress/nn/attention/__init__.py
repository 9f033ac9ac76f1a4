"""Attention made of layers, so that its heads can go: what packs its weights otherwise is given layers."""

"""Augmentation of tokens: pure operations, and recipes that derive their parameters from draws."""

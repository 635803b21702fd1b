"""The networks: MTM for pre-training, TokenClassifier for classification, and their weights."""

"""What the data say about a network: what its weights meet when the calibration batches run through it."""
